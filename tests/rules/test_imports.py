"""Imports go one way: each layer knows only those before it, and none of its own rank."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.rules.source import PACKAGE, modules, name, parsed

LAYERS = [
    {"types"},
    {"io"},
    {"core"},
    {"nn"},
    {"autoencoders", "conditioning", "data"},
    {"playground"},
    {"model"},
    {"checkpoints"},
    {"evaluate", "prompting"},
    {"train"},
    {"tasks"},
    {"analysis"},
    {"reproduce"},
    {"cli"},
    {"server"},
    {"studio"},
]
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
# Imports upwards inside a function, each with its reason.
UPWARDS = {
    ("cli", "server"): "a command of the same command line serves what all others do",
    ("cli", "studio"): "as it serves, with the page",
}


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """The layers a module imports, and whether it does so inside a function."""
    inside = {
        inner
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    for node in ast.walk(parsed(path)):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno}: write the whole name of the module"
            found = [node.module or ""]
            if node.module == "unveil":
                found = [f"unveil.{alias.name}" for alias in node.names]
        for full in found:
            if full.startswith("unveil.") and not full.startswith("unveil.__"):
                yield full.split(".")[1], node in inside


def layer_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def faults(own: str, found: Iterator[tuple[str, bool]]) -> list[str]:
    wrong = []
    for other, lazily in found:
        if other == own or (lazily and (own, other) in UPWARDS):
            continue
        if RANK[other] >= RANK[own]:
            wrong.append(f"{own} imports {other}")
    return wrong


def test_every_layer_has_a_rank():
    found = {layer_of(path) for path in modules()} - {"__init__", "__main__"}
    assert found <= RANK.keys(), f"give {found - RANK.keys()} a rank in LAYERS"


def test_imports_go_one_way():
    wrong = [
        f"{name(path)}: {fault}"
        for path in modules()
        if layer_of(path) not in ("__init__", "__main__")
        for fault in faults(layer_of(path), imported(path))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_rule_would_see_an_arrow_that_points_back():
    assert faults("core", iter([("nn", False)]))
    assert faults("evaluate", iter([("tasks", False)]))
    assert faults("model", iter([("checkpoints", True)]))
    assert not faults("cli", iter([("server", True)]))
