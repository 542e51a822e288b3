"""Jobs and models as answers."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from fastapi import Request

from unveil.cli.video_inputs import RATE
from unveil.server.http import schema
from unveil.server.jobs.catalog import About, Known, about
from unveil.server.jobs.image_job import pictures_of
from unveil.server.jobs.job import Job
from unveil.server.jobs.queue import Place
from unveil.server.jobs.service import Service
from unveil.server.jobs.video_job import COVER, SHOWN
from unveil.tasks.metadata import read_facts
from unveil.types import DataError

TYPES = {"png": "image/png", "mp4": "video/mp4", "webm": "video/webm", "gif": "image/gif"}
TYPES |= {"jpg": "image/jpeg", "webp": "image/webp", "mov": "video/quicktime", "mkv": "video/x-matroska"}
TYPES |= {"txt": "text/plain; charset=utf-8", "json": "application/json", "html": "text/html; charset=utf-8"}
_STATES = {"queued": "queued", "running": "in_progress", "completed": "completed"}


def percent(job: Job) -> int:
    """How far a job is."""
    if job.state == "completed":
        return 100
    return min(99, 100 * job.done // job.total) if job.total else 0


def job_answer(service: Service, job: Job, places: Mapping[str, Place] | None = None) -> schema.JobAnswer:
    """A job as it stands.

    Args:
        service: that it is of.
        job: the job.
        places: of the queue, where they are known already.
    """
    if places is None:
        places = service.queue.places(len(service.crew.devices)) if job.state == "queued" else {}
    place = places.get(job.id) if job.state == "queued" else None
    return schema.JobAnswer(
        id=job.id,
        kind=job.kind,
        status=job.state,
        progress=percent(job),
        done=job.done,
        total=job.total,
        position=None if place is None else place.ahead,
        expected_seconds=None if place is None else place.seconds,
        created_at=job.submitted,
        started_at=job.started,
        ended_at=job.ended,
        attempts=job.attempts,
        stopping=job.stopping,
        outputs=[schema.Output(name=name, url=f"/v1/jobs/{job.id}/files/{name}") for name in job.outputs],
        warnings=list(job.said),
        error=job.error,
        fault=job.fault,
        request=job.request,
    )


def images_answer(service: Service, job: Job, request: Request, form: str) -> schema.ImagesAnswer:
    """The pictures of a completed job."""
    data: list[schema.ImageAnswer] = []
    for name in pictures_of(job):
        path = service.results.file(job.id, name)
        facts = _facts(path)
        given = facts.get("given", {}).get("prompt") if "asked" in facts else None
        one = schema.ImageAnswer(revised_prompt=given, seed=facts.get("seed"))
        if form == "url":
            one.url = str(request.base_url.replace(path=f"/v1/jobs/{job.id}/files/{name}"))
        else:
            one.b64_json = base64.b64encode(path.read_bytes()).decode()
        data.append(one)
    asked = job.request
    size = f"{asked['width']}x{asked['height']}" if "width" in asked else None
    return schema.ImagesAnswer(
        created=int(job.ended or job.submitted), data=data, size=size, job=job.id, warnings=list(job.said)
    )


def video_answer(job: Job, models: dict[str, About]) -> schema.VideoAnswer:
    """A clip, or what will be one.

    Args:
        job: of the clip.
        models: what is known of models, by name.
    """
    asked = job.request
    shape = models.get(asked["model"], About()).shape or ()
    frames = asked.get("frames") or (shape[1] if len(shape) == 4 else 0)
    sides = (asked["width"], asked["height"]) if "width" in asked else tuple(reversed(shape[-2:]))
    error = None
    if job.state in ("failed", "cancelled"):
        error = schema.VideoError(code=job.state, message=job.error or "cancelled")
    status: Any = _STATES.get(job.state, "failed")
    return schema.VideoAnswer(
        id=job.id,
        created_at=int(job.submitted),
        completed_at=None if job.state != "completed" else int(job.ended or 0),
        model=asked["model"],
        progress=percent(job),
        prompt=asked.get("prompt"),
        seconds=f"{frames / (asked.get('fps') or RATE):g}",
        size="x".join(map(str, sides)) or "auto",
        status=status,
        error=error,
        seed=asked["seed"],
        warnings=list(job.said),
    )


def model_answer(known: Known) -> schema.ModelAnswer:
    """A model."""
    told = about(known)
    return schema.ModelAnswer(
        id=known.name,
        created=int(known.path.stat().st_mtime) if known.path.exists() else 0,
        owned_by={"shipped": "unveil", "models": "models folder", "runs": "runs"}[known.origin],
        makes=told.makes,
        takes=None if told.takes is None else list(told.takes),
        shape=None if told.shape is None else list(told.shape),
        steps=told.steps,
    )


def content_of(job: Job, variant: str) -> str | None:
    """The file of a clip's variant: video, thumbnail or spritesheet; None: there is none."""
    wanted = {"thumbnail": COVER, "spritesheet": SHOWN}.get(variant)
    return next((name for name in job.outputs if name == wanted or (wanted is None and name.startswith("clip."))), None)


def _facts(path: Any) -> dict[str, Any]:
    try:
        return dict(read_facts(path))
    except DataError:
        return {}
