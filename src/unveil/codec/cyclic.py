"""A codec of clips for loops, whose first frame follows the last: no frame stands alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

AHEAD = 4  # latents before the first that a codec without a way of its own for loops is shown


class Cyclic(nn.Module):
    """A causal codec, given loops of k time frames, which are k latents.

    A codec that has `encode_cyclic` and `decode_cyclic` does it by them. Any other is shown the end of the loop before
    its beginning, and what stands for that is taken away again.

    Args:
        codec: of clips of 1 + k time frames.
        time: frames of one latent.
    """

    def __init__(self, codec: Any, time: int) -> None:
        super().__init__()
        self.codec: Any = codec
        self.time = time

    @property
    def stochastic(self) -> bool:
        """Whether `encode` does something with noise: it gives the likeliest latents."""
        return False

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """The likeliest latents (B, Z, k, h, w) of loops (B, C, k time, H, W)."""
        del noise
        if hasattr(self.codec, "encode_cyclic"):
            return self.codec.encode_cyclic(pixels)
        count = 1 + AHEAD * self.time
        before = torch.arange(-count, 0) % pixels.shape[2]
        return self.codec.encode(torch.cat([pixels[:, :, before], pixels], dim=2))[:, :, 1 + AHEAD :]

    def decode(self, latents: Tensor) -> Tensor:
        """Loops (B, C, k time, H, W) of latents (B, Z, k, h, w)."""
        if hasattr(self.codec, "decode_cyclic"):
            return self.codec.decode_cyclic(latents)
        before = torch.arange(-1 - AHEAD, 0) % latents.shape[2]
        return self.codec.decode(torch.cat([latents[:, :, before], latents], dim=2))[:, :, 1 + AHEAD * self.time :]

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the latents of a loop (C, k time, H, W)."""
        channels, frames, *sides = self.codec.latent_shape((shape[0], shape[1] + 1, *shape[2:]))
        return channels, frames - 1, *sides
