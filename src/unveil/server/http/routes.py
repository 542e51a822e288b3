"""The routes: OpenAI's for pictures and clips, and ours for jobs and files that are sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ValidationError

from unveil.cli.options import PLAYGROUND
from unveil.cli.video_inputs import RATE
from unveil.server.http import schema
from unveil.server.http.errors import Problem
from unveil.server.http.forms import json_of, read_form
from unveil.server.http.openapi import form_of
from unveil.server.http.responses import TYPES, content_of, images_answer, job_answer, model_answer, video_answer
from unveil.server.http.service_facade import Calls
from unveil.server.jobs.catalog import About, about
from unveil.server.jobs.image_job import PICTURES
from unveil.server.jobs.job import Fault, Job, State
from unveil.server.jobs.request import any_seed
from unveil.server.jobs.sqlite_store import Part
from unveil.server.jobs.uploads import Kept
from unveil.server.jobs.video_job import CLIPS
from unveil.types import DataError

Ask = TypeVar("Ask", bound=BaseModel)
Most = Annotated[int, Query(ge=1, le=100)]
FILES = ("image", "mask", "input_reference", "clip", "other", "keep", "video")
Answers = dict[int | str, dict[str, Any]]
# a report is a page that shows itself alone: it asks for nothing, and runs nothing
_SHOWN = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; sandbox"
}
LATER: Answers = {202: {"model": schema.JobAnswer, "description": "The job that was not waited for"}}
_FILE = {"schema": {"type": "string", "format": "binary"}}
MEDIA: Answers = {200: {"content": {kind: _FILE for kind in TYPES.values()}, "description": "The file"}}
router = APIRouter(prefix="/v1")


class Asker:
    """Who asks, and what of: what every route begins with."""

    def __init__(self, request: Request) -> None:
        self.request, self.owner = request, str(request.state.owner)
        self.calls: Calls = request.app.state.calls
        self.service = self.calls.service

    def job(self, id: str, kind: str | None = None) -> Job:
        """A job of this owner and kind.

        Raises:
            Problem: there is none.
        """
        job = self.calls.get(id, self.owner)
        if kind is not None and job.kind != kind:
            raise Problem(404, f"{id[:80]!r}: there is no such job", "not_found")
        return job

    async def form(self, kind: type[Ask]) -> tuple[Ask, dict[str, Kept]]:
        """What a form, or an object of JSON, asks, and the files that it sent.

        Raises:
            Problem: a field that is none, or has another value than it may.
        """
        fields, files = await read_form(self.request, self.service.inputs, FILES)
        return read(kind, fields), files

    def models(self) -> dict[str, About]:
        """What is known of each model."""
        return {known.name: about(known) for known in self.service.catalog.models()}


From = Annotated[Asker, Depends(Asker)]


def read(kind: type[Ask], fields: Mapping[str, Any]) -> Ask:
    """Checks fields.

    Raises:
        Problem: names the first that is wrong.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as problem:
        raise wrong(problem.errors(include_url=False, include_input=False)) from None


def wrong(errors: Any) -> Problem:
    """The problem of fields that are wrong."""
    told = [f"{'.'.join(map(str, one['loc'])) or 'the request'}: {one['msg']}" for one in errors]
    param = ".".join(map(str, errors[0]["loc"]))[:200] if errors else None
    text = "; ".join(told)[:2000].encode("utf-8", "replace").decode()
    return Problem(422, text, "invalid_value", (param or "").encode("utf-8", "replace").decode() or None)


def _seed(seed: int | None) -> int:
    return any_seed() if seed is None else seed


# -- pictures -----------------------------------------------------------------------------------------------------


@router.post("/images/generations", response_model=schema.ImagesAnswer, responses=LATER)
async def generate(ask: schema.ImagesAsk, asker: From) -> Any:
    """Makes pictures from words, or of a class."""
    return await _pictured(ask, ask.request(_seed(ask.seed)), asker)


