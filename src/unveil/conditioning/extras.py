"""Packages that only some models need: imported when they are used, and named in one error where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from unveil.types import RecipeError


def extra(module: str, what: str) -> ModuleType:
    """A module of the extra `hf`.

    Args:
        module: its dotted name.
        what: needs it, for the message.

    Raises:
        RecipeError: it is not installed; says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as problem:
        raise RecipeError(f"{what} needs {module}, which is not installed: pip install 'unveil[hf]'") from problem
