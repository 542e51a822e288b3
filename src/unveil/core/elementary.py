"""Elementary functions of float64 tensors of levels: the numbers of one level are those of Python's `math`.

Vectorised functions of torch round differently from libm: `exp` in 0.5 % of arguments, `expm1` in 10 %. A single
number (0-d) is computed by libm, so that tables of samplers do not depend on the vector width of a machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def scalar(value: float) -> Tensor:
    """Return a number as a 0-d float64 tensor."""
    return torch.tensor(value, dtype=torch.float64)


def _apply(single: Callable[[float], float], several: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    return several(value) if value.ndim else scalar(single(value.item()))


def exp(value: Tensor) -> Tensor:
    """E to the power of value."""
    return _apply(math.exp, torch.exp, value)


def expm1(value: Tensor) -> Tensor:
    """exp(value) - 1, exact for small values."""
    return _apply(math.expm1, torch.expm1, value)


def log(value: Tensor) -> Tensor:
    """Natural logarithm; minus infinity at 0."""
    return _apply(lambda number: math.log(number) if number > 0 else -math.inf, torch.log, value)


def sqrt(value: Tensor) -> Tensor:
    """Square root of max(value, 0): differences of squares may round below 0."""
    return _apply(lambda number: math.sqrt(max(number, 0.0)), lambda numbers: numbers.clamp(min=0).sqrt(), value)


def cos(value: Tensor) -> Tensor:
    """Cosine, in radians."""
    return _apply(math.cos, torch.cos, value)


def sin(value: Tensor) -> Tensor:
    """Sine, in radians."""
    return _apply(math.sin, torch.sin, value)


def atan(value: Tensor) -> Tensor:
    """Inverse tangent, in radians."""
    return _apply(math.atan, torch.atan, value)


def asinh(value: Tensor) -> Tensor:
    """Inverse hyperbolic sine."""
    return _apply(math.asinh, torch.asinh, value)


def sigmoid(value: Tensor) -> Tensor:
    """1 / (1 + exp(-value))."""
    return _apply(lambda number: 1 / (1 + math.exp(min(-number, 700.0))), torch.sigmoid, value)


def softplus(value: Tensor) -> Tensor:
    """log(1 + exp(value))."""
    zero = torch.zeros((), dtype=torch.float64)
    return _apply(lambda n: math.log1p(math.exp(n)), lambda numbers: torch.logaddexp(numbers, zero), value)


def power(value: Tensor, exponent: float) -> Tensor:
    """Value to the power of a number."""
    return value**exponent if value.ndim else scalar(value.item() ** exponent)


def square(value: Tensor) -> Tensor:
    """Value to the power of 2."""
    return power(value, 2)


def where(mask: Tensor, yes: Tensor | float, no: Tensor | float) -> Tensor:
    """`yes` where the mask is True, `no` elsewhere, in float64."""
    if not mask.ndim:  # ten times as fast as torch.where
        return torch.as_tensor(yes if mask.item() else no, dtype=torch.float64)
    return torch.where(mask, *(torch.as_tensor(value, dtype=torch.float64) for value in (yes, no)))


def safe_divide(above: Tensor | float, below: Tensor, otherwise: Tensor | float) -> Tensor:
    """Above / below, and `otherwise` where below is 0."""
    if not below.ndim:
        return above / below if below.item() != 0 else torch.as_tensor(otherwise, dtype=torch.float64)
    none = below == 0
    return torch.where(none, otherwise, above / torch.where(none, 1.0, below))
