"""The work of `tasks.push`: the files of a model, its card with metadata, and the commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unveil.checkpoints.hub import client, push, table
from unveil.checkpoints.hub.get import makes_of
from unveil.io.console import size
from unveil.tasks.fields import CatalogName
from unveil.tasks.task import TaskContext, TaskResult

if TYPE_CHECKING:
    from unveil.tasks.push import Push

TASKS = {"images": "unconditional-image-generation", "videos": "text-to-video"}  # the hub's names


def push_model(task: Push, context: TaskContext) -> TaskResult:
    """Upload a model with its card.

    Raises:
        RecipeError: The name of the repository cannot be one.
        WeightsError: The source is not a model, or the token is missing or may not write.
        OutputError: The repository has weights already, and `force` is not set.
        OutOfResources: The hub cannot be reached.
    """
    client.require_repository(task.repository)
    source = context.path(task.source, CatalogName("model"))
    for subfolder in ("checkpoints", "loras", "controlnets"):
        source = table.resolve(source, subfolder)
    with push.prepared(source) as upload:
        context.console.say(f"{source}: {upload.title}, {len(upload.files)} files, {size(upload.bytes)}")
        folder = next((path.parent for name, path in upload.files.items() if name == "model.yaml"), None)
        does = TASKS.get(makes_of(folder).partition(" ")[0], "") if folder is not None else ""
        text = push.readme(upload.card, task.license, does) if upload.card else ""
        pushed = push.push(upload, task.repository, text, public=task.public, force=context.output.force)
    facts = {
        "repository": pushed.repository,
        "revision": pushed.commit,
        "address": pushed.address,
        "files": list(pushed.files),
        "bytes": pushed.bytes,
        "license": task.license,
        "public": task.public,
    }
    lines = [
        f"{pushed.address}: {len(pushed.files)} files, commit {pushed.commit[:12]}",
        f"unveil get {task.repository}",
    ]
    if task.license is None:
        lines.append("its card states no license, without which others may not use it; --license NAME --force adds it")
    return TaskResult(facts, "\n".join(lines))
