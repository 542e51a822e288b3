"""Shapes as signed distance functions: antialiased coverage, rendering, exact boxes. All functions are batched.

Lengths are fractions of the image's side, x to the right and y down. A signed distance is negative inside. Half a
pixel around zero is the soft edge, so that a shape can move by fractions of a pixel.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# Class maps count from 1 in this order, 0 is the background.
KINDS = ("circle", "square", "triangle", "cross", "ring")
COLOURS = {
    "red": (222, 40, 44),
    "orange": (245, 132, 30),
    "yellow": (240, 216, 56),
    "green": (44, 172, 66),
    "cyan": (50, 204, 216),
    "blue": (48, 88, 226),
    "purple": (158, 62, 196),
    "white": (244, 244, 244),
}
PALETTE: Array = np.array(list(COLOURS.values()), dtype=np.float32)
SQUARE = 0.86  # half the side of a square of radius 1: not much more area than the circle's
ARM = 0.34  # half the width of a cross's arms
HOLE = 0.54  # inner radius of a ring
AREAS: Array = np.array(  # of each shape of radius 1
    [np.pi, 4 * SQUARE**2, 2.0, 4 * (2 * ARM - ARM**2), np.pi * (1 - HOLE**2)], dtype=np.float32
)
# Corners of each shape of radius 1; circles and rings have none.
_CORNERS = {
    1: np.array([(-SQUARE, -SQUARE), (SQUARE, -SQUARE), (SQUARE, SQUARE), (-SQUARE, SQUARE)]),
    2: np.array([(0.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]),
    3: np.array([(sx * a, sy * b) for a, b in ((ARM, 1.0), (1.0, ARM)) for sx in (-1, 1) for sy in (-1, 1)]),
}


class Shapes(NamedTuple):
    """Shapes of one or more images, or of the frames of a video: arrays of the same length M.

    Attributes:
        kind: Index into KINDS.
        x, y: Centre.
        radius: Half the width of the box of the unrotated shape (squares are a little smaller).
        angle: Clockwise rotation in radians.
    """

    kind: NDArray[np.int64]
    x: Array
    y: Array
    radius: Array
    angle: Array


def boxes(shapes: Shapes) -> Array:
    """Return the tight box of each shape: (M, 4) of centre x, centre y, width, height."""
    result = np.stack([shapes.x, shapes.y, 2 * shapes.radius, 2 * shapes.radius], axis=1)
    for kind, corners in _CORNERS.items():
        rows = np.flatnonzero(shapes.kind == kind)
        if not len(rows):
            continue
        cos, sin = np.cos(shapes.angle[rows]), np.sin(shapes.angle[rows])
        x = cos[:, None] * corners[:, 0] - sin[:, None] * corners[:, 1]
        y = sin[:, None] * corners[:, 0] + cos[:, None] * corners[:, 1]
        low, high = np.stack([x.min(1), y.min(1)], 1), np.stack([x.max(1), y.max(1)], 1)
        radius = shapes.radius[rows, None]
        result[rows, :2] += radius * (low + high) / 2
        result[rows, 2:] = radius * (high - low)
    return result.astype(np.float32)


def coverage(shapes: Shapes, height: int, width: int) -> Array:
    """Return the fraction of each pixel that each shape covers, in [0, 1]: (M, height, width)."""
    side = min(height, width)
    x = (np.arange(width, dtype=np.float32) + 0.5) - (shapes.x * side)[:, None]  # pixels from the centre
    y = (np.arange(height, dtype=np.float32) + 0.5) - (shapes.y * side)[:, None]
    radius = (shapes.radius * side)[:, None, None]
    covered = np.empty((len(shapes.kind), height, width), dtype=np.float32)
    for kind in np.unique(shapes.kind):
        rows = np.flatnonzero(shapes.kind == kind)
        across, down = x[rows, None, :], y[rows, :, None]
        angle = shapes.angle[rows, None, None]
        if angle.any():
            cos, sin = np.cos(angle), np.sin(angle)
            across, down = cos * across + sin * down, cos * down - sin * across
        covered[rows] = 0.5 - _DISTANCES[kind](across, down, radius[rows])
    return np.clip(covered, 0.0, 1.0, out=covered)


def paint(canvas: Array, covered: Array, colour: Array) -> None:
    """Paint one shape over each image, in place: canvas (B, 3, H, W), covered (B, H, W), colour (B, 3) in 0 to 255."""
    canvas += covered[:, None] * (colour[:, :, None, None] - canvas)


def _circle(x: Array, y: Array, radius: Array) -> Array:
    return np.sqrt(x * x + y * y) - radius


def _square(x: Array, y: Array, radius: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - SQUARE * radius


def _triangle(x: Array, y: Array, radius: Array) -> Array:
    slope = (2 * np.abs(x) - (y + radius)) / np.float32(5**0.5)  # the sides run from (0, -r) to (+-r, r)
    return np.maximum(slope, y - radius)


def _cross(x: Array, y: Array, radius: Array) -> Array:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.minimum(x, y) - ARM * radius, np.maximum(x, y) - radius)


def _ring(x: Array, y: Array, radius: Array) -> Array:
    middle, half = (1 + HOLE) / 2 * radius, (1 - HOLE) / 2 * radius
    return np.abs(np.sqrt(x * x + y * y) - middle) - half


_DISTANCES = (_circle, _square, _triangle, _cross, _ring)
