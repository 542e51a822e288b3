"""The same image with fewer pixels, which a model that enlarges is given, and the plain enlargement of it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from unveil.errors import RecipeError

LOW = "low"  # the item's key


def area_downsample(pixels: Tensor, side: int) -> Tensor:
    """The means of equal squares, float32 (C, side, side) in [-1, 1], of uint8 (C, H, W) whose side it divides.

    Source: Dhariwal & Nichol 2021, the released training script of the upsamplers (arXiv:2105.05233).
    """
    rate = pixels.shape[-1] // side
    squares = pixels.unflatten(-1, (side, rate)).unflatten(-3, (side, rate))  # (C, side, rate, side, rate)
    return squares.to(torch.float32).mean((-3, -1)) / 127.5 - 1


def bicubic_upsample(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, C, H, W) in [-1, 1], bicubic, of another size."""
    return functional.interpolate(pictures, size, mode="bicubic", align_corners=False).clamp(-1, 1)


def check_low(side: int | None, size: int) -> None:
    """Raises RecipeError when images of `size` pixels a side cannot be made so small by means of squares."""
    fitting = [n for n in range(1, size) if size % n == 0]
    if side is not None and side not in fitting:
        near = min(fitting, key=lambda n: abs(n - side))
        raise RecipeError(f"low {side}: must divide the size, {size} pixels, and be below it; nearest: {near}")
