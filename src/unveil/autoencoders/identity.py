"""No codec: the network sees the pixels themselves."""

from __future__ import annotations

from torch import Tensor, nn


class Identity(nn.Module):
    """Latents are pixels."""

    stochastic: bool = False

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """The pixels; `noise` has no effect."""
        return pixels

    def decode(self, latents: Tensor) -> Tensor:
        """The latents."""
        return latents

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The same shape."""
        return shape
