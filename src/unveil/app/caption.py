"""`unveil caption`: captions of the pictures and clips of a folder, or of a recipe, in a file of metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from unveil import data
from unveil.app.console import Console
from unveil.app.models import device as pick
from unveil.checkpoints.captioner import load_captioner
from unveil.config import load_recipe, recipe_names
from unveil.data.glance import Glimpse, Looker, Numbers, look_round
from unveil.data.listing import Entry
from unveil.data.metadata import read_metadata
from unveil.data.playground import Playground
from unveil.files import refuse_overwrite, write_atomically
from unveil.language.caption import FRAMES, HOWS, How, ImageToText, Own, Reel, Teller, Told, Vision
from unveil.types import MediaError, NoAnswer, NotWritable, RecipeError, nearest

COLUMN, CONFIDENCE = "caption", "confidence"
SHOWN = 5  # failures that a person is shown


class Source(Protocol):
    """What is to be told.

    Attributes:
        entries: by name. refused: name and reason of what cannot be opened.
    """

    @property
    def entries(self) -> list[Entry]:
        """See above."""
        ...

    @property
    def refused(self) -> list[tuple[str, str]]:
        """See above."""
        ...

    def __call__(self, entry: Entry, /) -> Glimpse:
        """Some frames of an entry."""
        ...

    def close(self) -> None:
        """Ends what reads."""
        ...


@dataclass(frozen=True)
class Ask:
    """What is asked, as typed.

    Attributes:
        what: a folder of pictures and clips, or a recipe.
        count: clips of the recipe's data; None: what is told is a folder.
        overrides: changes of the recipe.
        model: a captioner, a folder of transformers, or an address and a model's name there, URL#NAME.
        out: the file of captions; None: metadata.jsonl in the folder.
        resume: goes on with the file of captions that an interrupted call left.
    """

    what: Path
    model: str
    count: int | None = None
    overrides: tuple[str, ...] = ()
    out: Path | None = None
    how: str = "greedy"
    beams: int = 4
    temperature: float = 1.0
    seed: int = 0
    device: str = "auto"
    force: bool = False
    resume: bool = False

    @property
    def place(self) -> Path:
        """Of the file."""
        if self.out is not None:
            return self.out
        if self.count is not None:
            raise RecipeError("--count tells clips that lie in no folder: give a file with --out, such as told.jsonl")
        return self.what / "metadata.jsonl"

    def source(self) -> Source:
        """What is told.

        Raises:
            RecipeError: data that are no playground's, changes without a count, or a recipe without one.
            MediaError: no such folder, or nothing to tell in it.
        """
        if self.count is None:
            if self.overrides:
                raise RecipeError(f"{self.overrides[0]!r}: changes are of a recipe; give --count with one")
            if not self.what.exists() and str(self.what) in recipe_names():
                raise RecipeError(f"{self.what}: a recipe; give --count, how many of its clips are told")
            return Looker(look_round(self.what), FRAMES)
        recipe = load_recipe(str(self.what), self.overrides)
        world = data.open(recipe.data.build()) if recipe.data.kind == "playground" else None
        if not isinstance(world, Playground):
            raise RecipeError(f"{self.what}: its data are {recipe.data.kind}; only the playground's are told by number")
        return Numbers(world, self.count)

    def teller(self) -> Teller:
        """What writes captions.

        Raises:
            RecipeError, WeightsError: it cannot be used.
        """
        if self.how not in HOWS:
            raise RecipeError(f"--how {self.how!r}: must be one of {', '.join(HOWS)}{nearest(self.how, HOWS)}")
        if "://" in self.model:
            url, _, name = self.model.partition("#")
            return Vision(url, name)
        device = pick(self.device)
        if (Path(self.model) / "config.json").is_file():
            return ImageToText(Path(self.model), str(device))
        how: How = self.how  # pyright: ignore[reportAssignmentType] - checked above
        captioner, name = load_captioner(self.model, device), Path(self.model).name
        return Own(captioner, name, how=how, beams=self.beams, temperature=self.temperature, seed=self.seed)


def run(ask: Ask, console: Console) -> None:
    """Writes a caption for each picture and clip; what cannot be read or told is listed, and all others are written.

    Whatever ends it early, the captions until then are written; `resume` tells the others.

    Raises:
        NotWritable: a file of captions is there already.
        MediaError: no such folder, nothing to tell in it, or nothing that could be told.
    """
    source = ask.source()
    told = _earlier(ask.place, source.entries) if ask.resume and ask.place.exists() else {}
    _refuse(ask, told)
    teller = ask.teller()
    failed = list(source.refused)
    left = [one for one in source.entries if one.path not in told]
    try:
        with console.progress("caption", len(left)) as progress:
            for part in _parts(source, left, teller.at_once, failed, progress.advance):
                _tell(part, teller, told, failed)
    except BaseException:
        if told:
            known = {path for path, _ in failed}
            _write(ask.place, [one for one in source.entries if one.path not in known], told)
            console.warn(f"{ask.place}: {len(told)} of {len(source.entries)} told; --resume tells the others")
        raise
    if not told:
        raise MediaError(f"{ask.what}: no caption of {len(failed)} files; the first: {': '.join(failed[0])}")
    _write(ask.place, [one for one in source.entries if one.path in told], told)
    facts = {"file": str(ask.place), "captions": len(told), "model": teller.name}
    facts |= {"failed": [{"path": path, "reason": reason} for path, reason in failed]}
    lines = [f"{ask.place}: {len(told)} captions by {teller.name}, in the column {COLUMN!r}"]
    lines += [f"  left out: {path}: {reason}" for path, reason in failed[:SHOWN]]
    lines += [f"  and {len(failed) - SHOWN} more"] if len(failed) > SHOWN else []
    console.result(facts, "\n".join(lines))


def _refuse(ask: Ask, told: Mapping[str, Told]) -> None:
    """Nothing is written over; a file that is to be gone on with holds captions, see `_earlier`."""
    if told:
        return
    if ask.out is None and not ask.force and ask.place.exists():
        raise NotWritable(
            f"{ask.place}: is there already and is not overwritten; give --out, such as --out captions.jsonl"
        )
    refuse_overwrite(ask.place, ask.force)


def _earlier(file: Path, entries: Sequence[Entry]) -> dict[str, Told]:
    """The captions of these entries that an earlier call wrote, by name.

    Raises:
        MediaError: not a file of metadata.
        NotWritable: it holds what no call of this command wrote, and what would be lost.
    """
    read_metadata(file, "text", "label", COLUMN)  # says what is wrong with it
    rows = [json.loads(line) for line in file.read_text("utf-8-sig").split("\n") if line.strip()]
    if others := {key for row in rows for key in row} - {"file_name", "text", COLUMN, CONFIDENCE}:
        raise NotWritable(f"{file}: holds {', '.join(sorted(others))} too, not only captions; give another --out")
    there = {one.path for one in entries}
    return {
        row["file_name"]: Told(row[COLUMN], row.get(CONFIDENCE))
        for row in rows
        if row.get(COLUMN) and row["file_name"] in there
    }


def _write(place: Path, entries: Sequence[Entry], told: Mapping[str, Told]) -> None:
    rows = [_row(one, told.get(one.path)) for one in entries]
    write_atomically(place, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _parts(
    source: Source, entries: Sequence[Entry], count: int, failed: list[tuple[str, str]], advance: Callable[[], object]
) -> Iterator[list[tuple[Entry, Reel]]]:
    """What is to be told, read, so many at a time."""
    part: list[tuple[Entry, Reel]] = []
    try:
        for entry in entries:
            try:
                part.append((entry, Reel(*source(entry))))
            except MediaError as problem:
                failed.append((entry.path, str(problem)))
            if len(part) == count:
                yield part
                part = []
            advance()
        if part:
            yield part
    finally:
        source.close()


def _tell(
    part: Sequence[tuple[Entry, Reel]], teller: Teller, told: dict[str, Told], failed: list[tuple[str, str]]
) -> None:
    try:
        found = teller([reel for _, reel in part])
    except NoAnswer as problem:
        failed += [(entry.path, str(problem)) for entry, _ in part]
        return
    told |= {entry.path: one for (entry, _), one in zip(part, found, strict=True)}


def _row(entry: Entry, told: Told | None) -> dict[str, Any]:
    """A line of metadata: the caption, and the one that was there; only the latter where it is not yet told."""
    row: dict[str, Any] = {"file_name": entry.path}
    if entry.text is not None:
        row["text"] = entry.text
    if told is not None:
        row[COLUMN] = told.text
    if told is not None and told.confidence is not None:
        row[CONFIDENCE] = round(told.confidence, 4)
    return row
