"""Packages that only some users need: imported when they are used, and named in one error where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from unveil.errors import RecipeError


def import_extra(module: str, what: str, name: str = "hf") -> ModuleType:
    """A module of an extra of this package.

    Args:
        module: Dotted name of the module.
        what: Name of the feature that needs it, for the error message.
        name: Name of the extra.

    Raises:
        RecipeError: It is not installed; names what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as problem:
        raise RecipeError(f"{what} needs {module}, which is not installed: pip install 'unveil[{name}]'") from problem
