"""The project's files, parsed once."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "unveil"


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def programs() -> list[Path]:
    """The package and the benchmarks: everything that is not a test."""
    return [*modules(), *sorted((ROOT / "benchmarks").rglob("*.py"))]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))
