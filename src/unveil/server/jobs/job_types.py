"""Job types: how a request of each type is validated and its cost estimated, and the handlers of a worker."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from unveil.errors import RecipeError, did_you_mean
from unveil.server.jobs.catalog import RUNS, Catalog, ModelInfo, model_info
from unveil.server.jobs.command_job import COMMANDS, CommandJob, request_reader
from unveil.server.jobs.job_migration import FORMER_KINDS, migrate_job
from unveil.server.jobs.model_cache import ModelCache
from unveil.server.jobs.task_job import TaskJob, check_references, is_task, parse_request, task_cost, task_kinds
from unveil.server.jobs.uploads import FOLDER, UploadStore
from unveil.server.jobs.worker import JobHandler
from unveil.tasks import registry
from unveil.tasks.task import Task
from unveil.types import is_valid_utf8


class JobType(NamedTuple):
    """Validation and cost of one type of job.

    Attributes:
        read: Validates a request, or raises RecipeError.
        check: Looks up all names of a request, or raises WeightsError or DataError.
        cost: Cost in network evaluations of a megapixel: samples x NFE x frames x height x width / 10^6.
    """

    read: Callable[[Mapping[str, Any]], BaseModel]
    check: Callable[[Any, Catalog, UploadStore], object]
    cost: Callable[[Any, ModelInfo, UploadStore], float]


def _checker(kind: str) -> Callable[[Any, Catalog, UploadStore], object]:
    """Return a function that looks up all names of a command's request."""
    return lambda request, catalog, inputs: COMMANDS[kind][1](request, catalog, Path(), "auto")


def _no_cost(request: Any, about: ModelInfo, inputs: UploadStore) -> float:
    """Return 0: commands have no cost limit, since they can be watched and cancelled."""
    del request, about, inputs
    return 0.0


JOB_TYPES: Mapping[str, JobType] = {kind: JobType(request_reader(kind), _checker(kind), _no_cost) for kind in COMMANDS}


def job_type(kind: str) -> JobType:
    """Validation and cost of the jobs of one kind.

    Raises:
        RecipeError: No jobs have this kind.
    """
    if kind in JOB_TYPES:
        return JOB_TYPES[kind]
    if not is_task(kind):
        allowed = [*JOB_TYPES, *task_kinds()]
        raise RecipeError(f"kind {kind[:100]!r}: no such type of job{did_you_mean(kind, allowed)}")
    return JobType(lambda request: parse_request(kind, request), check_references, task_cost)


class JobTooLarge(RecipeError):
    """The job costs more than one job may."""


def job_cost(
    kind: str, request: Mapping[str, Any], catalog: Catalog, inputs: UploadStore, budget: float | None = None
) -> float:
    """Validate a request, look up all names in it, and return its cost.

    Raises:
        RecipeError, WeightsError, DataError: The request is not possible.
        JobTooLarge: The cost exceeds the budget.
    """
    _check_text(request)
    if kind in FORMER_KINDS:
        name, _ = migrate_job(kind, dict(request))
        raise RecipeError(
            f"kind {kind!r}: a job has the name of its task; this one is {name!r}, whose fields are those of "
            f"POST /v1/tasks/{name}"
        )
    type_of_job = job_type(kind)
    parsed = type_of_job.read(request)
    type_of_job.check(parsed, catalog, inputs)
    name = getattr(parsed, "model", None) if isinstance(parsed, Task) else None
    model = ModelInfo() if name is None else model_info(catalog.model(name))
    cost = type_of_job.cost(parsed, model, inputs)
    if budget is not None and cost > budget:
        raise JobTooLarge(
            f"{cost:.4g} megapixel evaluations, and a job may take {budget:g}; reduce the number, size, length or steps"
        )
    return cost or 1.0


def _check_text(request: Mapping[str, Any]) -> None:
    """Refuse text that cannot be encoded in files, the database or responses."""
    if not is_valid_utf8(json.dumps(request, ensure_ascii=False)):
        raise RecipeError("request: contains half of a surrogate pair, which is not a character")


def job_handlers(folder: Path, device: str) -> Mapping[str, JobHandler]:
    """Return the handlers of all job types, for a state folder and a device."""
    models, catalog, inputs = ModelCache(), Catalog(folder / RUNS), UploadStore(folder / FOLDER)
    return {
        **{name: TaskJob(name, models, catalog, inputs, device) for name in registry.entries()},
        **{kind: CommandJob(kind, catalog, device) for kind in COMMANDS},
    }
