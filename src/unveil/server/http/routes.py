"""Routes: OpenAI-compatible ones for images and videos, and own ones for jobs and uploads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ValidationError

from unveil.errors import DataError
from unveil.generation.video_inputs import RATE
from unveil.server.http import schema
from unveil.server.http.errors import HttpProblem
from unveil.server.http.forms import read_form, read_json
from unveil.server.http.openapi import form_body
from unveil.server.http.responses import (
    TYPES,
    content_file,
    images_response,
    job_response,
    model_response,
    video_response,
)
from unveil.server.http.service_facade import AsyncService
from unveil.server.jobs.catalog import ModelInfo, model_info
from unveil.server.jobs.image_job import PICTURES
from unveil.server.jobs.job import ErrorSource, Job, State
from unveil.server.jobs.request import random_seed
from unveil.server.jobs.sqlite_store import PageQuery
from unveil.server.jobs.uploads import UploadedFile
from unveil.server.jobs.video_job import CLIPS
from unveil.tasks.fields import PLAYGROUND

Body = TypeVar("Body", bound=BaseModel)
PageLimit = Annotated[int, Query(ge=1, le=100)]
FILES = ("image", "mask", "input_reference", "clip", "other", "keep", "video")
Responses = dict[int | str, dict[str, Any]]
# a report is a self-contained page: it loads nothing and runs no scripts
_SHOWN = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; sandbox"
}
LATER: Responses = {202: {"model": schema.JobResponse, "description": "The job, if the request did not wait for it"}}
_FILE = {"schema": {"type": "string", "format": "binary"}}
MEDIA: Responses = {200: {"content": {kind: _FILE for kind in TYPES.values()}, "description": "The file"}}
router = APIRouter(prefix="/v1")


class RequestContext:
    """Request, owner and service, as every route needs them."""

    def __init__(self, request: Request) -> None:
        self.request, self.owner = request, str(request.state.owner)
        self.calls: AsyncService = request.app.state.calls
        self.service = self.calls.service

    def job(self, id: str, kind: str | None = None) -> Job:
        """Return a job of this owner and type.

        Raises:
            HttpProblem: It does not exist.
        """
        job = self.calls.get(id, self.owner)
        if kind is not None and job.kind != kind:
            raise HttpProblem(404, f"{id[:80]!r}: no such job", "not_found")
        return job

    async def form(self, kind: type[Body]) -> tuple[Body, dict[str, UploadedFile]]:
        """Parse and validate a form or JSON body; return its fields and its files.

        Raises:
            HttpProblem: A field is unknown or invalid.
        """
        fields, files = await read_form(self.request, self.service.inputs, FILES)
        return validate_fields(kind, fields), files

    def models(self) -> dict[str, ModelInfo]:
        """Return the metadata of each model."""
        return {entry.name: model_info(entry) for entry in self.service.catalog.models()}


Context = Annotated[RequestContext, Depends(RequestContext)]


def validate_fields(kind: type[Body], fields: Mapping[str, Any]) -> Body:
    """Validate fields.

    Raises:
        HttpProblem: Names the first invalid field.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as problem:
        raise validation_error(problem.errors(include_url=False, include_input=False)) from None


def validation_error(errors: Any) -> HttpProblem:
    """Convert validation errors into an HTTP error."""
    messages = [f"{'.'.join(map(str, error['loc'])) or 'the request'}: {error['msg']}" for error in errors]
    param = ".".join(map(str, errors[0]["loc"]))[:200] if errors else None
    text = "; ".join(messages)[:2000].encode("utf-8", "replace").decode()
    return HttpProblem(422, text, "invalid_value", (param or "").encode("utf-8", "replace").decode() or None)


def _seed(seed: int | None) -> int:
    return random_seed() if seed is None else seed


# -- images -------------------------------------------------------------------------------------------------------


@router.post("/images/generations", response_model=schema.ImagesResponse, responses=LATER)
async def generate_images(body: schema.ImagesAsk, context: Context) -> Any:
    """Generate images from a prompt or a class."""
    return await _generate(body, body.request(_seed(body.seed)), context)


