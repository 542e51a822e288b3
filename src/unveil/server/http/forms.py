"""Parsing of form bodies: fields as values, and uploaded files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import gettempdir
from typing import IO, Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from unveil.io.files import explained
from unveil.server.http.errors import HttpProblem
from unveil.server.http.middleware import MAX_ENTRIES, check_json
from unveil.server.jobs.outputs import UploadedFile

FILES, FIELDS = 8, 64
FIELD = 64 << 10  # bytes per field


async def read_form(
    request: Request, store: Callable[[IO[bytes]], UploadedFile], files: Sequence[str]
) -> tuple[dict[str, Any], dict[str, UploadedFile]]:
    """Parse a form, and store its files.

    A field's text is parsed as JSON if it is a number, a truth value, a list or an object; `name[]` equals `name`.

    Args:
        request: Request whose body is a form, or JSON without files.
        store: Stores an uploaded file.
        files: Names of fields that may be files.

    Raises:
        HttpProblem: The form is malformed, repeats a field, has an unexpected file, or too many of them.
        DataError: A file is not a supported image or video.
        QueueFull: Too many files of this owner are being read, or the owner has too many files.
        OutputError, OutOfResources: A file cannot be stored.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
        fields = await read_json(request)
        return fields, {}
    try:
        form = await request.form(max_files=FILES, max_fields=FIELDS, max_part_size=FIELD)
    except MultiPartException as problem:
        raise HttpProblem(400, f"the form cannot be read: {problem.message}", "bad_form") from None
    except OSError as problem:
        raise explained(Path(gettempdir()), problem) from problem
    except Exception as problem:
        if isinstance(problem, HttpProblem):
            raise
        raise HttpProblem(400, "the form cannot be read", "bad_form") from problem
    texts: dict[str, str] = {}
    uploads: dict[str, UploadedFile] = {}
    try:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            if name in texts or name in uploads:
                raise HttpProblem(400, f"{name[:80]}: given twice", "invalid_value", name[:80])
            if isinstance(value, UploadFile):
                if name not in files:
                    allowed = ", ".join(files)
                    raise HttpProblem(
                        400, f"{name[:80]}: not a file field; files are {allowed}", "invalid_value", name[:80]
                    )
                uploads[name] = await run_in_threadpool(store, value.file)
            else:
                texts[name] = value
    finally:
        await form.close()
    return await run_in_threadpool(_values, texts), uploads


async def read_json(request: Request) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        HttpProblem: The body is not JSON, or not an object.
    """
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise HttpProblem(400, "the body is not JSON", "bad_json") from None
    if not isinstance(body, Mapping):
        raise HttpProblem(422, "the body must be an object", "bad_json")
    return {str(key): value for key, value in body.items()}


_TEXTS = ("prompt", "negative_prompt", "source_prompt", "label", "model", "seconds", "size", "input_reference")


def _values(texts: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of a form's texts.

    Raises:
        HttpProblem: As JSON, they are nested too deeply or have too many values.
    """
    entries = MAX_ENTRIES
    for name, text in texts.items():
        if name not in _TEXTS:
            entries -= check_json(text.encode("utf-8", "replace"), entries=entries)
    return {name: text if name in _TEXTS else _value(text) for name, text in texts.items()}


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if value is None or isinstance(value, str) else value
