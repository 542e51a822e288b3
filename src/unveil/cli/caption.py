"""`unveil caption`: captions of the pictures and clips of a folder, or of a recipe, in a file of metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from unveil import data
from unveil.data.folder_index import IndexEntry
from unveil.data.metadata import METADATA, labels_are_classes, read_columns, read_metadata
from unveil.errors import AlreadyExists, DataError, NoAnswer, OutputError, RecipeError, WeightsError, did_you_mean
from unveil.generation.model_loading import resolve_device as pick
from unveil.io.console import Console
from unveil.io.files import refuse_overwrite, write_atomically
from unveil.model.captioner_folder import load_captioner
from unveil.model.config import load_recipe, recipe_names
from unveil.model.config.seq2seq import DecodeConfig
from unveil.playground.dataset import Playground
from unveil.prompting.captioners import (
    DECODING_METHODS,
    FRAMES,
    Caption,
    CaptionWriter,
    DecodingMethod,
    ImageToText,
    MediaClip,
    NativeCaptioner,
    VisionEndpoint,
)
from unveil.prompting.media_scan import MediaReader, PlaygroundReader, SampledFrames, scan_folder
from unveil.prompting.openai_client import TokenUsage
from unveil.types import is_valid_utf8

COLUMN, CONFIDENCE = "caption", "confidence"
BEAMS = 4  # of a captioner that is greedy by itself
SHOWN = 5  # failures that a person is shown
STOP = 5  # failures in a row that end it: what tells is gone
ELSEWHERE = "give --out, such as --out captions.jsonl, and train with data.captions_file=captions.jsonl"
Failures = list[tuple[str, str]]  # name and reason


class Source(Protocol):
    """What is to be told.

    Attributes:
        entries: by name. refused: name and reason of what cannot be opened. table: the metadata that says what is
            there, None without. classes: the class that is no column but the sub-folder, by name.
    """

    @property
    def entries(self) -> list[IndexEntry]:
        """See above."""
        ...

    @property
    def refused(self) -> Failures:
        """See above."""
        ...

    @property
    def table(self) -> Path | None:
        """See above."""
        ...

    @property
    def classes(self) -> Mapping[str, str]:
        """See above."""
        ...

    def __call__(self, entry: IndexEntry, /) -> SampledFrames:
        """Some frames of an entry."""
        ...

    def close(self) -> None:
        """Ends what reads."""
        ...


@dataclass(frozen=True)
class CaptionRequest:
    """What is asked, as typed.

    Attributes:
        what: a folder of pictures and clips, or a recipe.
        count: clips of the recipe's data; None: what is told is a folder.
        overrides: changes of the recipe.
        model: a captioner, a folder of transformers, or an address and a model's name there, URL#NAME.
        out: the file of captions; None: metadata.jsonl in the folder.
        how, beams: of a captioner of ours; None: as its recipe says.
        resume: goes on with the file of captions that an earlier call left, and asks again for what had no answer.
    """

    what: Path
    model: str
    count: int | None = None
    overrides: tuple[str, ...] = ()
    out: Path | None = None
    how: str | None = None
    beams: int | None = None
    temperature: float = 1.0
    seed: int = 0
    device: str = "auto"
    force: bool = False
    resume: bool = False

    @property
    def place(self) -> Path:
        """Of the file.

        Raises:
            RecipeError: no name of one.
        """
        if self.out is not None:
            if self.out.suffix != ".jsonl":
                raise RecipeError(
                    f"--out {self.out}: captions are written as JSON lines; give a file such as captions.jsonl"
                )
            return self.out
        if self.count is not None:
            raise RecipeError(
                "--num-videos captions videos that are in no folder: give a file with --out, such as captions.jsonl"
            )
        return self.what / "metadata.jsonl"

    @property
    def inside(self) -> bool:
        """Whether the file is the folder's own metadata."""
        place = self.place
        return self.count is None and place.name in METADATA and place.parent.resolve() == self.what.resolve()

    def source(self) -> Source:
        """What is told.

        Raises:
            RecipeError: data that are no playground's, changes without a count, or a recipe without one.
            DataError: no such folder, or nothing to tell in it.
        """
        if self.count is None:
            if self.overrides:
                raise RecipeError(f"{self.overrides[0]!r}: changes are of a recipe; give --num-videos with one")
            if not self.what.exists() and str(self.what) in recipe_names():
                raise RecipeError(f"{self.what}: a recipe; give --num-videos, the number of its videos to caption")
            return MediaReader(scan_folder(self.what), FRAMES)
        recipe = load_recipe(str(self.what), self.overrides)
        world = data.open(recipe.data.build()) if recipe.data.kind == "playground" else None
        if not isinstance(world, Playground):
            raise RecipeError(
                f"{self.what}: its data are {recipe.data.kind}; only the playground's videos are captioned by number"
            )
        return PlaygroundReader(world, self.count)

    def teller(self) -> CaptionWriter:
        """What writes captions.

        Raises:
            RecipeError, WeightsError: it cannot be used.
        """
        if self.how is not None and self.how not in DECODING_METHODS:
            raise RecipeError(
                f"--decoding {self.how!r}: must be one of {', '.join(DECODING_METHODS)}"
                f"{did_you_mean(self.how, DECODING_METHODS)}"
            )
        if self.beams is not None and self.beams < 1:
            raise RecipeError(f"--num-beams {self.beams}: must be at least 1, which is greedy")
        if "://" in self.model:
            url, _, name = self.model.partition("#")
            return VisionEndpoint(url, name)
        device = pick(self.device)
        if (Path(self.model) / "config.json").is_file():
            return ImageToText(Path(self.model), str(device))
        captioner, name = load_captioner(self.model, device), Path(self.model).name
        try:
            usual = DecodeConfig(**{"num_beams": 1, **captioner.facts.get("decode", {})})
        except (TypeError, ValueError) as problem:
            raise WeightsError(f"{self.model}: how it writes cannot be read ({problem}); train it again") from problem
        own = usual.num_beams if self.beams is None else self.beams
        how: DecodingMethod = self.how or ("beam" if own > 1 else "greedy")  # pyright: ignore[reportAssignmentType] - see above
        beams = BEAMS if self.beams is None and own == 1 else own
        return NativeCaptioner(
            captioner, name, how=how, beams=beams, temperature=self.temperature, seed=self.seed,
            length_power=usual.length_penalty,
        )  # fmt: skip


