"""Texts of the page in English and Chinese; the English text is the key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unveil.model.config import read_yaml

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
CATALOGUE = Path(__file__).parent / "chinese.yaml"
CHINESE: dict[str, str] = read_yaml(CATALOGUE.read_text("utf-8"), CATALOGUE.name)
TASK_CATALOGUE = Path(__file__).parent / "chinese_tasks.yaml"
CHINESE_TASKS: dict[str, str] = read_yaml(TASK_CATALOGUE.read_text("utf-8"), TASK_CATALOGUE.name)


def is_page_path(path: str) -> bool:
    """Return True if the path of a request is that of the page in one of its languages, such as /en/assets."""
    return path.startswith(tuple(f"/{language}/" for language in LANGUAGES)) or path[1:] in LANGUAGES


class Localized(str):
    """A text in the language of the page."""


@dataclass(frozen=True)
class Translator:
    """Translates texts into one language.

    Attributes:
        language: Language of the page.
    """

    language: Language

    def __call__(self, text: str, **values: Any) -> Localized:
        """Translate a text and fill in the values for its placeholders.

        Raises:
            KeyError: The catalogue lacks the text.
        """
        translated = text if self.language == "en" else CHINESE[text]
        return Localized(translated.format(**values) if values else translated)

    def optional(self, text: str) -> Localized:
        """Translate a text of a task, which stays English where the catalogue of tasks lacks it."""
        return Localized(text if self.language == "en" else CHINESE_TASKS.get(text, text))
