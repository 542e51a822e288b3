"""LoRAs for commands: found, put on a model, and `unveil lora`, which looks at, rewrites and merges them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unveil.checkpoints import lora as files
from unveil.checkpoints import lora_export, lora_targets
from unveil.checkpoints.lora_formats import NAMINGS
from unveil.generation.generate import Source
from unveil.generation.model_loading import device as pick
from unveil.generation.model_loading import lora_file, open_model
from unveil.io.console import Console
from unveil.io.files import refuse_overwrite, sha256
from unveil.model import Model, model_dir
from unveil.model.base_model import base_of
from unveil.nn import lora
from unveil.types import DataError, LoraInfo, RecipeError, WeightsError, did_you_mean


class Asked(NamedTuple):
    """A LoRA as it is typed: a file, peft's folder or a run, and its weight."""

    path: Path
    weight: float = 1.0


def parse_lora(text: str) -> Asked:
    """FILE or FILE:WEIGHT, as typed; what is not a path is looked up in the models folder."""
    path, colon, weight = text.rpartition(":")
    try:
        found = Asked(Path(path), float(weight)) if colon and path else Asked(Path(text))
    except ValueError:
        found = Asked(Path(text))
    return found._replace(path=model_dir.resolve(found.path, "loras"))


def put_on(model: Model, source: Source, wanted: Sequence[Asked], console: Console) -> tuple[LoraInfo, ...]:
    """Puts LoRAs on a model, in order; says what was matched, and returns what a picture's record holds of them.

    Raises:
        WeightsError: a file that is none, or for another base.
    """
    if not wanted:
        return ()
    parts = lora_targets.parts_of(model)
    worn: list[LoraInfo] = []
    for one in wanted:
        if not one.path.exists():
            raise WeightsError(model_dir.not_found_message(one.path, "loras"))
        file = lora_file(one.path)
        name = _called(one.path, file)
        name = f"{name} {len(worn)}" if name in {other.name for other in worn} else name
        trained_on = base_of(file.parent if file.parent.name != "ema" else file.parent.parent)
        if trained_on is not None and trained_on.sha256 != source.sha256:
            console.warn(f"{one.path}: was trained on {trained_on.name!r}, which is not the model {source.name!r}")
        read = files.read(file)
        try:
            report = files.attach(parts, name, read, one.weight)
        except WeightsError as problem:
            raise WeightsError(f"{one.path}: {problem}") from problem
        console.say(f"{one.path}: {report.text()}")
        worn.append(LoraInfo(name, sha256(file), one.weight))
    model.worn = tuple(worn)
    return model.worn


def again(recorded: Sequence[Mapping[str, Any]], given: Sequence[Asked]) -> list[Asked]:
    """The LoRAs of a picture's record, each found by its hash among the files given, or under its name here.

    Raises:
        WeightsError: one that was not given.
        MediaError: the record is damaged.
    """
    try:
        told = [LoraInfo(str(one["name"]), str(one["sha256"]), float(one["weight"])) for one in recorded]
    except (KeyError, TypeError, ValueError) as problem:
        raise DataError(f"the picture's record of its LoRAs lacks {problem}; use it as it was written") from problem
    there = {sha256(lora_file(one.path)): one.path for one in given}
    found: list[Asked] = []
    for one in told:
        here = lora_file(Path(one.name))
        if one.sha256 not in there and here.exists() and sha256(here) == one.sha256:
            there[one.sha256] = here
        if one.sha256 not in there:
            raise WeightsError(
                f"the picture was made with the LoRA {one.name!r} (sha256 {one.sha256[:12]}...); give that file "
                "with --lora"
            )
        found.append(Asked(there[one.sha256], one.weight))
    return found


# -- commands -----------------------------------------------------------------------------------------------------


def inspect(path: Path, model: str | None, console: Console) -> None:
    """Says what a LoRA file is, and which of its modules a model has."""
    file = files.read(lora_file(path))
    ranks = sorted({entry.rank for entry in file.entries})
    scales = sorted({1.0 if entry.alpha is None else entry.alpha / entry.rank for entry in file.entries})
    facts: dict[str, Any] = {"path": str(path), "naming": file.naming, "modules": len(file.entries), "ranks": ranks}
    facts |= {"scales": scales, "rest": list(file.rest)}
    about = f"rank {_span(ranks)}, scale {_span(scales)}"
    text = f"{path}: a LoRA named as {file.naming}, {len(file.entries)} modules, {about}"
    if model is not None:
        _, report = files.match(file, lora_targets.parts_of(open_model(model, pick("cpu"))[0]))
        facts |= {"matched": list(report.matched), "unmatched": list(report.unmatched)}
        text += f"\n{report.text()}"
    console.result(facts, text)


def convert(model: str, path: Path, out: Path, naming: str, force: bool, console: Console) -> None:
    """Writes a LoRA of a model in another naming.

    Raises:
        RecipeError: an unknown naming, or modules that it cannot name.
    """
    if naming not in NAMINGS:
        raise RecipeError(f"naming {naming!r}: must be one of {', '.join(NAMINGS)}{did_you_mean(naming, NAMINGS)}")
    refuse_overwrite(out, force)
    parts = lora_targets.parts_of(open_model(model, pick("cpu"))[0])
    found, report = files.match(files.read(lora_file(path)), parts)
    if report.unmatched:
        raise WeightsError(f"{path}: {report.text()}; what is not in the model cannot be renamed: give its own base")
    written = lora_export.dump(found, parts, naming)
    lora_export.write(out, written)
    facts = {"out": str(out), "from": report.naming, "naming": naming, "matched": len(report.matched), "unmatched": 0}
    console.result(facts, f"{out}: {len(report.matched)} modules, {report.naming} to {naming}")


def merge(model: str, wanted: Sequence[Asked], out: Path, force: bool, console: Console) -> None:
    """Saves a model with LoRAs in its weights."""
    refuse_overwrite(out, force)
    opened, source = open_model(model, pick("cpu"))
    worn = put_on(opened, source, wanted, console)
    for part in lora_targets.parts_of(opened).values():
        lora.fuse_lora(part.network)
    opened.base = None
    opened.save(out, force=force)
    facts = {"out": str(out), "model": source._asdict(), "loras": [one._asdict() for one in worn]}
    console.result(facts, f"{out}: {source.name} with {', '.join(f'{one.name} x {one.weight:g}' for one in worn)}")


def _called(path: Path, file: Path) -> str:
    """The name of a file; of a run that of its folder."""
    return path.name if path.is_file() or file.parent == path else path.resolve().name


def _span(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
