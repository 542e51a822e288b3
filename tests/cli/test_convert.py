"""`unveil convert` of files of score SDE and EDM: EMA weights, their names, and files that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import unveil
from tests.cli.conftest import Cli
from unveil.checkpoints.formats import edm, score_sde
from unveil.io.files import write_tensors
from unveil.model import Model, build, model_folder
from unveil.model.config import Recipe, load_recipe

TINY = ["--set", "network.model_channels=16", "--set", "network.num_res_blocks=1"]


def tiny(name: str, *changes: str) -> tuple[Model, dict[str, Tensor]]:
    """The recipe's model, small, and the state dict of its network."""
    recipe = load_recipe(name, [*TINY[1::2], *changes])
    assert isinstance(recipe, Recipe)
    torch.manual_seed(0)
    model = build(recipe.model)
    network = model.denoiser.network
    return model, {key: torch.randn_like(value) for key, value in network.state_dict().items()}


def saved_by_score_sde(path: Path, drop: int = 0) -> dict[str, Tensor]:
    """A file as their training writes it, whose average is the weights plus 1; returns the weights."""
    model, ours = tiny("score-sde-cifar10")
    config: Any = model.denoiser.network.config
    theirs = score_sde.published_state_dict(ours, config, score_sde.sigmas(0.01, 50, 1000))
    in_order = {score_sde.SIGMAS: theirs[score_sde.SIGMAS]}  # the buffer, then module by module
    for place in range(len(score_sde.module_order(config))):
        prefix = f"module.all_modules.{place}."
        in_order |= {key: value for key, value in theirs.items() if key.startswith(prefix)}
    frozen = ("module.all_modules.0.W", score_sde.SIGMAS)
    average = [value + 1 for key, value in in_order.items() if key not in frozen][drop:]
    ema = {"decay": 0.999, "num_updates": 7, "shadow_params": average}
    torch.save({"optimizer": {"state": {}}, "model": in_order, "ema": ema, "step": 7}, path)
    return ours


@pytest.mark.slow
def test_ema_weights_of_score_sde_are_read_by_their_order(cli: Cli, tmp_path: Path):
    ours = saved_by_score_sde(tmp_path / "checkpoint_7.pth")
    settings = ["--format", "score-sde", "--recipe", "score-sde-cifar10", *TINY]
    done = cli("convert", "checkpoint_7.pth", "ours", *settings, "--json")
    assert done.code == 0, done.err
    assert done.json["part"] == "the file['ema']['shadow_params']"
    model = unveil.load("ours")
    assert model.sampling.sampler == "pc-reverse-diffusion"
    trained = dict(model.denoiser.network.named_parameters())
    for key, value in model.denoiser.network.state_dict().items():
        torch.testing.assert_close(value, ours[key] + (key in trained))


@pytest.mark.slow
@pytest.mark.release
def test_ema_weights_that_do_not_fit_are_refused(cli: Cli, tmp_path: Path):
    saved_by_score_sde(tmp_path / "checkpoint_7.pth", drop=1)
    done = cli("convert", "checkpoint_7.pth", "ours", "--format", "score-sde", "--recipe", "score-sde-cifar10", *TINY)
    assert done.code == 1
    assert "the average holds" in done.err
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("drop", [0.0, 0.1])
def test_tensors_of_edm_are_converted_with_their_labels(cli: Cli, tmp_path: Path, drop: float):
    model, ours = tiny("edm-cifar10", "network.augment_dim=9")
    network: Any = model.denoiser.network
    table = {"table.weight": torch.randn(11, network.vector_dim)}
    write_tensors(tmp_path / "theirs.safetensors", edm.published_state_dict(ours, network.config, 32, table))
    changes = [*TINY, "--set", "network.augment_dim=9", "--set", f"condition.0.drop_prob={drop}"]
    done = cli("convert", "theirs.safetensors", "ours", "--format", "edm", "--recipe", "edm-cifar10", *changes)
    assert done.code == 0, done.err
    back = unveil.load("ours")
    assert all(torch.equal(ours[key], value) for key, value in back.denoiser.network.state_dict().items())
    rows = back.conditioners["label"].state_dict()["table.weight"]
    torch.testing.assert_close(rows, table["table.weight"][: 10 + (drop > 0)])


def test_a_layout_of_another_network_is_named(cli: Cli, tmp_path: Path):
    write_tensors(tmp_path / "theirs.safetensors", {"weight": torch.zeros(2)})
    done = cli("convert", "theirs.safetensors", "ours", "--recipe", "score-sde-cifar10", *TINY)
    assert done.code == 2
    assert "a SongUNet, but openai is a layout of a UNet" in done.err


def test_int8_is_written_only_to_native_folders(cli: Cli, tmp_path: Path):
    small = tmp_path / "small"
    assert cli("convert", "ddpm-digits", small, "--format", "ours", "--dtype", "int8").code == 0
    sizes = [
        (place / "denoiser.safetensors").stat().st_size
        for place in (small, model_folder.resolve_checkpoint("ddpm-digits"))
    ]
    assert sizes[0] < 0.6 * sizes[1]
    how: dict[str, Any] = {"count": 2, "seed": 0, "cond": {"label": ["3", "8"]}, "sampling": {"steps": 4}}
    one, two = (unveil.load(place).generate(**how) for place in ("ddpm-digits", small))
    assert 0 < (one - two).abs().mean() < 0.02
    outcome = cli("convert", "ddpm-digits", "a.safetensors", "--format", "ddpm", "--dtype", "int8")
    assert outcome.code == 2
    assert "dtype int8: the layout ddpm cannot be written so; choose float32" in " ".join(outcome.err.split())
    assert not (tmp_path / "a.safetensors").exists()
