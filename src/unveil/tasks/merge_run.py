"""The work of `tasks.merge`: a model whose weights are the weighted average of those of others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unveil.errors import RecipeError
from unveil.generation.generate import DTYPES
from unveil.generation.model_loading import open_model, resolve_device
from unveil.io.files import refuse_overwrite
from unveil.model import checkpoint_store
from unveil.model.weight_averaging import average_weights
from unveil.tasks.fields import CatalogName
from unveil.tasks.task import TaskContext, TaskResult

if TYPE_CHECKING:
    from unveil.tasks.merge import Merge


def merge_models(task: Merge, context: TaskContext) -> TaskResult:
    """Save the average of the models; its card lists them with their weights.

    Raises:
        RecipeError: Not one weight for each model, or a folder of another program, which cannot be written.
        WeightsError: A model is missing, or the networks differ.
        OutputError: The output exists.
    """
    out = refuse_overwrite(context.path(task.output, CatalogName("new_model")), context.output.force)
    weights = list(task.merge_weights) or [1.0] * len(task.models)
    names = [context.resolver.path(name, CatalogName("model")) for name in task.models]
    opened = [open_model(name, resolve_device("cpu")) for name in names]
    for name, (model, _) in zip(names, opened, strict=True):
        if model.source_folder is not None or model.base is not None:
            raise RecipeError(
                f"{name}: not a complete native model; convert it first: unveil convert {name} OUT --format ours"
            )
    average = average_weights([model for model, _ in opened], weights)
    sources: list[dict[str, Any]] = [
        {"model": source.name, "sha256": source.sha256, "share": weight / sum(weights)}
        for (_, source), weight in zip(opened, weights, strict=True)
    ]
    listed = "\n".join(
        f"- {source['share']:g} of `{source['model']}` (sha256 {str(source['sha256'])[:12]})" for source in sources
    )
    about = f"The weighted average of the weights of models:\n\n{listed}\n"
    checkpoint_store.save_model(average.to(DTYPES[task.dtype]), out, force=context.output.force, about=about)
    facts: dict[str, Any] = {"out": str(out), "of": sources}
    return TaskResult(facts, f"{out}: the average of {', '.join(source['model'] for source in sources)}")
