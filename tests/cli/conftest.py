"""A saved model whose weights matter, and the command line as a function."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from unveil.cli.commands import run
from unveil.model import build
from unveil.model.config import Recipe, dump, load_recipe

CHANGES = ["network.model_channels=16", "network.groups=4", "process.timesteps=50", "sample.steps=4"]


class Outcome(NamedTuple):
    """What a command left behind: its exit code and what it wrote to each stream."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs a command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digits model with random weights, saved; `recipe.yaml` beside it says which data it is for."""
    recipe = load_recipe("ddpm-digits", CHANGES)
    assert isinstance(recipe, Recipe)
    torch.manual_seed(0)
    model = build(recipe.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.05)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model.save(folder)
    (folder / "recipe.yaml").write_text(dump(recipe))
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
