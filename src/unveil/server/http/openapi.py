"""OpenAPI schemas of requests that FastAPI does not derive itself: forms, and jobs of each type."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model

from unveil.server.http import schema
from unveil.server.jobs.task_job import task_kinds
from unveil.tasks import registry

_PLACE = "#/components/schemas/"


def _jobs() -> Any:
    """Return the union of all job types, each with its own request."""
    closed = ConfigDict(extra="forbid")
    models = list[Any]()
    for kind in task_kinds():
        literal: Any = Literal[kind]
        request = registry.task_class(kind)
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


def form_body(kind: type[schema.OpenAIBody] | None, *files: str) -> dict[str, Any]:
    """Return the OpenAPI request body of a form with files.

    Args:
        kind: Model of its fields; None: no fields.
        files: Names of the file fields.
    """
    fields = {} if kind is None else openai_fields(kind)
    file_fields = {name: {"type": "string", "format": "binary"} for name in files}
    body = {"type": "object", "properties": {**fields, **file_fields}, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": body}}}}


def json_body(kind: type[schema.OpenAIBody]) -> dict[str, Any]:
    """Return the OpenAPI request body of a model in JSON."""
    body = {"type": "object", "properties": openai_fields(kind), "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}}


def openai_fields(kind: type[schema.OpenAIBody]) -> dict[str, Any]:
    """Return the properties of a body: OpenAI's fields, and those of its tasks."""
    fields: dict[str, Any] = {}
    for name in reversed(kind.tasks):  # of a field that several tasks have, the description of the first
        fields |= _json_schema(registry.task_class(name))[0]["properties"]
    return {**fields, **_json_schema(kind)[0]["properties"]}


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
    for name in task_kinds():
        named |= _json_schema(registry.task_class(name))[1]

    def with_schemas() -> dict[str, Any]:
        document = original()
        schemas = document["components"]["schemas"]
        schemas |= {name: definition for name, definition in named.items() if name not in schemas}
        schemas[schema.JobBody.__name__] = {**job, "description": schema.JobBody.__doc__}
        return document

    app.openapi = with_schemas
