"""Captions of clips that lie in no folder, by number: `unveil caption` writes them, the playground reads them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from unveil.data.metadata import read_metadata
from unveil.types import MediaError, RecipeError


class Numbered(NamedTuple):
    """What a file says of a clip: its own caption when it was told, None where it had none, and a captioner's."""

    own: str | None
    synthetic: str


def by_number(file: Path) -> dict[int, Numbered]:
    """The captions of a file of metadata whose names are numbers, of clips that have been told.

    Raises:
        RecipeError: no such file.
        MediaError: not such a file, naming the line.
    """
    if not file.is_file():
        raise RecipeError(f"captions {str(file)!r}: no such file; unveil caption writes it, with a recipe and --count")
    found: dict[int, Numbered] = {}
    for row in read_metadata(file, "text", "label"):
        if not row.path.isdecimal():
            raise MediaError(
                f"{file} line {row.line}: {row.path!r} is no number of a clip; a folder of clips has its captions in "
                "its own metadata.jsonl"
            )
        if row.synthetic:
            found[int(row.path)] = Numbered(row.text, row.synthetic)
    return found
