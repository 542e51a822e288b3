"""`unveil sample`: pictures from a model, as files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unveil.app import lora as loras
from unveil.app.console import Console
from unveil.app.models import device as pick
from unveil.app.models import open_model
from unveil.checkpoints.guide import load_guide
from unveil.conditioning.image import ContextChannels
from unveil.config import override
from unveil.files import refuse_overwrite, write_atomically
from unveil.model import Model
from unveil.pictures import png, sheet, to_pixels
from unveil.tasks.generate import DTYPES, Guided, Picture, Request, generate
from unveil.tasks.generate import repeat as draw_again
from unveil.tasks.record import FACTS, PARAMETERS, parameters, read_facts
from unveil.types import MediaError, RecipeError

FRAMES = 9  # of a strip: the noise's first step to the picture
STRIPS = 8  # samples that a strip shows at most


@dataclass(frozen=True)
class Place:
    """Where pictures go: a folder, or one .png file."""

    out: Path
    strip: bool = False
    metadata: bool = True
    force: bool = False

    @property
    def one_file(self) -> bool:
        """Whether everything goes into a single picture."""
        return self.out.suffix.lower() == ".png"


@dataclass(frozen=True)
class Wish:
    """What is asked of which model, as typed."""

    model: str | None
    labels: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    count: int | None = None
    seed: int = 0
    first: int = 0
    batch: int = 64
    device: str = "auto"
    dtype: str = "float32"
    classifier: Path | None = None
    classifier_scale: float = 1.0
    compiled: bool = False
    loras: tuple[str, ...] = ()


@dataclass
class Written:
    """The files of a command."""

    pictures: list[Path] = field(default_factory=list)
    sheet: Path | None = None
    strip: Path | None = None

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "pictures": [str(path) for path in self.pictures],
            "sheet": str(self.sheet) if self.sheet else None,
            "strip": str(self.strip) if self.strip else None,
        }

    def text(self) -> str:
        """For a person."""
        lines = [str(self.pictures[0])] if len(self.pictures) == 1 else []
        if len(self.pictures) > 1:
            lines.append(f"{len(self.pictures)} pictures: {self.pictures[0]} ... {self.pictures[-1].name}")
        return "\n".join([*lines, *(str(path) for path in (self.sheet, self.strip) if path)])


def changes(settings: Sequence[str], named: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of sampling: those typed as KEY=VALUE, and those given by options, which win.

    Raises:
        RecipeError: a setting that is not KEY=VALUE.
    """
    typed: dict[str, Any] = {}
    for setting in settings:
        override(typed, setting)
    return typed | {name: value for name, value in named.items() if value is not None}


def sample(wish: Wish, changes: Mapping[str, Any], place: Place, console: Console) -> None:
    """Draws and writes."""
    if wish.model is None:
        raise RecipeError("sample needs a model: a name or a folder, such as `unveil sample runs/ddpm-digits`")
    given: dict[str, Sequence[Any]] = {"label": list(wish.labels)} if wish.labels else {}
    for assignment in wish.given:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise RecipeError(f"--given {assignment!r}: is written KEY=VALUE, such as --given label=3")
        given[key] = [*given.get(key, []), _value(value)]
    count = wish.count if wish.count is not None else max([1, *map(len, given.values())])
    if place.one_file:
        refuse_overwrite(place.out, place.force)
    changes = dict(changes)
    model, source = open_model(wish.model, pick(wish.device), changes.pop("file", None))
    _check_pictures(model)
    worn = loras.put_on(model, source, [loras.asked(one) for one in wish.loras], console)
    guided = _guided(model, wish, changes.pop("classifier", None))
    request = Request(given, wish.seed, wish.first, count, wish.batch, changes, wish.dtype, guided, wish.compiled, worn)
    model.lowered(DTYPES[wish.dtype])
    total = math.ceil(count / wish.batch) * (model.sampling.changed(changes).calls or 0)
    with console.progress("network call", total) as progress:
        frames = FRAMES if place.strip else 0
        pictures = list(generate(model, request, source, frames=frames, on_step=progress.advance))
    columns = len(wish.labels) if 1 < len(wish.labels) < count else None  # a column for each label
    written = write(pictures, place, columns)
    facts = written.facts() | {"model": source._asdict(), "seed": wish.seed, "count": count}
    console.result(facts, written.text())


