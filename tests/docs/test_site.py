"""Formulas stand beside lines that exist, and the site is built without a warning."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT, Block, read

PACKAGE = ROOT / "src" / "unveil"
SHOWN = [block for block in read(DOCS / "mathematics.md").blocks if block.language.startswith("{source}")]


def options(block: Block) -> dict[str, str]:
    """The options of a directive."""
    lines = [line for line in block.text.splitlines() if line.startswith(":")]
    pairs = [line[1:].partition(":") for line in lines]
    return {key: value.strip().strip("\"'") for key, _, value in pairs}


def lines_of(path: Path, name: str) -> list[str]:
    """The lines of `function` or `Class.method`."""
    source = path.read_text("utf-8")
    body: list[ast.stmt] = ast.parse(source).body
    node: ast.stmt | None = None
    for part in name.split("."):
        found = [n for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == part]
        assert found, f"{path.name} has no {name}"
        node, body = found[0], found[0].body
    assert node is not None
    return source.splitlines()[node.lineno - 1 : node.end_lineno]


def missing(block: Block) -> list[str]:
    """What a block looks for and does not find."""
    _, place, *name = block.language.split()
    lines = lines_of(PACKAGE / place, name[0]) if name else (PACKAGE / place).read_text("utf-8").splitlines()
    start, end = options(block).get("start-at"), options(block).get("end-at")
    begins = [i for i, line in enumerate(lines) if start is None or start in line]
    if not begins:
        return [f"{block.language}: {start}"]
    return [] if end is None or any(end in line for line in lines[begins[0] :]) else [f"{block.language}: {end}"]


def test_every_formula_has_its_lines():
    assert len(SHOWN) > 50
    assert [fault for block in SHOWN for fault in missing(block)] == []


def test_a_line_that_is_gone_is_seen():
    assert missing(Block("{source} core/prediction.py solve", ":start-at: no such line\n", 1, ()))
    with pytest.raises(AssertionError, match="has no"):
        missing(Block("{source} core/prediction.py nothing", "", 1, ()))


def test_the_core_is_shown_whole():
    """What a recipe can choose has its formula on the page."""
    from unveil.core.loss_weights import WEIGHTS
    from unveil.core.prediction import FIXED, PREDICTIONS

    shown = {block.language.split()[-1] for block in SHOWN}
    wanted = {*PREDICTIONS, *(name.replace("-", "_") for name in (*FIXED, *WEIGHTS))}
    assert wanted <= shown


@pytest.mark.slow
@pytest.mark.parametrize("builder", ["dummy", pytest.param("html", marks=pytest.mark.release)])
def test_the_site_is_built_without_a_warning(tmp_path: Path, builder: str):
    """Every page is read and every reference followed; what is written of that is looked at before a release."""
    pytest.importorskip("sphinx", reason="needs the extra docs")
    pytest.importorskip("myst_parser", reason="needs the extra docs")
    import subprocess
    import sys

    settings = ["-q", "-W", "--keep-going", "-b", builder]
    if builder == "dummy":  # half of the time, and what an author of a page or a docstring can break is not in it
        settings += ["-D", "toc_object_entries=0", "-D", "smartquotes=0", "-D", "autodoc_typehints=none"]
    command = [sys.executable, "-m", "sphinx", *settings, str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for page in ("index", "mathematics", "api/core", "zh/quickstart") if builder == "html" else ():
        assert (tmp_path / f"{page}.html").is_file()
