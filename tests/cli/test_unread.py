"""Weights that nothing reads: each command says so, with the exit code of usage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.conftest import Cli

WORDS = {
    "folder": "Dream3Pipeline is not a pipeline that can be read; those are",
    "sat.safetensors": "CogVideoX's network in SAT's layout: give the folder",
    "other.safetensors": "no known layout, ",
}


@pytest.fixture
def unread(tmp_path: Path) -> Path:
    """A folder of a pipeline that is not known, a file of a known model that is not read, and an unknown file."""
    (tmp_path / "folder" / "transformer").mkdir(parents=True)
    index = {"_class_name": "Dream3Pipeline", "transformer": ["diffusers", "Dream3Transformer"]}
    (tmp_path / "folder" / "model_index.json").write_text(json.dumps(index))
    weights = {"one.weight": torch.zeros(2)}
    save_file(weights, tmp_path / "folder" / "transformer" / "diffusion_pytorch_model.safetensors")
    sat = "model.diffusion_model.transformer.layers.0.attention.query_key_value.weight"
    save_file({sat: torch.zeros(2)}, tmp_path / "sat.safetensors")
    save_file(weights, tmp_path / "other.safetensors")
    return tmp_path


@pytest.mark.parametrize("name", WORDS)
def test_inspect_convert_and_sample_say_what_is_not_read(cli: Cli, unread: Path, name: str):
    done = cli("inspect", unread / name)
    assert done.code == 2
    assert f"not read     {WORDS[name]}" in done.out
    assert "parameters   2\n" in done.out
    told = cli("inspect", unread / name, "--json")
    assert told.code == 2
    assert WORDS[name] in told.json["problem"]  # one JSON document
    for command in (["convert", unread / name, "out"], ["sample", unread / name, "--out", "a.png"]):
        done = cli(*command)
        assert done.code == 2, done.err
        assert WORDS[name] in done.err
    assert not list(Path().glob("out*"))


def test_the_list_of_models_says_what_is_not_read(cli: Cli, unread: Path, monkeypatch: pytest.MonkeyPatch):
    (unread / "models" / "checkpoints").mkdir(parents=True)
    (unread / "folder").rename(unread / "models" / "checkpoints" / "dream")
    monkeypatch.setenv("UNVEIL_MODELS", str(unread / "models"))
    assert "dream: a folder of diffusers, Dream3Pipeline, which is not read" in cli("inspect", "models").out


def test_what_is_used_beside_a_model_is_described_without_an_error(cli: Cli, tmp_path: Path):
    save_file({"unet.a.lora_A.weight": torch.zeros(2, 3)}, tmp_path / "lora.safetensors")
    done = cli("inspect", tmp_path / "lora.safetensors")
    assert done.code == 0
    assert "not read" in done.out