@router.post(
    "/images/edits",
    response_model=schema.ImagesResponse,
    responses=LATER,
    openapi_extra=form_body(schema.EditsAsk, "image", "mask"),
)
async def edit_image(context: Context) -> Any:
    """Edit an image: the part where the mask is transparent (or white, without transparency), or all of it."""
    body, files = await context.form(schema.EditsAsk)
    if "image" not in files:
        raise HttpProblem(400, "image: is missing; send a PNG, JPEG or WebP", "invalid_value", "image")
    mask = files["mask"].name if "mask" in files else None
    return await _generate(body, body.edit(_seed(body.seed), files["image"].name, mask), context)


async def _generate(body: schema.ImagesAsk, request: dict[str, Any], context: RequestContext) -> Any:
    job = await context.calls.submit(PICTURES, request, context.owner)
    if not body.wait:
        return JSONResponse(job_response(context.service, job).model_dump(), 202)
    job = await context.calls.wait(job.id, context.owner, context.request)
    if job.state != "completed":
        raise job_error(job)
    form = body.response_format or "b64_json"
    return await run_in_threadpool(images_response, context.service, job, context.request, form)  # images are read


_STATUS: Mapping[ErrorSource, tuple[int, str]] = {
    "request": (400, "invalid_value"), "resources": (507, "out_of_resources"), "server": (500, "failed")
}  # fmt: skip


def job_error(job: Job) -> HttpProblem:
    """Return the error of a job without outputs."""
    if job.state == "cancelled":
        return HttpProblem(409, f"{job.id}: was cancelled", "cancelled")
    status, code = _STATUS[job.error_source or "server"]
    return HttpProblem(status, job.error or "failed", code)


# -- videos -------------------------------------------------------------------------------------------------------


@router.post(
    "/videos",
    response_model=schema.VideoResponse,
    openapi_extra=form_body(schema.VideosAsk, "input_reference", "clip", "other", "mask", "keep"),
)
async def create_video(context: Context) -> Any:
    """Start a video job: text-to-video, from keyframes, or from other videos."""
    body, files = await context.form(schema.VideosAsk)
    return await _submit_video(context, body, files)


async def _submit_video(
    context: RequestContext, body: schema.VideosAsk, files: Mapping[str, UploadedFile], **overrides: Any
) -> Any:
    request = body.request(_seed(body.seed), RATE)
    request.setdefault("model", PLAYGROUND)
    for name in ("clip", "other", "mask", "keep"):
        if name in files:
            request[name] = files[name].name
    if (reference := files.get("input_reference")) is not None:
        if reference.kind == "video":
            request |= {"clip": reference.name, "verb": body.verb or "extend"}
        else:
            request["known"] = [*request.get("known", ()), {"picture": reference.name, "at": 0}]
    job = await context.calls.submit(CLIPS, {**request, **overrides}, context.owner)
    return video_response(job, await run_in_threadpool(context.models))


@router.post("/videos/edits", response_model=schema.VideoResponse, openapi_extra=form_body(schema.VideosAsk, "video"))
async def edit_video(context: Context) -> Any:
    """Edit a video by a prompt; `video` is a file, or {"id": ...} of a video generated here."""
    return await _from_video(context, "edit")


@router.post(
    "/videos/extensions", response_model=schema.VideoResponse, openapi_extra=form_body(schema.VideosAsk, "video")
)
async def extend_video(context: Context) -> Any:
    """Extend a video; `video` as for edits, `seconds` is the added duration."""
    return await _from_video(context, "extend")


async def _from_video(context: RequestContext, verb: Literal["edit", "extend"]) -> Any:
    fields, files = await read_form(context.request, context.service.inputs, FILES)
    named = fields.pop("video[id]", None)  # form notation of {"id": ...}
    before = fields.pop("video", None if named is None else {"id": str(named)})
    if before is None and "video" not in files:
        raise HttpProblem(400, 'video: is missing; a file, or {"id": ...}', "invalid_value", "video")
    clip = files["video"] if "video" in files else await _video_of_job(context, before)
    body = validate_fields(schema.VideosAsk, {**fields, "verb": verb})
    return await _submit_video(context, body, {"clip": clip})


