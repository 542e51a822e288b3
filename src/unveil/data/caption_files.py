"""Captions in a file of their own, as `unveil caption --out` writes it: of the files of a folder, or by number."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from unveil.data.metadata import read_metadata
from unveil.types import DataError, RecipeError


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
    _check_there(file, "with a recipe and --num-videos")
    found: dict[int, Numbered] = {}
    for row in read_metadata(file, "text", "label"):
        if not row.path.isdecimal():
            raise DataError(
                f"{file} line {row.line}: {row.path!r} is no number of a clip; a folder of clips has its captions in "
                "its own metadata.jsonl"
            )
        if row.synthetic:
            found[int(row.path)] = Numbered(row.text, row.synthetic)
    return found


def by_name(file: Path, column: str = "caption") -> dict[str, str]:
    """A captioner's captions of a file of metadata, by the names of the files that they tell.

    Args:
        file: it lies anywhere; its names are below the folder of what they tell.
        column: of the captions.

    Raises:
        RecipeError: no such file.
        MediaError: not such a file, naming the line, or one without a caption.
    """
    _check_there(file, "with a folder and --out")
    found = {row.path: row.text for row in read_metadata(file, column, "label", column) if row.text}
    if not found:
        raise DataError(f"{file}: no caption in its column {column!r}; give a file that unveil caption wrote")
    return found


def _check_there(file: Path, how: str) -> None:
    if not file.is_file():
        raise RecipeError(f"captions {str(file)!r}: no such file; unveil caption writes it, {how}")
