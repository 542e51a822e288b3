"""Request bodies with OpenAI's fields, response bodies, and their values."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field

from unveil.errors import DataError, RecipeError
from unveil.generation.image_output import read_generation_metadata
from unveil.generation.video_inputs import RATE
from unveil.server.jobs.catalog import CatalogEntry, ModelInfo, model_info
from unveil.server.jobs.job_migration import FORMER_NAMES
from unveil.server.jobs.job_table import ErrorSource, Job
from unveil.server.jobs.outputs import COVER, STRIP, image_files, video_file
from unveil.server.jobs.queue import QueuePosition
from unveil.server.jobs.service import Service
from unveil.server.jobs.task_job import MAX_RESULTS, random_seed
from unveil.tasks import registry
from unveil.tasks.fields import MAX_SIDE, PLAYGROUND

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
Ignored = Annotated[Any, Field(description="Field of OpenAI's API; ignored.")]
ImageEditTask = Literal["img2img", "inpaint", "outpaint", "upscale"]
VideoTaskName = Literal[
    "video-generate",
    "video-extend",
    "video-interpolate",
    "video-join",
    "video-loop",
    "video-edit",
    "video-storyboard",
    "video-upscale",
]


class OpenAIBody(BaseModel):
    """Fields of OpenAI's API that a task has under another name or not at all; all others are those of the task."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    tasks: ClassVar[tuple[str, ...]] = ()  # tasks whose fields it has too

    size: Annotated[str | None, Field(max_length=20, description="Size as WIDTHxHEIGHT, or auto.")] = None
    expand: Annotated[
        bool, Field(description="Whether a short prompt is expanded, for models trained on detailed prompts.")
    ] = True

    def values(self, task: str) -> dict[str, Any]:
        """The values of a task: its fields as they are, and OpenAI's under its names; with a seed.

        Raises:
            RecipeError: A size that is not WIDTHxHEIGHT, or a field under a former name.
        """
        names = registry.task_class(task).model_fields
        for key in self.__pydantic_extra__ or {}:
            if key in FORMER_NAMES and key not in names:
                raise RecipeError(f"{key}: here it is {FORMER_NAMES[key]}")
        values = {key: value for key, value in (self.__pydantic_extra__ or {}).items() if value is not None}
        if not self.expand and "expand_prompt" in names:
            values.setdefault("expand_prompt", "none")
        return {"seed": random_seed(), **_sides(self.size), **values}


class ImagesBody(OpenAIBody):
    """`POST /v1/images/generations`: OpenAI's fields, and all fields of the task `sample`."""

    tasks: ClassVar[tuple[str, ...]] = ("sample",)

    n: Annotated[int | None, Field(ge=1, le=MAX_RESULTS, description="Number of images.")] = 1
    response_format: Annotated[
        Literal["b64_json", "url"] | None, Field(description="Form in which images are returned.")
    ] = "b64_json"
    wait: Annotated[bool, Field(description="Whether the response waits for the images; else it is the job.")] = True
    output_format: Annotated[Literal["png"] | None, Field(description="File format of the images.")] = None
    stream: Annotated[Literal[False] | None, Field(description="Streaming, which is not supported.")] = None
    partial_images: Annotated[Literal[0] | None, Field(description="Streamed previews, which are not supported.")] = (
        None
    )
    quality: Ignored = None
    style: Ignored = None
    user: Ignored = None
    background: Ignored = None
    moderation: Ignored = None
    output_compression: Ignored = None
    safety_identifier: Ignored = None
    complexity: Ignored = None
    input_fidelity: Ignored = None

    def values(self, task: str) -> dict[str, Any]:
        """The values of a task; `n` is its count."""
        return {"count": self.n or 1, **super().values(task)}


class EditsBody(ImagesBody):
    """`POST /v1/images/edits`: OpenAI's fields, and all fields of the task that edits the image."""

    tasks: ClassVar[tuple[str, ...]] = ("img2img", "inpaint", "outpaint", "upscale")

    task: Annotated[
        ImageEditTask | None, Field(description="Task that edits the image; inpaint with a mask, else img2img.")
    ] = None


