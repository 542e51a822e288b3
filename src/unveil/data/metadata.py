"""Metadata of the files of a folder: which of its files lists them, and which column holds what."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from unveil.data.tables import EXAMPLE, LISTS, TABLE_SUFFIXES, Row, prompts_beside, read_rows, row_noun
from unveil.errors import DataError, RecipeError, did_you_mean

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.json")
_MAX_CLASSES = 1_000_000
# Usual names of columns, in small letters. They decide where several columns might be meant.
_FILES = (
    "filename", "file", "file_path", "filepath", "path", "image", "image_path", "image_file", "image_name", "img",
    "img_path", "video", "video_path", "video_file", "video_name", "media", "media_path", "clip", "name",
)  # fmt: skip
_CAPTIONS = ("caption", "prompt", "description", "captions", "prompts", "sentence", "title", "comment")
_CLASSES = ("label", "class", "class_name", "category", "id", "split", "url", "source", "licence", "license")


class MetadataRow(NamedTuple):
    """One line: the path below the folder, the caption and the label as written, the caption of a captioner."""

    line: int
    path: str
    text: str | None
    label: str | None
    synthetic: str | None = None


class MetadataColumns(NamedTuple):
    """The columns of a table: of the file's name, of its caption, of its label, of the caption that a captioner wrote.

    One of another name than the default must be there. The defaults may be absent: another column is then looked for,
    see `read_metadata`.
    """

    file: str = "file_name"
    text: str = "text"
    label: str = "label"
    synthetic: str = "caption"


class MetadataTable(NamedTuple):
    """The rows of a metadata file in its order, the columns that they were read from, and why no caption was found."""

    rows: list[MetadataRow]
    columns: MetadataColumns
    hint: str | None = None


def read_metadata(file: Path, columns: MetadataColumns | None = None, paths: Collection[str] = ()) -> MetadataTable:
    """The rows of a metadata file.

    The column of files is `file_name`, or else the only column in which a file of the folder is named; of several,
    the only one of a usual name. The column of captions is `text`, or else the only one of a usual name (caption,
    prompt, description, sentence, title, comment), or else the only one of text that is not a file, a number or a
    class. A file may be named by its path below the folder, or by its name alone where no other has it.

    Args:
        file: A file of `tables.read_rows`, in the folder that its paths start from.
        columns: Names of the columns; None: the defaults.
        paths: Files of the folder, below it.

    Raises:
        DataError: Naming file and line; a path that leaves the folder refuses the whole file.
    """
    numbered = list(read_rows(file))
    if not numbered:
        raise DataError(f"{file}: no line in it; every line names an image, such as {EXAMPLE}")
    places = places_of(paths)
    columns, hint = _columns(file, numbered, columns or MetadataColumns(), places)
    rows: list[MetadataRow] = []
    for line, values in numbered:
        where = f"{file} {row_noun(file)} {line}"
        name = values.get(columns.file)
        if not isinstance(name, str) or not name.strip():
            raise DataError(
                f"{where}: no {columns.file}{did_you_mean(columns.file, list(values))}; "
                f"every line names its image, such as {EXAMPLE}"
            )
        clean = _below(file, where, columns.file, name)
        label = _label(where, columns.label, values.get(columns.label))
        written = [None] if columns.synthetic == columns.text else _captions(where, columns.synthetic, values)
        for text in _captions(where, columns.text, values):
            rows.append(MetadataRow(line, places.get(clean, clean), text, label, written[0]))
    return MetadataTable(rows, columns, hint)


def find_table(root: Path, files: Collection[str], paths: Collection[str], columns: MetadataColumns) -> str | None:
    """Return the name of the file that lists a folder's files; None without one.

    It is metadata.jsonl, metadata.csv or metadata.json; or else videos.txt or images.txt, with prompts.txt beside it;
    or else the only JSON, JSONL, CSV or TSV file in the folder that has captions or labels of files of the folder.

    Args:
        root: The folder.
        files: All its files, below it.
        paths: Those of the kind that is searched for.
        columns: Names of the columns.

    Raises:
        DataError: Two files list them.
    """
    named = [name for name in METADATA if name in files]
    if len(named) > 1:
        raise DataError(f"{root}: both {named[0]} and {named[1]}; keep one of them")
    tables = named or [name for name in LISTS if name in files and prompts_beside(root / name)]
    if not tables:
        candidates = sorted(name for name in files if "/" not in name and _suffix(name) in TABLE_SUFFIXES)
        tables = [name for name in candidates if _lists(root / name, paths, columns)]
    if len(tables) > 1:
        raise DataError(
            f"{root}: {' and '.join(tables)} list its files; name the one to read: data.metadata_file={tables[0]}"
        )
    return tables[0] if tables else None


def _lists(file: Path, paths: Collection[str], columns: MetadataColumns) -> bool:
    """Whether a table has captions or labels of these files; one that cannot be read has not."""
    places = places_of(paths)
    try:
        rows = list(read_rows(file))
        chosen, _ = _columns(file, rows, columns, places)
    except DataError:
        return False
    described = chosen.text, chosen.label
    return any(
        _place(places, values.get(chosen.file)) and any(values.get(column) is not None for column in described)
        for _, values in rows
    )


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def places_of(paths: Collection[str]) -> dict[str, str]:
    """Return the path of each file by the names that it may have: the path, and its last part where that is unique."""
    last: dict[str, list[str]] = {}
    for path in paths:
        last.setdefault(PurePosixPath(path).name, []).append(path)
    return {name: same[0] for name, same in last.items() if len(same) == 1} | {path: path for path in paths}


def _place(places: Mapping[str, str], name: object) -> str | None:
    return places.get(str(PurePosixPath(name))) if isinstance(name, str) else None


def _columns(
    file: Path, rows: Sequence[Row], named: MetadataColumns, places: Mapping[str, str]
) -> tuple[MetadataColumns, str | None]:
    """The columns of a table, by the rule of `read_metadata`, and why there is no caption.

    Raises:
        DataError: One that was named is not there, or that of the files is not clear.
    """
    there = list(dict.fromkeys(str(key) for _, values in rows for key in values))
    documented = named.file in there  # the form that `unveil caption` writes, where "caption" is the captioner's
    for column, usual, key in zip(
        named, MetadataColumns(), ("file_column", "caption_column", "label_column", "synthetic_column"), strict=True
    ):
        if column != usual and column not in there:
            raise DataError(
                f"{file}: no column {column!r}{did_you_mean(column, sorted(there))}; "
                f"there are {', '.join(sorted(there))} (data.{key})"
            )
    files = [column for column in there if any(_place(places, values.get(column)) for _, values in rows)]
    if named.file not in there and places:
        usual = [column for column in files if column.lower() in _FILES]
        choice = files if len(files) == 1 else usual
        if len(choice) != 1:
            state = f"{' and '.join(files)} name files of it" if files else "none names a file of it"
            raise DataError(
                f"{file}: no column file_name, and of the columns {', '.join(there)} {state}; "
                "name the column of the files: data.file_column=NAME"
            )
        named = named._replace(file=choice[0])
    if named.text in there or named.text != "text" or (documented and named.synthetic in there):
        return named, None
    others = [column for column in there if column not in (named.file, named.label) and column not in files]
    lower = {column.lower(): column for column in others}
    usual = [lower[name] for name in _CAPTIONS if name in lower]
    free = [column for column in others if column.lower() not in _CLASSES and _is_text(column, rows)]
    choice = usual if len(usual) == 1 else free if not usual and len(free) == 1 else []
    if choice:
        synthetic = "" if choice[0] == named.synthetic else named.synthetic
        return named._replace(text=choice[0], synthetic=synthetic), None
    several = usual or free
    if not several:
        return named, None
    return named, (
        f"{file.name} has the columns {', '.join(there)}, and {' or '.join(several)} may be the captions; "
        f"name the column: data.caption_column={several[0]}"
    )


def _is_text(column: str, rows: Sequence[Row]) -> bool:
    """Whether the values are text: none a number, and one at least there."""
    values = [row[column] for _, row in rows if row.get(column) is not None]
    return bool(values) and all(isinstance(value, str) and not _is_number(value) for value in values)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _captions(where: str, column: str, values: Mapping[str, Any]) -> list[str | None]:
    """The captions in a column: one, several of a list, or [None]."""
    caption = values.get(column)
    if isinstance(caption, list) and caption and all(isinstance(text, str) for text in caption):
        return list(caption)
    if not isinstance(caption, str | None):
        raise DataError(f"{where}: {column} is {caption!r}, not text; put it in quotes")
    return [caption]


def read_columns(file: Path, paths: Collection[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and columns of the rows of a metadata file, in its order, without those that are empty.

    The columns of files and captions have the names file_name and text.

    Raises:
        DataError: Not such a file; the message has file and line.
    """
    table = read_metadata(file, paths=paths)
    values = dict(read_rows(file))
    for row in table.rows:
        filled = {key: value for key, value in values[row.line].items() if value is not None}
        filled.pop(table.columns.file, None)
        filled.pop(table.columns.text, None)
        yield row.path, {"file_name": row.path} | ({} if row.text is None else {"text": row.text}) | filled


