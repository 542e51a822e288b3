"""Jobs that earlier versions stored: the former names of their fields and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORMER_FIELDS = {
    "done": "completed_steps",
    "total": "total_steps",
    "said": "messages",
    "fault": "error_source",
    "stopping": "cancelling",
}
FORMER_ERROR_SOURCES = {"asked": "request", "room": "resources"}
# Former types of jobs: the name of the task, and its fields by their former names
FORMER_TASKS: dict[str, tuple[str, dict[str, str]]] = {
    "train": ("train", {"small": "quick", "run": "run_name"}),
    "evaluate": ("evaluate", {"samples": "num_samples"}),
    "check": ("data-check", {}),
    "convert": ("convert", {"model": "source", "name": "output", "layout": "format"}),
}
FORMER_UPLOAD_KINDS = {"picture": "image", "clip": "video"}


def migrate_record(record: object) -> dict[str, Any]:
    """The fields of a stored job under their present names."""
    if not isinstance(record, Mapping):
        raise TypeError("a record of a job is an object")
    fields: dict[str, Any] = {FORMER_FIELDS.get(str(name), str(name)): value for name, value in record.items()}
    source = fields.get("error_source")
    if isinstance(request := fields.get("request"), Mapping):
        fields["kind"], fields["request"] = migrate_request(str(fields.get("kind")), request)
    return {**fields, "error_source": FORMER_ERROR_SOURCES.get(str(source), source)}


def migrate_request(kind: str, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The type of a stored job, and its request, by their present names."""
    task, names = FORMER_TASKS.get(kind, (kind, {}))
    return task, {names.get(name, name): value for name, value in request.items()}


def migrate_upload(record: Mapping[str, Any]) -> dict[str, Any]:
    """The description of an upload with the present name of its kind."""
    return {**record, "kind": FORMER_UPLOAD_KINDS.get(record["kind"], record["kind"])}
