"""Captions in a file of their own, as `unveil caption --out` writes it: of the files of a folder, or by number."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from unveil.data.metadata import read_metadata
from unveil.errors import DataError, RecipeError


class CaptionRecord(NamedTuple):
    """Captions of a numbered video: its original caption, None if it had none, and a captioner's."""

    original: str | None
    synthetic: str


def by_number(file: Path) -> dict[int, CaptionRecord]:
    """Read the captions of numbered videos from a metadata file.

    Raises:
        RecipeError: no such file.
        DataError: not such a file, naming the line.
    """
    _check_there(file, "with a recipe and --num-videos")
    records: dict[int, CaptionRecord] = {}
    for row in read_metadata(file, "text", "label"):
        if not row.path.isdecimal():
            raise DataError(
                f"{file} line {row.line}: {row.path!r} is no number of a video; a folder of videos has its captions in "
                "its own metadata.jsonl"
            )
        if row.synthetic:
            records[int(row.path)] = CaptionRecord(row.text, row.synthetic)
    return records


def by_name(file: Path, column: str = "caption") -> dict[str, str]:
    """Read a captioner's captions from a metadata file, by the names of the captioned files.

    Args:
        file: Path of the file, anywhere; its names are relative to the folder of the captioned files.
        column: Column of the captions.

    Raises:
        RecipeError: no such file.
        DataError: not such a file, naming the line, or one without a caption.
    """
    _check_there(file, "with a folder and --out")
    captions = {row.path: row.text for row in read_metadata(file, column, "label", column) if row.text}
    if not captions:
        raise DataError(f"{file}: no caption in its column {column!r}; give a file that unveil caption wrote")
    return captions


def _check_there(file: Path, how: str) -> None:
    if not file.is_file():
        raise RecipeError(f"captions {str(file)!r}: no such file; unveil caption writes it, {how}")
