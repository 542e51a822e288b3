"""What a user gives under a key of a condition: one value for all samples, or one for each."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from unveil.types import RecipeError


def is_rows(value: Any) -> bool:
    """Whether a raw value holds one entry per row, as opposed to one for all."""
    return isinstance(value, list | tuple | range) or (isinstance(value, Tensor) and value.ndim > 0)


def rows_of(key: str, value: Any, count: int) -> Any:
    """The value with one entry per row."""
    if not is_rows(value):
        return [value] * count
    if len(value) == 1 and count > 1:
        return value.expand(count, *value.shape[1:]) if isinstance(value, Tensor) else [value[0]] * count
    if len(value) != count:
        raise RecipeError(f"{key}: {len(value)} values for {count} samples; give one, or one for each")
    return value


def stays(conditioner: nn.Module) -> bool:
    """Whether guidance compares with the same value of this condition: it has a usual value, and no "none"."""
    return bool(getattr(conditioner, "stays", False))
