"""Shapes of samples, and the parts of a model that depend on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def ending(shape: tuple[int, ...], end: Sequence[int]) -> tuple[int, ...]:
    """The shape with another end."""
    return (*shape[: len(shape) - len(end)], *end)


def resized(part: Any, shape: tuple[int, ...]) -> Any:
    """The part for another shape, where it depends on it."""
    return part.resized(shape) if hasattr(part, "resized") else part
