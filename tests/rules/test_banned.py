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
METHODS = {"extractall", "load_state_dict_from_url", "load_url"}  # the last two fetch weights and unpickle them
# Modules whose loads unpickle; nothing of them is imported or named.
UNPICKLING = ("torch.distributed.checkpoint", "torch.hub", "torch.utils.model_zoo", "torch.package")
KEYWORDS = {"shell": True, "trust_remote_code": True, "allow_pickle": True}
# What looks banned and is not, with the reason.
ALLOWED = {
    ("src/unveil/model/config/sections.py", "yaml.load"): "its loader is a SafeLoader that also refuses repeated keys",
}


def imported(tree: ast.AST) -> dict[str, str]:
    """The full name of each name that an import binds: {"t": "torch"} of `import torch as t`."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def unpickles(module: str) -> bool:
    return any(f"{module}.".startswith(f"{one}.") for one in UNPICKLING)


def faults(tree: ast.AST) -> list[str]:
    found, names = [], imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
            found += [module for module in modules if module.split(".")[0] in MODULES or unpickles(module)]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found += [module] if module.split(".")[0] in MODULES else []
            found += [full for alias in node.names if unpickles(full := f"{module}.{alias.name}")]
        elif isinstance(node, ast.Attribute) and unpickles(dotted(node, names)):
            found.append(dotted(node, names))
        elif isinstance(node, ast.Call):
            called = dotted(node.func, names)
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
        "torch.hub.load_state_dict_from_url(address)",
        "torch.hub.load(name, 'model')",
        "from torch.hub import load_state_dict_from_url",
        "from torchvision._utils import load_state_dict_from_url\nload_state_dict_from_url(address)",
        "from torch import hub",
        "import torch.distributed.checkpoint as dcp",
        "from torch.distributed import checkpoint",
        "from torch.distributed.checkpoint import load",
        "from torch.distributed.checkpoint.format_utils import dcp_to_torch_save",
        "torch.distributed.checkpoint.load(state, checkpoint_id=path)",
        "import torch\nimport torch.distributed as dist\ndist.checkpoint.load_state_dict(state, reader)",
        "from torch import load\nload(path)",
        "from torch import load as read\nread(path, weights_only=False)",
        "import torch as t\nt.load(path)",
        "from os import system\nsystem(text)",
        "from yaml import load\nload(text, Loader)",
    ],
)
def test_the_rule_sees(line):
    assert faults(ast.parse(line))


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path, weights_only=True)",
        "from torch import load\nload(path, weights_only=True)",
        "import torch.distributed as dist\ndist.init_process_group()",
        "from torch.utils.checkpoint import checkpoint\ncheckpoint(block, x)",
        "model.load_state_dict(state)",
    ],
)
def test_the_rule_sees_nothing_else(line):
    assert not faults(ast.parse(line))


def test_sources_are_plain_ascii():
    wrong = [name(path) for path in programs() if not path.read_text("utf-8").isascii()]
    assert not wrong, wrong


def test_no_index_of_packages_is_pinned():
    text = (ROOT / "constraints.txt").read_text() + (ROOT / "pyproject.toml").read_text()
    assert "index-url" not in text
    assert "://" not in (ROOT / "constraints.txt").read_text()
