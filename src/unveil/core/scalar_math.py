"""Elementary functions of Python floats and of tensors alike, because a level may hold either."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Number = float | Tensor


def exp(value: Number) -> Number:
    """E to the power of value."""
    return value.exp() if isinstance(value, Tensor) else math.exp(value)


def expm1(value: Number) -> Number:
    """exp(value) - 1, exact for small values."""
    return value.expm1() if isinstance(value, Tensor) else math.expm1(value)


def log(value: Number) -> Number:
    """The natural logarithm; minus infinity at 0."""
    if isinstance(value, Tensor):
        return value.log()
    return math.log(value) if value > 0 else -math.inf


def sqrt(value: Number) -> Number:
    """The square root of max(value, 0): differences of squares may round below 0."""
    return value.clamp(min=0).sqrt() if isinstance(value, Tensor) else math.sqrt(max(value, 0.0))


def cos(value: Number) -> Number:
    """The cosine, in radians."""
    return value.cos() if isinstance(value, Tensor) else math.cos(value)


def sin(value: Number) -> Number:
    """The sine, in radians."""
    return value.sin() if isinstance(value, Tensor) else math.sin(value)


def maximum(value: Number, least: float) -> Number:
    """The larger of value and least."""
    return value.clamp(min=least) if isinstance(value, Tensor) else max(value, least)


def minimum(value: Number, most: float) -> Number:
    """The smaller of value and most."""
    return value.clamp(max=most) if isinstance(value, Tensor) else min(value, most)


def safe_divide(above: Number, below: Number, otherwise: Number) -> Number:
    """Above / below, and `otherwise` where below is 0."""
    if not isinstance(below, Tensor):
        return above / below if below != 0 else otherwise
    none = below == 0
    return torch.where(none, otherwise, above / torch.where(none, 1.0, below))
