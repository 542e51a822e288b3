"""The autoencoder of videos: encoder and decoder of causal convolutions, for whole videos or piece by piece.

    encoder: frames -> enter -> [blocks, half the size, half the frames] per level -> middle -> leave -> z
    decoder: z -> enter -> middle -> [blocks, twice the frames, twice the size] per level -> leave -> frames

A video has 1 + k ct frames and 1 + k latents: the first latent represents only the first frame, each other one ct
frames, and none depends on a later frame. An image is a video of one frame. Normalisations do not extend over time or
space, so that pieces and tiles give the result of the whole.

In parallel to either network, a linear map connects each latent with its box of ct x cs x cs pixels. It is initialised
to the lowest frequencies of the box, so that training starts from a coarse reconstruction, and the networks learn the
rest.

A causal convolution with a kernel of k frames and a stride of s needs k - s earlier frames. They are in a `Cache`, a
plain tuple of tensors in the order in which the layers run. The caller passes the cache of the previous piece, and no
module keeps any state. Before the first frame there are copies of it. The first piece has 1 + a multiple of s frames,
each later piece a multiple of s.

Sources: Yu et al. 2024, section 3.2 (arXiv:2310.05737); causality in convolutions: van den Oord et al. 2016, section
2.1 (arXiv:1609.03499); Wan Team 2025, section 4.1 (arXiv:2503.20314), for normalisation per position, halving of the
time at the coarser levels, and doubling by channels; Chen et al. 2025, section 3.2 (arXiv:2410.10733), for learning the
residual of a direct map between boxes and latents.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.errors import RecipeError, ShapeError
from unveil.nn.autoencoder import AutoencoderConfig, Middle, Norm, activated
from unveil.nn.dct import lowpass_rows
from unveil.nn.layers import PixelRMS, check_multiple, zeroed
from unveil.nn.unet import Downsample, Upsample

Cache = tuple[Tensor, ...]


class StreamState:
    """Cache that the layers of one call read, and the cache that they write for the next call.

    Args:
        before: Cache of the previous piece; None: the video begins here.
    """

    def __init__(self, before: Cache | None = None) -> None:
        self.begins = before is None
        self.saved: list[Tensor] = []
        self._before: Iterator[Tensor] = iter(before or ())

    def prepend(self, x: Tensor, frames: int) -> Tensor:
        """Prepend the frames before x (B, C, T, H, W): those of the cache, or `frames` copies of its first frame.

        Raises:
            ShapeError: The cache belongs to another network or to other videos.
        """
        if self.begins:
            return torch.cat([x[:, :, :1].expand(-1, -1, frames, -1, -1), x], 2)
        before = next(self._before, None)
        if before is None or (*before.shape[:2], *before.shape[3:]) != (*x.shape[:2], *x.shape[3:]):
            shape = "nothing" if before is None else tuple(before.shape)
            raise ShapeError(
                f"cache: {shape} for {tuple(x.shape)}: give the cache that came back with the piece before, of the "
                "same network and the same clips"
            )
        return torch.cat([before.to(x.dtype), x], 2)

    def keep(self, frames: Tensor) -> None:
        """Save frames (B, C, n, H, W) for the next piece; without gradients a copy, which frees the larger tensor."""
        self.saved.append(frames if torch.is_grad_enabled() else frames.clone())


class CausalConv(nn.Conv3d):
    """Causal convolution of (frames, side, side), which does not depend on later frames.

    Args:
        kernel: Number of frames, odd, and of pixels a side, odd.
        stride: Stride in time; 2 halves the number of frames after the first.
    """

    def __init__(self, width: int, out: int, kernel: tuple[int, int], *, stride: int = 1) -> None:
        frames, side = kernel
        super().__init__(width, out, (frames, side, side), stride=(stride, 1, 1), padding=(0, side // 2, side // 2))

    def forward(self, input: Tensor, past: StreamState) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Map x (B, C, T, H, W) to (B, out, T', H, W): T' = 1 + (T - 1) / stride at first, T / stride later."""
        frames, stride = self.kernel_size[0], self.stride[0]
        if frames == 1:
            return super().forward(input)
        if past.begins and input.shape[2] == 1:  # an image, which meets the sum of the weights over time
            past.keep(input.expand(-1, -1, frames - stride, -1, -1))
            side = self.padding[1]
            weight = self.weight.sum(2)
            return F.conv2d(input[:, :, 0], weight, self.bias, padding=int(side))[:, :, None]
        x = past.prepend(input, frames - 1)
        output = super().forward(x)
        past.keep(x[:, :, output.shape[2] * stride :])
        return output


