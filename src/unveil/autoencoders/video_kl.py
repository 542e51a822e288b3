"""The codec of clips: a Gaussian for each clip, whose latents are those of an image and of what follows it.

A clip of 1 + k ct frames has 1 + k latents; an image is a clip of one frame. Whole or in pieces, encoding and decoding
give the same, since all that a piece needs of those before it is in a cache, which is a value. What was cut from the
middle of a clip, or has no beginning, is encoded behind frames that stand for what came before: the first latent of a
clip codes one frame alone and occurs nowhere else.

Sources: Wan Team 2025, section 4.1 (arXiv:2503.20314), for the cache; Bi et al. 2025 (arXiv:2502.20307), for latents in
a ring.
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
    """An autoencoder of clips with a mean and a variance for each latent.

    The settings are those of `VideoAutoencoderConfig`, and scale and shift of `LatentConfig`.
    """

    moments: int = field(default=2, init=False)
    latent_channels: int | None = field(default=None, init=False)

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape (C, 1 + k, h, w) of one clip's latents, given that of its pixels (C, 1 + k time, H, W).

        Raises:
            ShapeError: Clips of other channels, length or size; names the nearest.
        """
        if len(shape) != 4 or shape[0] != self.in_channels:
            raise ShapeError(
                f"clips of shape {tuple(shape)}: must be ({self.in_channels}, T, H, W); an image is a clip of a frame"
            )
        return (self.width, self.latent_frames(shape[1]), *self.latent_size((shape[2], shape[3])))


class VideoAutoencoderKL(AutoencoderKL):
    """The codec of clips (B, C, T, H, W), whole, in pieces, out of the middle and in a ring."""

    config: VideoAutoencoderKLConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    axes = "T, H, W"

    def networks(self) -> tuple[VideoEncoder, VideoDecoder]:
        """Encoder and decoder of causal convolutions."""
        return VideoEncoder(self.config), VideoDecoder(self.config)

    @torch.no_grad()
    def encode_stream(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """The likeliest latents of a clip that comes in pieces, as soon as their frames are there.

        Together they are those of `encode`; memory is that of a piece, however long the clip.

        Args:
            pieces: Pieces of frames (B, C, n, H, W) in [-1, 1], of any lengths; 1 + a multiple of `time` in all.

        Raises:
            ShapeError: Other channels or sizes, or an end between two latents; names the nearest length.
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
        """The frames of a clip whose latents come in pieces; together they are those of `decode`.

        Memory is that of a piece, however long the clip: pieces of one latent need the least.

        Args:
            pieces: Pieces of latents (B, C', n, h, w), n at least 1.

        Raises:
            ShapeError: Other channels, or sizes that differ.
        """
        cache: Cache | None = None
        for piece in pieces:
            pixels, cache = self.decoder.step(self.before_decoder(self.z_of(piece)), cache)
            yield pixels

    @torch.no_grad()
    def encode_segment(self, x: Tensor, left_context: Tensor | None = None) -> Tensor:
        """The likeliest latents (B, C', k, h, w) of frames out of the middle of a clip, none the coding of one frame.

        Args:
            x: Frames (B, C, k time, H, W) in [-1, 1].
            left_context: The frames (B, C, n, H, W) before them. 1 + a multiple of `time` from the beginning of the
                clip give the latents that the whole clip has; of other lengths, the first frame is repeated in front.
                None: copies of x's first frame, as if the clip had stood still until then.

        Raises:
            ShapeError: Other channels or sizes, or a length that is not a multiple; names the nearest.
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
        """The likeliest latents (B, C', k, h, w) of a loop (B, C, k time, H, W), whose last frame is before its first.

        Raises:
            ShapeError: Other channels or sizes, or a length that is not a multiple; names the nearest.
        """
        wanted = 1 + self.config.time * self.config.encoder_receptive_field_past
        rounds = -(-wanted // max(x.shape[2], 1)) if x.ndim == 5 else 1
        return self.encode_segment(x, torch.cat([x] * rounds, 2)[:, :, -wanted:])

    @torch.no_grad()
    def decode_cyclic(self, latents: Tensor) -> Tensor:
        """The frames (B, C, k time, H, W) of a ring of latents (B, C', k, h, w), the first of which follows the last.

        Each stands for `time` frames, and no place of the ring is special: latents that are turned on by one give the
        same frames, turned on by `time`.

        Raises:
            ShapeError: Other channels.
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
    """A causal codec, given loops of k times as many frames as go together in it.

    A codec that has `encode_cyclic` and `decode_cyclic` does it by them. Any other is shown the end of the loop before
    its beginning, and what stands for that is taken away again.

    Args:
        codec: Codec of clips of 1 + k time frames.
        time, latents: Frames that go together, and their latents.
        first: Latents of the frame before those.
    """

    def __init__(self, codec: Any, time: int, latents: int = 1, first: int = 1) -> None:
        super().__init__()
        self.codec: Any = codec
        self.time, self.latents, self.first = time, latents, first

    @property
    def stochastic(self) -> bool:
        """Return True if `encode` does something with noise: it gives the likeliest latents."""
        return False

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """The likeliest latents (B, Z, k latents, h, w) of loops (B, C, k time, H, W)."""
        del noise
        if hasattr(self.codec, "encode_cyclic"):
            return self.codec.encode_cyclic(pixels)
        before = torch.arange(-1 - AHEAD * self.time, 0) % pixels.shape[2]
        latents = self.codec.encode(torch.cat([pixels[:, :, before], pixels], dim=2))
        return latents[:, :, self.first + AHEAD * self.latents :]

    def decode(self, latents: Tensor) -> Tensor:
        """Loops (B, C, k time, H, W) of latents (B, Z, k latents, h, w)."""
        if hasattr(self.codec, "decode_cyclic"):
            return self.codec.decode_cyclic(latents)
        before = torch.arange(-self.first - AHEAD * self.latents, 0) % latents.shape[2]
        return self.codec.decode(torch.cat([latents[:, :, before], latents], dim=2))[:, :, 1 + AHEAD * self.time :]

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Pixels of the latents of a loop (C, k time, H, W)."""
        channels, frames, *sides = self.codec.latent_shape((shape[0], shape[1] + 1, *shape[2:]))
        return channels, frames - self.first, *sides
