"""Codecs: between pixels and what the network sees."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from unveil.autoencoders.autoencoder import Autoencoder, CodecConfig
from unveil.autoencoders.identity import Identity
from unveil.autoencoders.kl import KL, KLConfig, Posterior
from unveil.autoencoders.video_kl import Video, VideoConfig
from unveil.autoencoders.vq import VQ, Quantised, Usage, VQConfig


class Codec(Protocol):
    """Pixels in [-1, 1] to latents of unit scale and back."""

    @property
    def stochastic(self) -> bool:
        """Whether `encode` does something with noise."""
        ...

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents of pixels, both (B, ...); `noise` of the latents' shape picks one of several, None the likeliest."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of latents, both (B, ...)."""
        ...

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one sample's latents, given that of its pixels."""
        ...


__all__ = [
    "KL",
    "VQ",
    "Autoencoder",
    "Codec",
    "CodecConfig",
    "Identity",
    "KLConfig",
    "Posterior",
    "Quantised",
    "Usage",
    "VQConfig",
    "Video",
    "VideoConfig",
]
