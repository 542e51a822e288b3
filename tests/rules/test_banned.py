"""Calls that can run what a file says, and ways around the types, are nowhere in the package."""

from __future__ import annotations

import ast

import pytest

from tests.rules.source import ROOT, name, parsed, programs

MODULES = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
}
METHODS = {"extractall"}
KEYWORDS = {"shell": True, "trust_remote_code": True, "allow_pickle": True}
# What looks banned and is not, with the reason.
ALLOWED = {
    ("src/unveil/model/config/sections.py", "yaml.load"): "its loader is a SafeLoader that also refuses repeated keys",
}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            called = dotted(node.func)
            if called in CALLS or called.split(".")[-1] in METHODS:
                found.append(called)
            given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            if called == "torch.load" and given.get("weights_only") is not True:
                found.append("torch.load without weights_only=True")
            found += [f"{key}=True" for key, value in KEYWORDS.items() if key in given and given[key] == value]
    return found


def test_nothing_banned():
    found = [(name(path), fault) for path in programs() for fault in faults(parsed(path))]
    wrong = [pair for pair in found if pair not in ALLOWED]
    assert not wrong, wrong
    assert set(ALLOWED) <= set(found), "an exception that is not needed any more"


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
        "archive.extractall()",
        "subprocess.run(text, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_the_rule_sees(line):
    assert faults(ast.parse(line))


def test_sources_are_plain_ascii():
    wrong = [name(path) for path in programs() if not path.read_text("utf-8").isascii()]
    assert not wrong, wrong


def test_no_index_of_packages_is_pinned():
    text = (ROOT / "constraints.txt").read_text() + (ROOT / "pyproject.toml").read_text()
    assert "index-url" not in text
    assert "://" not in (ROOT / "constraints.txt").read_text()
