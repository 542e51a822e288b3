"""Autoencoders between pixels and latents."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from unveil.autoencoders.autoencoder import (
    Autoencoder,
    AutoencoderKL,
    AutoencoderKLConfig,
    DiagonalGaussian,
    Identity,
    LatentConfig,
)
from unveil.autoencoders.video_kl import VideoAutoencoderKL, VideoAutoencoderKLConfig
from unveil.autoencoders.vq import CodebookUsage, Quantised, VQModel, VQModelConfig


class LatentAutoencoder(Protocol):
    """Autoencoder between pixels in [-1, 1] and latents of unit scale."""

    @property
    def stochastic(self) -> bool:
        """Return True if `encode` uses noise."""
        ...

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents of pixels, both (B, ...); `noise` of their shape selects a sample, None the most probable one."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of latents, both (B, ...)."""
        ...

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one sample's latents, given the shape of its pixels."""
        ...


__all__ = [
    "Autoencoder",
    "AutoencoderKL",
    "AutoencoderKLConfig",
    "CodebookUsage",
    "DiagonalGaussian",
    "Identity",
    "LatentAutoencoder",
    "LatentConfig",
    "Quantised",
    "VQModel",
    "VQModelConfig",
    "VideoAutoencoderKL",
    "VideoAutoencoderKLConfig",
]
