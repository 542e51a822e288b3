"""Tolerance of an adaptive solver's steps, and controllers of the width of the next step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from unveil.types import NoiseLevel

# mean square of each sample's error over its tolerance (B,) -> the error of each (B,); 1 is just good enough
Across = Callable[[Tensor], Tensor]


def per_sample_norm(squares: Tensor) -> Tensor:
    """Norm of every sample by itself."""
    return squares.sqrt()


def max_error(squares: Tensor) -> Tensor:
    """Norm of the worst sample for all, as in DPM-Solver's code."""
    return squares.max().sqrt().expand_as(squares)


def batch_norm(squares: Tensor) -> Tensor:
    """Norm of the batch as one long vector, as in k-diffusion."""
    return squares.mean().sqrt().expand_as(squares)


def data_unit(level: NoiseLevel) -> Tensor:
    """Unit of x / alpha, so that errors do not depend on the process."""
    return level.alpha


def x_unit(level: NoiseLevel) -> Tensor:
    """Unit of x itself, as in DPM-Solver's code."""
    return torch.ones_like(level.t)


@dataclass(frozen=True)
class Tolerance:
    """Tolerance of the two orders' difference: by max(absolute, relative |x|) in every element, in the mean square.

    Args:
        absolute: Absolute tolerance; the default is two steps of 8-bit pixels in [-1, 1].
        relative: Tolerance relative to x, of the lower order or of the step before, whichever is larger.
        across: Norm over a batch: `per_sample_norm`, `max_error` or `batch_norm`.
        unit: Unit of the error: `data_unit` or `x_unit`.
        slack: Distance to the end in log-SNR at which a sample counts as finished.

    Source: Lu et al. 2022, the adaptive step size's appendix (arXiv:2206.00927).
    """

    absolute: float = 0.0078
    relative: float = 0.05
    across: Across = per_sample_norm
    unit: Callable[[NoiseLevel], Tensor] = data_unit
    slack: float = 1e-5


class StepDecision(NamedTuple):
    """Decision on a step, the next width to try, and the state of the controller."""

    good: bool
    width: float
    past: tuple[float, float]


class Controller(Protocol):
    """Chooses the next width from the error of a step."""

    @property
    def first(self) -> float:
        """The first width, in log-SNR."""
        ...

    def judge(self, error: float, width: float, taken: float, past: tuple[float, float], order: float) -> StepDecision:
        """`taken` is the width of the step, shorter than `width` at the end; past is (0, 0) before the first."""
        ...


@dataclass(frozen=True)
class IController:
    """DPM-Solver's own: the next width is safety (1 / error)^(1 / order) of this one; an error of 1 is good.

    Args:
        safety: Factor of the width that keeps the next error below 1.
        first: First width, in log-SNR.

    Source: Lu et al. 2022, the adaptive step size algorithm (arXiv:2206.00927).
    """

    safety: float = 0.9
    first: float = 0.05

    def judge(self, error: float, width: float, taken: float, past: tuple[float, float], order: float) -> StepDecision:
        """See `Controller`."""
        del width
        return StepDecision(error <= 1, self.safety * taken * max(error, 1e-12) ** (-1 / order), past)


@dataclass(frozen=True)
class PIDController:
    """A controller with proportional, integral and derivative parts, and a limit on what one step may change.

    Args:
        proportional: Weight of the change of the error.
        integral: Weight of the error.
        derivative: Weight of the change of the error's change.
        safety: Minimum factor on the width at which a step is accepted.
        first: First width, in log-SNR.

    Source: Soederlind 2003, "Digital filters in adaptive time-stepping"; the limiter 1 + atan(factor - 1): Soederlind
    and Wang 2006, "Adaptive time-stepping and computational stability"; the safety is k-diffusion's.
    """

    proportional: float = 0.0
    integral: float = 1.0
    derivative: float = 0.0
    safety: float = 0.81
    first: float = 0.05

    def judge(self, error: float, width: float, taken: float, past: tuple[float, float], order: float) -> StepDecision:
        """See `Controller`; past holds the inverse errors of the two last good steps."""
        del taken
        inverse = 1 / (error + 1e-8)
        last, before = past if past != (0.0, 0.0) else (inverse, inverse)
        p, i, d = self.proportional, self.integral, self.derivative
        factor = (inverse ** (p + i + d) * last ** -(p + 2 * d) * before**d) ** (1 / order)
        factor = 1 + math.atan(factor - 1)
        good = factor >= self.safety
        return StepDecision(good, width * factor, (inverse, last) if good else (last, before))
