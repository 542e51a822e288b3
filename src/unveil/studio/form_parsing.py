"""Parsing of form fields into numbers and settings; errors name the field and what is allowed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unveil.errors import RecipeError
from unveil.model.config import read_yaml
from unveil.studio.i18n import Translator

LONGEST = 40  # characters of a value quoted in an error


@dataclass(frozen=True)
class FormParser:
    """Parses the values of fields.

    Attributes:
        tr: Translator of the page.
    """

    tr: Translator

    def number(self, value: Any, what: str) -> float | None:
        """Parse a number; None for an empty field.

        Raises:
            RecipeError: Not a finite number.
        """
        if value is None or value == "":
            return None
        try:
            number = float(value)
        except (ValueError, TypeError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            shown = str(value)[:LONGEST]
            raise RecipeError(self.tr("{what} = '{value}': must be a number", what=what, value=shown))
        return number

    def integer(self, value: Any, what: str) -> int | None:
        """Parse an integer; None for an empty field.

        Raises:
            RecipeError: Not an integer.
        """
        number = self.number(value, what)
        if number is not None and number != int(number):
            raise RecipeError(self.tr("{what} = {value}: must be a whole number", what=what, value=f"{number:g}"))
        return None if number is None else int(number)

    def numbers(self, text: str | None, what: str) -> list[float]:
        """Parse numbers separated by spaces or commas; none of an empty field.

        Raises:
            RecipeError: Not a number.
        """
        words = (text or "").replace(",", " ").split()
        return [number for word in words if (number := self.number(word, what)) is not None]

    def settings(self, text: str, what: str) -> dict[str, Any]:
        """Parse settings, one KEY: VALUE per line in YAML.

        Raises:
            RecipeError: Not of that form.
        """
        settings = read_yaml(text.replace("=", ": "), what) if text and text.strip() else {}
        if not isinstance(settings, dict):
            raise RecipeError(self.tr("{what}: write one KEY: VALUE per line", what=what))
        return {str(key): value for key, value in settings.items()}


def settings_text(settings: Mapping[str, Any]) -> str:
    """Format settings in the form in which they are parsed."""
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items())


def non_empty(**values: Any) -> dict[str, Any]:
    """Return the values that are not empty; empty fields are left to the model."""
    return {key: value for key, value in values.items() if value is not None and value != "" and value != ()}
