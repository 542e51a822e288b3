"""Models by name on the command line: `unveil get`, and the offer of models that are not here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.checkpoints.hub.conftest import TOKEN
from tests.checkpoints.hub.server import Hub, Repo
from unveil.cli.commands import run
from unveil.errors import WeightsError
from unveil.generation.model_loading import open_model
from unveil.io.console import Console
from unveil.model import model_folder
from unveil.model.config import Recipe, load_recipe
from unveil.tasks.train_run import initial_model

NAME = "someone/digits"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_get_says_what_it_takes_and_what_it_can_do(hub: Hub, published: Repo, capsys):
    assert run(["get", NAME, "--dry-run", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["revision"], facts["license"]) == (published.commit, "apache-2.0")
    assert facts["bytes"] > facts["missing_bytes"] > facts["weights_bytes"] > 100_000  # without those of settings
    assert not (model_folder.models_dir() / "checkpoints").exists()
    assert run(["get", NAME]) == 0
    printed = capsys.readouterr().out
    assert "license      apache-2.0" in printed
    assert "can do       images of 8 x 8, by sample, variations" in printed
    assert printed.endswith(f"unveil sample {NAME}\n")
    assert run(["get", NAME, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["was_there"] is True
    assert run(["sample", NAME, "--label", "3", "-n", "1", "--steps", "2", "-o", "three.png", "--quiet"]) == 0
    assert Path("three.png").is_file()


def test_errors_have_exit_codes_and_no_token(hub: Hub, published: Repo, capsys):
    published.card = {"license": "own"}
    assert run(["get", NAME, "--debug"]) == 2
    published.gated = True
    assert run(["get", NAME, "--accept-license", "--debug"]) == 1
    assert run(["get", "nobody/nothing", "--debug", "--json"]) == 1
    assert run(["get", "nothing"]) == 2
    written = "".join(capsys.readouterr())
    assert "gated (HTTP 403)" in written
    assert TOKEN not in written


def test_a_model_that_is_not_here_is_offered(hub: Hub, published: Repo, monkeypatch, capsys):
    with pytest.raises(WeightsError, match=f"{NAME}: is not on this machine; `unveil get {NAME}` downloads it"):
        open_model(NAME, CPU)
    assert run(["sample", "sd-turbo", "a cat"]) == 1
    assert "`unveil get sd-turbo` downloads it" in capsys.readouterr().err
    requested: list[str] = []
    monkeypatch.setattr(Console, "ask", lambda self, question: bool(requested.append(question)))  # no
    with pytest.raises(WeightsError, match="is not on this machine"):
        open_model(NAME, CPU)
    assert len(requested) == 1
    assert hub.seen == []  # nothing is looked up before the answer
    monkeypatch.setattr(Console, "ask", lambda self, question: not requested.append(question))  # yes
    model, source = open_model(NAME, CPU)
    assert (model.shape, source.name) == ((1, 8, 8), "digits")
    assert requested[-1].startswith("Download 19")
    assert open_model(NAME, CPU)[1] == source
    assert len(requested) == 3  # it is here now


def test_the_base_of_a_recipe_is_offered_too(hub: Hub, published: Repo, monkeypatch):
    changes = ["network.model_channels=8", "network.groups=4", "process.timesteps=50", f"base={NAME}"]
    recipe = load_recipe("ddpm-digits", changes)
    assert isinstance(recipe, Recipe)
    with pytest.raises(WeightsError, match=f"`unveil get {NAME}` downloads it"):
        initial_model(recipe, CPU)
    monkeypatch.setattr(Console, "ask", lambda self, question: True)
    assert initial_model(recipe, CPU).shape == (1, 8, 8)
    assert (model_folder.models_dir() / "checkpoints" / NAME / "model.yaml").is_file()


def test_a_path_is_not_offered(hub: Hub):
    Path("runs").mkdir()
    with pytest.raises(WeightsError, match="runs/first: no such folder or bundled model"):
        open_model("runs/first", CPU)


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_a_file_keeps_nothing(hub: Hub, published: Repo, tmp_path: Path):
    """A separate process, with the address and the token of its environment."""
    published.stalls = "denoiser.safetensors"
    own = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_DEBUG": "1", "HF_TOKEN": TOKEN}
    command = [sys.executable, "-m", "unveil", "get", NAME]
    with subprocess.Popen(command, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        assert hub.stalled.wait(120)
        child.send_signal(signal.SIGINT)
        assert child.stdout is not None
        output = child.stdout.read().decode()
        hub.goes_on.set()
    assert child.returncode == 130, output
    assert not [path for path in model_folder.models_dir().rglob("*") if path.is_file()]
    assert not [*tmp_path.rglob("*.incomplete")]
    assert TOKEN not in output


def test_without_the_client_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert run(["get", NAME]) == 2
    assert "a model of the hub needs huggingface_hub, which is not installed: pip install 'unveil[hf]'" in (
        capsys.readouterr().err
    )