class VideosBody(OpenAIBody):
    """`POST /v1/videos`: OpenAI's fields, and all fields of the task that generates the video."""

    tasks: ClassVar[tuple[str, ...]] = (
        "video-generate", "video-extend", "video-interpolate", "video-join", "video-loop", "video-edit",
        "video-storyboard", "video-upscale",
    )  # fmt: skip

    task: Annotated[
        VideoTaskName | None, Field(description="Task; video-extend with an input video, else video-generate.")
    ] = None
    seconds: Annotated[
        float | None, Field(gt=0, le=3600, description="Length in seconds, where the number of frames is left out.")
    ] = None

    def values(self, task: str, models: Mapping[str, ModelInfo] | None = None) -> dict[str, Any]:
        """The values of a task; `seconds` are its frames, at its frame rate or at that of the model.

        Args:
            task: Name of the task.
            models: Metadata of the models, by name.
        """
        values = super().values(task)
        if self.seconds is not None and "frames" not in values:
            rate = values.get("fps")
            if not isinstance(rate, int | float):
                rate = _model_rate(models or {}, values.get("model", PLAYGROUND))
            values["frames"] = max(1, round(self.seconds * rate))
        return values


def _model_rate(models: Mapping[str, ModelInfo], name: Any) -> float:
    """Frames per second of the videos of a model."""
    return (models[name].fps if isinstance(name, str) and name in models else None) or RATE


def _sides(size: str | None) -> Mapping[str, int]:
    """The width and height of a size; empty for the model's own.

    Raises:
        RecipeError: Not WIDTHxHEIGHT.
    """
    if size is None or size == "auto":
        return {}
    match = _SIZE.fullmatch(size)
    if match is None or max(int(match[1]), int(match[2])) > MAX_SIDE:
        raise RecipeError(f"size {size!r}: must be WIDTHxHEIGHT in pixels, such as 64x48, or auto")
    return {"width": int(match[1]), "height": int(match[2])}


class JobBody(BaseModel):
    """`POST /v1/jobs`: a job of any task or command, with all parameters of its type."""

    model_config = ConfigDict(extra="forbid")

    kind: Annotated[str, Field(max_length=100)]
    request: dict[str, Any]


class OutputFile(BaseModel):
    """An output file of a job."""

    name: str
    url: str


class JobResponse(BaseModel):
    """A job and its state; times are seconds since 1970, `position` is the number of jobs ahead of it.

    `error_source` is what caused an error: the request, lacking resources (memory or disk space), or the server.
    """

    id: str
    object: Literal["job"] = "job"
    kind: str
    status: Literal["queued", "running", "completed", "failed", "cancelled"]
    progress: int
    completed_steps: int
    total_steps: int
    position: int | None
    expected_seconds: float | None
    created_at: float
    started_at: float | None
    ended_at: float | None
    attempts: int
    cancelling: bool
    outputs: list[OutputFile]
    warnings: list[str]
    error: str | None
    error_source: ErrorSource | None
    request: dict[str, Any]


class JobsResponse(BaseModel):
    """A page of jobs."""

    object: Literal["list"] = "list"
    data: list[JobResponse]
    has_more: bool


class ImageResponse(BaseModel):
    """One generated image."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    seed: int | None = None


class ImagesResponse(BaseModel):
    """Generated images."""

    created: int
    data: list[ImageResponse]
    output_format: Literal["png"] = "png"
    size: str | None = None
    job: str
    warnings: list[str]


class VideoError(BaseModel):
    """Error of a video job."""

    code: str
    message: str


class VideoResponse(BaseModel):
    """A video job and its state."""

    id: str
    object: Literal["video"] = "video"
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    model: str
    progress: int
    prompt: str | None = None
    seconds: str
    size: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    error: VideoError | None = None
    seed: int
    warnings: list[str]


class VideosResponse(BaseModel):
    """A page of videos."""

    object: Literal["list"] = "list"
    data: list[VideoResponse]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ModelResponse(BaseModel):
    """A model; fields that are unknown before it is loaded are null."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    makes: Literal["images", "videos"] | None = None
    takes: list[str] | None = None
    shape: list[int] | None = None
    steps: int | None = None


class ModelsResponse(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelResponse]


class UploadResponse(BaseModel):
    """An uploaded file, and the name by which requests refer to it."""

    name: str
    kind: Literal["image", "video"]
    width: int
    height: int
    frames: int
    seconds: Annotated[
        float | None, Field(description="Time of the last frame of a video after the first, in seconds.")
    ] = None


class DeletedResponse(BaseModel):
    """A deleted object."""

    id: str
    object: str
    deleted: Literal[True] = True


# -- building of responses ----------------------------------------------------------------------------------------

_STATES = {"queued": "queued", "running": "in_progress", "completed": "completed"}