async def _video_of_job(context: RequestContext, before: Any) -> UploadedFile:
    """Store the video of a job as an upload."""
    id = before.get("id") if isinstance(before, dict) else None
    if not isinstance(id, str) or not id.isascii():
        raise HttpProblem(422, 'video: a file, or {"id": ...}', "invalid_value", "video")
    job = context.job(id, CLIPS)
    name = content_file(job, "video")
    if name is None:
        raise HttpProblem(409, f"{id}: is not completed", "not_completed")
    content = await run_in_threadpool(context.service.results.file(id, name).read_bytes)
    return await run_in_threadpool(context.service.inputs.store, content)  # a child process decodes it


@router.post("/videos/{id}/remix", response_model=schema.VideoResponse)
async def remix_video(id: str, context: Context) -> Any:
    """Edit a video generated here by a new prompt."""
    clip = await _video_of_job(context, {"id": id})
    body = validate_fields(schema.VideosAsk, {**await read_json(context.request), "verb": "edit"})
    return await _submit_video(context, body, {"clip": clip})


@router.get("/videos", response_model=schema.VideosResponse)
async def list_videos(
    context: Context, limit: PageLimit = 20, after: str | None = None, order: Literal["asc", "desc"] = "desc"
) -> Any:
    """List videos, newest first by default."""
    jobs, more = _page(context, PageQuery(context.owner, limit, after, order == "desc", kind=CLIPS))
    models = await run_in_threadpool(context.models)
    data = [video_response(job, models) for job in jobs]
    ids = [video.id for video in data] or [None]
    return schema.VideosResponse(data=data, first_id=ids[0], last_id=ids[-1], has_more=more)


@router.get("/videos/{id}", response_model=schema.VideoResponse)
async def get_video(id: str, context: Context) -> Any:
    """Return a video job."""
    return video_response(context.job(id, CLIPS), await run_in_threadpool(context.models))


@router.delete("/videos/{id}", response_model=schema.DeletedResponse)
async def delete_video(id: str, context: Context) -> Any:
    """Delete a video job that has ended."""
    context.job(id, CLIPS)
    await context.calls.delete(id, context.owner)
    return schema.DeletedResponse(id=id, object="video.deleted")


@router.get("/videos/{id}/content", response_class=FileResponse, responses=MEDIA)
async def video_content(
    id: str, context: Context, variant: Literal["video", "thumbnail", "spritesheet"] = "video"
) -> FileResponse:
    """Return the file of a video, its first frame, or a strip of frames."""
    job = context.job(id, CLIPS)
    name = content_file(job, variant)
    if name is None:
        raise (
            job_error(job)
            if job.state in ("failed", "cancelled")
            else HttpProblem(404, "not completed yet", "not_found")
        )
    return _file(context, job, name)


# -- jobs ---------------------------------------------------------------------------------------------------------


@router.post("/jobs", response_model=schema.JobResponse, status_code=202)
async def create_job(body: schema.JobsAsk, context: Context) -> Any:
    """Submit a job of any type with all its parameters."""
    request = body.request
    if body.kind in (PICTURES, CLIPS):
        request = {"seed": random_seed(), "model": PLAYGROUND, **request}
    return job_response(context.service, await context.calls.submit(body.kind, request, context.owner))


@router.get("/jobs", response_model=schema.JobsResponse)
async def list_jobs(
    context: Context,
    limit: PageLimit = 20,
    after: str | None = None,
    order: Literal["asc", "desc"] = "desc",
    status: State | None = None,
) -> Any:
    """List jobs, newest first by default."""
    page, more = _page(context, PageQuery(context.owner, limit, after, order == "desc", state=status))
    positions = context.service.queue.positions(len(context.service.workers.devices))
    return schema.JobsResponse(data=[job_response(context.service, job, positions) for job in page], has_more=more)


@router.get("/jobs/{id}", response_model=schema.JobResponse)
async def get_job(id: str, context: Context) -> Any:
    """Return a job."""
    return job_response(context.service, context.job(id))


