"""The work of `tasks.convert`: weights in another format, in the direction that the source determines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unveil.checkpoints import conversion
from unveil.checkpoints.hub import table
from unveil.checkpoints.key_mapping import abbreviate
from unveil.checkpoints.overrides import ModelOverrides
from unveil.errors import RecipeError
from unveil.generation.generate import DTYPES
from unveil.io.files import refuse_overwrite
from unveil.model.config import change, load_recipe, validate
from unveil.tasks.fields import CatalogName
from unveil.tasks.recipe_kind import require_diffusion_recipe
from unveil.tasks.task import TaskContext, TaskResult

if TYPE_CHECKING:
    from unveil.tasks.convert import Convert

INT8 = "int8"  # weights of native folders only, with the scale of each row


def convert_weights(task: Convert, context: TaskContext) -> TaskResult:
    """Convert the weights, and report how many tensors were matched.

    Raises:
        RecipeError: Settings that cannot work.
        WeightsError: The source cannot be read, or the format cannot hold it.
        OutputError: The output exists or cannot be written.
    """
    source = context.path(task.source, CatalogName("model"))
    out = refuse_overwrite(context.path(task.output, CatalogName("new_model")), context.output.force)
    for subfolder in ("checkpoints", "controlnets"):
        source = table.resolve(source, subfolder)
    config, overrides = None, None
    if task.recipe is None:
        overrides = _file_facts(task.settings)
    else:
        config = require_diffusion_recipe(load_recipe(task.recipe, task.settings), "unveil convert").model
    result = conversion.convert(
        source,
        out,
        task.format,
        config=config,
        overrides=overrides,
        dtype=DTYPES.get(task.dtype, DTYPES["float32"]),
        int8=task.dtype == INT8,
    )
    facts: dict[str, Any] = {
        "source": str(source),
        "out": str(out),
        "layout": task.format,
        "part": result.part,
        "matched": result.matched,
        "unmatched": len(result.unused),
    }
    facts["unmatched_keys"] = list(result.unused)
    if result.notes:
        facts["notes"] = list(result.notes)
    rest = f": {abbreviate(result.unused, 4)}" if result.unused else ""
    text = f"{out}: {result.matched} tensors matched, {len(result.unused)} unmatched, from {result.part}{rest}"
    return TaskResult(facts, "\n".join([text, *result.notes]))


def _file_facts(changes: Mapping[str, Any]) -> ModelOverrides:
    """Return the settings that keys do not determine, from values by file.KEY."""
    settings: dict[str, Any] = {}
    for path, value in changes.items():
        change(settings, path, value)
    overrides = validate(ModelOverrides, settings.pop("file", {}), "file")
    if settings:
        raise RecipeError(f"{next(iter(settings))}: a change of a recipe; give --recipe, or write file.KEY=VALUE")
    return overrides
