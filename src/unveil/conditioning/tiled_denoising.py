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
    """Part of an image, in pixels of x."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, x: Tensor) -> Tensor:
        """Crop the tile from x (..., H, W)."""
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def scaled(self, rows: int, columns: int, whole: tuple[int, int]) -> Tile:
        """Scale the tile to an image of rows x columns that corresponds to an x of size `whole`.

        Raises:
            ShapeError: The edges of the scaled tile lie between pixels.
        """
        edges: list[int] = []
        for place, size, side in zip(self, (rows, columns) * 2, whole * 2, strict=True):
            if place * size % side:
                raise ShapeError(f"a condition of {rows} x {columns} for x of {whole}: tiles of {self} cut its pixels")
            edges.append(place * size // side)
        return Tile(*edges)


def tiles(size: tuple[int, int], tile: tuple[int, int], *, overlap: float = OVERLAP, unit: int = 1) -> list[Tile]:
    """Tiles that cover an image, each overlapping the next by at least the given share of its side.

    Args:
        size: Height and width of the image.
        tile: Size of a tile; limited to the size of the image.
        overlap: Share of a side that neighbours have in common, in [0, 1).
        unit: Divisor of all positions and sizes.

    Raises:
        RecipeError: The overlap is outside [0, 1), or a size is not a multiple of the unit.
    """
    if not 0 <= overlap < 1:
        raise RecipeError(f"overlap = {overlap}: must lie in [0, 1), such as {OVERLAP}")
    if any(number % unit for number in (*size, *tile)):
        raise RecipeError(f"{size} in tiles of {tile}: all must be multiples of {unit}")
    sides = [min(whole, part) for whole, part in zip(size, tile, strict=True)]
    tops, lefts = (_places(whole, side, overlap, unit) for whole, side in zip(size, sides, strict=True))
    return [Tile(top, left, *sides) for top, left in product(tops, lefts)]


def multidiffusion(steps: Sequence[DenoiseFn], places: Sequence[Tile]) -> DenoiseFn:
    """Denoising function whose x0 is the weighted mean of those of tiles; weights decrease towards a tile's edges.

    Source: Bar-Tal et al. 2023, eq. 5 (arXiv:2302.08113), applied to estimates of x0 instead of the next x; both are
    the same for samplers that are linear in x and x0.
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
    """Condition of a tile: images are cropped to the tile, the rest is unchanged.

    Args:
        whole: Height and width of the x that the condition belongs to.

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
    """Apply `multidiffusion` to a model's denoiser, with the condition cropped for every tile.

    If the condition is the same for all tiles, several tiles share a call of the network, up to about the number of
    pixels of an image of `MAX_SHARED_SIDE` a side.
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
    """Denoising function of `count` tiles in one batch."""
    return guided(*(None if item is None else joined([item] * count) for item in (condition, null)))


def tile_starts(whole: int, side: int, stride: int, unit: int = 1) -> list[int]:
    """Return the starts of parts that cover an axis evenly, at most `stride` apart; the last part ends at the end.

    Args:
        whole: Length of the axis.
        side: Length of a part; whole - side is a multiple of the unit.
        stride: Maximum distance of two starts, a multiple of the unit.
        unit: Divisor of all starts.
    """
    gaps = -(-(whole - side) // stride)
    return [round(k * (whole - side) / (gaps * unit)) * unit for k in range(gaps + 1)] if gaps > 0 else [0]


def _places(whole: int, side: int, overlap: float, unit: int) -> list[int]:
    return tile_starts(whole, side, max(unit, int(side * (1 - overlap)) // unit * unit), unit)


def _part(images: Tensor | None, place: Tile, whole: tuple[int, int]) -> Tensor | None:
    """Part of images (B, C, h, w) that lies in a tile; one pixel is kept for any size."""
    if images is None or images.shape[-2:] == (1, 1):
        return images
    rows, columns = images.shape[-2:]
    return place.scaled(rows, columns, whole).crop(images).contiguous()


def _add(total: Tensor, weights: Tensor, place: Tile, x0: Tensor) -> None:
    """Add a tile's weighted x0 to the sum, and its weights to theirs."""
    weight = _weight(place, total)
    place.crop(total).add_(weight * x0)
    place.crop(weights).add_(weight)


def _weight(place: Tile, x: Tensor) -> Tensor:
    """Weights (height, width) of a tile: a pyramid, highest in the middle, above 0 at the edges."""
    sides = (torch.arange(1, n + 1, device=x.device, dtype=x.dtype) for n in (place.height, place.width))
    down, across = (torch.minimum(side, len(side) + 1 - side) for side in sides)
    return down[:, None] * across


_FINE = 1 << 32  # levels differ by their time in these parts


def circular_shift(step: DenoiseFn, axis: int) -> DenoiseFn:
    """Denoising function of x that is cyclic along an axis; x is shifted by a different amount at each level.

    The seam is therefore at another position at each step, and both of its sides become consistent.

    Source: Bi et al. 2025, section 3.2 (arXiv:2502.20307), who shift by a fixed amount in each step.
    """

    def estimate(x: Tensor, level: NoiseLevel) -> Estimate:
        places = shift_at(level, x.shape[axis])
        shifted = step(x.roll(-places, axis), level)
        extra = None if shifted.extra is None else shifted.extra.roll(places, axis)
        return Estimate.of_x0(shifted.x0.roll(places, axis), x, level, extra)

    return estimate


def shift_at(level: NoiseLevel, places: int) -> int:
    """Shift of a cyclic axis of `places` positions at a level: pseudorandom, but the same for the same time."""
    return key(round(float(level.t) * _FINE)) % places
