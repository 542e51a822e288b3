"""What the page of the interface says of requests whose fields are not a route's own: forms, and jobs of each kind."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model

from unveil.server.http import schema
from unveil.server.jobs.command_job import COMMANDS
from unveil.server.jobs.image_job import PICTURES, PictureRequest
from unveil.server.jobs.video_job import CLIPS, ClipRequest

_PLACE = "#/components/schemas/"
_REQUESTS: dict[str, type[BaseModel]] = {PICTURES: PictureRequest, CLIPS: ClipRequest}
_REQUESTS |= {kind: request for kind, (request, _) in COMMANDS.items()}


def _jobs() -> Any:
    """A job of one of the kinds, each with the request that its kind takes."""
    closed = ConfigDict(extra="forbid")
    every = list[Any]()
    for kind, request in _REQUESTS.items():
        own: Any = Literal[kind]
        every.append(
            create_model(f"{kind.capitalize()}Job", __config__=closed, kind=(own, ...), request=(request, ...))
        )
    return Annotated[reduce(or_, every), Field(discriminator="kind")]


def _described(kind: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema of a kind, and those that it names."""
    found = TypeAdapter[Any](kind).json_schema(ref_template=_PLACE + "{model}")
    return found, found.pop("$defs", {})


def form_of(kind: type[BaseModel] | None, *files: str) -> dict[str, Any]:
    """What is said of a form with files.

    Args:
        kind: of its fields; None: it has none.
        files: names of those that are files.
    """
    fields = {} if kind is None else _described(kind)[0]["properties"]
    sent = {name: {"type": "string", "format": "binary"} for name in files}
    found = {"type": "object", "properties": {**fields, **sent}, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": found}}}}


def describe(app: FastAPI) -> None:
    """Puts into the page of an application what forms name, and what each kind of job takes."""
    said, (job, named) = app.openapi, _described(_jobs())
    named |= _described(schema.EditsAsk)[1] | _described(schema.VideosAsk)[1]

    def whole() -> dict[str, Any]:
        found = said()
        known = found["components"]["schemas"]
        known |= {name: one for name, one in named.items() if name not in known}
        known[schema.JobsAsk.__name__] = {**job, "description": schema.JobsAsk.__doc__}
        return found

    app.openapi = whole
