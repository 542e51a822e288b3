"""LoRAs put on a model for generation, and found again from the metadata of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unveil.checkpoints import lora as files
from unveil.checkpoints import lora_targets
from unveil.errors import DataError, WeightsError
from unveil.generation.generate import Source
from unveil.generation.model_loading import lora_file
from unveil.io.console import Console
from unveil.io.files import sha256
from unveil.model import Model, model_folder
from unveil.model.checkpoint_store import base_of
from unveil.types import LoraInfo


class LoraOption(NamedTuple):
    """A LoRA that is put on a model: a file, a folder as peft writes it, or a run; and its weight."""

    path: Path
    weight: float = 1.0


def put_on(model: Model, source: Source, wanted: Sequence[LoraOption], console: Console) -> tuple[LoraInfo, ...]:
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
            raise WeightsError(model_folder.not_found_message(one.path, "loras"))
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
    model.lora_infos = tuple(worn)
    return model.lora_infos


def again(recorded: Sequence[Mapping[str, Any]], given: Sequence[LoraOption]) -> list[LoraOption]:
    """The LoRAs of a picture's record, each found by its hash among the files given, or under its name here.

    Raises:
        WeightsError: one that was not given.
        DataError: the record is damaged.
    """
    try:
        told = [LoraInfo(str(one["name"]), str(one["sha256"]), float(one["weight"])) for one in recorded]
    except (KeyError, TypeError, ValueError) as problem:
        raise DataError(f"the picture's record of its LoRAs lacks {problem}; use it as it was written") from problem
    there = {sha256(lora_file(one.path)): one.path for one in given}
    found: list[LoraOption] = []
    for one in told:
        here = lora_file(Path(one.name))
        if one.sha256 not in there and here.exists() and sha256(here) == one.sha256:
            there[one.sha256] = here
        if one.sha256 not in there:
            raise WeightsError(
                f"the picture was made with the LoRA {one.name!r} (sha256 {one.sha256[:12]}...); give that file "
                "with --lora"
            )
        found.append(LoraOption(there[one.sha256], one.weight))
    return found


def _called(path: Path, file: Path) -> str:
    """The name of a file; of a run that of its folder."""
    return path.name if path.is_file() or file.parent == path else path.resolve().name
