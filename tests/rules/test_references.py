"""What docstrings and comments refer to exists: dotted names in backticks, such as `core.schedules.uniform`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.rules.source import PACKAGE, modules, name, parsed

_REFERENCE = re.compile(r"`((?:[A-Za-z_]\w*\.)+[A-Za-z_]\w*)(?:\([^`]*\))?`")
# Names of files are not names of Python; a module may be written as its file.
_FILES = {"json", "jsonl", "yaml", "safetensors", "txt", "md"}
# Values that a docstring names, with the class that they are of; None: of several.
VALUES: dict[str, str | None] = {
    "condition": "Condition",
    "config": None,
    "model": "Model",
    "plan": "Plan",
    "process": "Process",
    "prompt": None,
    "schedule": "Schedule",
    "state": "SamplerState",
}
# Names of other projects, and keys of their files.
OTHERS = {"DiTPipeline", "F", "pydantic", "torch", "button.click", "data.image_size", "ema.shadow_params"}


def references(path: Path) -> Iterator[tuple[int, str]]:
    """Dotted names in backticks, which Python has in docstrings, texts and comments only, with their lines."""
    for line, text in enumerate(path.read_text("utf-8").splitlines(), 1):
        for match in _REFERENCE.finditer(text):
            yield line, match.group(1)


@cache
def module_files() -> dict[str, Path]:
    """Modules by their dotted names below the package."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix("."): path
        for path in modules()
    }


@cache
def names_of(path: Path) -> set[str]:
    """Names that a module binds at its top, by assignment, definition or import."""
    bound: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom | ast.Import):
            bound |= {alias.asname or alias.name for alias in node.names}
    for node in parsed(path).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
            # `__all__` also lists names that are imported when they are first used
            bound |= set(ast.literal_eval(node.value)) if names == {"__all__"} and node.value else names
    return bound


@cache
def classes() -> dict[str, list[ast.ClassDef]]:
    """Classes of the package by name."""
    table: dict[str, list[ast.ClassDef]] = {}
    for path in modules():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                table.setdefault(node.name, []).append(node)
    return table


@cache
def has_member(class_name: str, member: str) -> bool:
    """Return True if a class of this name, or a base of one, defines or assigns the member."""
    for node in classes().get(class_name, []):
        for part in ast.walk(node):
            if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) and part.name == member:
                return True
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store) and part.id == member:
                return True
            if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store) and part.attr == member:
                return True
        bases = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
        if any(isinstance(base, ast.Name) and has_member(base.id, member) for base in bases):
            return True
    return False


def resolves(reference: str) -> bool:
    """Return True if a dotted name is of the package, of a value that is named here, or of another project."""
    head, *rest = parts = reference.split(".")
    if head in OTHERS or reference in OTHERS or parts[-1] in _FILES:
        return True
    if parts[-1] == "py":
        return any(path.stem == parts[-2] for path in modules())
    if head in VALUES and ((owner := VALUES[head]) is None or has_member(owner, rest[0])):
        return True
    if head in classes():
        return has_member(head, rest[0])
    dotted = reference.removeprefix("unveil.").split(".")
    for split in range(len(dotted), -1, -1):
        written, inside = ".".join(dotted[:split]), dotted[split:]
        # a module may be named by its last part only
        for module, path in module_files().items():
            if module != written and not (written and module.endswith(f".{written}")):
                continue
            if not inside or (inside[0] in names_of(path) and (len(inside) == 1 or has_member(*inside[:2]))):
                return True
    return False


def test_references_in_docstrings_and_comments_resolve():
    lost = [f"{name(path)}:{line}: {ref}" for path in modules() for line, ref in references(path) if not resolves(ref)]
    assert not lost, "these names are of no module, class or value:\n" + "\n".join(lost)


@pytest.mark.parametrize(
    "reference",
    ["core.schedules.uniform", "schedules.uniform", "unveil.core.schedules", "Schedule.at", "condition.tokens"],
)
def test_a_name_that_exists_is_found(reference: str):
    assert resolves(reference)


@pytest.mark.parametrize(
    "reference", ["core.course", "core.schedules.nothing", "grids.uniform", "Schedule.nothing", "condition.nothing"]
)
def test_a_name_that_does_not_exist_is_not_found(reference: str):
    assert not resolves(reference)