@router.post("/jobs/{id}/cancel", response_model=schema.JobResponse)
async def cancel_job(id: str, context: Context) -> Any:
    """Cancel a job; a running one stops at its next step."""
    return job_response(context.service, await context.calls.cancel(id, context.owner))


@router.delete("/jobs/{id}", response_model=schema.DeletedResponse)
async def delete_job(id: str, context: Context) -> Any:
    """Delete a job that has ended, and its outputs."""
    await context.calls.delete(id, context.owner)
    return schema.DeletedResponse(id=id, object="job.deleted")


@router.get("/jobs/{id}/events", response_class=StreamingResponse)
async def job_events(id: str, context: Context) -> StreamingResponse:
    """Stream each change of a job as server-sent events until it has ended."""
    context.job(id)

    async def lines() -> AsyncIterator[str]:
        async for change in context.calls.changes(id, context.owner):
            data = None if change is None else job_response(context.service, change).model_dump_json()
            yield ": still there\n\n" if data is None else f"event: job\ndata: {data}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


@router.get("/jobs/{id}/preview", response_class=Response, responses=MEDIA)
async def job_preview(id: str, context: Context) -> Response:
    """Return the preview image of a running job."""
    image = context.service.preview(context.job(id).id)
    if image is None:
        raise HttpProblem(404, "no preview exists now", "not_found")
    return Response(image, media_type=TYPES["png"])


@router.get("/jobs/{id}/log", response_class=Response, responses=MEDIA)
async def job_log(id: str, context: Context) -> Response:
    """Return the end of the log of a job's command, also while it runs; empty for jobs without a command."""
    return Response(context.service.log(context.job(id).id), media_type=TYPES["txt"])


@router.get("/jobs/{id}/files/{name}", response_class=FileResponse, responses=MEDIA)
async def job_file(id: str, name: str, context: Context) -> FileResponse:
    """Return an output file of a job."""
    return _file(context, context.job(id), name)


def _file(context: RequestContext, job: Job, name: str) -> FileResponse:
    kind = TYPES.get(name.rpartition(".")[2])
    if name not in job.outputs or kind is None:
        raise HttpProblem(404, f"{name[:80]!r}: {job.id} has no such output file", "not_found")
    try:
        return FileResponse(context.service.results.file(job.id, name), media_type=kind, headers=_SHOWN)
    except DataError as problem:
        raise HttpProblem(404, str(problem), "not_found") from problem


def _page(context: RequestContext, query: PageQuery) -> tuple[list[Job], bool]:
    """Return a page of an owner's jobs, and whether more follow."""
    try:
        return context.service.queue.page(query)
    except DataError as problem:
        raise HttpProblem(404, str(problem), "not_found", "after") from problem


# -- uploads and models -------------------------------------------------------------------------------------------


@router.post("/inputs", response_model=schema.UploadResponse, openapi_extra=form_body(None, "file"))
async def upload_file(context: Context) -> Any:
    """Upload an image or a video, for requests that refer to it by its name."""
    fields, files = await read_form(context.request, context.service.inputs, ("file",))
    if fields or "file" not in files:
        raise HttpProblem(400, "a form with one file, called file", "invalid_value", "file")
    return schema.UploadResponse(**files["file"]._asdict())


@router.get("/inputs/{name}", response_class=FileResponse, responses=MEDIA)
async def get_upload(name: str, context: Context) -> FileResponse:
    """Return an uploaded file; its name is a hash of its content, which only those with the file know."""
    try:
        path = context.service.inputs.path(name)
    except DataError as problem:
        raise HttpProblem(404, str(problem), "not_found") from problem
    return FileResponse(path, media_type=TYPES[path.suffix[1:]], headers=_SHOWN)


@router.get("/models", response_model=schema.ModelsResponse)
async def list_models(context: Context) -> Any:
    """List all models that requests may use."""
    return schema.ModelsResponse(data=[model_response(entry) for entry in context.service.catalog.models()])


@router.get("/models/{name:path}", response_model=schema.ModelResponse)
async def get_model(name: str, context: Context) -> Any:
    """A model."""
    return model_response(context.service.catalog.model(name))
