"""PSNR and SSIM of pairs of images or videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from unveil.errors import ShapeError

WINDOW, SPREAD = 11, 1.5  # pixels of the window's side, and its deviation
STEADY = (0.01, 0.03)  # K1 and K2
BATCH = 250  # pairs that are measured at once
_LEAST = 1e-12  # of a mean squared error: equal images have 120 dB, not infinitely many


def mse(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean squared difference of each pair of uint8 images or videos for a range of 1, (B,) float64.

    Raises:
        ShapeError: The shapes differ.
    """
    _check(first, second, (4, 5))
    return ((first.double() - second.double()) / 255).square().flatten(1).mean(1)


def psnr(squared: Tensor) -> Tensor:
    """Return the PSNR of mean squared errors of values with a range of 1."""
    return -10 * squared.clamp(min=_LEAST).log10()


def chunked(measure: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> Tensor:
    """Return a metric of each pair of images (N, C, H, W) as (N,), computed in chunks.

    Of each pair of videos (N, C, T, H, W) it is the mean over the frames.
    """
    shown = [images if images.ndim == 4 else images.transpose(1, 2).flatten(0, 1) for images in (first, second)]
    with torch.inference_mode():
        parts = zip(*(images.split(BATCH) for images in shown), strict=True)
        values = torch.cat([measure(x, y) for x, y in parts]).clone()
    return values if first.ndim == 4 else values.view(len(first), -1).mean(1)


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return the structural similarity of each pair of uint8 images (B, C, H, W), (B,) float64, 1 for equal images.

    It is the mean over all windows inside the image and over channels.

    Raises:
        ShapeError: The shapes differ, or the images are smaller than the window.
    Source: Wang et al. 2004, eq. 13 and section III.C (Gaussian window).
    """
    _check(first, second)
    if min(first.shape[2:]) < WINDOW:
        raise ShapeError(f"images {tuple(first.shape)}: SSIM needs at least {WINDOW} pixels a side")
    x, y = (images.double().flatten(0, 1)[:, None] for images in (first, second))  # (B C, 1, H, W)
    mean_x, mean_y = _windowed(x), _windowed(y)
    var_x, var_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
    both = _windowed(x * y) - mean_x * mean_y
    c1, c2 = ((k * 255) ** 2 for k in STEADY)
    likeness = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    likeness = likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return likeness.flatten(1).mean(1).view(len(first), -1).mean(1)


def _windowed(x: Tensor) -> Tensor:
    """Gaussian-weighted means over every window inside (N, 1, H, W)."""
    away = torch.arange(WINDOW, dtype=x.dtype) - WINDOW // 2
    weights = torch.exp(-0.5 * (away / SPREAD) ** 2)
    weights = weights / weights.sum()
    return functional.conv2d(functional.conv2d(x, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))


def _check(first: Tensor, second: Tensor, ranks: Sequence[int] = (4,)) -> None:
    if (
        first.shape != second.shape
        or first.ndim not in ranks
        or first.dtype != torch.uint8
        or second.dtype != torch.uint8
    ):
        raise ShapeError(
            f"images {tuple(first.shape)} {first.dtype} and {tuple(second.shape)} {second.dtype}: both must be "
            "uint8 (B, C, H, W) of one shape"
        )