@dataclass
class Book:
    """The file of captions: what it says already, and what is told.

    Attributes:
        place: of the file. entries: what is told, by name.
        rows: columns that are there already, of the file itself or of the folder's metadata, by name, in their order;
            a name may come twice.
        own: the rows are the file's, and none of them is lost. classes: a label for each entry, or none.
        told: captions. unread: what cannot be read, with the reason. silent: what there was no answer for, likewise.
    """

    place: Path
    entries: Sequence[IndexEntry]
    rows: Sequence[tuple[str, Mapping[str, Any]]] = ()
    own: bool = False
    classes: Mapping[str, str] = field(default_factory=dict)
    told: dict[str, Caption] = field(default_factory=dict)
    unread: Failures = field(default_factory=list)
    silent: Failures = field(default_factory=list)

    @property
    def left(self) -> list[IndexEntry]:
        """What is not told, each once."""
        return list({one.path: one for one in self.entries if one.path not in self.told}.values())

    def write(self) -> None:
        """All that is there, captions beside it. What has no caption keeps its row, so that it is trained on as before.

        Raises:
            OutputError: the place cannot be written.
        """
        entries, unread = {one.path: one for one in self.entries}, {path for path, _ in self.unread}
        found: list[Mapping[str, Any]] = []
        for path, columns in self.rows:
            if path in entries and (self.own or path not in unread):
                found.append(self._row(entries[path], columns))
            elif self.own:
                found.append(columns)
        rowed = {path for path, _ in self.rows} | unread
        found += [self._row(one, {}) for one in entries.values() if one.path not in rowed]
        write_atomically(self.place, "".join(_line(row) for row in found))

    def _row(self, entry: IndexEntry, columns: Mapping[str, Any]) -> dict[str, Any]:
        row = {"file_name": entry.path} | {key: columns[key] for key in columns if key not in (COLUMN, CONFIDENCE)}
        if entry.text is not None:
            row.setdefault("text", entry.text)
        if entry.path in self.classes:
            row.setdefault("label", self.classes[entry.path])
        if (told := self.told.get(entry.path)) is not None:
            row[COLUMN] = told.text
            row |= {} if told.confidence is None else {CONFIDENCE: round(told.confidence, 4)}
        return row


def run(ask: CaptionRequest, console: Console) -> None:
    """Writes a caption for each picture and clip; what cannot be read or told is listed, and all others are written.

    Whatever ends it early, the captions until then are written; `resume` tells the others.

    Raises:
        OutputError: a file of captions is there already, or it would hide what the folder says.
        DataError: no such folder, nothing to tell in it, or nothing that could be told.
        NoAnswer: several in a row had none.
    """
    ask = replace(ask, what=ask.what.expanduser(), out=ask.out and ask.out.expanduser())
    source = ask.source()
    book = _opened(ask, source)
    teller, everything = ask.teller(), len({one.path for one in book.entries})
    try:
        with console.progress("caption", len(book.left)) as progress:
            in_a_row = 0
            for part in _parts(source, book.left, teller.at_once, book.unread, progress.advance):
                if in_a_row >= STOP:
                    raise NoAnswer(
                        f"{teller.name}: no caption of {in_a_row} files in a row; the last: {book.silent[-1][1]}; see "
                        f"that it answers, and {'continue with --resume' if book.told else 'start again'}"
                    )
                in_a_row = 0 if _tell(part, teller, book) else in_a_row + 1
    except BaseException:
        if book.told:
            book.write()
            took = f"; {spent} so far" if (spent := str(_spent(teller))) else ""
            console.warn(f"{ask.place}: {len(book.told)} of {everything} captioned; --resume captions the others{took}")
        raise
    failed = sorted([*book.unread, *book.silent])
    if not book.told:
        raise DataError(f"{ask.what}: no caption of {len(failed)} files; the first: {': '.join(failed[0])}")
    book.write()
    _report(ask, book, teller, console)


