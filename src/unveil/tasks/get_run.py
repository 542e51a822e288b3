"""The work of `tasks.get`: the plan of a download, the acceptance of its license, and the model in its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unveil.checkpoints.hub import get
from unveil.io.console import size
from unveil.tasks.task import TaskContext, TaskResult

if TYPE_CHECKING:
    from unveil.tasks.get import Get


def get_model(task: Get, context: TaskContext) -> TaskResult:
    """Download a model, or only show what that takes.

    Raises:
        RecipeError: No such name or file, or the license was not accepted.
        WeightsError: No such repository, no access, pickles only, or a file that differs from its hash.
        OutOfResources: The hub cannot be reached, or the disk is full.
        OutputError: The place in the models folder is taken.
    """
    planned = get.plan(task.repository, task.files)
    if task.dry_run:
        return TaskResult(planned.facts(), planned.text())
    context.console.say(planned.text())
    get.accept(planned, context.console, task.accept_license)
    model = get.fetch(planned, context.console, force=context.output.force)
    facts = planned.facts() | {
        "path": str(model.path),
        "name": model.name,
        "kind": model.kind,
        "what": model.title,
        "makes": model.makes,
        "tasks": list(model.tasks),
        "copied_bytes": model.copied,
        "was_there": model.was_there,
    }
    copied = f"; {size(model.copied)} were copied, as its disk is another than the cache's" if model.copied else ""
    makes = f"{model.makes}, by " if model.makes else ""
    lines = [
        f"{model.path}: {'is there already: ' if model.was_there else ''}{model.title}{copied}",
        f"can do       {makes}{', '.join(model.tasks)}",
        model.use(),
    ]
    return TaskResult(facts, "\n".join(lines))