@router.post(
    "/images/edits",
    response_model=schema.ImagesAnswer,
    responses=LATER,
    openapi_extra=form_of(schema.EditsAsk, "image", "mask"),
)
async def edit(asker: From) -> Any:
    """Edits a picture: where the mask is transparent, or white without transparency; or all of it."""
    ask, files = await asker.form(schema.EditsAsk)
    if "image" not in files:
        raise Problem(400, "image: is missing; send a PNG, JPEG or WebP", "invalid_value", "image")
    mask = files["mask"].name if "mask" in files else None
    return await _pictured(ask, ask.edit(_seed(ask.seed), files["image"].name, mask), asker)


async def _pictured(ask: schema.ImagesAsk, request: dict[str, Any], asker: Asker) -> Any:
    job = await asker.calls.submit(PICTURES, request, asker.owner)
    if not ask.wait:
        return JSONResponse(job_answer(asker.service, job).model_dump(), 202)
    job = await asker.calls.ended(job.id, asker.owner, asker.request)
    if job.state != "completed":
        raise failed(job)
    form = ask.response_format or "b64_json"
    return await run_in_threadpool(images_answer, asker.service, job, asker.request, form)  # pictures are read


_FAULTS: Mapping[Fault, tuple[int, str]] = {
    "asked": (400, "invalid_value"), "room": (507, "out_of_resources"), "server": (500, "failed")
}  # fmt: skip


def failed(job: Job) -> Problem:
    """Why a job made nothing."""
    if job.state == "cancelled":
        return Problem(409, f"{job.id}: was cancelled", "cancelled")
    status, code = _FAULTS[job.fault or "server"]
    return Problem(status, job.error or "failed", code)


# -- clips --------------------------------------------------------------------------------------------------------


@router.post(
    "/videos",
    response_model=schema.VideoAnswer,
    openapi_extra=form_of(schema.VideosAsk, "input_reference", "clip", "other", "mask", "keep"),
)
async def film(asker: From) -> Any:
    """Begins a clip: from words, known frames and other clips."""
    ask, files = await asker.form(schema.VideosAsk)
    return await _filmed(asker, ask, files)


async def _filmed(asker: Asker, ask: schema.VideosAsk, files: Mapping[str, Kept], **own: Any) -> Any:
    request = ask.request(_seed(ask.seed), RATE)
    request.setdefault("model", PLAYGROUND)
    for name in ("clip", "other", "mask", "keep"):
        if name in files:
            request[name] = files[name].name
    if (shown := files.get("input_reference")) is not None:
        if shown.kind == "clip":
            request |= {"clip": shown.name, "verb": ask.verb or "extend"}
        else:
            request["known"] = [*request.get("known", ()), {"picture": shown.name, "at": 0}]
    job = await asker.calls.submit(CLIPS, {**request, **own}, asker.owner)
    return video_answer(job, await run_in_threadpool(asker.models))


@router.post("/videos/edits", response_model=schema.VideoAnswer, openapi_extra=form_of(schema.VideosAsk, "video"))
async def edit_film(asker: From) -> Any:
    """Edits a clip by words; `video` is a file, or {"id": ...} of one that was made here."""
    return await _of_film(asker, "edit")


@router.post("/videos/extensions", response_model=schema.VideoAnswer, openapi_extra=form_of(schema.VideosAsk, "video"))
async def extend_film(asker: From) -> Any:
    """Goes on with a clip; `video` as above, `seconds` are those that are added."""
    return await _of_film(asker, "extend")


async def _of_film(asker: Asker, verb: Literal["edit", "extend"]) -> Any:
    fields, files = await read_form(asker.request, asker.service.inputs, FILES)
    named = fields.pop("video[id]", None)  # as a form says {"id": ...}
    before = fields.pop("video", None if named is None else {"id": str(named)})
    if before is None and "video" not in files:
        raise Problem(400, 'video: is missing; a file, or {"id": ...}', "invalid_value", "video")
    clip = files["video"] if "video" in files else await _made(asker, before)
    ask = read(schema.VideosAsk, {**fields, "verb": verb})
    return await _filmed(asker, ask, {"clip": clip})