def labels_are_classes(names: Collection[str]) -> bool:
    """Return True if a column of these labels is read as class names, not as class numbers from 0."""
    if any(name.removeprefix("-").isdecimal() and not 0 <= int(name) < _MAX_CLASSES for name in names):
        return False
    numbers = {int(name) for name in names if name.isdecimal() and str(int(name)) == name}
    return len(numbers) < len(names) or numbers == set(range(len(names)))


def _below(file: Path, where: str, column: str, name: str) -> str:
    """The name as a clean path below the folder, whatever the system's separator is."""
    windows = PureWindowsPath(name)
    path = PurePosixPath(name)
    if path.is_absolute() or windows.drive or windows.root or ".." in path.parts or ".." in windows.parts:
        raise DataError(
            f"{where}: {column} {name!r} leaves the folder; name files inside {file.parent}, relative to it"
        )
    if "\0" in name:
        raise DataError(f"{where}: {column} {name!r} holds a zero byte; correct it")
    return str(path)


def _label(where: str, column: str, value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{where}: {column} is {value!r}; a label is a name or a whole number from 0")
    name = str(value)
    if name.removeprefix("-").isdecimal() and not 0 <= int(name) < _MAX_CLASSES:
        raise DataError(f"{where}: {column} {name}: numbers of classes are 0 to {_MAX_CLASSES - 1}")
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
    for row in read_metadata(file).rows:
        if not row.path.isdecimal():
            raise DataError(
                f"{file} line {row.line}: {row.path!r} is not the index of a video; a folder of videos has captions "
                "in its own metadata.jsonl"
            )
        if row.synthetic:
            records[int(row.path)] = CaptionRecord(row.text, row.synthetic)
    return records


def captions_by_name(file: Path, column: str = "caption", paths: Collection[str] = ()) -> dict[str, str]:
    """Read a captioner's captions from a metadata file, by the names of the captioned files.

    Args:
        file: Path of the file, anywhere; its names are relative to the folder of the captioned files.
        column: Column of the captions; where it is "caption" and not there, it is found as `read_metadata` does.
        paths: Files of that folder.

    Raises:
        RecipeError: No such file.
        DataError: Not such a file, naming the line, or one without a caption.
    """
    _check_there(file, "with a folder and --out")
    rows = read_metadata(file, MetadataColumns(synthetic=column), paths).rows
    captions = {row.path: row.synthetic for row in rows if row.synthetic}
    captions = captions or {row.path: row.text for row in rows if row.text and column == "caption"}
    if not captions:
        raise DataError(f"{file}: no caption in its column {column!r}; give a file that unveil caption wrote")
    return captions


def _check_there(file: Path, how: str) -> None:
    if not file.is_file():
        raise RecipeError(f"captions {str(file)!r}: no such file; unveil caption writes it, {how}")
