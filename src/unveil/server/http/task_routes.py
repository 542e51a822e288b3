"""Routes of tasks: one for each task of the registry, whose body is the task.

A body is JSON, in which files are names of uploads, or a form with the files themselves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from unveil.server.http import schema
from unveil.server.http.forms import read_form
from unveil.server.http.openapi import schema_of, task_body
from unveil.server.http.routes import RequestContext
from unveil.server.jobs.task_job import task_kinds
from unveil.tasks import registry
from unveil.tasks.fields import FileInput
from unveil.tasks.task import Task, mark_of

Context = Annotated[RequestContext, Depends(RequestContext)]


class TaskInfo(BaseModel):
    """A task: its name, its heading, what it does, and the JSON schema of its fields."""

    id: str
    object: str = "task"
    section: str
    summary: str
    makes: str
    fields: dict[str, Any]


class TasksResponse(BaseModel):
    """All tasks."""

    object: str = "list"
    data: list[TaskInfo]


def file_fields(kind: type[Task]) -> list[str]:
    """The fields of a task that name one file each."""
    return [name for name in kind.model_fields if isinstance(mark_of(kind, name), FileInput)]


def task_router() -> APIRouter:
    """The routes of all tasks."""
    router = APIRouter(prefix="/v1/tasks", tags=["tasks"])

    @router.get("", response_model=TasksResponse)
    async def list_tasks() -> Any:
        """List all tasks with their fields."""
        return TasksResponse(data=[_info(registry.task_class(name)) for name in task_kinds()])

    for name in task_kinds():
        kind = registry.task_class(name)
        router.add_api_route(
            f"/{name}",
            _submit(kind),
            methods=["POST"],
            name=f"task_{name.replace('-', '_')}",
            summary=registry.summary(kind),
            description=(kind.__doc__ or "").partition("\n\n    Example:")[0],
            response_model=schema.JobResponse,
            status_code=202,
            openapi_extra=task_body(kind, file_fields(kind)),
        )
    return router


def _info(kind: type[Task]) -> TaskInfo:
    return TaskInfo(
        id=kind.name, section=kind.section, summary=registry.summary(kind), makes=kind.makes, fields=schema_of(kind)
    )


def _submit(kind: type[Task]) -> Callable[..., Awaitable[Any]]:
    async def submit(context: Context) -> Any:
        fields, files = await read_form(context.request, context.store, file_fields(kind))
        request = {**fields, **{name: upload.name for name, upload in files.items()}}
        return await context.job_response(await context.calls.submit(kind.name, request, context.owner))

    return submit