async def _made(asker: Asker, before: Any) -> Kept:
    """The clip of a job, as a file that was sent."""
    id = before.get("id") if isinstance(before, dict) else None
    if not isinstance(id, str) or not id.isascii():
        raise Problem(422, 'video: a file, or {"id": ...}', "invalid_value", "video")
    job = asker.job(id, CLIPS)
    name = content_of(job, "video")
    if name is None:
        raise Problem(409, f"{id}: is not completed", "not_completed")
    content = await run_in_threadpool(asker.service.results.file(id, name).read_bytes)
    return await run_in_threadpool(asker.service.inputs.keep, content)  # a child decodes it


@router.post("/videos/{id}/remix", response_model=schema.VideoAnswer)
async def remix(id: str, asker: From) -> Any:
    """Edits a clip that was made here by a new prompt."""
    clip = await _made(asker, {"id": id})
    ask = read(schema.VideosAsk, {**await json_of(asker.request), "verb": "edit"})
    return await _filmed(asker, ask, {"clip": clip})


@router.get("/videos", response_model=schema.VideosAnswer)
async def films(asker: From, limit: Most = 20, after: str | None = None, order: Literal["asc", "desc"] = "desc") -> Any:
    """Clips, the newest first."""
    jobs, more = _page(asker, Part(asker.owner, limit, after, order == "desc", kind=CLIPS))
    models = await run_in_threadpool(asker.models)
    data = [video_answer(job, models) for job in jobs]
    ids = [one.id for one in data] or [None]
    return schema.VideosAnswer(data=data, first_id=ids[0], last_id=ids[-1], has_more=more)


@router.get("/videos/{id}", response_model=schema.VideoAnswer)
async def film_of(id: str, asker: From) -> Any:
    """A clip as it stands."""
    return video_answer(asker.job(id, CLIPS), await run_in_threadpool(asker.models))


@router.delete("/videos/{id}", response_model=schema.Deleted)
async def delete_film(id: str, asker: From) -> Any:
    """Deletes a clip that has ended."""
    asker.job(id, CLIPS)
    await asker.calls.delete(id, asker.owner)
    return schema.Deleted(id=id, object="video.deleted")


@router.get("/videos/{id}/content", response_class=FileResponse, responses=MEDIA)
async def content(
    id: str, asker: From, variant: Literal["video", "thumbnail", "spritesheet"] = "video"
) -> FileResponse:
    """The file of a clip, its first frame, or a strip of frames."""
    job = asker.job(id, CLIPS)
    name = content_of(job, variant)
    if name is None:
        raise failed(job) if job.state in ("failed", "cancelled") else Problem(404, "not completed yet", "not_found")
    return _file(asker, job, name)


# -- jobs ---------------------------------------------------------------------------------------------------------


@router.post("/jobs", response_model=schema.JobAnswer, status_code=202)
async def submit(ask: schema.JobsAsk, asker: From) -> Any:
    """Puts a job into the queue, with all that its kind takes."""
    request = ask.request
    if ask.kind in (PICTURES, CLIPS):
        request = {"seed": any_seed(), "model": PLAYGROUND, **request}
    return job_answer(asker.service, await asker.calls.submit(ask.kind, request, asker.owner))


@router.get("/jobs", response_model=schema.Listed)
async def jobs(
    asker: From,
    limit: Most = 20,
    after: str | None = None,
    order: Literal["asc", "desc"] = "desc",
    status: State | None = None,
) -> Any:
    """Jobs, the newest first."""
    found, more = _page(asker, Part(asker.owner, limit, after, order == "desc", state=status))
    places = asker.service.queue.places(len(asker.service.crew.devices))
    return schema.Listed(data=[job_answer(asker.service, job, places) for job in found], has_more=more)


@router.get("/jobs/{id}", response_model=schema.JobAnswer)
async def job(id: str, asker: From) -> Any:
    """A job as it stands."""
    return job_answer(asker.service, asker.job(id))


