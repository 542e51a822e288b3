"""Validation and cost of a request, which is one of a task, and the handlers of a worker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unveil.errors import RecipeError, did_you_mean
from unveil.server.jobs.catalog import Catalog, ModelInfo, model_info
from unveil.server.jobs.job_migration import FORMER_COMMANDS, FORMER_KINDS, former_fields, migrate_job
from unveil.server.jobs.outputs import UploadStore
from unveil.server.jobs.owners import OwnerData
from unveil.server.jobs.process_job import ProcessJob
from unveil.server.jobs.task_job import (
    ModelCache,
    TaskJob,
    check_recipe,
    check_references,
    is_task,
    parse_request,
    task_cost,
    task_kinds,
)
from unveil.server.jobs.worker import JobHandler, JobProgress
from unveil.tasks import registry
from unveil.tasks.fields import CatalogName
from unveil.tasks.task import Task, mark_of
from unveil.types import is_valid_utf8

SHARED_NEW = ("new_model", "new_lora")  # kinds of names of what all owners share


class JobTooLarge(RecipeError):
    """The job costs more than one job may."""


class AdminRequired(RecipeError):
    """The job would change models, and the owner has not the role of an admin."""


def job_cost(
    kind: str,
    request: Mapping[str, Any],
    catalog: Catalog,
    inputs: UploadStore,
    budget: float | None = None,
    *,
    is_admin: bool = True,
) -> float:
    """Validate a request, look up all names in it, and return its cost in network evaluations of a megapixel.

    Args:
        kind: Name of the task.
        request: Values of the task.
        catalog: Names that the owner may use.
        inputs: Uploaded files of the owner.
        budget: Maximum cost; None: unlimited.
        is_admin: The owner may add models and LoRAs to the folder that all owners share.

    Raises:
        AdminRequired: The task adds a model, and `is_admin` is false.
        RecipeError, WeightsError, DataError: The request is not possible.
        JobTooLarge: The cost exceeds the budget.
    """
    _check_text(request)
    if kind in FORMER_KINDS and not is_task(kind):
        name, _ = migrate_job(kind, dict(request))
        raise RecipeError(
            f"kind {kind!r}: a job has the name of its task; this one is {name!r}, whose fields are those of "
            f"POST /v1/tasks/{name}"
        )
    if not is_task(kind):
        raise RecipeError(f"kind {kind[:100]!r}: no such type of job{did_you_mean(kind, [*task_kinds()])}")
    if kind in FORMER_COMMANDS:
        for former, name in former_fields(kind).items():
            if former in request:
                raise RecipeError(f"request: {former}: here it is {name}")
    task = parse_request(kind, request)
    if not is_admin and (why := _needs_admin(task)):
        raise AdminRequired(
            f"{kind}: {why}, which needs a key with the role admin; ask the operator of the server to write admin "
            "after the key in its file of API keys"
        )
    check_recipe(task)
    check_references(task, catalog, inputs)
    cost = task_cost(task, _model_info(task, catalog), inputs)
    if budget is not None and cost > budget:
        raise JobTooLarge(
            f"{cost:.4g} megapixel evaluations, and a job may take {budget:g}; reduce the number, size, length or steps"
        )
    return cost or 1.0


def _needs_admin(task: Task) -> str:
    """Why a task is for admins only; empty: it is not."""
    adds_shared = any(
        isinstance(reference.mark, CatalogName) and reference.mark.kind in SHARED_NEW for reference in task.references()
    )
    return task.admin or ("adds a model that all keys share" if adds_shared else "")


def _model_info(task: Task, catalog: Catalog) -> ModelInfo:
    """The metadata of the model of a task; empty for a task without one."""
    name: str | None = getattr(task, "model", None)
    mark = None if name is None else mark_of(type(task), "model")
    is_model = isinstance(mark, CatalogName) and mark.kind == "model"
    return model_info(catalog.model(name)) if name is not None and is_model else ModelInfo()


def _check_text(request: Mapping[str, Any]) -> None:
    """Refuse text that cannot be encoded in files, the database or responses."""
    if not is_valid_utf8(json.dumps(request, ensure_ascii=False)):
        raise RecipeError("request: contains half of a surrogate pair, which is not a character")


def job_handlers(folder: Path, device: str) -> Mapping[str, JobHandler]:
    """Return the handlers of all job types, for a state folder and a device."""
    models, owners = ModelCache(), OwnerData(folder)

    def task_handler(name: str) -> JobHandler:
        def run(request: Mapping[str, Any], out: Path, progress: JobProgress) -> object:
            catalog, inputs = owners.catalog(progress.owner), owners.uploads(progress.owner)
            if registry.task_class(name).separate_process:  # imported when its first job comes
                return ProcessJob(name, catalog, inputs, device)(request, out, progress)
            return TaskJob(name, models, catalog, inputs, device)(request, out, progress)

        return run

    return {name: task_handler(name) for name in registry.entries()}
