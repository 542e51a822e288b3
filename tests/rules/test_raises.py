"""A docstring names errors that there are."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rules.source import modules, name, parsed

_ENTRY = re.compile(r"((?:[A-Za-z_][\w.]*)(?:, [A-Za-z_][\w.]*)*):(?: |$)")


def classes() -> set[str]:
    """The names of all classes of unveil, and of what Python has."""
    found = {node.name for path in modules() for node in ast.walk(parsed(path)) if isinstance(node, ast.ClassDef)}
    return found | set(dir(builtins))


def raised(docstring: str) -> Iterator[str]:
    """The errors of the part `Raises:` of a docstring."""
    lines = docstring.splitlines()
    begun = next((number for number, line in enumerate(lines) if line.strip() == "Raises:"), None)
    if begun is None:
        return
    indent = len(lines[begun]) - len(lines[begun].lstrip())
    for line in lines[begun + 1 :]:
        depth = len(line) - len(line.lstrip())
        if line.strip() and depth <= indent:
            return
        if depth == indent + 4 and (entry := _ENTRY.match(line.strip())):
            yield from entry[1].split(", ")


def faults(path: Path, known: set[str]) -> list[str]:
    """Errors that a module names and that there are not."""
    documented = [
        node
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module)
    ]
    return [
        f"{name(path)}:{getattr(node, 'lineno', 1)}: {error}"
        for node in documented
        for error in raised(ast.get_docstring(node) or "")
        if "." not in error and error not in known  # another library's is written with its module
    ]


def test_a_docstring_names_errors_that_there_are():
    known = classes()
    assert [fault for path in modules() for fault in faults(path, known)] == []


@pytest.mark.parametrize(
    ("text", "names"), [("X.\n\nRaises:\n    A, B: why.\n    C: why", ["A", "B", "C"]), ("X.", [])]
)
def test_the_rule_reads_the_part(text: str, names: list[str]):
    assert [*raised(text)] == names
