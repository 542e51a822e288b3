"""Job types: how a request of each type is validated and its cost estimated, and the handlers of a worker."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from unveil.errors import RecipeError, did_you_mean
from unveil.model.config import SampleConfig
from unveil.server.jobs.catalog import RUNS, Catalog, ModelInfo, model_info
from unveil.server.jobs.cost import check_sampler_options, count_nfe
from unveil.server.jobs.image_job import PICTURES, ImageJob, PictureRequest, task_values
from unveil.server.jobs.image_job import read_request as read_pictures
from unveil.server.jobs.model_cache import ModelCache
from unveil.server.jobs.process_job import ProcessJob
from unveil.server.jobs.request import BaseRequest
from unveil.server.jobs.task_job import TaskJob, check_references, is_task, parse_request, task_cost
from unveil.server.jobs.uploads import FOLDER, UploadStore
from unveil.server.jobs.video_job import CLIPS, ClipRequest, VideoJob, files_of
from unveil.server.jobs.video_job import read_request as read_clips
from unveil.server.jobs.worker import JobHandler, JobProgress
from unveil.tasks import registry
from unveil.tasks.fields import CatalogName
from unveil.tasks.task import Task, mark_of
from unveil.types import is_valid_utf8

DEFAULT_SIDE, DEFAULT_FRAMES = 512, 16  # assumed for models whose shape is unknown before loading


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


def _image_cost(request: PictureRequest, about: ModelInfo, inputs: UploadStore) -> float:
    side = (DEFAULT_SIDE, DEFAULT_SIDE) if about.shape is None else about.shape[-2:]
    height, width, jumps = *(request.size or side), (0, 1)
    if request.change is not None:
        upload, change = inputs.info(request.change.picture), request.change
        height, width = request.size or (upload.height, upload.width)
        factor = change.factor if change.verb == "upscale" else 1
        height, width = factor * (height + change.top + change.bottom), factor * (width + change.left + change.right)
        jumps = change.jumps
    return request.count * _nfe(request, about, jumps) * height * width / 1e6


def _video_cost(request: ClipRequest, about: ModelInfo, inputs: UploadStore) -> float:
    default = (
        (DEFAULT_FRAMES, DEFAULT_SIDE, DEFAULT_SIDE) if about.shape is None or len(about.shape) < 4 else about.shape[1:]
    )
    frames, height, width = default
    uploads = [inputs.info(name) for name in (request.clip, request.other) if name is not None]
    if uploads:
        frames = sum(upload.frames for upload in uploads) + (request.frames or frames)
        height, width = max(upload.height for upload in uploads), max(upload.width for upload in uploads)
    frames = frames if uploads or request.length is None else request.length
    height, width = request.size or (height, width)
    factor = request.factor if request.verb == "upscale" else 1
    return _nfe(request, about) * frames * factor * height * factor * width / 1e6


def _nfe(request: BaseRequest, about: ModelInfo, jumps: tuple[int, int] = (0, 1)) -> float:
    """Count the network evaluations per sample; settings that the request lacks are the model's own."""
    settings = (about.sample or SampleConfig()).changed(request.sampling)
    if request.sampling.get("options"):  # the model's own options are valid
        check_sampler_options(settings)
    return count_nfe(settings, *jumps)


def _check_images(request: PictureRequest, catalog: Catalog, inputs: UploadStore) -> None:
    """Look up all names of a request."""
    name, values = task_values(request, catalog)
    check_references(parse_request(name, values), catalog, inputs)


JOB_TYPES: Mapping[str, JobType] = {
    PICTURES: JobType(read_pictures, _check_images, _image_cost),
    CLIPS: JobType(read_clips, files_of, _video_cost),
}


def job_type(kind: str) -> JobType:
    """Validation and cost of the jobs of one kind.

    Raises:
        RecipeError: No jobs have this kind.
    """
    if kind in JOB_TYPES:
        return JOB_TYPES[kind]
    if not is_task(kind):
        allowed = [*JOB_TYPES, *filter(is_task, registry.entries())]
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
    type_of_job = job_type(kind)
    parsed = type_of_job.read(request)
    type_of_job.check(parsed, catalog, inputs)
    model = _model_info(parsed, catalog)
    cost = type_of_job.cost(parsed, model, inputs)
    if budget is not None and cost > budget:
        raise JobTooLarge(
            f"{cost:.4g} megapixel evaluations, and a job may take {budget:g}; reduce the number, size, length or steps"
        )
    return cost or 1.0


def _model_info(request: BaseModel, catalog: Catalog) -> ModelInfo:
    """The metadata of a request's model; empty for a request without one."""
    name = getattr(request, "model", None)
    if isinstance(request, Task):
        mark = mark_of(type(request), "model") if name is not None else None
        name = name if isinstance(mark, CatalogName) and mark.kind == "model" else None
    return ModelInfo() if name is None else model_info(catalog.model(name))


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

    tasks = {name: task_handler(name) for name in registry.entries() if name not in JOB_TYPES}
    return {
        PICTURES: ImageJob(catalog, tasks),
        CLIPS: VideoJob(models, catalog, inputs, device),
        **tasks,
    }
