"""A new checkpoint format is one module: nothing else of the package knows it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import unveil
from tests.checkpoints import acme_format
from tests.cli.conftest import Cli
from unveil.checkpoints import registry
from unveil.io.files import read_header
from unveil.model import Model, build
from unveil.model.config import ModelConfig, validate

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "shape": (1, 8, 8),
    "network": {
        "kind": "unet",
        "model_channels": 32,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "resample": "conv-asymmetric",
        "embedding": "sin-cos",
        "norm_eps": 1e-6,
    },
    "process": {"kind": "discrete-vp", "beta_schedule": tuple(torch.linspace(1e-3, 0.1, 50).tolist())},
}


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    model = build(validate(ModelConfig, SETTINGS, "the test"))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the format's module and the record of its installation, as a package installer writes it."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "acme_format.py").write_text(Path(acme_format.__file__).read_text("utf-8"), "utf-8")
    record = folder / "acme_format-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-format\nVersion: 1.0\n", "utf-8")
    (record / "entry_points.txt").write_text("[unveil.formats]\nacme = acme_format:FORMAT\n", "utf-8")
    return folder


@pytest.fixture
def installed(package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(package))
    registry.formats.cache_clear()
    yield
    registry.formats.cache_clear()


def same_weights(one: Model, other: Model) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.usefixtures("installed")
def test_a_new_format_is_written_inspected_loaded_and_converted(cli: Cli, model: Model):
    model.save("native")
    done = cli("convert", "native", "theirs.safetensors", "--format", "acme")
    assert done.code == 0, done.err
    assert "theirs.safetensors: a file of Acme" in cli("inspect", "theirs.safetensors").out
    opened = unveil.load("theirs.safetensors")
    assert same_weights(opened, model)
    images = unveil.load("native").generate(seed=0, steps=3)
    # weights of both lie at other addresses, which decides the order of sums
    torch.testing.assert_close(opened.generate(seed=0, steps=3), images, rtol=0, atol=1e-4)
    done = cli("convert", "theirs.safetensors", "back", "--json")
    assert done.code == 0, done.err
    assert (done.json["matched"], done.json["unmatched"]) == (len(read_header(Path("theirs.safetensors")).tensors), 0)
    assert same_weights(unveil.load("back"), model)
    assert torch.equal(unveil.load("back").generate(seed=0, steps=3), images)


@pytest.mark.usefixtures("installed")
def test_what_the_new_format_cannot_hold_is_named(cli: Cli):
    done = cli("convert", "ddpm-digits", "theirs.safetensors", "--format", "acme")
    assert done.code == 2
    assert "the format acme cannot hold an autoencoder, or a condition" in " ".join(done.err.split())
    assert not Path("theirs.safetensors").exists()
    assert cli("convert", "ddpm-digits", "theirs", "--format", "acme").code == 2  # its files have an ending


def test_without_its_package_the_format_is_unknown(cli: Cli, model: Model):
    acme_format.save(model, Path("theirs.safetensors"))
    assert "Acme" not in cli("inspect", "theirs.safetensors").out
    done = cli("convert", "theirs.safetensors", "back", "--format", "acme")
    assert done.code == 2
    assert "format 'acme': must be one of ddpm, diffusers" in done.err


def test_another_process_finds_the_installed_format(package: Path, model: Model, tmp_path: Path):
    acme_format.save(model, tmp_path / "theirs.safetensors")
    environment = os.environ | {"PYTHONPATH": f"{package}:{ROOT / 'src'}"}
    command = [sys.executable, "-m", "unveil", "inspect", str(tmp_path / "theirs.safetensors")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "a file of Acme" in done.stdout


def test_the_guide_shows_the_module_of_the_test():
    guide = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert Path(acme_format.__file__).read_text("utf-8") in guide


def test_names_are_unique_and_what_is_lost_is_stated():
    entries = registry.formats()
    assert len({(entry.kind, entry.name) for entry in entries}) == len(entries)
    assert [entry.name for entry in entries if entry.save is not None and not entry.cannot_hold] == []
    assert [entry.name for entry in entries if entry.overrides and entry.load is None] == []
