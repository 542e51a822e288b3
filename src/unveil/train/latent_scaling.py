"""The scale of a codec's latents, measured on the images or clips that it was trained on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from unveil.autoencoders import AutoencoderKL, VQModel
from unveil.autoencoders.autoencoder import channels_last
from unveil.types import NonFinite


@torch.no_grad()
def measure_latent_scaling(
    codec: AutoencoderKL | VQModel, parts: Iterator[Tensor], *, by_channel: bool
) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) that bring the codec's latents of images to mean 0 and deviation 1.

    Args:
        parts: batches of images (B, C, H, W), or clips (B, C, T, H, W), in [-1, 1]; those that are not finite are
            left out.
        by_channel: a scale and a shift for each channel; else one of both for all.

    Raises:
        NonFinite: no latents are finite.
    Source: Rombach et al. 2022, appendix D.1, for the deviation of one batch; here over all of them, and the mean.
    """
    count, total, squares = 0, torch.zeros(len(codec.scale)).double(), torch.zeros(len(codec.scale)).double()
    for pixels in parts:
        z = codec.unscaled(codec.encode(channels_last(pixels))).cpu().double()
        z = z[z.flatten(1).isfinite().all(1)]  # a broken image, which training skips too
        places = (0, *range(2, z.ndim))
        total += z.sum(places)
        squares += z.square().sum(places)
        count += z.numel() // z.shape[1]
    if not count:
        raise NonFinite("the latents of all training images are not finite, so they have no scale; lower train.lr")
    mean, square = total / count, squares / count
    if not by_channel:
        mean, square = (each.mean().expand_as(each) for each in (mean, square))
    deviation = (square - mean.square()).clamp(min=1e-12).sqrt()
    return (1 / deviation).float(), mean.float()
