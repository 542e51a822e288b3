"""What is public is what `__all__` says, and importing it is cheap."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import unveil.errors
import unveil.types
from tests.rules.source import PACKAGE, modules, name, parsed

ARGUMENTS = {"data": {"Section"}}  # protocols that only say what may be passed
# Public classes that have the name of another one, with the reason
SAME_NAME = {
    "CaptionRequest": "request of the command and of its job, until captioning is a task",
    "ControlNet": "the network, and the field of tasks that attaches one",
    "Estimate": "estimate of x0 and eps, and of the memory and time of a run",
    "EvaluateRequest": "request of the command and of its job, until evaluation is a task",
    "Page": "page of a report, and page of the studio",
    "TrainRequest": "request of the command and of its job, until training is a task",
}
PACKAGES = [path for path in modules() if path.name == "__init__.py"]


def offered(tree: ast.Module) -> set[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == ["__all__"]:
            return set(ast.literal_eval(node.value))
    return None


def bound(tree: ast.Module) -> set[str]:
    """Public names that a package defines, or takes from our own modules."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unveil."):
            found |= {alias.asname or alias.name for alias in node.names}
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: str(path.parent.relative_to(PACKAGE.parent)))
def test_public_names_are_those_of_all(path: Path):
    names = offered(parsed(path))
    if names is None:
        assert not bound(parsed(path)), "a package that offers names lists them in __all__"
        return
    module = importlib.import_module(".".join(path.parent.relative_to(PACKAGE.parent).parts))
    missing = [name for name in sorted(names) if not hasattr(module, name)]
    assert not missing
    shared = set(vars(unveil.types)) | set(vars(unveil.errors))
    rest = bound(parsed(path)) - names - shared - ARGUMENTS.get(path.parent.name, set())
    assert not rest, "what is neither private nor of unveil.types or unveil.errors is offered"


def classes_by_name() -> dict[str, list[str]]:
    """Modules of every public class, by the name of the class."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in modules():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name(path))
    return places


def test_no_public_class_has_the_name_of_another():
    repeated = {key: places for key, places in classes_by_name().items() if len(places) > 1 and key not in SAME_NAME}
    assert not repeated


def test_an_unknown_name_is_reported():
    with pytest.raises(AttributeError, match="'unveil' has no attribute 'modell'; it offers Error, Model"):
        _ = unveil.modell  # pyright: ignore


HELP = """
import sys
import unveil
assert "torch" not in sys.modules, "import unveil"
from unveil.cli.commands import run
for command in ([], ["train"], ["sample"], ["evaluate"], ["convert"], ["reproduce"], ["demo"],
                ["img2img"], ["inpaint"], ["outpaint"], ["upscale"], ["variations"], ["interpolate"], ["invert"],
                ["data"], ["data", "check"], ["data", "show"], ["data", "cache-latents"],
                ["preprocess"], ["preprocess", "canny"], ["preprocess", "boxes"], ["inspect"], ["inspect", "schedule"],
                ["inspect", "model"], ["recipes"], ["recipes", "list"], ["recipes", "show"], ["recipes", "cite"],
                ["analyze"], ["analyze", "samplers"], ["analyze", "guidance"], ["analyze", "inverse"],
                ["analyze", "vit"], ["analyze", "video-tasks"], ["analyze", "prompts"], ["analyze", "physics"],
                ["analyze", "detector"]):
    assert run([*command, "--help"]) == 0, command
heavy = {"torch", "numpy", "lightning", "rich", "PIL"} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_imports_nothing_heavy_and_shows_an_example():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = done.stdout.split("Usage: ")[1:]
    for page in pages:
        if "COMMAND" not in page.splitlines()[0] or page.startswith("unveil [OPTIONS] COMMAND"):
            assert "Example:" in page, page


def test_loading_a_model_leaves_torchs_compiler_alone():
    code = "import sys, unveil; unveil.load('ddpm-digits'); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