def percent(job: Job) -> int:
    """Return the progress of a job in percent."""
    if job.state == "completed":
        return 100
    return min(99, 100 * job.completed_steps // job.total_steps) if job.total_steps else 0


def job_response(service: Service, job: Job, places: Mapping[str, QueuePosition] | None = None) -> JobResponse:
    """Build the response of a job.

    Args:
        service: Service of the job.
        job: The job.
        places: Positions in the queue, if already known.
    """
    if places is None:
        places = service.positions() if job.state == "queued" else {}
    place = places.get(job.id) if job.state == "queued" else None
    return JobResponse(
        id=job.id,
        kind=job.kind,
        status=job.state,
        progress=percent(job),
        completed_steps=job.completed_steps,
        total_steps=job.total_steps,
        position=None if place is None else place.ahead,
        expected_seconds=None if place is None else place.seconds,
        created_at=job.submitted,
        started_at=job.started,
        ended_at=job.ended,
        attempts=job.attempts,
        cancelling=job.cancelling,
        outputs=[OutputFile(name=name, url=f"/v1/jobs/{job.id}/files/{name}") for name in job.outputs],
        warnings=list(job.messages),
        error=job.error,
        error_source=job.error_source,
        request=job.request,
    )


def images_response(service: Service, job: Job, request: Request, form: str) -> ImagesResponse:
    """Build the response with the images of a completed job."""
    data: list[ImageResponse] = []
    for name in image_files(job):
        path = service.results.file(job.id, name)
        facts = _facts(path)
        prompt = facts.get("given", {}).get("prompt")
        revised = prompt if prompt != first_value(job.request.get("prompt")) else None
        image = ImageResponse(revised_prompt=revised, seed=facts.get("seed"))
        if form == "url":
            image.url = str(request.base_url.replace(path=f"/v1/jobs/{job.id}/files/{name}"))
        else:
            image.b64_json = base64.b64encode(path.read_bytes()).decode()
        data.append(image)
    fields = job.request
    size = f"{fields['width']}x{fields['height']}" if "width" in fields else None
    return ImagesResponse(
        created=int(job.ended or job.submitted), data=data, size=size, job=job.id, warnings=list(job.messages)
    )


def video_response(job: Job, models: dict[str, ModelInfo]) -> VideoResponse:
    """Build the response of a video job.

    Args:
        job: The job.
        models: Metadata of the models, by name.
    """
    fields = job.request
    model = fields.get("model", PLAYGROUND)
    shape = models.get(model, ModelInfo()).shape or ()
    frames = fields.get("frames") or (shape[1] if len(shape) == 4 else 0)
    sides = (fields["width"], fields["height"]) if "width" in fields else tuple(reversed(shape[-2:]))
    error = None
    if job.state in ("failed", "cancelled"):
        error = VideoError(code=job.state, message=job.error or "cancelled")
    status: Any = _STATES.get(job.state, "failed")
    return VideoResponse(
        id=job.id,
        created_at=int(job.submitted),
        completed_at=None if job.state != "completed" else int(job.ended or 0),
        model=model,
        progress=percent(job),
        prompt=first_value(fields.get("prompt")),
        seconds=f"{frames / (fields.get('fps') or _model_rate(models, model)):g}",
        size="x".join(map(str, sides)) or "auto",
        status=status,
        error=error,
        seed=first_value(fields.get("seed", 0)),
        warnings=list(job.messages),
    )


def model_response(entry: CatalogEntry) -> ModelResponse:
    """A model."""
    info = model_info(entry)
    return ModelResponse(
        id=entry.name,
        created=int(entry.path.stat().st_mtime) if entry.path.exists() else 0,
        owned_by={"bundled": "unveil", "models": "models folder", "runs": "runs"}[entry.origin],
        makes=info.makes,
        takes=None if info.takes is None else list(info.takes),
        shape=None if info.shape is None else list(info.shape),
        steps=info.steps,
    )


def content_file(job: Job, variant: str) -> str | None:
    """Return the file name of a variant: video, thumbnail or spritesheet; None if there is none."""
    preview = {"thumbnail": COVER, "spritesheet": STRIP}.get(variant)
    return video_file(job) if preview is None else preview if preview in job.outputs else None


def first_value(value: Any) -> Any:
    """Return the first of several values, or the only one; None for none."""
    return next(iter(value), None) if isinstance(value, list | tuple) else value


def _facts(path: Any) -> dict[str, Any]:
    try:
        return dict(read_generation_metadata(path))
    except DataError:
        return {}
