"""Bodies of forms: their fields as values, and their files kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from unveil.io.files import explained
from unveil.server.http.errors import Problem
from unveil.server.jobs.uploads import Inputs, Kept

FILES, FIELDS = 8, 64
FIELD = 64 << 10  # bytes of one


async def read_form(request: Request, inputs: Inputs, files: Sequence[str]) -> tuple[dict[str, Any], dict[str, Kept]]:
    """The fields of a form, and its files, which are kept.

    A field's text is read as JSON where it is a number, a truth value, a list or an object; `name[]` is `name`.

    Args:
        request: whose body is a form, or JSON where no file is sent.
        inputs: where files are kept.
        files: names of fields that may be files.

    Raises:
        Problem: a form that cannot be read, a field twice, a file where none is meant, or too many of them.
        MediaError: a file that is none of those that are read.
        NotWritable, OutOfResources: a file that cannot be kept.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
        found = await json_of(request)
        return found, {}
    try:
        form = await request.form(max_files=FILES, max_fields=FIELDS, max_part_size=FIELD)
    except MultiPartException as problem:
        raise Problem(400, f"the form cannot be read: {problem.message}", "bad_form") from None
    except OSError as problem:
        raise explained(Path(gettempdir()), problem) from problem
    except Exception as problem:
        if isinstance(problem, Problem):
            raise
        raise Problem(400, "the form cannot be read", "bad_form") from problem
    fields: dict[str, Any] = {}
    kept: dict[str, Kept] = {}
    try:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            if name in fields or name in kept:
                raise Problem(400, f"{name[:80]}: given twice", "invalid_value", name[:80])
            if isinstance(value, UploadFile):
                if name not in files:
                    known = ", ".join(files)
                    raise Problem(400, f"{name[:80]}: is no file; files are {known}", "invalid_value", name[:80])
                content = await value.read()
                kept[name] = await run_in_threadpool(inputs.keep, content)
            else:
                fields[name] = value if name in _TEXTS else _value(value)
    finally:
        await form.close()
    return fields, kept


async def json_of(request: Request) -> dict[str, Any]:
    """The object in a body of JSON.

    Raises:
        Problem: no JSON, or no object.
    """
    try:
        found = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise Problem(400, "the body is no JSON", "bad_json") from None
    if not isinstance(found, Mapping):
        raise Problem(422, "the body must be an object", "bad_json")
    return {str(key): value for key, value in found.items()}


_TEXTS = ("prompt", "negative_prompt", "negative", "label", "model", "seconds", "size", "source", "input_reference")


def _value(text: str) -> Any:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if found is None or isinstance(found, str) else found
