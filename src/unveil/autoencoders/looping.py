"""A codec of clips for loops, whose first frame follows the last: no frame stands alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

AHEAD = 4  # times as many frames before the first that a codec without its own way for loops is shown


class LoopingAutoencoder(nn.Module):
    """A causal codec, given loops of k times as many frames as go together in it.

    A codec that has `encode_cyclic` and `decode_cyclic` does it by them. Any other is shown the end of the loop before
    its beginning, and what stands for that is taken away again.

    Args:
        codec: of clips of 1 + k time frames.
        time, latents: frames that go together, and their latents.
        first: latents of the frame before those.
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
