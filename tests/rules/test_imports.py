"""Imports go one way: each layer knows only those before it, and none of its rank."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

from tests.rules.source import PACKAGE, modules, name, parsed

LAYERS = [
    {"errors"},
    {"types"},
    {"io"},
    {"core"},
    {"nn"},
    {"autoencoders", "conditioning", "data"},
    {"playground"},
    {"model"},
    {"checkpoints"},
    {"evaluate", "prompting"},
    {"train", "generation"},
    {"tasks"},
    {"analysis"},
    {"reproduce"},
    {"cli"},
    {"server"},
    {"studio"},
]
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
# Imports upwards inside a function, each with its reason.
UPWARDS: dict[tuple[str, str], str] = {}


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


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, known: Set[str]) -> set[str]:
    """Our modules that a module imports when it runs, imports inside functions included."""
    typed = {
        inner
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    modules_found: set[str] = set()
    for node in ast.walk(parsed(path)):
        if node in typed:
            continue
        if isinstance(node, ast.Import):
            modules_found |= {alias.name for alias in node.names} & known
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                modules_found |= {full if full in known else str(node.module)} & known
    return modules_found - {module_of(path)}


def circles(imports: Mapping[str, Set[str]]) -> list[list[str]]:
    """Groups of modules that import each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in imports[module]:
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for module in imports:
        if module not in index:
            visit(module)
    return groups


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


def test_no_modules_import_each_other():
    known = {module_of(path) for path in modules()}
    assert circles({module_of(path): imported_modules(path, known) for path in modules()}) == []


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_rule_would_see_an_arrow_that_points_back():
    assert faults("core", iter([("nn", False)]))
    assert faults("evaluate", iter([("tasks", False)]))
    assert faults("model", iter([("checkpoints", True)]))
    assert faults("cli", iter([("server", True)]))
