"""The KL autoencoder of videos, whose first latent represents one frame and each later one several frames.

A video of 1 + k ct frames has 1 + k latents; an image is a video of one frame. Encoding and decoding give the same as a
whole and in pieces, because all that a piece needs of the earlier ones is in a cache, which is a value. A part from the
middle of a video, or a loop, is encoded after frames that represent the past: the first latent of a video encodes only
one frame, and occurs nowhere else.

Sources: Wan Team 2025, section 4.1 (arXiv:2503.20314), for the cache; Bi et al. 2025 (arXiv:2502.20307), for cyclic
latents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unveil.autoencoders.autoencoder import AutoencoderKL, AutoencoderKLConfig
from unveil.errors import ShapeError
from unveil.nn.video_autoencoder import Cache, VideoAutoencoderConfig, VideoDecoder, VideoEncoder


@dataclass(frozen=True)
class VideoAutoencoderKLConfig(VideoAutoencoderConfig, AutoencoderKLConfig):
    """Configuration of an autoencoder of videos, with a mean and a variance for each latent.

    The settings are those of `VideoAutoencoderConfig`, and scale and shift of `LatentConfig`.
    """

    moments: int = field(default=2, init=False)
    latent_channels: int | None = field(default=None, init=False)

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape (C, 1 + k, h, w) of one video's latents, given the shape of its pixels (C, 1 + k time, H, W).

        Raises:
            ShapeError: The channels, the length or the size is wrong; the message names the nearest.
        """
        if len(shape) != 4 or shape[0] != self.in_channels:
            raise ShapeError(
                f"clips of shape {tuple(shape)}: must be ({self.in_channels}, T, H, W); an image is a clip of a frame"
            )
        return (self.width, self.latent_frames(shape[1]), *self.latent_size((shape[2], shape[3])))