def _report(ask: CaptionRequest, book: Book, teller: CaptionWriter, console: Console) -> None:
    failed, spent = sorted([*book.unread, *book.silent]), _spent(teller)
    facts = {"file": str(ask.place), "captions": len(book.told), "model": teller.name}
    facts |= {"failed": [{"path": path, "reason": reason} for path, reason in failed], "cost": spent._asdict()}
    lines = [f"{ask.place}: {len(book.told)} captions by {teller.name}, in the column {COLUMN!r}"]
    lines += [f"  {spent}"] if str(spent) else []
    lines += [f"  left out: {path}: {reason}" for path, reason in failed[:SHOWN]]
    lines += [f"  and {len(failed) - SHOWN} more"] if len(failed) > SHOWN else []
    lines += [f"  {len(book.silent)} of these had no answer: --resume asks again"] if book.silent else []
    lines += [] if ask.inside else [f"  train on them with data.captions_file={ask.place}"]
    console.result(facts, "\n".join(lines))


def _spent(teller: CaptionWriter) -> TokenUsage:
    return teller.spent if isinstance(teller, VisionEndpoint) else TokenUsage()


def _opened(ask: CaptionRequest, source: Source) -> Book:
    """The file as it is, once all is refused that would be lost.

    Raises:
        OutputError: it is there already, or it would hide what the folder says.
        DataError: it is gone on with, and no file of metadata.
    """
    place, table = ask.place, source.table
    there = place.exists()
    if ask.inside and table is not None and table.name != place.name:
        raise OutputError(
            f"{place}: {table.name} says already what is in this folder, which has one of the two; {ELSEWHERE}"
        )
    book = Book(place, source.entries, classes=_classes(ask, source), unread=list(source.refused))
    if ask.resume and there:
        book.rows, book.own = _rows(place), True
        entries = {one.path for one in source.entries}
        book.told = {path: _told(row) for path, row in book.rows if row.get(COLUMN) and path in entries}
        if book.told:
            return book
    if ask.out is None and not ask.force and there:
        raise AlreadyExists(f"{place}: exists already and is not overwritten; {ELSEWHERE}")
    refuse_overwrite(place, ask.force)
    book.rows, book.own = ([] if table is None else _rows(table)), ask.inside
    return book


def _classes(ask: CaptionRequest, source: Source) -> Mapping[str, str]:
    """The sub-folders that are classes, as labels; none, where metadata cannot say these.

    Raises:
        OutputError: they would be lost.
    """
    named = set(source.classes.values())
    if all(one.path in source.classes for one in source.entries) and labels_are_classes(named):
        return source.classes
    if named and ask.inside:
        raise OutputError(
            f"{ask.place}: would take the place of the classes that the sub-folders are, and cannot say these "
            f"({', '.join(sorted(named)[:SHOWN])}): not all files have one, or the names are numbers; {ELSEWHERE}"
        )
    return {}


def _rows(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """The columns of each line of a file of metadata, by the name of what it tells.

    Raises:
        DataError: not such a file.
    """
    names = [row.path for row in read_metadata(file, "text", "label", COLUMN)]
    return list(zip(names, read_columns(file), strict=True))


def _line(row: Mapping[str, Any]) -> str:
    """A line of the file; names that are no text, as some disks hold, are written by their numbers."""
    line = json.dumps(row, ensure_ascii=False) + "\n"
    return line if is_valid_utf8(line) else json.dumps(row) + "\n"


def _told(row: Mapping[str, Any]) -> Caption:
    sure = row.get(CONFIDENCE)
    return Caption(row[COLUMN], float(sure) if isinstance(sure, int | float) else None)


def _parts(
    source: Source, entries: Sequence[IndexEntry], count: int, unread: Failures, advance: Callable[[], object]
) -> Iterator[list[tuple[IndexEntry, MediaClip]]]:
    """What is to be told, read, so many at a time."""
    part: list[tuple[IndexEntry, MediaClip]] = []
    try:
        for entry in entries:
            try:
                part.append((entry, MediaClip(*source(entry), entry.path)))
            except DataError as problem:
                unread.append((entry.path, str(problem)))
            if len(part) == count:
                yield part
                part = []
            advance()
        if part:
            yield part
    finally:
        source.close()


def _tell(part: Sequence[tuple[IndexEntry, MediaClip]], teller: CaptionWriter, book: Book) -> bool:
    """Whether there was an answer."""
    try:
        found = teller([reel for _, reel in part])
    except NoAnswer as problem:
        book.silent += [(entry.path, str(problem)) for entry, _ in part]
        return False
    for (entry, _), one in zip(part, found, strict=True):
        if one.text:
            book.told[entry.path] = one
        else:
            book.silent.append((entry.path, "its caption is empty"))
    return any(one.text for one in found)
