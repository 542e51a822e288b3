"""Diffusers' autoencoders of images as codecs of ours: latents of zero mean and unit scale.

Facts: how diffusers' `SanaPipeline`, `QwenImagePipeline` and `Flux2KleinPipeline` take latents to and from their
autoencoders.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unveil.checkpoints.hf.components import build_module
from unveil.checkpoints.hf.pipeline_folder import PipelineFolder
from unveil.checkpoints.hf.weights import fill
from unveil.errors import ShapeError
from unveil.types import format_size


class ImageCodec(nn.Module):
    """An autoencoder of diffusers in float32, as a codec; its subclasses state the latents and their scale.

    Args:
        folder: Folder of a pipeline.
        kind: Class of its component "vae".

    Attributes:
        channels, factor: Channels of the latents, and pixels of a side that one latent stands for.

    Raises:
        WeightsError: A component that is missing, damaged or of another class.
    """

    stochastic = False
    channels: int
    factor: int

    def __init__(self, folder: PipelineFolder, kind: str) -> None:
        super().__init__()
        self.vae = build_module(folder, kind, folder.settings("vae", [kind]))
        fill(self.vae, folder.tensors("vae"), torch.float32, folder.path / "vae")

    @property
    def settings(self) -> Any:
        """The settings of the autoencoder."""
        return self.vae.config

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(Z, H / factor, W / factor) of (3, H, W).

        Raises:
            ShapeError: A side that is not a multiple of the factor; names the nearest.
        """
        sides, unit = shape[-2:], self.factor
        if any(side < unit or side % unit for side in sides):
            near = format_size([max(unit, round(side / unit) * unit) for side in sides])
            raise ShapeError(
                f"size {format_size(sides)} (width x height): both sides must be multiples of {unit} px; nearest {near}"
            )
        return self.channels, sides[0] // unit, sides[1] // unit


class DeepCompression(ImageCodec):
    """The autoencoder of Sana, an `AutoencoderDC`: latents times a scale.

    Source: Chen et al. 2024 (arXiv:2410.10733).
    """

    def __init__(self, folder: PipelineFolder) -> None:
        super().__init__(folder, "AutoencoderDC")
        self.scale, self.channels = float(self.settings.scaling_factor), int(self.settings.latent_channels)
        self.factor = int(self.vae.spatial_compression_ratio)

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """The latents (B, Z, H / factor, W / factor) of images (B, 3, H, W); errors are those of `latent_shape`."""
        del noise
        self.latent_shape(tuple(pixels.shape[1:]))
        return self.vae.encode(pixels, return_dict=False)[0] * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents, both (B, ...)."""
        return self.vae.decode(latents / self.scale, return_dict=False)[0]


class QwenCodec(ImageCodec):
    """The autoencoder of Qwen-Image, of videos, with one frame: each channel is normalised.

    Source: Qwen team 2025, section 2.3 (arXiv:2508.02324).
    """

    def __init__(self, folder: PipelineFolder) -> None:
        super().__init__(folder, "AutoencoderKLQwenImage")
        self.channels, self.factor = int(self.settings.z_dim), 2 ** len(self.settings.temperal_downsample)
        self.mean: Tensor
        self.std: Tensor
        for name in ("mean", "std"):
            values = torch.tensor(list(self.settings[f"latents_{name}"])).view(1, -1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """The likeliest latents (B, Z, H / factor, W / factor) of images; errors are those of `latent_shape`."""
        del noise
        self.latent_shape(tuple(pixels.shape[1:]))
        return (self.vae.encode(pixels.unsqueeze(2)).latent_dist.mode().squeeze(2) - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents, both (B, ...)."""
        return self.vae.decode((latents * self.std + self.mean).unsqueeze(2), return_dict=False)[0][:, :, 0]


class Flux2Codec(ImageCodec):
    """The autoencoder of FLUX.2: squares of 2 x 2 latents are channels, which a batch norm has normalised.

    Source: FLUX.2's published inference code (github.com/black-forest-labs/flux2).
    """

    def __init__(self, folder: PipelineFolder) -> None:
        super().__init__(folder, "AutoencoderKLFlux2")
        self.channels = 4 * int(self.settings.latent_channels)
        self.factor = 2 ** len(self.settings.block_out_channels)

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """The likeliest latents (B, Z, H / factor, W / factor) of images; errors are those of `latent_shape`."""
        del noise
        self.latent_shape(tuple(pixels.shape[1:]))
        mean, std = self._moments()
        return (functional.pixel_unshuffle(self.vae.encode(pixels).latent_dist.mode(), 2) - mean) / std

    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents, both (B, ...)."""
        mean, std = self._moments()
        return self.vae.decode(functional.pixel_shuffle(latents * std + mean, 2), return_dict=False)[0]

    def _moments(self) -> tuple[Tensor, Tensor]:
        norm = self.vae.bn
        mean, variance = (values.view(1, -1, 1, 1) for values in (norm.running_mean, norm.running_var))
        return mean, (variance + float(self.settings.batch_norm_eps)).sqrt()
