"""Denoising of images in overlapping tiles, and of looping samples with a circular shift at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.guidance.batching import joined, repeated
from unveil.core.rng import key
from unveil.errors import RecipeError, ShapeError
from unveil.types import Condition, NoiseLevel

MAX_SHARED_SIDE = 128  # pixels a side of what small tiles are put together to, for one call of the network
OVERLAP = 0.25  # of a tile's side, with its neighbour, by default


class Tile(NamedTuple):
    """A part of an image, in pixels of x."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, x: Tensor) -> Tensor:
        """The part of x (..., H, W)."""
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def scaled(self, rows: int, columns: int, whole: tuple[int, int]) -> Tile:
        """The same part of an image of rows x columns that shows the same as one of size `whole`.

        Raises:
            ShapeError: Its edges lie between pixels there.
        """
        edges: list[int] = []
        for place, size, side in zip(self, (rows, columns) * 2, whole * 2, strict=True):
            if place * size % side:
                raise ShapeError(f"a condition of {rows} x {columns} for x of {whole}: tiles of {self} cut its pixels")
            edges.append(place * size // side)
        return Tile(*edges)


def tiles(size: tuple[int, int], tile: tuple[int, int], *, overlap: float = OVERLAP, unit: int = 1) -> list[Tile]:
    """Tiles that cover an image, each overlapping the next by at least this share of its side.

    Args:
        size: Height and width of the image.
        tile: Size of a tile; where the image is smaller, its side.
        overlap: Overlap in [0, 1).
        unit: Places are multiples of it, and so must the sizes be.

    Raises:
        RecipeError: An overlap outside [0, 1), or a size that is not a multiple of the unit.
    """
    if not 0 <= overlap < 1:
        raise RecipeError(f"overlap = {overlap}: must lie in [0, 1), such as {OVERLAP}")
    if any(number % unit for number in (*size, *tile)):
        raise RecipeError(f"{size} in tiles of {tile}: all must be multiples of {unit}")
    sides = [min(whole, part) for whole, part in zip(size, tile, strict=True)]
    tops, lefts = (_places(whole, side, overlap, unit) for whole, side in zip(size, sides, strict=True))
    return [Tile(top, left, *sides) for top, left in product(tops, lefts)]


def multidiffusion(steps: Sequence[DenoiseFn], places: Sequence[Tile]) -> DenoiseFn:
    """The step whose x0 is the mean of those of tiles, each weighing less towards its edges.

    Source: Bar-Tal et al. 2023, eq. 5 (arXiv:2302.08113), with the estimates of x0 in the place of the next x, which
    for samplers that are linear in both is the same.
    """

    def joined(x: Tensor, level: NoiseLevel) -> Estimate:
        if len(places) == 1:
            return steps[0](x, level)
        total, weights = torch.zeros_like(x), x.new_zeros(x.shape[-2:])
        for step, place in zip(steps, places, strict=True):
            _add(total, weights, place, step(place.crop(x).contiguous(), level).x0)
        return Estimate.of_x0(total.div_(weights), x, level)

    return joined


def crop_condition(condition: Condition | None, place: Tile, whole: tuple[int, int]) -> Condition | None:
    """The condition of a tile: its images are cropped to the tile, the rest is unchanged.

    Args:
        whole: Height and width of the x that the condition is for.

    Raises:
        ShapeError: The tile's edges lie between an image's pixels.
    """
    if condition is None:
        return None
    concat, control_image = (_part(images, place, whole) for images in (condition.concat, condition.control_image))
    return replace(condition, concat=concat, control_image=control_image)


def denoise_in_tiles(
    guided: Callable[[Condition | None, Condition | None], DenoiseFn],
    condition: Condition | None,
    null: Condition | None,
    places: Sequence[Tile],
    whole: tuple[int, int],
) -> DenoiseFn:
    """`multidiffusion` of a model's denoiser, with its condition cropped for every tile.

    Where the condition is the same for all tiles, several share a call of the network: as many as have about the
    pixels that one image of `MAX_SHARED_SIDE` a side has.
    """
    images = [
        item for item in (condition, null) if item is not None and (item.concat, item.control_image) != (None, None)
    ]
    if len(places) == 1 or images:
        return multidiffusion(
            [guided(crop_condition(condition, tile, whole), crop_condition(null, tile, whole)) for tile in places],
            places,
        )
    count = max(1, MAX_SHARED_SIDE**2 // (places[0].height * places[0].width))
    groups = [places[first : first + count] for first in range(0, len(places), count)]
    shared = {size: _sharing(guided, condition, null, size) for size in {len(group) for group in groups}}

    def step(x: Tensor, level: NoiseLevel) -> Estimate:
        total, weights = torch.zeros_like(x), x.new_zeros(x.shape[-2:])
        for group in groups:
            parts = torch.cat([tile.crop(x) for tile in group])
            parts_x0 = shared[len(group)](parts, repeated(level, len(group), len(x))).x0
            for tile, x0 in zip(group, parts_x0.split(len(x)), strict=True):
                _add(total, weights, tile, x0)
        return Estimate.of_x0(total.div_(weights), x, level)

    return step


def _sharing(
    guided: Callable[[Condition | None, Condition | None], DenoiseFn],
    condition: Condition | None,
    null: Condition | None,
    count: int,
) -> DenoiseFn:
    """The step of that many tiles in one batch."""
    return guided(*(None if item is None else joined([item] * count) for item in (condition, null)))


def tile_starts(whole: int, side: int, stride: int, unit: int = 1) -> list[int]:
    """Return the starts of parts that cover an axis evenly, at most `stride` apart; the last part ends at the end.

    Args:
        whole: Length of the axis.
        side: Side of a part; whole - side is a multiple of the unit.
        stride: Stride, at least the unit, and a multiple of it.
        unit: Places are multiples of it.
    """
    gaps = -(-(whole - side) // stride)
    return [round(k * (whole - side) / (gaps * unit)) * unit for k in range(gaps + 1)] if gaps > 0 else [0]


def _places(whole: int, side: int, overlap: float, unit: int) -> list[int]:
    return tile_starts(whole, side, max(unit, int(side * (1 - overlap)) // unit * unit), unit)


def _part(images: Tensor | None, place: Tile, whole: tuple[int, int]) -> Tensor | None:
    """Part of images (B, C, h, w) that lies in a tile; one pixel stands for any size."""
    if images is None or images.shape[-2:] == (1, 1):
        return images
    rows, columns = images.shape[-2:]
    return place.scaled(rows, columns, whole).crop(images).contiguous()


def _add(total: Tensor, weights: Tensor, place: Tile, x0: Tensor) -> None:
    """Adds a tile's x0 to the sum of all, and its weights to theirs."""
    weight = _weight(place, total)
    place.crop(total).add_(weight * x0)
    place.crop(weights).add_(weight)


def _weight(place: Tile, x: Tensor) -> Tensor:
    """(height, width): a pyramid, highest in the middle, above 0 at the edges."""
    sides = (torch.arange(1, n + 1, device=x.device, dtype=x.dtype) for n in (place.height, place.width))
    down, across = (torch.minimum(side, len(side) + 1 - side) for side in sides)
    return down[:, None] * across


_FINE = 1 << 32  # levels differ by their time in these parts


def circular_shift(step: DenoiseFn, axis: int) -> DenoiseFn:
    """The step of a ring along an axis of x: x is turned by a number of places that differs from level to level.

    So no place is always the seam, and what is on both sides of one comes to agree.

    Source: Bi et al. 2025, section 3.2 (arXiv:2502.20307), who turn by a fixed number of places in each step.
    """

    def estimate(x: Tensor, level: NoiseLevel) -> Estimate:
        places = shift_at(level, x.shape[axis])
        shifted = step(x.roll(-places, axis), level)
        extra = None if shifted.extra is None else shifted.extra.roll(places, axis)
        return Estimate.of_x0(shifted.x0.roll(places, axis), x, level, extra)

    return estimate


def shift_at(level: NoiseLevel, places: int) -> int:
    """By how many of that many places a ring is turned at this level: drawn by its time, always the same."""
    return key(round(float(level.t) * _FINE)) % places