@router.post("/jobs/{id}/cancel", response_model=schema.JobAnswer)
async def cancel(id: str, asker: From) -> Any:
    """Asks for the end of a job; what runs stops with its next step."""
    return job_answer(asker.service, await asker.calls.cancel(id, asker.owner))


@router.delete("/jobs/{id}", response_model=schema.Deleted)
async def delete(id: str, asker: From) -> Any:
    """Deletes a job that has ended, and what it made."""
    await asker.calls.delete(id, asker.owner)
    return schema.Deleted(id=id, object="job.deleted")


@router.get("/jobs/{id}/events", response_class=StreamingResponse)
async def events(id: str, asker: From) -> StreamingResponse:
    """The job each time that it stands otherwise, as server-sent events, until it has ended."""
    asker.job(id)

    async def lines() -> AsyncIterator[str]:
        async for one in asker.calls.changes(id, asker.owner):
            told = None if one is None else job_answer(asker.service, one).model_dump_json()
            yield ": still there\n\n" if told is None else f"event: job\ndata: {told}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


@router.get("/jobs/{id}/preview", response_class=Response, responses=MEDIA)
async def preview(id: str, asker: From) -> Response:
    """A picture of what is on its way."""
    found = asker.service.preview(asker.job(id).id)
    if found is None:
        raise Problem(404, "there is no preview of it now", "not_found")
    return Response(found, media_type=TYPES["png"])


@router.get("/jobs/{id}/log", response_class=Response, responses=MEDIA)
async def log(id: str, asker: From) -> Response:
    """The end of what the command of a job says, while it runs and after; empty of a job that is none."""
    return Response(asker.service.log(asker.job(id).id), media_type=TYPES["txt"])


@router.get("/jobs/{id}/files/{name}", response_class=FileResponse, responses=MEDIA)
async def file(id: str, name: str, asker: From) -> FileResponse:
    """A file that a job made."""
    return _file(asker, asker.job(id), name)


def _file(asker: Asker, job: Job, name: str) -> FileResponse:
    kind = TYPES.get(name.rpartition(".")[2])
    if name not in job.outputs or kind is None:
        raise Problem(404, f"{name[:80]!r}: {job.id} made no such file", "not_found")
    try:
        return FileResponse(asker.service.results.file(job.id, name), media_type=kind, headers=_SHOWN)
    except DataError as problem:
        raise Problem(404, str(problem), "not_found") from problem


def _page(asker: Asker, part: Part) -> tuple[list[Job], bool]:
    """Jobs of an owner, and whether there are more."""
    try:
        return asker.service.queue.page(part)
    except DataError as problem:
        raise Problem(404, str(problem), "not_found", "after") from problem


# -- what requests may name ---------------------------------------------------------------------------------------


@router.post("/inputs", response_model=schema.SentAnswer, openapi_extra=form_of(None, "file"))
async def send(asker: From) -> Any:
    """Keeps a picture or a clip, for requests that speak of it by its name."""
    fields, files = await read_form(asker.request, asker.service.inputs, ("file",))
    if fields or "file" not in files:
        raise Problem(400, "a form with one file, called file", "invalid_value", "file")
    return schema.SentAnswer(**files["file"]._asdict())


@router.get("/inputs/{name}", response_class=FileResponse, responses=MEDIA)
async def sent(name: str, asker: From) -> FileResponse:
    """A file that was sent; its name says its content, which nobody knows who has not seen it."""
    try:
        path = asker.service.inputs.path(name)
    except DataError as problem:
        raise Problem(404, str(problem), "not_found") from problem
    return FileResponse(path, media_type=TYPES[path.suffix[1:]], headers=_SHOWN)


@router.get("/models", response_model=schema.ModelsAnswer)
async def models(asker: From) -> Any:
    """Every model that requests may name."""
    return schema.ModelsAnswer(data=[model_answer(known) for known in asker.service.catalog.models()])


@router.get("/models/{name:path}", response_model=schema.ModelAnswer)
async def model(name: str, asker: From) -> Any:
    """A model."""
    return model_answer(asker.service.catalog.model(name))