class VideoAutoencoderKL(AutoencoderKL):
    """Autoencoder of videos (B, C, T, H, W): whole, in pieces, from the middle, and cyclic."""

    config: VideoAutoencoderKLConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    axes = "T, H, W"

    def networks(self) -> tuple[VideoEncoder, VideoDecoder]:
        """Encoder and decoder of causal convolutions."""
        return VideoEncoder(self.config), VideoDecoder(self.config)

    @torch.no_grad()
    def encode_stream(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Most probable latents of a video that arrives in pieces, yielded as soon as their frames are complete.

        Together they are those of `encode`; the memory is that of a piece, however long the video is.

        Args:
            pieces: Pieces of frames (B, C, n, H, W) in [-1, 1], of any lengths; their sum is 1 + a multiple of `time`.

        Raises:
            ShapeError: The channels or sizes are wrong, or the video ends between two latents; the message names the
                nearest length.
        """
        cache: Cache | None = None
        waiting: Tensor | None = None
        count = 0
        for piece in pieces:
            waiting = piece if waiting is None else torch.cat([waiting, piece], 2)
            rest = waiting.shape[2] - (1 if cache is None else 0)
            ready = waiting.shape[2] - rest % self.config.time if rest >= 0 else 0
            count += piece.shape[2]
            if ready:
                encoded, cache = self.encoder.step(waiting[:, :, :ready], cache)
                waiting = waiting[:, :, ready:].clone()
                yield self.latents_of(self.after_encoder(encoded))
        self.config.latent_frames(count)

    @torch.no_grad()
    def decode_stream(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Frames of a video whose latents arrive in pieces; together they are those of `decode`.

        The memory is that of a piece, however long the video is; pieces of one latent need the least.

        Args:
            pieces: Pieces of latents (B, C', n, h, w), n at least 1.

        Raises:
            ShapeError: The channels are wrong, or the sizes differ.
        """
        cache: Cache | None = None
        for piece in pieces:
            pixels, cache = self.decoder.step(self.before_decoder(self.z_of(piece)), cache)
            yield pixels

    @torch.no_grad()
    def encode_segment(self, x: Tensor, left_context: Tensor | None = None) -> Tensor:
        """Most probable latents (B, C', k, h, w) of frames from the middle of a video, each of `time` frames.

        Args:
            x: Frames (B, C, k time, H, W) in [-1, 1].
            left_context: Frames (B, C, n, H, W) before them. 1 + a multiple of `time` frames from the beginning of the
                video give the latents of the whole video; for other lengths, the first frame is repeated in front.
                None: copies of x's first frame.

        Raises:
            ShapeError: The channels or sizes are wrong, or the length is not a multiple of `time`; the message names
                the nearest.
        """
        time, frames = self.config.time, x.shape[2] if x.ndim == 5 else 0
        if not frames or frames % time:
            below = frames // time * time
            near = f"{below} or {below + time}" if below else f"{time}"
            raise ShapeError(f"a segment {tuple(x.shape)}: must have a multiple of {time} frames; nearest {near}")
        context = x[:, :, :1] if left_context is None else left_context
        missing = (1 - context.shape[2]) % time
        before = torch.cat([context[:, :, :1].expand(-1, -1, missing, -1, -1), context], 2)
        cache: Cache | None = None
        for piece in self.encoder.pieces(before):
            cache = self.encoder.step(piece, cache)[1]
        pieces: list[Tensor] = []
        for piece in x.split(time, 2):
            encoded, cache = self.encoder.step(piece, cache)
            pieces.append(encoded)
        return self.latents_of(self.after_encoder(torch.cat(pieces, 2)))

    def encode_cyclic(self, x: Tensor) -> Tensor:
        """Most probable latents (B, C', k, h, w) of a loop (B, C, k time, H, W), whose last frame precedes its first.

        Raises:
            ShapeError: The channels or sizes are wrong, or the length is not a multiple of `time`; the message names
                the nearest.
        """
        wanted = 1 + self.config.time * self.config.encoder_receptive_field_past
        rounds = -(-wanted // max(x.shape[2], 1)) if x.ndim == 5 else 1
        return self.encode_segment(x, torch.cat([x] * rounds, 2)[:, :, -wanted:])

    @torch.no_grad()
    def decode_cyclic(self, latents: Tensor) -> Tensor:
        """Frames (B, C, k time, H, W) of cyclic latents (B, C', k, h, w), the first of which follows the last.

        Each latent represents `time` frames, and all positions are equal: latents shifted by one give the same frames,
        shifted by `time`.

        Raises:
            ShapeError: The number of channels is wrong.
        """
        z = self.before_decoder(self.z_of(latents))
        self.decoder.pieces(z)  # at least one
        pieces, cache = z.split(1, 2), None
        for place in range(-self.config.decoder_receptive_field_past, 0):
            cache = self.decoder.step(pieces[place % len(pieces)], cache)[1]
        decoded: list[Tensor] = []
        for piece in pieces:
            pixels, cache = self.decoder.step(piece, cache)
            decoded.append(pixels)
        return torch.cat(decoded, 2)


AHEAD = 4  # times as many frames before the first that a codec without its own way for loops is shown


class LoopingAutoencoder(nn.Module):
    """Autoencoder of loops from a causal autoencoder of videos.

    `encode_cyclic` and `decode_cyclic` of the wrapped autoencoder are used if it has them. Otherwise the end of the
    loop is repeated before its beginning, and the corresponding part of the result is removed.

    Args:
        codec: Autoencoder of videos of 1 + k time frames.
        time, latents: Number of frames that are encoded together, and of their latents.
        first: Number of latents of the first frame.
    """

    def __init__(self, codec: Any, time: int, latents: int = 1, first: int = 1) -> None:
        super().__init__()
        self.codec: Any = codec
        self.time, self.latents, self.first = time, latents, first

    @property
    def stochastic(self) -> bool:
        """Return False, because `encode` returns the most probable latents."""
        return False

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Most probable latents (B, Z, k latents, h, w) of loops (B, C, k time, H, W); `noise` has no effect."""
        del noise
        if hasattr(self.codec, "encode_cyclic"):
            return self.codec.encode_cyclic(pixels)
        before = torch.arange(-1 - AHEAD * self.time, 0) % pixels.shape[2]
        latents = self.codec.encode(torch.cat([pixels[:, :, before], pixels], dim=2))
        return latents[:, :, self.first + AHEAD * self.latents :]

    def decode(self, latents: Tensor) -> Tensor:
        """Loops (B, C, k time, H, W) from latents (B, Z, k latents, h, w)."""
        if hasattr(self.codec, "decode_cyclic"):
            return self.codec.decode_cyclic(latents)
        before = torch.arange(-self.first - AHEAD * self.latents, 0) % latents.shape[2]
        return self.codec.decode(torch.cat([latents[:, :, before], latents], dim=2))[:, :, 1 + AHEAD * self.time :]

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latents of a loop, given the shape of its pixels (C, k time, H, W)."""
        channels, frames, *sides = self.codec.latent_shape((shape[0], shape[1] + 1, *shape[2:]))
        return channels, frames - self.first, *sides
