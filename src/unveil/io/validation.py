"""Plain values checked against a pydantic class; an error names the key, its value and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from unveil.errors import RecipeError, did_you_mean

Checked = TypeVar("Checked", bound=BaseModel)


def validated(kind: type[Checked], raw: Any, where: str) -> Checked:
    """An object of a class from plain values.

    Args:
        kind: Class of the result, or an annotated union of classes.
        raw: Plain values: maps, lists, strings, numbers, truth values, null.
        where: Name of the source, for errors.

    Raises:
        RecipeError: Each fault on its own line: key path, value, what is allowed, nearest name.
    """
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as problem:
        faults = [fault(error, raw) for error in problem.errors()]
        raise RecipeError("\n".join(f"{where}: {text}" for text in faults)) from problem


def fault(error: Mapping[str, Any], raw: Any) -> str:
    """One error of pydantic in plain words: `train.steps = -5: must be greater than 0`."""
    path = _path(error["loc"], raw)
    kind, context = error["type"], error.get("ctx", {})
    value = error.get("input")
    if kind == "unknown_key":
        return f"{_join(path, context['key'])}: {error['msg']}"
    if kind == "missing":
        return f"{path}: missing; it has no default"
    if kind == "unknown_kind":
        allowed = context["allowed"]
        if not isinstance(value, Mapping) or "kind" not in value:
            return f"{path} = {short(value)}: needs a map with a kind; allowed: {allowed}"
        wrong = value["kind"]
        return f"{path}.kind = {wrong!r}: must be one of {allowed}{did_you_mean(wrong, allowed.split(', '))}"
    if kind == "literal_error":
        allowed = [word.strip(" '") for word in str(context["expected"]).replace(" or ", ", ").split(",")]
        return f"{path} = {short(value)}: must be one of {', '.join(allowed)}{did_you_mean(value, allowed)}"
    if kind == "value_error":  # ours, raised in a dataclass's or a section's own check
        return f"{path}: {context['error']}" if path else str(context["error"])
    message = re.sub(r"^[A-Z][a-z]+ should ", "must ", str(error["msg"]))
    return f"{path} = {short(value)}: {message}"


def _path(location: Sequence[int | str], raw: Any) -> str:
    """The key path of a pydantic location, without the names of union members that it inserts."""
    path, here = "", raw
    for step in location:
        if isinstance(here, Mapping) and step not in here and here.get("kind") == step:
            continue
        path = _join(path, step)
        if isinstance(here, Mapping):
            here = here.get(step)
        elif isinstance(here, list | tuple) and isinstance(step, int) and step < len(here):
            here = here[step]
        else:
            here = None
    return path


def _join(path: str, step: object) -> str:
    return f"{path}.{step}" if path else str(step)


def short(value: object) -> str:
    """A value in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
