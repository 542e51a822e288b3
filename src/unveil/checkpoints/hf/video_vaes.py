"""Diffusers' autoencoders of clips as codecs of ours: latents of zero mean and unit scale.

Facts: how the pipelines of diffusers take latents to and from `AutoencoderKLWan`, `AutoencoderKLLTXVideo`,
`AutoencoderKLCogVideoX` and `AutoencoderKLHunyuanVideo`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unveil.errors import ShapeError
from unveil.types import format_size

CLIP_CODECS = (
    "AutoencoderKLWan",
    "AutoencoderKLLTXVideo",
    "AutoencoderKLCogVideoX",
    "AutoencoderKLHunyuanVideo",
    "AutoencoderKLHunyuanVideo15",
)


class VideoVAE(nn.Module):
    """An autoencoder in which the first latent frame is one frame, and each further one `rates[0]` frames.

    Args:
        vae: The autoencoder.
        rates: Frames and pixels of a side that one latent stands for, ct and cs.
        mean, scale: Mean and scale of each channel, or of all: latents are (z - mean) scale.
        level: Noise level that the decoder is conditioned on; None: it is not.
        pairs: The latents after the first come in twos: of any other number the decoder makes the first ct frames too.

    Attributes:
        front: Latents before the first that stand for nothing, which fill up the first token of a network.
    """

    stochastic = False

    def __init__(
        self,
        vae: nn.Module,
        rates: tuple[int, int],
        *,
        mean: Sequence[float] = (0.0,),
        scale: Sequence[float] = (1.0,),
        level: float | None = None,
        pairs: bool = False,
    ) -> None:
        super().__init__()
        self.vae, self.rates, self.level = vae, rates, level
        self.step, self.front = rates[0] * (2 if pairs else 1), 0
        settings: Any = vae.config
        self.channels = int(settings["z_dim"] if "z_dim" in settings else settings["latent_channels"])
        self.mean: Tensor
        self.scale: Tensor
        for name, values in (("mean", mean), ("scale", scale)):
            self.register_buffer(name, torch.tensor(list(values)).view(1, -1, 1, 1, 1), persistent=False)

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """The likeliest latents (B, Z, 1 + (T - 1) / ct, H / cs, W / cs) of clips (B, 3, T, H, W) in [-1, 1].

        Raises:
            ShapeError: As `latent_shape`.
        """
        del noise
        self.latent_shape(tuple(pixels.shape[1:]))
        coder: Any = self.vae
        latents = (coder.encode(pixels).latent_dist.mode() - self.mean) * self.scale
        return torch.cat([latents[:, :, :1].expand(-1, -1, self.front, -1, -1), latents], dim=2)

    def decode(self, latents: Tensor) -> Tensor:
        """Clips of latents, both (B, ...)."""
        coder: Any = self.vae
        z = latents[:, :, self.front :] / self.scale + self.mean
        if self.level is None:
            return coder.decode(z, return_dict=False)[0]
        return coder.decode(z, z.new_full((len(z),), self.level), return_dict=False)[0]

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(Z, 1 + (T - 1) / ct, H / cs, W / cs) of (3, T, H, W), and `front` more.

        Raises:
            ShapeError: Other axes, a number of frames that is not 1 + k ct, k even in pairs, or sides that are not
                multiples of cs; names the nearest.
        """
        if len(shape) != 4:
            raise ShapeError(f"clips of shape {tuple(shape)}: must be (3, frames, height, width)")
        (_, frames, *sides), step, (ct, unit) = shape, self.step, self.rates
        if frames < 1 or (frames - 1) % step:
            below = max(0, (frames - 1) // step) * step + 1
            near = " or ".join(dict.fromkeys(str(count) for count in (below, below + step) if count > 0))
            raise ShapeError(f"{frames} frames: this model's clips have 1 + {step} k frames; nearest {near}")
        if any(side < unit or side % unit for side in sides):
            near = format_size([max(1, round(side / unit)) * unit for side in sides])
            raise ShapeError(
                f"size {format_size(sides)} (width x height): both sides must be multiples of {unit} px; nearest {near}"
            )
        return self.channels, self.front + 1 + (frames - 1) // ct, sides[0] // unit, sides[1] // unit


def video_vae(vae: Any) -> VideoVAE:
    """The codec of one of diffusers' autoencoders, with the rates and the scale that its settings say."""
    settings, kind = vae.config, type(vae).__name__
    if kind == "AutoencoderKLWan":
        rates = (int(settings.scale_factor_temporal), int(settings.scale_factor_spatial))
        return VideoVAE(vae, rates, mean=settings.latents_mean, scale=[1 / std for std in settings.latents_std])
    if kind == "AutoencoderKLLTXVideo":
        rates = (int(vae.temporal_compression_ratio), int(vae.spatial_compression_ratio))
        scale = [float(settings.scaling_factor) / std for std in vae.latents_std.tolist()]
        level = 0.0 if settings.timestep_conditioning else None
        return VideoVAE(vae, rates, mean=vae.latents_mean.tolist(), scale=scale, level=level)
    if kind == "AutoencoderKLCogVideoX":
        rates = (int(settings.temporal_compression_ratio), 2 ** (len(settings.block_out_channels) - 1))
        return VideoVAE(vae, rates, scale=[float(settings.scaling_factor)], pairs=True)
    if kind == "AutoencoderKLHunyuanVideo15":
        vae.enable_slicing()  # its attention takes one clip
    rates = (int(vae.temporal_compression_ratio), int(vae.spatial_compression_ratio))
    return VideoVAE(vae, rates, scale=[float(settings.scaling_factor)])
