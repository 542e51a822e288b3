"""Routes: OpenAI-compatible ones for images and videos, and own ones for jobs and uploads.

They use the service without blocking the event loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ValidationError

from unveil.errors import DataError, OutOfResources, RecipeError
from unveil.server.http import schema
from unveil.server.http.errors import HttpProblem, http_problem
from unveil.server.http.forms import read_form, read_json
from unveil.server.http.openapi import form_body, json_body
from unveil.server.jobs.catalog import ModelInfo, model_info
from unveil.server.jobs.job_table import ENDED, ErrorSource, Job, PageQuery, State
from unveil.server.jobs.outputs import UploadedFile
from unveil.server.jobs.service import Service
from unveil.server.jobs.task_job import task_kinds
from unveil.tasks import registry

TYPES = {"png": "image/png", "mp4": "video/mp4", "webm": "video/webm", "gif": "image/gif", "apng": "image/apng"}
TYPES |= {"jpg": "image/jpeg", "webp": "image/webp", "mov": "video/quicktime", "mkv": "video/x-matroska"}
TYPES |= {"txt": "text/plain; charset=utf-8", "json": "application/json", "html": "text/html; charset=utf-8"}

Model = TypeVar("Model", bound=BaseModel)
SOON_S, LATER_S = 0.02, 0.1  # polling interval of a job, in its first second and after
ALIVE_S = 15.0  # interval of keep-alive messages in an event stream
PageLimit = Annotated[int, Query(ge=1, le=100)]
IMAGE_FILES = ("image", "mask")
VIDEO_FILES = ("input_reference", "video", "first", "last", "mask", "keep_mask")
Responses = dict[int | str, dict[str, Any]]
# a report is a self-contained page: it loads nothing and runs no scripts
_SHOWN = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; sandbox"
}
LATER: Responses = {202: {"model": schema.JobResponse, "description": "The job, if the request did not wait for it"}}
_FILE = {"schema": {"type": "string", "format": "binary"}}
MEDIA: Responses = {200: {"content": {kind: _FILE for kind in TYPES.values()}, "description": "The file"}}
router = APIRouter(prefix="/v1")


class AsyncService:
    """Service for routes: reads happen in the event loop, writes in one thread.

    Args:
        service: Service behind it.
        budget: Maximum cost of a job, as `Service.cost` computes it; None: unlimited.
    """

    def __init__(self, service: Service, budget: float | None) -> None:
        self.service, self.budget = service, budget
        self._writer = ThreadPoolExecutor(1, "writer")
        self._coming: dict[str, int] = {}  # number of jobs per owner that are being written
        self._counting = threading.Lock()

    async def submit(self, kind: str, request: Mapping[str, Any], owner: str) -> Job:
        """Validate a request and append it to the queue.

        Raises:
            RecipeError, WeightsError: The request is not possible.
            JobTooLarge: The job exceeds the budget.
            QueueFull: The queue is full, or the owner has too many files.
            OutOfResources: The owner's quota is used up.
        """
        self.service.queue.check_capacity(owner, self._coming)  # counts jobs that are being written; does not wait
        cost = await run_in_threadpool(  # looks up names on the disk
            self.service.cost, kind, request, owner, self.budget
        )
        self.service.queue.check_capacity(owner, self._coming)  # others may have been submitted meanwhile
        with self._counting:
            self._coming[owner] = self._coming.get(owner, 0) + 1
        return await self._write(self._submitted, kind, dict(request), owner, cost)

    def _submitted(self, kind: str, request: Mapping[str, Any], owner: str, cost: float) -> Job:
        try:
            return self.service.submit(kind, request, owner, cost)
        finally:
            with self._counting:
                self._coming[owner] -= 1

    def get(self, id: str, owner: str) -> Job:
        """Return a job of an owner.

        Raises:
            HttpProblem: It does not exist.
        """
        job = self.service.queue.get(id)
        if job is None or job.owner != owner:
            raise HttpProblem(404, f"{id[:80]!r}: no such job", "not_found")
        return job

    async def cancel(self, id: str, owner: str) -> Job:
        """Cancel a job.

        Raises:
            HttpProblem: It does not exist, or has ended.
        """
        if self.get(id, owner).state in ENDED:
            raise HttpProblem(409, f"{id}: has ended", "has_ended")
        await self._write(self.service.queue.cancel, id)
        return self.get(id, owner)

    async def delete(self, id: str, owner: str) -> None:
        """Delete a job that has ended, and its outputs.

        Raises:
            HttpProblem: It does not exist, or has not ended.
        """
        self.get(id, owner)
        if not await self._write(self.service.delete, id):
            raise HttpProblem(409, f"{id}: has not ended; cancel it first", "not_ended")

    async def wait(self, id: str, owner: str, request: Request) -> Job:
        """Wait for a job; if the client disconnects, the job is cancelled.

        Raises:
            HttpProblem: The client has disconnected, or the server ends.
        """
        start = looked = time.monotonic()
        while (job := self.get(id, owner)).state not in ENDED:
            now = time.monotonic()
            if now > request.scope["state"].get("ends", now):  # set by the connection
                raise HttpProblem(503, f"the server ends; job {id} is continued when it is started again", "ends")
            if now - looked > 0.5:
                looked = now
                if await request.is_disconnected():
                    await self._write(self.service.queue.cancel, id)
                    raise HttpProblem(499, "the client has disconnected", "gone")
            await asyncio.sleep(SOON_S if now - start < 1 else LATER_S)
        return job

    async def changes(self, id: str, owner: str) -> AsyncIterator[Job | None]:
        """Yield each change of a job until it has ended, and None at intervals as a keep-alive."""
        last, last_sent = None, time.monotonic()
        while True:
            job = self.get(id, owner)
            if job != last:
                last, last_sent = job, time.monotonic()
                yield job
                if job.state in ENDED:
                    return
            elif time.monotonic() - last_sent > ALIVE_S:
                last_sent = time.monotonic()
                yield None
            await asyncio.sleep(LATER_S)

    async def _write(self, call: Any, *args: Any) -> Any:
        # a started write is completed even if the client disconnects
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._writer, call, *args))


class RequestContext:
    """Request, owner and service, as every route needs them."""

    def __init__(self, request: Request) -> None:
        self.request, self.owner = request, str(request.state.owner)
        self.calls: AsyncService = request.app.state.calls
        self.service = self.calls.service

    def job(self, id: str, kinds: Sequence[str] = ()) -> Job:
        """Return a job of this owner, of any of these types.

        Raises:
            HttpProblem: It does not exist.
        """
        job = self.calls.get(id, self.owner)
        if kinds and job.kind not in kinds:
            raise HttpProblem(404, f"{id[:80]!r}: no such job", "not_found")
        return job

    async def form(self, kind: type[Model], files: Sequence[str]) -> tuple[Model, dict[str, UploadedFile]]:
        """Parse and validate a form or JSON body; return its fields and its files.

        Raises:
            HttpProblem: A field is unknown or invalid.
        """
        fields, uploads = await read_form(self.request, self.store, files)
        return await run_in_threadpool(validate_fields, kind, fields), uploads

    async def submit(self, task: str, values: Mapping[str, Any]) -> Job:
        """Submit a job of a task.

        Raises:
            HttpProblem: A field is unknown or invalid.
            RecipeError, WeightsError, DataError: The task is not possible.
        """
        try:
            await run_in_threadpool(registry.task_class(task).parse, values)  # may take longer than others should wait
        except RecipeError as problem:
            raise HttpProblem(422, str(problem)[:2000], "invalid_value") from problem
        return await self.calls.submit(task, values, self.owner)

    async def warnings_of(self, job: Job) -> list[str]:
        """Return what to know about a new job: how long others wait for it."""
        delay = await run_in_threadpool(self.service.delay, job)
        return [] if delay is None else [delay.warning]

    async def job_response(self, job: Job) -> schema.JobResponse:
        """Build the response of a new job."""
        response = schema.job_response(self.service, job)
        return response.model_copy(update={"warnings": [*await self.warnings_of(job), *response.warnings]})

    def store(self, file: IO[bytes]) -> UploadedFile:
        """Store an uploaded file of this owner.

        Raises:
            DataError, QueueFull, OutOfResources, OutputError: As `Service.store_upload`.
        """
        return self.service.store_upload(file, self.owner)

    def models(self) -> dict[str, ModelInfo]:
        """Return the metadata of each model."""
        return {entry.name: model_info(entry) for entry in self.service.catalog(self.owner).models()}


Context = Annotated[RequestContext, Depends(RequestContext)]


def validate_fields(kind: type[Model], fields: Mapping[str, Any]) -> Model:
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


# -- images -------------------------------------------------------------------------------------------------------


@router.post(
    "/images/generations",
    response_model=schema.ImagesResponse,
    responses=LATER,
    openapi_extra=json_body(schema.ImagesBody),
)
async def generate_images(fields: Annotated[dict[str, Any], Body()], context: Context) -> Any:
    """Generate images from a prompt or a class."""
    body = await run_in_threadpool(validate_fields, schema.ImagesBody, fields)
    return await _respond(body, await context.submit("sample", body.values("sample")), context)


@router.post(
    "/images/edits",
    response_model=schema.ImagesResponse,
    responses=LATER,
    openapi_extra=form_body(schema.EditsBody, *IMAGE_FILES),
)
async def edit_image(context: Context) -> Any:
    """Edit an image: the part where the mask is transparent (or white, without transparency), or all of it."""
    body, files = await context.form(schema.EditsBody, IMAGE_FILES)
    if "image" not in files:
        raise HttpProblem(400, "image: is missing; send a PNG, JPEG or WebP", "invalid_value", "image")
    task = body.task or ("inpaint" if "mask" in files else "img2img")
    values = {**body.values(task), **{name: upload.name for name, upload in files.items()}}
    return await _respond(body, await context.submit(task, values), context)


async def _respond(body: schema.ImagesBody, job: Job, context: RequestContext) -> Any:
    """Return the images of a job once it is completed, or at once the job."""
    if not body.wait:
        return JSONResponse((await context.job_response(job)).model_dump(), 202)
    job = await context.calls.wait(job.id, context.owner, context.request)
    if job.state != "completed":
        raise job_error(job)
    form = body.response_format or "b64_json"
    return await run_in_threadpool(schema.images_response, context.service, job, context.request, form)


_STATUS: Mapping[ErrorSource, tuple[int, str]] = {"request": (400, "invalid_value"), "server": (500, "failed")}


def job_error(job: Job) -> HttpProblem:
    """Return the error of a job without outputs."""
    if job.state == "cancelled":
        return HttpProblem(409, f"{job.id}: was cancelled", "cancelled")
    text = job.error or "failed"
    if job.error_source == "resources":
        return http_problem(OutOfResources(text))
    status, code = _STATUS[job.error_source or "server"]
    return HttpProblem(status, text, code)


# -- videos -------------------------------------------------------------------------------------------------------


@router.post("/videos", response_model=schema.VideoResponse, openapi_extra=form_body(schema.VideosBody, *VIDEO_FILES))
async def create_video(context: Context) -> Any:
    """Start a video job: text-to-video, from keyframes, or from other videos."""
    body, files = await context.form(schema.VideosBody, VIDEO_FILES)
    reference = files.pop("input_reference", None)
    is_video = reference is not None and reference.kind == "video"
    task = body.task or ("video-extend" if is_video else "video-generate")
    models = await run_in_threadpool(context.models)
    values = {**body.values(task, models), **{name: upload.name for name, upload in files.items()}}
    if reference is not None and is_video:
        values["video"] = reference.name
    elif reference is not None:
        keyframes = values.get("keyframes", [])
        if not isinstance(keyframes, list):
            raise HttpProblem(422, "keyframes: must be a list", "invalid_value", "keyframes")
        values["keyframes"] = [*keyframes, {"image": reference.name, "frame": 0}]
    return await _submit_video(context, task, values)


async def _submit_video(context: RequestContext, task: str, values: Mapping[str, Any]) -> Any:
    job = await context.submit(task, values)
    response = schema.video_response(job, await run_in_threadpool(context.models))
    return response.model_copy(update={"warnings": await context.warnings_of(job)})


@router.post("/videos/edits", response_model=schema.VideoResponse, openapi_extra=form_body(schema.VideosBody, "video"))
async def edit_video(context: Context) -> Any:
    """Edit a video by a prompt; `video` is a file, or {"id": ...} of a video generated here."""
    return await _from_video(context, "video-edit")


@router.post(
    "/videos/extensions", response_model=schema.VideoResponse, openapi_extra=form_body(schema.VideosBody, "video")
)
async def extend_video(context: Context) -> Any:
    """Extend a video; `video` as for edits, `seconds` is the added duration."""
    return await _from_video(context, "video-extend")


async def _from_video(context: RequestContext, task: schema.VideoTaskName) -> Any:
    fields, files = await read_form(context.request, context.store, ("video", "mask", "keep_mask"))
    named = fields.pop("video[id]", None)  # form notation of {"id": ...}
    before = fields.pop("video", None if named is None else {"id": str(named)})
    if before is None and "video" not in files:
        raise HttpProblem(400, 'video: is missing; a file, or {"id": ...}', "invalid_value", "video")
    video = files.pop("video") if "video" in files else await _video_of_job(context, before)
    body = await run_in_threadpool(validate_fields, schema.VideosBody, {**fields, "task": task})
    uploads = {name: upload.name for name, upload in files.items()}
    models = await run_in_threadpool(context.models)
    return await _submit_video(context, task, {**body.values(task, models), **uploads, "video": video.name})


async def _video_of_job(context: RequestContext, before: Any) -> UploadedFile:
    """Store the video of a job as an upload."""
    id = before.get("id") if isinstance(before, dict) else None
    if not isinstance(id, str) or not id.isascii():
        raise HttpProblem(422, 'video: a file, or {"id": ...}', "invalid_value", "video")
    job = context.job(id, task_kinds("videos"))
    name = schema.content_file(job, "video")
    if name is None:
        raise HttpProblem(409, f"{id}: is not completed", "not_completed")
    with context.service.results.file(id, name).open("rb") as file:
        return await run_in_threadpool(context.store, file)  # a child process decodes it


@router.post("/videos/{id}/remix", response_model=schema.VideoResponse)
async def remix_video(id: str, context: Context) -> Any:
    """Edit a video generated here by a new prompt."""
    video = await _video_of_job(context, {"id": id})
    fields = {**await read_json(context.request), "task": "video-edit"}
    body = await run_in_threadpool(validate_fields, schema.VideosBody, fields)
    return await _submit_video(context, "video-edit", {**body.values("video-edit"), "video": video.name})


@router.get("/videos", response_model=schema.VideosResponse)
async def list_videos(
    context: Context, limit: PageLimit = 20, after: str | None = None, order: Literal["asc", "desc"] = "desc"
) -> Any:
    """List videos, newest first by default."""
    jobs, more = _page(context, PageQuery(context.owner, limit, after, order == "desc", kinds=task_kinds("videos")))
    models = await run_in_threadpool(context.models)
    data = [schema.video_response(job, models) for job in jobs]
    ids = [video.id for video in data] or [None]
    return schema.VideosResponse(data=data, first_id=ids[0], last_id=ids[-1], has_more=more)


@router.get("/videos/{id}", response_model=schema.VideoResponse)
async def get_video(id: str, context: Context) -> Any:
    """Return a video job."""
    return schema.video_response(context.job(id, task_kinds("videos")), await run_in_threadpool(context.models))


@router.delete("/videos/{id}", response_model=schema.DeletedResponse)
async def delete_video(id: str, context: Context) -> Any:
    """Delete a video job that has ended."""
    context.job(id, task_kinds("videos"))
    await context.calls.delete(id, context.owner)
    return schema.DeletedResponse(id=id, object="video.deleted")


@router.get("/videos/{id}/content", response_class=FileResponse, responses=MEDIA)
async def video_content(
    id: str, context: Context, variant: Literal["video", "thumbnail", "spritesheet"] = "video"
) -> FileResponse:
    """Return the file of a video, its first frame, or a strip of frames."""
    job = context.job(id, task_kinds("videos"))
    name = schema.content_file(job, variant)
    if name is None:
        raise (
            job_error(job)
            if job.state in ("failed", "cancelled")
            else HttpProblem(404, "not completed yet", "not_found")
        )
    return _file(context, job, name)


# -- jobs ---------------------------------------------------------------------------------------------------------


@router.post("/jobs", response_model=schema.JobResponse, status_code=202)
async def create_job(body: schema.JobBody, context: Context) -> Any:
    """Submit a job of any task or command with all its parameters."""
    return await context.job_response(await context.calls.submit(body.kind, body.request, context.owner))


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
    positions = context.service.positions()
    return schema.JobsResponse(
        data=[schema.job_response(context.service, job, positions) for job in page], has_more=more
    )


@router.get("/jobs/{id}", response_model=schema.JobResponse)
async def get_job(id: str, context: Context) -> Any:
    """Return a job."""
    return schema.job_response(context.service, context.job(id))


@router.post("/jobs/{id}/cancel", response_model=schema.JobResponse)
async def cancel_job(id: str, context: Context) -> Any:
    """Cancel a job; a running one stops at its next step."""
    return schema.job_response(context.service, await context.calls.cancel(id, context.owner))


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
            data = None if change is None else schema.job_response(context.service, change).model_dump_json()
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
    fields, files = await read_form(context.request, context.store, ("file",))
    if fields or "file" not in files:
        raise HttpProblem(400, "a form with one file, called file", "invalid_value", "file")
    return schema.UploadResponse(**files["file"]._asdict())


@router.get("/inputs/{name}", response_class=FileResponse, responses=MEDIA)
async def get_upload(name: str, context: Context) -> FileResponse:
    """Return an uploaded file of the same API key."""
    try:
        path = context.service.uploads(context.owner).path(name)
    except DataError as problem:
        raise HttpProblem(404, str(problem), "not_found") from problem
    return FileResponse(path, media_type=TYPES[path.suffix[1:]], headers=_SHOWN)


@router.get("/models", response_model=schema.ModelsResponse)
async def list_models(context: Context) -> Any:
    """List all models that requests may use."""
    return schema.ModelsResponse(
        data=[schema.model_response(entry) for entry in context.service.catalog(context.owner).models()]
    )


@router.get("/models/{name:path}", response_model=schema.ModelResponse)
async def get_model(name: str, context: Context) -> Any:
    """A model."""
    return schema.model_response(context.service.catalog(context.owner).model(name))
