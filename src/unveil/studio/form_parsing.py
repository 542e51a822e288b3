"""What was typed into fields: numbers and settings, or a fault that says which field and what is allowed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unveil.model.config import read_yaml
from unveil.studio.i18n import Say
from unveil.types import RecipeError

LONGEST = 40  # letters of what was typed, in a fault


@dataclass(frozen=True)
class Typed:
    """Reads fields.

    Attributes:
        say: the page's words.
    """

    say: Say

    def number(self, value: Any, what: str) -> float | None:
        """A number of a field that may be empty.

        Raises:
            RecipeError: it is none, or is not finite.
        """
        if value is None or value == "":
            return None
        try:
            found = float(value)
        except (ValueError, TypeError, OverflowError):
            found = math.nan
        if not math.isfinite(found):
            told = str(value)[:LONGEST]
            raise RecipeError(self.say("{what} = '{value}': must be a number", what=what, value=told))
        return found

    def whole(self, value: Any, what: str) -> int | None:
        """A whole number of a field that may be empty.

        Raises:
            RecipeError: it is none.
        """
        found = self.number(value, what)
        if found is not None and found != int(found):
            raise RecipeError(self.say("{what} = {value}: must be a whole number", what=what, value=f"{found:g}"))
        return None if found is None else int(found)

    def numbers(self, text: str, what: str) -> list[float]:
        """The numbers of a field, with blanks or commas between them.

        Raises:
            RecipeError: one is none.
        """
        words = text.replace(",", " ").split()
        return [found for word in words if (found := self.number(word, what)) is not None]

    def settings(self, text: str, what: str) -> dict[str, Any]:
        """Settings of a field, a line each, KEY: VALUE as recipes are written.

        Raises:
            RecipeError: not of that form.
        """
        found = read_yaml(text.replace("=", ": "), what) if text and text.strip() else {}
        if not isinstance(found, dict):
            raise RecipeError(self.say("{what}: a line each, KEY: VALUE", what=what))
        return {str(key): value for key, value in found.items()}


def settings_text(found: Mapping[str, Any]) -> str:
    """The settings of a field, written as they are read."""
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in found.items())


def filled(**said: Any) -> dict[str, Any]:
    """What was said at all: fields that were left empty are left to the model."""
    return {key: value for key, value in said.items() if value is not None and value != "" and value != ()}
