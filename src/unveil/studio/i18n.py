"""What the page says, in English and in Chinese: the English words are the key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unveil.model.config import read_yaml

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
CATALOGUE = Path(__file__).parent / "chinese.yaml"
CHINESE: dict[str, str] = read_yaml(CATALOGUE.read_text("utf-8"), CATALOGUE.name)


class Said(str):
    """What the page itself says, in its own language."""


@dataclass(frozen=True)
class Say:
    """The words of one language.

    Attributes:
        language: of the page.
    """

    language: Language

    def __call__(self, text: str, **values: Any) -> Said:
        """Words of the page, with values for what stands in braces.

        Raises:
            KeyError: the catalogue lacks them.
        """
        told = text if self.language == "en" else CHINESE[text]
        return Said(told.format(**values) if values else told)
