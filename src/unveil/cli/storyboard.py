"""Storyboards, from a file or from what was typed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unveil.errors import DataError, RecipeError
from unveil.generation.prompt_schedule import Scene
from unveil.model.config import read_yaml

_SPAN = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*")
_LINE = re.compile(r"\s*(\d+\s*-\s*\d+)[\s:]+(.*\S)\s*", re.DOTALL)
_HOW = 'frames as FIRST-LAST, and words, such as "0-15 a red circle moves left"'


def scenes_of(path: Path | None, typed: Sequence[str]) -> list[Scene]:
    """The scenes of a storyboard.

    Args:
        path: YAML or JSON: a list of {frames: 0-15, prompt: ...}, or a map that has it under `scenes`.
        typed: "0-15 words", each.

    Raises:
        RecipeError: neither or both given, or a scene that cannot be read.
        MediaError: no such file.
    """
    if (path is None) == (not typed):
        raise RecipeError(f"a storyboard is a file, or --scene repeated: {_HOW}")
    if path is None:
        return [_typed(text) for text in typed]
    try:
        found: Any = read_yaml(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{path}: {getattr(problem, 'strerror', None) or problem}") from problem
    listed = found.get("scenes") if isinstance(found, dict) else found
    if not isinstance(listed, list) or not listed:
        raise RecipeError(f"{path}: holds no list of scenes; each has frames: 0-15 and a prompt")
    return [_of(one, f"{path}: scene {number + 1}") for number, one in enumerate(listed)]


def _of(one: Any, where: str) -> Scene:
    if not isinstance(one, dict) or set(one) != {"frames", "prompt"} or not isinstance(one["prompt"], str):
        raise RecipeError(f"{where}: {one!r}; needs frames: 0-15 and a prompt, and nothing else")
    return _scene(str(one["frames"]), one["prompt"], where)


def _typed(text: str) -> Scene:
    found = _LINE.fullmatch(text)
    if found is None:
        raise RecipeError(f"--scene {text!r}: needs {_HOW}")
    return _scene(found[1], found[2], f"--scene {text!r}")


def _scene(span: str, prompt: str, where: str) -> Scene:
    found = _SPAN.fullmatch(span)
    if found is None:
        raise RecipeError(f"{where}: frames {span!r}; written FIRST-LAST, such as 0-15")
    return Scene(int(found[1]), int(found[2]) + 1, prompt)
