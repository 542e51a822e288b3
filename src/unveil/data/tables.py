"""Tables of files and what is known about them: JSON, JSON lines, CSV, TSV, and a list of files beside one of prompts.

Every form is read as rows of named columns. A map of files to captions has the columns file_name and text.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unveil.errors import DataError

TABLE_SUFFIXES = frozenset({".json", ".jsonl", ".csv", ".tsv"})
LISTS = ("videos.txt", "images.txt")
PROMPTS = ("prompts.txt", "prompt.txt", "captions.txt")
EXAMPLE = '{"file_name": "cat.png", "text": "a sleeping cat"}'
_DELIMITERS = ",;\t|"

Row = tuple[int, Mapping[str, Any]]


def row_noun(file: Path) -> str:
    """Return what a row of a table is called in messages: an entry of a JSON file, a line of any other."""
    return "entry" if file.suffix.lower() == ".json" else "line"


def read_rows(file: Path) -> Iterator[Row]:
    """The rows of a table, each with its number from 1: that of its line, or of its entry in a JSON file.

    The ending decides: .jsonl has an object a line; .json a list of objects, a map from file to caption, captions or
    columns, or images and annotations as COCO has them; .tsv columns between tabs; videos.txt and images.txt a path a
    line, whose captions are the lines of prompts.txt beside it; anything else is CSV, with the delimiter of its header.

    Raises:
        DataError: Not such a file; the message has file and line.
    """
    match file.suffix.lower():
        case ".jsonl":
            return _jsonl(file)
        case ".json":
            return _json(file)
        case _ if file.name in LISTS:
            return _listed(file)
        case suffix:
            return _csv(file, "\t" if suffix == ".tsv" else None)


def prompts_beside(file: Path) -> Path | None:
    """Return the file of prompts that belongs to a list of files; None without one."""
    return next((beside for name in PROMPTS if (beside := file.with_name(name)).is_file()), None)


def _jsonl(file: Path) -> Iterator[Row]:
    for line, raw in enumerate(_text(file).split("\n"), 1):
        if not raw.strip():
            continue
        try:
            values = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{file} line {line}: not JSON ({error}); every line is one object, such as {EXAMPLE}"
            ) from error
        if not isinstance(values, dict):
            raise DataError(f"{file} line {line}: {type(values).__name__}, not an object; such as {EXAMPLE}")
        yield line, values


def _json(file: Path) -> Iterator[Row]:
    try:
        content = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            yield from _jsonl(file)  # JSON lines under this ending
            return
        raise DataError(f"{file}: not JSON ({error})") from error
    if isinstance(content, dict):
        content = _of_map(file, content)
    if not isinstance(content, list):
        raise DataError(
            f"{file}: {type(content).__name__}, neither a list of objects nor a map; "
            f'such as [{EXAMPLE}] or {{"cat.png": "a sleeping cat"}}'
        )
    for number, values in enumerate(content, 1):
        if not isinstance(values, dict):
            raise DataError(f"{file} entry {number}: {type(values).__name__}, not an object; such as {EXAMPLE}")
        yield number, values


def _of_map(file: Path, content: dict[str, Any]) -> list[Any]:
    if isinstance(content.get("images"), list) and isinstance(content.get("annotations"), list):
        return _coco_captions(file, content)
    lists = [value for value in content.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(lists) == 1:  # its rows under a key, beside facts about them
        return lists[0]
    rows: list[dict[str, Any]] = []
    for name, value in content.items():
        if isinstance(value, dict):
            rows.append({"file_name": name, **value})
        elif isinstance(value, str | list) or value is None:
            rows.append({"file_name": name, "text": value})
        else:
            raise DataError(
                f"{file}: {name!r} is {value!r}; a map has files as keys, and captions or objects as values, such as "
                '{"cat.png": "a sleeping cat"}'
            )
    return rows


def _coco_captions(file: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each caption of COCO's annotations, and one for each image without."""
    captions: dict[Any, list[str]] = {}
    for mark in content["annotations"]:
        if (
            isinstance(mark, dict)
            and isinstance(mark.get("caption"), str)
            and isinstance(mark.get("image_id"), int | str)
        ):
            captions.setdefault(mark["image_id"], []).append(mark["caption"].strip())
    rows = []
    for number, image in enumerate(content["images"], 1):
        if not isinstance(image, dict) or not isinstance(image.get("id"), int | str):
            raise DataError(f"{file}: image {number} has no id; COCO's images have id and file_name")
        rows.append({"file_name": image.get("file_name"), "text": captions.get(image["id"])})
    return rows


def _csv(file: Path, delimiter: str | None) -> Iterator[Row]:
    text = _text(file)
    if delimiter is None:
        header = text.partition("\n")[0]
        delimiter = next((mark for mark in _DELIMITERS if mark in header), ",")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        for values in reader:
            if None in values or None in values.values():
                count = len(reader.fieldnames or ())
                raise DataError(
                    f"{file} line {reader.line_num}: not {count} values, as the first line has; "
                    f"put values that hold a {'comma' if delimiter == ',' else repr(delimiter)} in quotes"
                )
            yield reader.line_num, {key.strip(): value or None for key, value in values.items()}
    except csv.Error as error:
        raise DataError(f"{file} line {reader.reader.line_num}: not CSV ({error})") from error


def _listed(file: Path) -> Iterator[Row]:
    beside = prompts_beside(file)
    names = _lines(file)
    captions = [None] * len(names) if beside is None else _lines(beside)
    if beside is not None and len(names) != len(captions):
        raise DataError(
            f"{file}: {len(names)} lines, and {beside.name} has {len(captions)}; "
            "line n of one belongs to line n of the other, with an empty line where there is no caption"
        )
    for line, (name, caption) in enumerate(zip(names, captions, strict=True), 1):
        yield line, {"file_name": name, "text": caption or None}


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in _text(file).rstrip().split("\n")]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
