"""The work of `tasks.lora`: contents of LoRA files, other formats, and models with LoRAs in their weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unveil.checkpoints import lora as lora_files
from unveil.checkpoints import lora_export
from unveil.errors import WeightsError
from unveil.generation.model_loading import LoraOption, attach_loras, lora_file, open_model, resolve_device
from unveil.io.files import refuse_overwrite
from unveil.model import Model, model_folder
from unveil.nn import lora as lora_layers
from unveil.tasks.fields import CatalogName
from unveil.tasks.task import TaskContext, TaskResult

if TYPE_CHECKING:
    from unveil.tasks.lora import LoraConvert, LoraInspect, LoraMerge


def inspect_lora(task: LoraInspect, context: TaskContext) -> TaskResult:
    """Report the format, the ranks and the scales of a LoRA file, and which of its modules a model has."""
    path = context.path(task.lora, CatalogName("lora"))
    file = lora_files.read_lora(lora_file(path))
    ranks = sorted({entry.rank for entry in file.entries})
    scales = sorted({1.0 if entry.alpha is None else entry.alpha / entry.rank for entry in file.entries})
    facts: dict[str, Any] = {"path": task.lora, "naming": file.naming, "modules": len(file.entries), "ranks": ranks}
    facts |= {"scales": scales, "rest": list(file.rest)}
    text = (
        f"{task.lora}: a LoRA named as {file.naming}, {len(file.entries)} modules, rank {_range(ranks)}, "
        f"scale {_range(scales)}"
    )
    if task.model is not None:
        _, report = lora_files.match(file, lora_files.parts_of(_open(task.model, context)))
        facts |= {"matched": list(report.matched), "unmatched": list(report.unmatched)}
        text += f"\n{report.text()}"
    return TaskResult(facts, text)


def convert_lora(task: LoraConvert, context: TaskContext) -> TaskResult:
    """Write a LoRA of a model in another format.

    Raises:
        RecipeError: The format cannot name the modules.
        WeightsError: The model does not have all modules of the LoRA.
        OutputError: The output exists.
    """
    out = refuse_overwrite(context.path(task.output, CatalogName("new_lora")), context.output.force)
    path = context.path(task.lora, CatalogName("lora"))
    parts = lora_files.parts_of(_open(task.model, context))
    matches, report = lora_files.match(lora_files.read_lora(lora_file(path)), parts)
    if report.unmatched:
        raise WeightsError(
            f"{path}: {report.text()}; modules that the model does not have cannot be renamed: give the LoRA's own base"
        )
    lora_export.write(out, lora_export.to_lora_file(matches, parts, task.format))
    facts: dict[str, Any] = {"out": str(out), "from": report.naming, "naming": task.format}
    facts |= {"matched": len(report.matched), "unmatched": 0}
    return TaskResult(facts, f"{out}: {len(report.matched)} modules, {report.naming} to {task.format}")


def merge_loras(task: LoraMerge, context: TaskContext) -> TaskResult:
    """Save a model with LoRAs in its weights."""
    out = refuse_overwrite(context.path(task.output, CatalogName("new_model")), context.output.force)
    model, source = open_model(context.resolver.path(task.model, CatalogName("model")), resolve_device("cpu"))
    options = [LoraOption(_lora_path(lora.file, context), lora.weight) for lora in task.lora]
    attached = attach_loras(model, source, options, context.console)
    for part in lora_files.parts_of(model).values():
        lora_layers.fuse_lora(part.network)
    model.base = None
    model.save(out, force=context.output.force)
    facts: dict[str, Any] = {"out": str(out), "model": source._asdict()}
    facts["loras"] = [lora._asdict() for lora in attached]
    listed = ", ".join(f"{lora.name} x {lora.weight:g}" for lora in attached)
    return TaskResult(facts, f"{out}: {source.name} with {listed}")


def _open(name: str, context: TaskContext) -> Model:
    return open_model(context.resolver.path(name, CatalogName("model")), resolve_device("cpu"))[0]


def _lora_path(name: str, context: TaskContext) -> Path:
    return model_folder.resolve_name(context.path(name, CatalogName("lora")), "loras")


def _range(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
