"""Responses built from jobs and models."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from fastapi import Request

from unveil.errors import DataError
from unveil.generation.image_output import read_generation_metadata
from unveil.generation.video_inputs import RATE
from unveil.server.http import schema
from unveil.server.jobs.catalog import CatalogEntry, ModelInfo, model_info
from unveil.server.jobs.job import Job
from unveil.server.jobs.media_files import COVER, STRIP, image_files, video_file
from unveil.server.jobs.queue import QueuePosition
from unveil.server.jobs.service import Service
from unveil.tasks.fields import PLAYGROUND

TYPES = {"png": "image/png", "mp4": "video/mp4", "webm": "video/webm", "gif": "image/gif", "apng": "image/apng"}
TYPES |= {"jpg": "image/jpeg", "webp": "image/webp", "mov": "video/quicktime", "mkv": "video/x-matroska"}
TYPES |= {"txt": "text/plain; charset=utf-8", "json": "application/json", "html": "text/html; charset=utf-8"}
_STATES = {"queued": "queued", "running": "in_progress", "completed": "completed"}


def percent(job: Job) -> int:
    """Return the progress of a job in percent."""
    if job.state == "completed":
        return 100
    return min(99, 100 * job.completed_steps // job.total_steps) if job.total_steps else 0


def job_response(service: Service, job: Job, places: Mapping[str, QueuePosition] | None = None) -> schema.JobResponse:
    """Build the response of a job.

    Args:
        service: Service of the job.
        job: The job.
        places: Positions in the queue, if already known.
    """
    if places is None:
        places = service.queue.positions(len(service.workers.devices)) if job.state == "queued" else {}
    place = places.get(job.id) if job.state == "queued" else None
    return schema.JobResponse(
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
        outputs=[schema.OutputFile(name=name, url=f"/v1/jobs/{job.id}/files/{name}") for name in job.outputs],
        warnings=list(job.messages),
        error=job.error,
        error_source=job.error_source,
        request=job.request,
    )


def images_response(service: Service, job: Job, request: Request, form: str) -> schema.ImagesResponse:
    """Build the response with the images of a completed job."""
    data: list[schema.ImageResponse] = []
    for name in image_files(job):
        path = service.results.file(job.id, name)
        facts = _facts(path)
        prompt = facts.get("given", {}).get("prompt")
        revised = prompt if prompt != first_value(job.request.get("prompt")) else None
        image = schema.ImageResponse(revised_prompt=revised, seed=facts.get("seed"))
        if form == "url":
            image.url = str(request.base_url.replace(path=f"/v1/jobs/{job.id}/files/{name}"))
        else:
            image.b64_json = base64.b64encode(path.read_bytes()).decode()
        data.append(image)
    fields = job.request
    size = f"{fields['width']}x{fields['height']}" if "width" in fields else None
    return schema.ImagesResponse(
        created=int(job.ended or job.submitted), data=data, size=size, job=job.id, warnings=list(job.messages)
    )


def video_response(job: Job, models: dict[str, ModelInfo]) -> schema.VideoResponse:
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
        error = schema.VideoError(code=job.state, message=job.error or "cancelled")
    status: Any = _STATES.get(job.state, "failed")
    return schema.VideoResponse(
        id=job.id,
        created_at=int(job.submitted),
        completed_at=None if job.state != "completed" else int(job.ended or 0),
        model=model,
        progress=percent(job),
        prompt=first_value(fields.get("prompt")),
        seconds=f"{frames / (fields.get('fps') or RATE):g}",
        size="x".join(map(str, sides)) or "auto",
        status=status,
        error=error,
        seed=first_value(fields.get("seed", 0)),
        warnings=list(job.messages),
    )


def model_response(entry: CatalogEntry) -> schema.ModelResponse:
    """A model."""
    info = model_info(entry)
    return schema.ModelResponse(
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
