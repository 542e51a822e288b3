"""Judges: each module of this package with a `JUDGE` is a kind of evaluation."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from unveil.evaluate.judge import Judge

__all__ = ["Judge", "judges"]


@cache
def judges() -> tuple[Judge, ...]:
    """Return every judge of this package; a new judge is a new module with a `JUDGE`."""
    modules = (import_module(f"{__name__}.{info.name}") for info in iter_modules(__path__))
    return tuple(module.JUDGE for module in modules)