def repeat(wish: Wish, like: Path, place: Place, console: Console) -> None:
    """Draws a picture again from its own record."""
    facts = read_facts(like)
    named = facts.get("model")
    name = wish.model or (named.get("name") if isinstance(named, dict) else None)
    if not isinstance(name, str):
        raise MediaError(f"{like}: its record names no model; pass the model's folder")
    if place.one_file:
        refuse_overwrite(place.out, place.force)
    opened, source = open_model(name, pick(wish.device))
    recorded = facts.get("loras") or []
    worn = loras.put_on(opened, source, loras.again(recorded, [loras.asked(one) for one in wish.loras]), console)
    guided = _guided(opened, wish)
    steps = facts.get("steps")
    with console.progress("network call", steps if isinstance(steps, int) else 1) as progress:
        classifier = None if guided is None else guided.classifier
        picture = draw_again(opened, facts, source, progress.advance, classifier=classifier, worn=worn)
    written = write([picture], place)
    console.result(written.facts() | {"model": source._asdict(), "like": str(like)}, written.text())


def _guided(model: Model, wish: Wish, said: Mapping[str, Any] | None = None) -> Guided | None:
    if wish.classifier is None:
        return None
    guide = load_guide(wish.classifier, model.process, said)
    guide.network.to(model.device)
    return Guided(guide, wish.classifier_scale)


def write(pictures: Sequence[Picture], place: Place, columns: int | None = None) -> Written:
    """One file each and a sheet of all; a single .png holds the picture, or the sheet.

    Raises:
        NotWritable: a file is there already; nothing was written.
    """
    import torch

    files: dict[Path, bytes] = {}
    written = Written()
    every = torch.stack([picture.pixels for picture in pictures])
    if not place.one_file:
        for picture in pictures:
            path = place.out / f"seed{picture.facts['seed']}_{picture.facts['sample']:05d}.png"
            files[path] = png(picture.pixels, _texts(picture, place.metadata))
            written.pictures.append(path)
    elif len(pictures) == 1:
        files[place.out] = png(pictures[0].pixels, _texts(pictures[0], place.metadata))
        written.pictures.append(place.out)
    if len(pictures) > 1:
        written.sheet = place.out if place.one_file else place.out / "sheet.png"
        files[written.sheet] = png(sheet(every, columns))
    if place.strip:
        written.strip = place.out.with_suffix(".strip.png") if place.one_file else place.out / "strip.png"
        shown = torch.stack([to_pixels(picture.frames) for picture in pictures[:STRIPS]])
        files[written.strip] = png(sheet(shown.flatten(0, 1), columns=shown.shape[1]))
    for path in files:
        refuse_overwrite(path, place.force)
    for path, content in files.items():
        write_atomically(path, content)
    return written


def _texts(picture: Picture, metadata: bool) -> dict[str, str]:
    if not metadata:
        return {}
    facts = picture.facts
    return {PARAMETERS: parameters(facts, picture.pixels.shape[1:]), FACTS: json.dumps(facts, ensure_ascii=False)}


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _check_pictures(model: Model) -> None:
    shown = [key for key, one in model.conditioners.items() if isinstance(one, ContextChannels)]
    if shown:
        raise RecipeError(
            f"this model is given a picture under {shown[0]!r}, which cannot be typed; "
            "use it from Python: unveil.load(...).generate(raw=...)"
        )
    if len(model.shape) != 3 or model.shape[0] not in (1, 3):
        raise RecipeError(
            f"this model makes samples of shape {model.shape}, which are no pictures; "
            "use it from Python: unveil.load(...).generate(...)"
        )
