"""Autoencoders of images: the parts of all learned ones, the KL autoencoder, and the identity on pixels.

Sources: Rombach et al. 2022, section 3.1 (arXiv:2112.10752); Kingma & Welling 2014, appendix B (arXiv:1312.6114).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unveil.errors import RecipeError, ShapeError
from unveil.nn.autoencoder import AutoencoderConfig, ImageDecoder, ImageEncoder

PerChannel = float | tuple[float, ...]


@dataclass(frozen=True)
class LatentConfig(AutoencoderConfig):
    """Configuration of an autoencoder and its latents.

    Args:
        latent_channels: Number of channels of the latents, which 1x1 convolutions compute from z and convert back to z;
            None: latents are z, without these convolutions (Stable Diffusion 3, FLUX).
        scale, shift: Scale and shift of the latents (z - shift) * scale, so that their deviation is near 1; one number,
            or one for each channel. A saved autoencoder keeps them among its tensors.

    Raises:
        RecipeError: The settings are inconsistent.
    """

    latent_channels: int | None = None
    scale: PerChannel = 1.0
    shift: PerChannel = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_channels is not None and self.latent_channels < 1:
            raise RecipeError(f"latent_channels = {self.latent_channels}: must be at least 1")
        for name in ("scale", "shift"):
            value: Any = getattr(self, name)
            if not isinstance(value, float | int):
                object.__setattr__(self, name, tuple(value))
                if len(value) != self.width:
                    raise RecipeError(
                        f"{name}: {len(value)} numbers for {self.width} channels; give one, or one for each"
                    )
        if any(number == 0 for number in per_channel_list(self.scale, 1)):
            raise RecipeError("scale = 0: must be another number, since decoding divides by it")

    @property
    def width(self) -> int:
        """Number of channels of the latents."""
        return self.z_channels if self.latent_channels is None else self.latent_channels

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape (C, h, w) of one sample's latents, given the shape of its pixels.

        Raises:
            ShapeError: The number of channels is wrong, or the size is not a multiple of `factor`; the message names
                the nearest.
        """
        if len(shape) != 3 or shape[0] != self.in_channels:
            raise ShapeError(f"images of shape {tuple(shape)}: must be ({self.in_channels}, H, W)")
        return (self.width, *self.latent_size((shape[1], shape[2])))


