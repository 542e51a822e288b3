"""Samples without a beginning: what is made is a ring, and every step begins at another place of it."""

from __future__ import annotations

from torch import Tensor

from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.rng import key
from unveil.types import NoiseLevel

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
