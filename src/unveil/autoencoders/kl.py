"""The continuous codec of latent diffusion: an encoder that gives a Gaussian for each image.

Sources: Rombach et al. 2022, section 3.1 (arXiv:2112.10752); Kingma & Welling 2014, appendix B (arXiv:1312.6114).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.autoencoders.autoencoder import Autoencoder, CodecConfig

LOGVAR = (-30.0, 20.0)  # the published limits of the logarithm of the variance


@dataclass(frozen=True)
class AutoencoderKLConfig(CodecConfig):
    """An autoencoder with a mean and a variance for each latent; the settings are those of `CodecConfig`."""

    moments: int = field(default=2, init=False)


class DiagonalGaussian(NamedTuple):
    """A Gaussian over z: mean and logarithm of the variance, both (B, C, h, w)."""

    mean: Tensor
    logvar: Tensor

    @property
    def mode(self) -> Tensor:
        """The most probable z (B, C, h, w)."""
        return self.mean

    @property
    def std(self) -> Tensor:
        """The deviation (B, C, h, w)."""
        return torch.exp(0.5 * self.logvar)

    def sample(self, noise: Tensor) -> Tensor:
        """The z (B, C, h, w) that standard normal noise (B, C, h, w) picks."""
        return torch.addcmul(self.mean, self.std, noise)

    def kl(self) -> Tensor:
        """The divergence from a standard normal distribution, in nats, summed over each sample: (B,).

        Source: Kingma & Welling 2014, appendix B.
        """
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(1)


class AutoencoderKL(Autoencoder):
    """The codec whose latents are samples of, or the most probable of, a Gaussian."""

    config: AutoencoderKLConfig
    stochastic = True

    def posterior(self, pixels: Tensor) -> DiagonalGaussian:
        """The Gaussian over z of pixels (B, C, H, W) in [-1, 1].

        Raises:
            ShapeError: other channels, or a size that is not a multiple of `config.factor`; names the nearest.
        """
        return self.posterior_of(self.encoded(pixels))

    def posterior_of(self, moments: Tensor) -> DiagonalGaussian:
        """The Gaussian that (B, 2C, h, w) stands for."""
        mean, logvar = moments.chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar.clamp(*LOGVAR))

    def latents_of(self, encoded: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents of the encoder's output: those that noise picks; without noise, the likeliest."""
        posterior = self.posterior_of(encoded)
        return self.scaled(posterior.mode if noise is None else posterior.sample(noise.to(posterior.mean)))

    def z_of(self, latents: Tensor) -> Tensor:
        """Input of the decoder for latents: they without their scale."""
        return self.unscaled(latents)