class Autoencoder(nn.Module, ABC):
    """An encoder and a decoder with scaled latents between them.

    Pixels lie in [-1, 1]; z is what the decoder was trained on, and latents are (z - shift) * scale.

    Attributes:
        scale, shift: Scale and shift of each channel (C,), saved with the weights.
        stochastic: True if an image has several latents, from which noise selects one.
        axes: Axes after the channels: "H, W" of images, or "T, H, W" of videos.
    """

    scale: Tensor
    shift: Tensor
    stochastic: bool = False
    axes: str = "H, W"

    def __init__(self, config: LatentConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = self.networks()
        self.enter = self.leave = None
        if config.latent_channels is not None:
            moments, z_channels, width = config.moments, config.z_channels, config.width
            self.enter = nn.Conv2d(moments * z_channels, moments * width, 1)
            self.leave = nn.Conv2d(width, z_channels, 1)
        for name in ("scale", "shift"):
            self.register_buffer(name, torch.tensor(per_channel_list(getattr(config, name), config.width)))

    def networks(self) -> tuple[Any, Any]:
        """Encoder and decoder, freshly initialised."""
        return ImageEncoder(self.config), ImageDecoder(self.config)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last convolution, at which the adversarial loss is balanced."""
        return self.decoder.leave.weight

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape (C, h, w) of one sample's latents, given the shape of its pixels.

        Raises:
            ShapeError: The shape does not fit, as in `LatentConfig.latent_shape`.
        """
        return self.config.latent_shape(shape)

    @abstractmethod
    def latents_of(self, encoded: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents (B, C, h, w) from the encoder's output; `noise` of their shape selects a sample."""

    @abstractmethod
    def z_of(self, latents: Tensor) -> Tensor:
        """Input of the decoder for latents, both (B, C, h, w)."""

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents (B, C, h, w) of pixels (B, C, H, W) in [-1, 1].

        Args:
            pixels: Pixels of a size that is a multiple of `config.factor`.
            noise: Standard normal noise of the latents' shape, for an autoencoder with several latents of an image;
                None: the most probable latents.

        Raises:
            ShapeError: The channels are wrong, or the size is not a multiple of `config.factor`; the message names the
                nearest.
        """
        return self.latents_of(self.encoded(pixels), noise)

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, C, H, W) of latents."""
        return self.decoded(self.z_of(latents))

    def encoded(self, pixels: Tensor) -> Tensor:
        """Output of the encoder: (B, moments * C, h, w).

        Raises:
            ShapeError: The channels are wrong, or the size is not a multiple of `config.factor`; the message names the
                nearest.
        """
        return self.after_encoder(self.encoder(channels_last(pixels)))

    def decoded(self, z: Tensor) -> Tensor:
        """Pixels of z (B, C, h, w), with gradients."""
        return self.decoder(self.before_decoder(channels_last(z)))

    def after_encoder(self, h: Tensor) -> Tensor:
        """Apply the 1x1 convolution after the encoder, if there is one."""
        return h if self.enter is None else self.enter(h)

    def before_decoder(self, z: Tensor) -> Tensor:
        """Apply the 1x1 convolution before the decoder, if there is one."""
        return z if self.leave is None else self.leave(z)

    def to_latents(self, z: Tensor) -> Tensor:
        """Latents of z."""
        return (z - self._shaped(self.shift, z)) * self._shaped(self.scale, z)

    def from_latents(self, latents: Tensor) -> Tensor:
        """Decoder input z of latents."""
        return latents / self._shaped(self.scale, latents) + self._shaped(self.shift, latents)

    def _shaped(self, numbers: Tensor, z: Tensor) -> Tensor:
        ones = (1,) * len(self.axes.split(","))
        if z.ndim != 2 + len(ones) or z.shape[1] != len(numbers):
            raise ShapeError(f"latents {tuple(z.shape)}: must be (B, {len(numbers)}, {self.axes})")
        return numbers.to(z.dtype).view(1, -1, *ones)


def channels_last(x: Tensor) -> Tensor:
    """Convert images to channels-last memory, in which convolutions are fast; videos are returned unchanged."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def per_channel_list(numbers: PerChannel, width: int) -> list[float]:
    """Return one number for each of `width` channels."""
    return [float(numbers)] * width if isinstance(numbers, float | int) else [float(number) for number in numbers]


class Identity(nn.Module):
    """Autoencoder without networks, whose latents are the pixels."""

    stochastic: bool = False

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the pixels; `noise` has no effect."""
        return pixels

    def decode(self, latents: Tensor) -> Tensor:
        """Return the latents."""
        return latents

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the same shape."""
        return shape


LOGVAR = (-30.0, 20.0)  # the published limits of the logarithm of the variance


@dataclass(frozen=True)
class AutoencoderKLConfig(LatentConfig):
    """Configuration with a mean and a variance for each latent; the settings are those of `LatentConfig`."""

    moments: int = field(default=2, init=False)


class DiagonalGaussian(NamedTuple):
    """Gaussian over z, with mean and log-variance, both (B, C, h, w)."""

    mean: Tensor
    logvar: Tensor

    @property
    def mode(self) -> Tensor:
        """Most probable z (B, C, h, w)."""
        return self.mean

    @property
    def std(self) -> Tensor:
        """Standard deviation (B, C, h, w)."""
        return torch.exp(0.5 * self.logvar)

    def sample(self, noise: Tensor) -> Tensor:
        """Sample z (B, C, h, w) for standard normal noise (B, C, h, w)."""
        return torch.addcmul(self.mean, self.std, noise)

    def kl(self) -> Tensor:
        """KL divergence from a standard normal distribution, in nats, summed over each sample: (B,).

        Source: Kingma & Welling 2014, appendix B.
        """
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(1)


class AutoencoderKL(Autoencoder):
    """Autoencoder whose latents are samples of a Gaussian, or its most probable values."""

    config: AutoencoderKLConfig
    stochastic = True

    def posterior(self, pixels: Tensor) -> DiagonalGaussian:
        """Gaussian over z for pixels (B, C, H, W) in [-1, 1].

        Raises:
            ShapeError: The channels are wrong, or the size is not a multiple of `config.factor`; the message names the
                nearest.
        """
        return self.posterior_of(self.encoded(pixels))

    def posterior_of(self, moments: Tensor) -> DiagonalGaussian:
        """Gaussian from the encoder's output (B, 2C, h, w), its mean and log-variance."""
        mean, logvar = moments.chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar.clamp(*LOGVAR))

    def latents_of(self, encoded: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents from the encoder's output: a sample for the noise, or without noise the most probable ones."""
        posterior = self.posterior_of(encoded)
        return self.to_latents(posterior.mode if noise is None else posterior.sample(noise.to(posterior.mean)))

    def z_of(self, latents: Tensor) -> Tensor:
        """Input of the decoder: latents without scale and shift."""
        return self.from_latents(latents)
