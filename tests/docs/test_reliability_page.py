"""The page of promises names tests that exist, with the marks that it states."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import pytest

from tests.docs.pages import DOCS, ROOT

PAGE = DOCS / "reliability.md"
ROW = re.compile(r"^### ([A-Z])(\d+)\. .+$", re.MULTILINE)
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
LEFT_TO_RELEASES = {"release", "timed"}  # markers of what only `make test-all` runs
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Named(NamedTuple):
    """A test of a row, and what the page states about where it runs: part (make test), all (make test-all), both."""

    file: str
    function: str
    runs: str


def rows(text: str) -> dict[str, str]:
    """Return the text of each row by its label.

    Raises:
        AssertionError: A label occurs twice.
    """
    parts = ROW.split(re.sub(r"^## .*$", "", text, flags=re.MULTILINE))
    labels = [letter + number for letter, number in zip(parts[1::3], parts[2::3], strict=True)]
    assert len(labels) == len(set(labels)), f"a label occurs twice: {labels}"
    return dict(zip(labels, parts[3::3], strict=True))


def named(text: str) -> Iterator[Named]:
    """Yield the tests of a text, which each begin a line of a list."""
    for line in text.splitlines():
        for number, (file, function) in enumerate(NAMED.findall(line)):
            assert line.startswith(f"- `{file}::"), f"a test begins a line of a list: {line}"
            assert number == 0, f"one test in each line: {line}"
            about = line.partition("`: ")[2]
            runs = "all" if about.startswith("`make test-all`") else "both" if "`make test-all`" in about else "part"
            yield Named(file, function, runs)


@cache
def parsed(file: str) -> ast.Module | None:
    path = ROOT / file
    return ast.parse(path.read_text("utf-8")) if path.is_file() else None


def marks(node: ast.AST, tree: ast.Module, seen: frozenset[str] = frozenset()) -> set[str]:
    """Return the names of the markers of an expression, also of constants of the module that it names."""
    found = set[str]()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Attribute) and inner.value.attr == "mark":
            found.add(inner.attr)
        elif isinstance(inner, ast.Name) and inner.id not in seen:
            for value in assigned(inner.id, tree):
                found |= marks(value, tree, seen | {inner.id})
    return found


def assigned(name: str, tree: ast.Module) -> list[ast.expr]:
    """Return the values of a name at the top of a module."""
    plain = [statement for statement in tree.body if isinstance(statement, ast.Assign)]
    return [each.value for each in plain for target in each.targets if getattr(target, "id", None) == name]


def runs(function: Function, tree: ast.Module) -> str:
    """Return where a test runs: part (make test), all (make test-all alone) or both (more of it in make test-all)."""
    whole, of_parameters = set[str](), set[str]()
    for decorator in function.decorator_list:
        into = of_parameters if isinstance(decorator, ast.Call) and "parametrize" in marks(decorator, tree) else whole
        into |= marks(decorator, tree)
    for value in assigned("pytestmark", tree):
        whole |= marks(value, tree)
    return "all" if whole & LEFT_TO_RELEASES else "both" if of_parameters & LEFT_TO_RELEASES else "part"


def fault(test: Named) -> str | None:
    """Return what is wrong with a named test, or None."""
    tree = parsed(test.file)
    if tree is None:
        return f"{test.file}: there is no such file"
    found = [each for each in tree.body if isinstance(each, Function) and each.name == test.function]
    if not found:
        return f"{test.file}: has no {test.function}"
    actual = runs(found[0], tree)
    if actual != test.runs:
        return f"{test.file}::{test.function}: the page states {test.runs!r}, its marks {actual!r}"
    return None


def test_every_test_of_the_page_exists_and_runs_where_it_states():
    tests = list(named(PAGE.read_text("utf-8")))
    assert len(tests) > 150
    assert [wrong for test in tests if (wrong := fault(test))] == []


def test_every_row_has_a_fault_a_promise_and_what_is_tested_or_not():
    found = rows(PAGE.read_text("utf-8"))
    for letter in "RSQ":
        numbers = [int(label[1:]) for label in found if label[0] == letter]
        assert numbers == list(range(1, len(numbers) + 1)), letter
    assert len(found) == 36
    for label, text in found.items():
        for start in ("Fault: ", "Promise: "):
            assert sum(line.startswith(start) for line in text.splitlines()) == 1, (label, start)
        tests = [test[:2] for test in named(text)]
        assert len(tests) == len(set(tests)), f"{label} names a test twice"
        assert tests or "\nNot tested: " in text, label


def test_wrong_names_and_marks_are_seen():
    file, plain = "tests/server/http/test_served.py", "tests/server/http/test_soak.py"
    both, whole = "test_a_killed_server_resumes_its_jobs", "test_neither_server_nor_worker_grows"
    cases = "tests/model/test_checkpoint_store.py"
    constant = "test_killed_at_any_file_operation_the_old_or_the_new_content_is_there"
    good = [Named(file, both, "both"), Named(plain, whole, "all"), Named(cases, constant, "both")]
    assert [fault(test) for test in good] == [None] * 3
    assert fault(Named(file, "test_nothing", "part")) == f"{file}: has no test_nothing"
    assert fault(Named("tests/test_none.py", both, "part")) == "tests/test_none.py: there is no such file"
    for test in good:
        assert "the page states 'part'" in str(fault(test._replace(runs="part")))


def test_a_label_that_occurs_twice_is_seen():
    with pytest.raises(AssertionError, match="a label occurs twice"):
        rows("### R1. One\n\n### R2. Two\n\n### R1. Three\n")
