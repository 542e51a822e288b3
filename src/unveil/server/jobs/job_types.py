"""Validation and cost of a request, which is one of a task, and the handlers of a worker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unveil.errors import RecipeError, did_you_mean
from unveil.server.jobs.catalog import RUNS, Catalog, ModelInfo, model_info
from unveil.server.jobs.job_migration import FORMER_COMMANDS, FORMER_KINDS, former_fields, migrate_job
from unveil.server.jobs.outputs import FOLDER, UploadStore
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


class JobTooLarge(RecipeError):
    """The job costs more than one job may."""


def job_cost(
    kind: str, request: Mapping[str, Any], catalog: Catalog, inputs: UploadStore, budget: float | None = None
) -> float:
    """Validate a request, look up all names in it, and return its cost in network evaluations of a megapixel.

    Raises:
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
    check_recipe(task)
    check_references(task, catalog, inputs)
    cost = task_cost(task, _model_info(task, catalog), inputs)
    if budget is not None and cost > budget:
        raise JobTooLarge(
            f"{cost:.4g} megapixel evaluations, and a job may take {budget:g}; reduce the number, size, length or steps"
        )
    return cost or 1.0


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
    models, catalog, inputs = ModelCache(), Catalog(folder / RUNS), UploadStore(folder / FOLDER)

    def task_handler(name: str) -> JobHandler:
        def run(request: Mapping[str, Any], out: Path, progress: JobProgress) -> object:
            if registry.task_class(name).separate_process:  # imported when its first job comes
                return ProcessJob(name, catalog, inputs, device)(request, out, progress)
            return TaskJob(name, models, catalog, inputs, device)(request, out, progress)

        return run

    return {name: task_handler(name) for name in registry.entries()}
