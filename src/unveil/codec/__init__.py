"""Codecs: between pixels and what the network sees."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from unveil.codec.identity import Identity


class Codec(Protocol):
    """Pixels in [-1, 1] to latents of unit scale and back."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents of pixels, both (B, ...)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of latents, both (B, ...)."""
        ...

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one sample's latents, given that of its pixels."""
        ...


__all__ = ["Codec", "Identity"]