def by_frame(layer: Callable[[Tensor], Tensor], clips: Tensor) -> Tensor:
    """Apply a layer for images (B, C, H, W) to each frame of videos (B, C, T, H, W)."""
    output = layer(clips.transpose(1, 2).flatten(0, 1))  # (B T, C', H', W')
    return output.unflatten(0, (len(clips), -1)).transpose(1, 2)


LOGVAR = -6.0  # of latents before training: little noise, so that what is left out of them can be learned
MAX_FRAMES_AT_ONCE = 4  # latents that are computed at a time where no gradient is wanted


@dataclass(frozen=True)
class VideoAutoencoderConfig(AutoencoderConfig):
    """Configuration of an autoencoder of videos; sizes, widths and levels are those of `AutoencoderConfig`.

    Args:
        time: Number of frames per latent, a power of two; the coarsest levels halve the time.
        span: Number of frames that become channels at the input and frames again at the output, a power of two; 1:
            none.

    Raises:
        RecipeError: The settings are inconsistent.
    """

    norm: Norm = field(default="rms", init=False)
    middle: Middle = field(default="blocks", init=False)
    attention: tuple[int, ...] = field(default=(), init=False)
    groups: int = field(default=1, init=False)
    time: int = 4
    span: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("time", "span"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                near = 2 ** max(round(math.log2(max(value, 1))), 0)
                raise RecipeError(f"{name} = {value}: must be a power of two; nearest: {near}")
        most = self.span * self.rates[-1]
        if not self.span <= self.time <= most:
            raise RecipeError(
                f"time = {self.time}: {len(self.channel_mult)} levels and span {self.span} reach {self.span} to {most} "
                "frames for a latent; change span, or add levels to channel_mult"
            )

    @property
    def box(self) -> int:
        """Number of pixels that a latent represents."""
        return self.time * self.factor**2

    @property
    def halves(self) -> tuple[bool, ...]:
        """Flag of each level except the last, True if the time is halved after it."""
        changes, count = len(self.rates) - 1, int(math.log2(self.time // self.span))
        return tuple(place >= changes - count for place in range(changes))

    def latent_frames(self, frames: int) -> int:
        """Number of latents in time of a video of the given number of frames.

        Raises:
            ShapeError: The number is not 1 + a multiple of `time`; the message names the nearest.
        """
        if frames < 1 or (frames - 1) % self.time:
            below = 1 + max(frames - 1, 0) // self.time * self.time
            near = f"{below} or {below + self.time}" if frames > 1 else "1"
            raise ShapeError(f"{frames} frames: must be 1 + a multiple of {self.time}; nearest {near}")
        return 1 + (frames - 1) // self.time

    def receptive_field_past(self, blocks: int) -> int:
        """Number of earlier latents that one depends on, for the given number of blocks per level."""
        frames_read, frames = 2 * 5 * 1.0, self.time  # the first or last convolution of z, and two blocks in the middle
        for level in reversed(range(len(self.rates))):
            frames_read += 4 * blocks * frames / self.time
            if level and self.halves[level - 1]:
                frames //= 2
                frames_read += 2 * 2 * frames / self.time
        return math.ceil(frames_read + 2 * self.span / self.time) + 1

    @property
    def encoder_receptive_field_past(self) -> int:
        """Number of earlier latents whose frames a latent depends on in the encoder."""
        return self.receptive_field_past(self.num_res_blocks)

    @property
    def decoder_receptive_field_past(self) -> int:
        """Number of earlier latents that a frame depends on in the decoder."""
        return self.receptive_field_past(self.num_res_blocks + 1)


class VideoBlock(nn.Module):
    """Two causal convolutions with a residual connection."""

    def __init__(self, width: int, out: int, config: VideoAutoencoderConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.norm_1 = PixelRMS(width, config.norm_eps)
        self.conv_1 = CausalConv(width, out, (3, 3))
        self.norm_2 = PixelRMS(out, config.norm_eps)
        self.conv_2 = CausalConv(out, out, (3, 3))
        self.skip = nn.Identity() if width == out else nn.Conv3d(width, out, 1)

    def forward(self, x: Tensor, past: StreamState) -> Tensor:
        """Map x (B, C, T, H, W) to (B, out, T, H, W)."""
        h = self.conv_1(activated(self.norm_1(x)), past)
        h = self.conv_2(F.dropout(activated(self.norm_2(h)), self.dropout, self.training), past)
        return h.add_(self.skip(x))


class VideoDownsample(nn.Module):
    """Downsampling of each frame, and optionally of the time by a causal convolution with stride 2."""

    def __init__(self, width: int, time: bool) -> None:
        super().__init__()
        self.space = Downsample(width, asymmetric=True)
        self.time = CausalConv(width, width, (3, 1), stride=2) if time else None

    def forward(self, x: Tensor, past: StreamState) -> Tensor:
        """Map x (B, C, T, H, W) to (B, C, T', H/2, W/2): T' = T, or 1 + (T - 1) / 2 at first and T / 2 later."""
        h = by_frame(self.space, x)
        return h if self.time is None else self.time(h, past)


class VideoUpsample(nn.Module):
    """Upsampling of each frame, and optionally of the time, except for the very first frame."""

    def __init__(self, width: int, time: bool) -> None:
        super().__init__()
        self.time = CausalConv(width, 2 * width, (3, 1)) if time else None
        self.space = Upsample(width)

    def forward(self, x: Tensor, past: StreamState) -> Tensor:
        """Map x (B, C, T, H, W) to (B, C, T', 2H, 2W): T' = T, or 2T - 1 at first and 2T later."""
        h = x if self.time is None else channels_to_time(self.time(x, past), 2, past)
        return by_frame(self.space, h)


class VideoLevel(nn.Module):
    """Blocks of one resolution, and the resampling to the next resolution."""

    def __init__(self, blocks: Sequence[VideoBlock], resample: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample

    def forward(self, h: Tensor, past: StreamState) -> Tensor:
        """Apply the blocks and the resampling in order."""
        for block in self.blocks:
            h = block(h, past)
        return h if self.resample is None else self.resample(h, past)


def channels_to_time(x: Tensor, span: int, past: StreamState) -> Tensor:
    """Channels (B, C span, n, H, W) as frames (B, C, n span, H, W); the first piece drops its first span - 1 frames."""
    output = x.unflatten(1, (-1, span)).transpose(2, 3).flatten(2, 3)
    return output[:, :, span - 1 :] if past.begins else output


def time_to_channels(x: Tensor, span: int, past: StreamState) -> Tensor:
    """Frames (B, C, n span, H, W) as channels (B, C span, n, H, W); at the beginning the first frame fills `span`."""
    if past.begins:
        x = torch.cat([x[:, :, :1].expand(-1, -1, span - 1, -1, -1), x], 2)
    return x.unflatten(2, (-1, span)).transpose(2, 3).flatten(1, 2)


def patchify(x: Tensor, span: int, side: int, past: StreamState) -> Tensor:
    """Boxes of `span` frames and `side` pixels a side as channels: (B, C, T, H, W) to (B, C span side^2, n, h, w)."""
    return by_frame(lambda frames: F.pixel_unshuffle(frames, side), time_to_channels(x, span, past))


def unpatchify(x: Tensor, span: int, side: int, past: StreamState) -> Tensor:
    """Channels (B, C span side^2, n, h, w) as boxes of frames and pixels (B, C, T, H, W), the inverse of `patchify`."""
    return channels_to_time(by_frame(lambda frames: F.pixel_shuffle(frames, side), x), span, past)


def _level(
    width: int, level: int, blocks: int, config: VideoAutoencoderConfig, resample: nn.Module | None
) -> VideoLevel:
    """Level whose input has `width` channels."""
    out = config.widths[level]
    return VideoLevel([VideoBlock(width if i == 0 else out, out, config) for i in range(blocks)], resample)


class StreamingModule(nn.Module, ABC):
    """Network over time that gives the same output for a whole video and for its pieces."""

    def forward(self, x: Tensor) -> Tensor:
        """Output for a whole video (B, C, T, H, W); without gradients it is computed in pieces, which saves memory."""
        if torch.is_grad_enabled():
            return self.run(x, StreamState())
        pieces: list[Tensor] = []
        cache: Cache | None = None
        for piece in self.pieces(x):
            output, cache = self.step(piece, cache)
            pieces.append(output)
        return torch.cat(pieces, 2)

    def step(self, x: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """Return the output of a piece (B, C, T, H, W), and the cache for the next piece.

        Args:
            cache: Cache that the previous piece of the same videos returned; None: the video begins here.

        Raises:
            ShapeError: The channels are wrong, the size is not a multiple of the factor, or the frames end between two
                latents.
        """
        past = StreamState(cache)
        output = self.run(x, past)
        return output, tuple(past.saved)

    @abstractmethod
    def pieces(self, x: Tensor) -> tuple[Tensor, ...]:
        """Split a whole video into pieces of `MAX_FRAMES_AT_ONCE` latents."""

    @abstractmethod
    def run(self, x: Tensor, past: StreamState) -> Tensor:
        """Apply all layers to a piece."""


class VideoEncoder(StreamingModule):
    """Encoder from frames to z."""

    def __init__(self, config: VideoAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        last, widths = len(config.widths) - 1, config.widths
        self.enter = CausalConv(config.in_channels * config.span * config.patch**2, config.model_channels, (3, 3))
        self.down = nn.ModuleList()
        for level, out in enumerate(widths):
            resample = None if level == last else VideoDownsample(out, config.halves[level])
            width = config.model_channels if level == 0 else widths[level - 1]
            self.down.append(_level(width, level, config.num_res_blocks, config, resample))
        self.middle = VideoLevel([VideoBlock(widths[-1], widths[-1], config) for _ in range(2)])
        self.norm = PixelRMS(widths[-1], config.norm_eps)
        self.leave = zeroed(CausalConv(widths[-1], config.moments * config.z_channels, (3, 3)))
        self.direct = zeroed(nn.Conv3d(config.in_channels * config.box, config.z_channels, 1))
        with torch.no_grad():
            rows = lowpass_rows(config.z_channels, config.in_channels, config.time, config.factor)
            self.direct.weight.copy_(rows[:, :, None, None, None])
            if self.leave.bias is not None:
                self.leave.bias[config.z_channels :] = LOGVAR

    def pieces(self, x: Tensor) -> tuple[Tensor, ...]:
        """Split frames (B, in_channels, T, H, W) into pieces.

        Raises:
            ShapeError: T is not 1 + a multiple of `time`; the message names the nearest.
        """
        latents = self.config.latent_frames(_checked(x, self.config.in_channels, "pixels").shape[2])
        time = self.config.time
        ends = [1 + (n - 1) * time for n in range(MAX_FRAMES_AT_ONCE, latents, MAX_FRAMES_AT_ONCE)]
        return x.tensor_split(ends, 2)

    def run(self, x: Tensor, past: StreamState) -> Tensor:
        """Map frames (B, in_channels, T, H, W) to (B, moments * z_channels, T', H / factor, W / factor)."""
        config = self.config
        _checked(x, config.in_channels, "pixels")
        check_multiple(x, config.factor)
        if past.begins:
            config.latent_frames(x.shape[2])
        elif x.shape[2] % config.time or not x.shape[2]:
            raise ShapeError(f"{x.shape[2]} frames behind others: must be a multiple of {config.time}")
        h = self.enter(patchify(x, config.span, config.patch, past), past)
        for level in self.down:
            h = level(h, past)
        h = self.leave(activated(self.norm(self.middle(h, past))), past)
        mean, more = h.tensor_split([config.z_channels], 1)
        return torch.cat([mean + self.direct(patchify(x, config.time, config.factor, past)), more], 1)


class VideoDecoder(StreamingModule):
    """Decoder from z to frames."""

    def __init__(self, config: VideoAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        last, widths = len(config.widths) - 1, config.widths
        self.enter = CausalConv(config.z_channels, widths[-1], (3, 3))
        self.middle = VideoLevel([VideoBlock(widths[-1], widths[-1], config) for _ in range(2)])
        self.up = nn.ModuleList()
        for level in range(last, -1, -1):
            resample = None if level == 0 else VideoUpsample(widths[level], config.halves[level - 1])
            self.up.append(_level(widths[min(level + 1, last)], level, config.num_res_blocks + 1, config, resample))
        self.norm = PixelRMS(widths[0], config.norm_eps)
        self.leave = zeroed(CausalConv(widths[0], config.out_channels * config.span * config.patch**2, (3, 3)))
        self.direct = zeroed(nn.Conv3d(config.z_channels, config.out_channels * config.box, 1))
        with torch.no_grad():
            rows = lowpass_rows(config.z_channels, config.out_channels, config.time, config.factor)
            self.direct.weight.copy_(rows.T[:, :, None, None, None])

    def pieces(self, x: Tensor) -> tuple[Tensor, ...]:
        """Split z (B, z_channels, T', h, w) into pieces."""
        return _checked(x, self.config.z_channels, "latents").split(MAX_FRAMES_AT_ONCE, 2)

    def run(self, x: Tensor, past: StreamState) -> Tensor:
        """Map z (B, z_channels, T', h, w) to frames (B, out_channels, T, factor h, factor w)."""
        config = self.config
        h = self.middle(self.enter(_checked(x, config.z_channels, "latents"), past), past)
        for level in self.up:
            h = level(h, past)
        h = self.leave(activated(self.norm(h)), past)
        return unpatchify(self.direct(x), config.time, config.factor, past) + unpatchify(
            h, config.span, config.patch, past
        )


def _checked(x: Tensor, channels: int, what: str) -> Tensor:
    """Return x if it is a video with these channels and at least one frame; raise ShapeError otherwise."""
    if x.ndim == 4 and x.shape[1] == channels:
        raise ShapeError(f"{what} {tuple(x.shape)}: an image is a clip of one frame; give x[:, :, None]")
    if x.ndim != 5 or x.shape[1] != channels or not x.shape[2]:
        raise ShapeError(f"{what} {tuple(x.shape)}: must be (B, {channels}, T, H, W) of at least one frame")
    return x
