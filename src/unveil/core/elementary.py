"""Elementary functions of float64 tensors of levels: the numbers of one level are those of Python's `math`.

Vectorised functions of torch round differently from libm: `exp` in 0.5 % of arguments, `expm1` in 10 %, and some of
them differently from place to place. The numbers of one level are therefore computed by libm, one by one. Two kinds of
tensors hold such numbers: a single level (0-d), and within `level_by_level` a table of levels, (N,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_TABLES = ContextVar("tables of levels", default=False)


@contextmanager
def level_by_level() -> Iterator[None]:
    """Take the first axis of tensors as that of the levels of a table: each level is computed by itself.

    Without it a tensor of one axis holds one number per sample, as in training. Also a decorator of functions.
    """
    token = _TABLES.set(True)
    try:
        yield
    finally:
        _TABLES.reset(token)


def scalar(value: float) -> Tensor:
    """Return a number as a 0-d float64 tensor."""
    return torch.tensor(value, dtype=torch.float64)


def as_tensor(value: Tensor | float | Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    """Return a number or numbers as a float64 tensor."""
    return torch.as_tensor(value, dtype=torch.float64)


def per_level(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Apply a function of torch; within a table, to each level separately."""
    if values.numel() and values.ndim and _TABLES.get():
        return torch.stack([function(value) for value in values.unbind()])
    return function(values)


def _apply(single: Callable[[float], float], several: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    if not values.ndim:
        return scalar(single(values.item()))
    if values.ndim == 1 and _TABLES.get():
        return torch.tensor([single(value) for value in values.tolist()], dtype=torch.float64)
    return per_level(several, values)


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
    """Cosine, in radians; exactly 0 at a quarter turn of one level, where float64 rounds to 6e-17."""
    return _apply(lambda angle: 0.0 if angle == math.pi / 2 else math.cos(angle), torch.cos, value)


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
    zero = scalar(0.0)
    return _apply(lambda n: math.log1p(math.exp(n)), lambda numbers: torch.logaddexp(numbers, zero), value)


def power(value: Tensor, exponent: float) -> Tensor:
    """Value to the power of a number."""
    return _apply(lambda number: number**exponent, lambda numbers: numbers**exponent, value)


def square(value: Tensor) -> Tensor:
    """Value to the power of 2."""
    return power(value, 2)


def divide(number: float, value: Tensor) -> Tensor:
    """A number divided by value, which torch computes as the number times 1 / value: two roundings."""
    return _apply(lambda below: number / below, lambda below: number / below, value)


def where(mask: Tensor, yes: Tensor | float, no: Tensor | float) -> Tensor:
    """`yes` where the mask is True, `no` elsewhere, in float64."""
    if not mask.ndim:  # ten times as fast as torch.where
        return as_tensor(yes if mask.item() else no)
    return torch.where(mask, as_tensor(yes), as_tensor(no))


def safe_divide(above: Tensor | float, below: Tensor, otherwise: Tensor | float) -> Tensor:
    """Above / below, and `otherwise` where below is 0."""
    if not below.ndim:
        return above / below if below.item() != 0 else as_tensor(otherwise)
    none = below == 0
    return torch.where(none, otherwise, above / torch.where(none, 1.0, below))
