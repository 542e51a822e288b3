"""The scale of a guidance as a function of the level, instead of one number for the whole run.

The papers write the weight w that multiplies conditional - null beyond the conditional; here scale = 1 + w.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from unveil.core import elementary
from unveil.errors import RecipeError
from unveil.types import NoiseLevel

Schedule = Callable[[NoiseLevel], Tensor | float]

# One number, one per sample (B,), or a function of the level.
Scale = float | Tensor | Schedule


def scale_at(scale: Scale, level: NoiseLevel) -> Tensor:
    """Return the value of a scale at this level."""
    return elementary.as_tensor(scale(level) if callable(scale) else scale)


def constant(scale: float) -> Schedule:
    """The same scale at every level."""
    return lambda level: elementary.scalar(scale)


def linear(scale: float) -> Schedule:
    """No guidance at t = 1, rising linearly to the data; over even steps the mean weight is that of `constant`.

    Source: Wang et al. 2024, section 4.1, "linear" (arXiv:2404.13040).
    """
    return lambda level: 1 + (scale - 1) * 2 * (1 - level.t)


def cosine(scale: float) -> Schedule:
    """No guidance at t = 1, rising along a cosine; over even steps the mean weight is that of `constant`.

    Source: Wang et al. 2024, section 4.1, "cosine" (arXiv:2404.13040).
    """
    return lambda level: 1 + (scale - 1) * (1 + elementary.cos(math.pi * level.t))


def power_cosine(scale: float, power: float = 4.0) -> Schedule:
    """No guidance at t = 1, the whole scale at the data; with a larger power it rises later.

    Raises:
        RecipeError: The power is not positive.

    Source: Gao et al. 2023, section 4.3 (arXiv:2303.14389), "pcs" of Wang et al. 2024.
    """
    if power <= 0:
        raise RecipeError(f"power = {power}: must be above 0; the paper uses 4")
    return lambda level: 1 + (scale - 1) * (1 - elementary.cos(math.pi * elementary.power(1 - level.t, power))) / 2


def at_least(schedule: Schedule, least: float) -> Schedule:
    """The schedule, but never below `least`. Source: Wang et al. 2024, section 5, "clamping" (arXiv:2404.13040)."""
    return lambda level: elementary.as_tensor(schedule(level)).clamp(min=least)


# By the name a recipe uses; each takes the scale.
SCHEDULES: dict[str, Callable[[float], Schedule]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "power-cosine": power_cosine,
}
