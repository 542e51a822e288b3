"""Metadata beside the files of a folder: metadata.jsonl, metadata.csv and caption files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from unveil.errors import DataError, RecipeError, did_you_mean

METADATA = ("metadata.jsonl", "metadata.csv")
_EXAMPLE = '{"file_name": "cat.png", "text": "a sleeping cat"}'
_MAX_CLASSES = 1_000_000


class MetadataRow(NamedTuple):
    """One line: the path below the folder, the caption and the label as written, the caption of a captioner."""

    line: int
    path: str
    text: str | None
    label: str | None
    synthetic: str | None = None


def read_metadata(file: Path, text: str, label: str, synthetic: str = "caption") -> list[MetadataRow]:
    """The rows of a metadata file, in its order.

    Args:
        file: Metadata.jsonl or metadata.csv, in the folder that its paths start from.
        text: The column of captions; may be absent where it is "text".
        label: The column of labels; may be absent where it is "label".
        synthetic: The column of captions that a captioner wrote; may be absent where it is "caption".

    Raises:
        DataError: Naming file and line; a path that leaves the folder refuses the whole file.
    """
    rows, columns = [], set[str]()
    for line, values in _lines(file):
        columns |= {str(key) for key in values}
        name = values.get("file_name")
        if not isinstance(name, str) or not name.strip():
            raise DataError(
                f"{file} line {line}: no file_name{did_you_mean('file_name', list(values))}; "
                f"every line names its image, such as {_EXAMPLE}"
            )
        for column in (text, synthetic):
            if not isinstance(caption := values.get(column), str | None):
                raise DataError(f"{file} line {line}: {column} is {caption!r}, not text; put it in quotes")
        written = None if synthetic == text else values.get(synthetic)
        cells = (values.get(text), _label(file, line, label, values.get(label)), written)
        rows.append(MetadataRow(line, _below(file, line, name), *cells))
    for column, usual in ((text, "text"), (label, "label"), (synthetic, "caption")):
        if column != usual and column not in columns:
            raise DataError(
                f"{file}: no column {column!r}{did_you_mean(column, sorted(columns))}; "
                f"there are {', '.join(sorted(columns))}"
            )
    if not rows:
        raise DataError(f"{file}: no line in it; every line names an image, such as {_EXAMPLE}")
    return rows


def read_columns(file: Path) -> list[dict[str, Any]]:
    """All columns of the same rows, in the same order, without those that are empty.

    Raises:
        DataError: Not such a file; the message has file and line.
    """
    return [{key: value for key, value in values.items() if value is not None} for _, values in _lines(file)]


def labels_are_classes(names: Collection[str]) -> bool:
    """Return True if a column of these labels is read as class names, not as class numbers from 0."""
    if any(name.removeprefix("-").isdecimal() and not 0 <= int(name) < _MAX_CLASSES for name in names):
        return False
    numbers = {int(name) for name in names if name.isdecimal() and str(int(name)) == name}
    return len(numbers) < len(names) or numbers == set(range(len(names)))


def _lines(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    return _jsonl(file) if file.suffix == ".jsonl" else _csv(file)


def _jsonl(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, raw in enumerate(_text(file).split("\n"), 1):
        if not raw.strip():
            continue
        try:
            values = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{file} line {line}: not JSON ({error}); every line is one object, such as {_EXAMPLE}"
            ) from error
        if not isinstance(values, dict):
            raise DataError(f"{file} line {line}: {type(values).__name__}, not an object; such as {_EXAMPLE}")
        yield line, values


def _csv(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(_text(file), newline=""), strict=True)
    try:
        for values in reader:
            if None in values or None in values.values():
                count = len(reader.fieldnames or ())
                raise DataError(
                    f"{file} line {reader.line_num}: not {count} values, as the first line has; "
                    "put values that hold a comma in quotes"
                )
            yield reader.line_num, {key: value or None for key, value in values.items()}
    except csv.Error as error:
        raise DataError(f"{file} line {reader.reader.line_num}: not CSV ({error})") from error


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error


def _below(file: Path, line: int, name: str) -> str:
    """The name as a clean path below the folder, whatever the system's separator is."""
    windows = PureWindowsPath(name)
    path = PurePosixPath(name)
    if path.is_absolute() or windows.drive or windows.root or ".." in path.parts or ".." in windows.parts:
        raise DataError(
            f"{file} line {line}: file_name {name!r} leaves the folder; name files inside {file.parent}, relative to it"
        )
    if "\0" in name:
        raise DataError(f"{file} line {line}: file_name {name!r} holds a zero byte; correct it")
    return str(path)


def _label(file: Path, line: int, column: str, value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{file} line {line}: {column} is {value!r}; a label is a name or a whole number from 0")
    name = str(value)
    if name.removeprefix("-").isdecimal() and not 0 <= int(name) < _MAX_CLASSES:
        raise DataError(f"{file} line {line}: {column} {name}: numbers of classes are 0 to {_MAX_CLASSES - 1}")
    return name


class CaptionRecord(NamedTuple):
    """Captions of a numbered video: its original caption, None if it had none, and a captioner's."""

    original: str | None
    synthetic: str


def captions_by_index(file: Path) -> dict[int, CaptionRecord]:
    """Read the captions of numbered videos from a metadata file.

    Raises:
        RecipeError: No such file.
        DataError: Not such a file, naming the line.
    """
    _check_there(file, "with a recipe and --num-videos")
    records: dict[int, CaptionRecord] = {}
    for row in read_metadata(file, "text", "label"):
        if not row.path.isdecimal():
            raise DataError(
                f"{file} line {row.line}: {row.path!r} is not the index of a video; a folder of videos has captions "
                "in its own metadata.jsonl"
            )
        if row.synthetic:
            records[int(row.path)] = CaptionRecord(row.text, row.synthetic)
    return records


def captions_by_name(file: Path, column: str = "caption") -> dict[str, str]:
    """Read a captioner's captions from a metadata file, by the names of the captioned files.

    Args:
        file: Path of the file, anywhere; its names are relative to the folder of the captioned files.
        column: Column of the captions.

    Raises:
        RecipeError: No such file.
        DataError: Not such a file, naming the line, or one without a caption.
    """
    _check_there(file, "with a folder and --out")
    captions = {row.path: row.text for row in read_metadata(file, column, "label", column) if row.text}
    if not captions:
        raise DataError(f"{file}: no caption in its column {column!r}; give a file that unveil caption wrote")
    return captions


def _check_there(file: Path, how: str) -> None:
    if not file.is_file():
        raise RecipeError(f"captions {str(file)!r}: no such file; unveil caption writes it, {how}")
