"""Files, functions and parameter lists stay readable; what does not says why."""

from __future__ import annotations

import ast

from tests.rules.source import name, parsed, programs

LINES, BODY, PARAMETERS = 600, 60, 8
# Over a limit, with the reason. An unused entry is an error, too.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
MANY_PARAMETERS: dict[str, str] = {}


def functions() -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    return [
        (f"{name(path)} {node.name}", node)
        for path in programs()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    own = [a for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs] if a.arg not in ("self", "cls")]
    return len(own)


def test_files():
    over = {name(path): len(path.read_text("utf-8").splitlines()) for path in programs()}
    over = {path: lines for path, lines in over.items() if lines > LINES}
    assert over.keys() == LONG_FILES.keys(), f"over {LINES} lines: {over}; allowed: {LONG_FILES}"


def test_functions():
    over = {where: (node.end_lineno or 0) - node.lineno + 1 for where, node in functions()}
    over = {where: lines for where, lines in over.items() if lines > BODY}
    assert over.keys() == LONG_FUNCTIONS.keys(), f"over {BODY} lines: {over}; allowed: {LONG_FUNCTIONS}"


def test_parameters():
    over = {where: parameters(node) for where, node in functions() if parameters(node) > PARAMETERS}
    assert over.keys() == MANY_PARAMETERS.keys(), f"over {PARAMETERS} parameters: {over}"
