"""Files of prompts: one a line, or one JSON map a line with what goes with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from unveil.errors import DataError, did_you_mean

SHOWN = 5  # faulty lines that an error lists
_KINDS: Mapping[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}


@dataclass(frozen=True)
class Prompt:
    """One line of a prompt file; None leaves a setting to the caller.

    Attributes:
        prompt, negative: Prompt and negative prompt.
        seed: Seed, 0 or more.
        count: Number of images, 1 or more.
        steps, scale, sampler: Sampling settings as in `unveil sample`.
        line: Line number in the file, from 1.
    """

    prompt: str
    negative: str | None = None
    seed: int | None = None
    count: int | None = None
    steps: int | None = None
    scale: float | None = None
    sampler: str | None = None
    line: int = field(default=0, compare=False)


MINIMA = {"seed": 0, "count": 1, "steps": 1}


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a file, in its order.

    A name that ends in `.jsonl` holds a JSON map on each line, with the fields of `Prompt` as keys; any other file
    holds a plain prompt on each line. Blank lines are skipped, and those that begin with #.

    Raises:
        DataError: Cannot be read as UTF-8, holds no prompt, or has faulty lines, which are listed by number.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8"
        raise DataError(f"{path}: cannot be read ({reason}); a prompt file is UTF-8 text") from problem
    prompts: list[Prompt] = []
    faults: list[str] = []
    for number, line in _lines(text):
        try:
            prompts.append(replace(_prompt(line) if path.suffix == ".jsonl" else Prompt(line), line=number))
        except ValueError as problem:
            faults.append(f"line {number}: {problem}")
    check_lines(path, faults)
    if not prompts:
        raise DataError(f"{path}: no prompt in it; write one a line")
    return prompts


def check_lines(path: Path | str, faults: Sequence[str]) -> None:
    """Raises DataError where lines of a file are faulty, with the first of what is wrong with them."""
    if faults:
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        lines = "1 faulty line" if len(faults) == 1 else f"{len(faults)} faulty lines"
        raise DataError(f"{path}: {lines}:\n  " + "\n  ".join([*faults[:SHOWN], *more]))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines with content, with their numbers."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.strip()


def _prompt(line: str) -> Prompt:
    """Parse one line of JSON; raise ValueError with the reason if it is invalid."""
    try:
        content = json.loads(line, parse_constant=_refuse)
    except ValueError as problem:
        raise ValueError(f"not JSON ({problem})") from problem
    if not isinstance(content, dict):
        raise ValueError(f'holds a {type(content).__name__}, not a map such as {{"prompt": "a cat"}}')
    kinds = {setting.name: str(setting.type).split(" ")[0] for setting in fields(Prompt) if setting.compare}
    if "prompt" not in content:
        raise ValueError(f"no prompt{did_you_mean('prompt', list(content))}")
    checked: dict[str, Any] = {}
    for key, value in content.items():
        if key not in kinds:
            raise ValueError(f"unknown key {key!r}; allowed: {', '.join(kinds)}{did_you_mean(key, list(kinds))}")
        if value is None and key != "prompt":
            continue  # as if the key were not there
        if isinstance(value, bool) or not isinstance(value, _KINDS[kinds[key]]):
            raise ValueError(f"{key} = {value!r}: must be {_KINDS[kinds[key]][-1].__name__}")
        if (lowest := MINIMA.get(key)) is not None and isinstance(value, int) and value < lowest:
            raise ValueError(f"{key} = {value}: must be at least {lowest}")
        checked[key] = value
    return Prompt(**checked)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number of JSON")
