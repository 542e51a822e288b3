"""`unveil caption`: captions of the pictures and clips of a folder, in a file of metadata beside what was there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unveil.app.console import Console
from unveil.app.models import device as pick
from unveil.checkpoints.captioner import load_captioner
from unveil.data.glance import Looker, Seen, look_round
from unveil.data.listing import Entry
from unveil.files import refuse_overwrite, write_atomically
from unveil.language.caption import FRAMES, HOWS, How, ImageToText, Own, Reel, Teller, Told, Vision
from unveil.types import MediaError, NoAnswer, NotWritable, RecipeError, nearest

COLUMN, CONFIDENCE = "caption", "confidence"
SHOWN = 5  # failures that a person is shown


@dataclass(frozen=True)
class Ask:
    """What is asked, as typed.

    Attributes:
        model: a captioner, a folder of transformers, or an address and a model's name there, URL#NAME.
        out: the file of captions; None: metadata.jsonl in the folder.
    """

    folder: Path
    model: str
    out: Path | None = None
    how: str = "greedy"
    beams: int = 4
    temperature: float = 1.0
    seed: int = 0
    device: str = "auto"
    force: bool = False

    @property
    def place(self) -> Path:
        """Of the file."""
        return self.folder / "metadata.jsonl" if self.out is None else self.out

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

    Raises:
        NotWritable: a file of captions is there already.
        MediaError: no such folder, nothing to tell in it, or nothing that could be told.
    """
    seen = look_round(ask.folder)
    if ask.out is None and not ask.force and ask.place.exists():
        raise NotWritable(
            f"{ask.place}: is there already and is not overwritten; give --out, such as --out captions.jsonl"
        )
    refuse_overwrite(ask.place, ask.force)
    teller = ask.teller()
    told: dict[str, Told] = {}
    failed = list(seen.refused)
    with console.progress("caption", len(seen.entries)) as progress:
        for part in _parts(seen, teller.at_once, failed, progress.advance):
            _tell(part, teller, told, failed)
    if not told:
        raise MediaError(f"{ask.folder}: no caption of {len(failed)} files; the first: {': '.join(failed[0])}")
    rows = [_row(one, told[one.path]) for one in seen.entries if one.path in told]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(ask.place, text)
    facts = {"file": str(ask.place), "captions": len(rows), "model": teller.name}
    facts |= {"failed": [{"path": path, "reason": reason} for path, reason in failed]}
    lines = [f"{ask.place}: {len(rows)} captions by {teller.name}, in the column {COLUMN!r}"]
    lines += [f"  left out: {path}: {reason}" for path, reason in failed[:SHOWN]]
    lines += [f"  and {len(failed) - SHOWN} more"] if len(failed) > SHOWN else []
    console.result(facts, "\n".join(lines))


def _parts(
    seen: Seen, count: int, failed: list[tuple[str, str]], advance: Callable[[], object]
) -> Iterator[list[tuple[Entry, Reel]]]:
    """What is to be told, read, so many at a time."""
    looker = Looker(seen, FRAMES)
    part: list[tuple[Entry, Reel]] = []
    try:
        for entry in seen.entries:
            try:
                part.append((entry, Reel(*looker(entry))))
            except MediaError as problem:
                failed.append((entry.path, str(problem)))
            if len(part) == count:
                yield part
                part = []
            advance()
        if part:
            yield part
    finally:
        looker.close()


def _tell(
    part: Sequence[tuple[Entry, Reel]], teller: Teller, told: dict[str, Told], failed: list[tuple[str, str]]
) -> None:
    try:
        found = teller([reel for _, reel in part])
    except NoAnswer as problem:
        failed += [(entry.path, str(problem)) for entry, _ in part]
        return
    told |= {entry.path: one for (entry, _), one in zip(part, found, strict=True)}


def _row(entry: Entry, told: Told) -> dict[str, Any]:
    """A line of metadata: the caption, and the one that was there."""
    row: dict[str, Any] = {"file_name": entry.path}
    if entry.text is not None:
        row["text"] = entry.text
    row[COLUMN] = told.text
    if told.confidence is not None:
        row[CONFIDENCE] = round(told.confidence, 4)
    return row
