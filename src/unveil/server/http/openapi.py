"""OpenAPI schemas of requests that FastAPI does not derive itself: forms, and jobs of each type."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model

from unveil.server.http import schema
from unveil.server.jobs.image_job import PICTURES, PictureRequest
from unveil.server.jobs.task_job import is_task
from unveil.server.jobs.video_job import CLIPS, ClipRequest
from unveil.tasks import registry

_PLACE = "#/components/schemas/"
_REQUESTS: dict[str, type[BaseModel]] = {PICTURES: PictureRequest, CLIPS: ClipRequest}


def _jobs() -> Any:
    """Return the union of all job types, each with its own request."""
    closed = ConfigDict(extra="forbid")
    models = list[Any]()
    tasks = {name: registry.task_class(name) for name in filter(is_task, registry.entries()) if name not in _REQUESTS}
    for kind, request in {**_REQUESTS, **tasks}.items():
        literal: Any = Literal[kind]
        models.append(
            create_model(
                f"{kind.title().replace('-', '')}Job", __config__=closed, kind=(literal, ...), request=(request, ...)
            )
        )
    return Annotated[reduce(or_, models), Field(discriminator="kind")]


def _json_schema(kind: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the JSON schema of a type, and the schemas that it refers to."""
    schema = TypeAdapter[Any](kind).json_schema(ref_template=_PLACE + "{model}")
    return schema, schema.pop("$defs", {})


def form_body(kind: type[BaseModel] | None, *files: str) -> dict[str, Any]:
    """Return the OpenAPI request body of a form with files.

    Args:
        kind: Model of its fields; None: no fields.
        files: Names of the file fields.
    """
    fields = {} if kind is None else _json_schema(kind)[0]["properties"]
    file_fields = {name: {"type": "string", "format": "binary"} for name in files}
    body = {"type": "object", "properties": {**fields, **file_fields}, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": body}}}}


def schema_of(kind: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a class, complete in itself."""
    return kind.model_json_schema()


def task_body(kind: type[BaseModel], files: Sequence[str]) -> dict[str, Any]:
    """Return the OpenAPI request body of a task: JSON, or a form with the files that its fields name."""
    body = _json_schema(kind)[0]
    content: dict[str, Any] = {"application/json": {"schema": body}}
    if files:
        binary = {"type": "string", "format": "binary"}
        properties = {**body["properties"], **dict.fromkeys(files, binary)}
        content["multipart/form-data"] = {"schema": {**body, "properties": properties}}
    return {"requestBody": {"required": True, "content": content}}


def add_schemas(app: FastAPI) -> None:
    """Add the schemas of forms and job types to the OpenAPI document of an application."""
    original, (job, named) = app.openapi, _json_schema(_jobs())
    named |= _json_schema(schema.EditsAsk)[1] | _json_schema(schema.VideosAsk)[1]
    for name in filter(is_task, registry.entries()):
        named |= _json_schema(registry.task_class(name))[1]

    def with_schemas() -> dict[str, Any]:
        document = original()
        schemas = document["components"]["schemas"]
        schemas |= {name: definition for name, definition in named.items() if name not in schemas}
        schemas[schema.JobsAsk.__name__] = {**job, "description": schema.JobsAsk.__doc__}
        return document

    app.openapi = with_schemas
