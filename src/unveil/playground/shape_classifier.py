"""Template matching of shapes: the kind and the rotation of a coloured patch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from unveil.playground.shapes import AREAS, KINDS, Array, Shapes, coverage
from unveil.playground.world.motion import SPINNING

TRACE = 0.1  # of the colour in a pixel, from which on it is of a patch
_SCALES, _SHIFTS = (0.92, 1.0, 1.08), (-0.5, 0.0, 0.5)  # of the radius; pixels down
_SYMMETRY = {"square": 90, "triangle": 360, "cross": 90}  # degrees after which a shape looks as before
_STEP = 10  # degrees between the angles tried
_BETTER = 0.02  # by so much more must a turned shape overlap than one that is not


class Rotation(NamedTuple):
    """A shape, as its index into KINDS, and its clockwise rotation over the whole video in degrees."""

    kind: int
    degrees: float


def likeness(share: Array, angles: Array | None = None) -> Array:
    """Return the intersection over union of a patch with every shape of its position and area, (kinds, angles).

    Args:
        share: (H, W), fraction of each pixel that has the colour; above TRACE in at least one pixel.
        angles: Angles in radians; None for unrotated shapes.
    """
    angles = np.zeros(1, dtype=np.float32) if angles is None else angles
    rows, columns = np.flatnonzero(share.max(1) > TRACE), np.flatnonzero(share.max(0) > TRACE)
    top, left = max(rows[0] - 2, 0), max(columns[0] - 2, 0)
    patch = share[top : rows[-1] + 3, left : columns[-1] + 3]
    (height, width), area = patch.shape, patch.sum()
    x, y = (
        (patch.sum(0) * (np.arange(width) + 0.5)).sum() / area,
        (patch.sum(1) * (np.arange(height) + 0.5)).sum() / area,
    )
    kind, angle, scale, shift = (
        grid.ravel() for grid in np.meshgrid(np.arange(len(KINDS)), angles, _SCALES, _SHIFTS, indexing="ij")
    )
    radius = scale * np.sqrt(area / AREAS[kind])
    above = np.where(kind == KINDS.index("triangle"), radius / 3, 0)  # its centre of mass is not that of its box
    side = min(height, width)
    places = ((x + np.sin(angle) * above) / side, (y + shift - np.cos(angle) * above) / side, radius / side, angle)
    drawn = coverage(Shapes(kind, *(place.astype(np.float32) for place in places)), height, width)
    both = np.minimum(drawn, patch).sum((1, 2)) / np.maximum(drawn, patch).sum((1, 2))
    return both.reshape(len(KINDS), len(angles), -1).max(-1)


def rotation_of(shares: Array) -> Rotation | None:
    """Return the shape that rotates in consecutive frames (T, H, W) of one place, or None if none does.

    A shape rotates by less than half its symmetry angle between frames.
    """
    angles = np.radians(np.arange(0, 360, _STEP)).astype(np.float32)
    scores = np.stack([likeness(share, angles) for share in shares])  # (T, kinds, angles)
    candidates: list[tuple[float, Rotation]] = []
    for name, period in _SYMMETRY.items():
        overlap = scores[:, KINDS.index(name), : period // _STEP]
        degrees = np.unwrap(_STEP * overlap.argmax(1).astype(np.float64), period=period)
        candidates.append((overlap.max(1).mean(), Rotation(KINDS.index(name), float(degrees[-1] - degrees[0]))))
    best, turned = max(candidates)
    unturned = scores[:, :, 0].mean(0).max()
    return turned if best > unturned + _BETTER and KINDS[turned.kind] in SPINNING else None
