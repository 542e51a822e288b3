"""LoRAs for commands: found, put on a model, and `unveil lora`, which looks at, rewrites and merges them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unveil.checkpoints import lora as files
from unveil.checkpoints import lora_export
from unveil.checkpoints.formats.lora import NAMINGS
from unveil.errors import RecipeError, WeightsError, did_you_mean
from unveil.generation.model_loading import LoraOption, attach_loras, lora_file, open_model
from unveil.generation.model_loading import resolve_device as pick
from unveil.io.console import Console
from unveil.io.files import refuse_overwrite
from unveil.model import model_folder
from unveil.nn import lora


def parse_lora(text: str) -> LoraOption:
    """FILE or FILE:WEIGHT, as typed; what is not a path is looked up in the models folder."""
    path, colon, weight = text.rpartition(":")
    try:
        found = LoraOption(Path(path), float(weight)) if colon and path else LoraOption(Path(text))
    except ValueError:
        found = LoraOption(Path(text))
    return found._replace(path=model_folder.resolve_name(found.path, "loras"))


# -- commands -----------------------------------------------------------------------------------------------------


def inspect(path: Path, model: str | None, console: Console) -> None:
    """Says what a LoRA file is, and which of its modules a model has."""
    file = files.read_lora(lora_file(path))
    ranks = sorted({entry.rank for entry in file.entries})
    scales = sorted({1.0 if entry.alpha is None else entry.alpha / entry.rank for entry in file.entries})
    facts: dict[str, Any] = {"path": str(path), "naming": file.naming, "modules": len(file.entries), "ranks": ranks}
    facts |= {"scales": scales, "rest": list(file.rest)}
    about = f"rank {_span(ranks)}, scale {_span(scales)}"
    text = f"{path}: a LoRA named as {file.naming}, {len(file.entries)} modules, {about}"
    if model is not None:
        _, report = files.match(file, files.parts_of(open_model(model, pick("cpu"))[0]))
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
    parts = files.parts_of(open_model(model, pick("cpu"))[0])
    found, report = files.match(files.read_lora(lora_file(path)), parts)
    if report.unmatched:
        raise WeightsError(f"{path}: {report.text()}; what is not in the model cannot be renamed: give its own base")
    written = lora_export.to_lora_file(found, parts, naming)
    lora_export.write(out, written)
    facts = {"out": str(out), "from": report.naming, "naming": naming, "matched": len(report.matched), "unmatched": 0}
    console.result(facts, f"{out}: {len(report.matched)} modules, {report.naming} to {naming}")


def merge(model: str, wanted: Sequence[LoraOption], out: Path, force: bool, console: Console) -> None:
    """Saves a model with LoRAs in its weights."""
    refuse_overwrite(out, force)
    opened, source = open_model(model, pick("cpu"))
    worn = attach_loras(opened, source, wanted, console)
    for part in files.parts_of(opened).values():
        lora.fuse_lora(part.network)
    opened.base = None
    opened.save(out, force=force)
    facts = {"out": str(out), "model": source._asdict(), "loras": [one._asdict() for one in worn]}
    console.result(facts, f"{out}: {source.name} with {', '.join(f'{one.name} x {one.weight:g}' for one in worn)}")


def _span(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
