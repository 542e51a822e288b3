"""Numbers of tensors of levels, for comparisons."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from unveil.core.prediction import Solution


def floats(values: Iterable[Tensor | float]) -> list[float]:
    """The numbers of single levels or coefficients."""
    return [float(value) for value in values]


def coefficients(solution: Solution) -> list[Tensor]:
    """The coefficients of x and y in x0, and of x and y in eps."""
    return [solution.x0_x, solution.x0_y, solution.eps_x, solution.eps_y]
