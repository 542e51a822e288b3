"""Training a LoRA: the base stays, the checkpoints hold the additions alone, and a run goes on to the bit."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import unveil
from unveil.core.rng import SampleRNG
from unveil.errors import RecipeError, WeightsError
from unveil.io.files import read_header, read_tensors
from unveil.model import Model, build, checkpoint_store, model_folder
from unveil.model.config import Recipe, load_recipe
from unveil.model.lora_state import NAME
from unveil.nn import lora
from unveil.train import fit
from unveil.train.finetuning import setup_lora
from unveil.types import BaseModel

CHANGES = ("shape=[1,8,8]", "network.depth=1", "network.hidden_size=32", "network.heads=2", "lora.rank=2",
           "train.batch_size=4",
           "train.steps=6", "train.warmup=0", "train.save_every=3", "train.sample_every=0", "train.validate_every=0",
           "train.precision=float32", "train.ema_decay=0.5", "lora.alpha=4", "train.lr=0.03")  # fmt: skip
PLACE = BaseModel("base", "runs/base", "a" * 64)


def recipe(*changes: str) -> Recipe:
    found = load_recipe("lora-style", (*CHANGES, *changes))
    assert isinstance(found, Recipe)
    return found


def base(seed: int = 0) -> Model:
    model = build(recipe().model)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


class Images:
    """Eight images uint8 (1, 8, 8) of ten classes."""

    def __init__(self) -> None:
        self.pixels = torch.randint(0, 256, (8, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixels": self.pixels[index], "label": index}


def trained(run: Path, model: Model | None = None, place: BaseModel = PLACE) -> Model:
    config = recipe()
    model = setup_lora(base() if model is None else model, place, config)
    objective = config.objective.build(config, config.process.build(), config.train.batch_size)
    fit(model, Images(), objective=objective, config=config.train, run=run, recipe=config)
    return model


def test_the_base_stays_and_only_additions_are_kept(tmp_path: Path):
    before = copy.deepcopy(base().state_dict())
    model = trained(tmp_path / "run")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    additions = lora.lora_state(model.denoiser.network, NAME)
    assert len(additions) == 6  # of the one block attention and perceptron, the patches and the last layer
    assert all(bool(one.up.any()) for one in additions)
    folder = model_folder.resolve_checkpoint(tmp_path / "run")
    held = {path.name for path in folder.rglob("*.safetensors")}
    assert held == {"lora.safetensors", "train_state.safetensors"}
    assert checkpoint_store.base_of(folder) == PLACE
    assert "only the weights of a LoRA on `base`" in (folder / "card.md").read_text()
    averaged, as_trained = (read_tensors(place / "lora.safetensors") for place in (folder / "ema", folder))
    key = "denoiser.leave[0:16].lora_B.weight"
    assert torch.equal(averaged[key], next(one.up for one in additions if one.layer == "leave"))
    assert not torch.equal(averaged[key], as_trained[key])
    moments = {name.split(".")[1] for name in read_header(folder / "train_state.safetensors").tensors}
    assert moments == {"denoiser"}
    assert all(".lora.lows." in name for name in read_header(folder / "train_state.safetensors").tensors)


def test_it_learns(tmp_path: Path):
    config, data = recipe(), Images()
    objective = config.objective.build(config, config.process.build(), config.train.batch_size)
    x0 = data.pixels.float() / 127.5 - 1

    def loss(model: Model) -> float:
        condition = model.encode({"label": list(range(8))})[0]
        with torch.no_grad():
            return float(objective(model.denoiser, x0, condition, SampleRNG(5, list(range(8))), 0).value)

    model = trained(tmp_path / "run")
    with lora.disable_adapters(model.denoiser.network):
        without = loss(model)
    assert loss(model) < 0.99 * without


def test_a_run_goes_on_to_the_bit(tmp_path: Path):
    trained(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step_000006")
    trained(tmp_path / "cut")
    for name in ("lora.safetensors", "ema/lora.safetensors", "train_state.safetensors"):
        one, two = (read_tensors(tmp_path / run / "checkpoints" / "step_000006" / name) for run in ("whole", "cut"))
        assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())


def test_a_run_does_not_go_on_upon_another_base(tmp_path: Path):
    trained(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000006")
    with pytest.raises(WeightsError, match=r"on 'base' \(sha256 aaaaaaaaaaaa.*'other' \(bbbbbbbbbbbb"):
        trained(tmp_path / "run", base(seed=1), BaseModel("other", "runs/base", "b" * 64))


def test_a_folder_of_a_lora_says_what_it_is_on(tmp_path: Path):
    trained(tmp_path / "run")
    with pytest.raises(
        WeightsError, match=r"holds a LoRA on 'base', not a whole model; unveil sample runs/base --lora"
    ):
        unveil.load(tmp_path / "run")


def test_recipe_and_base_have_to_agree():
    with pytest.raises(RecipeError, match=r"lora: without base"):
        recipe("base=null")
    other = build(recipe("network.hidden_size=64").model)
    with pytest.raises(
        RecipeError, match=r"base = runs/base: network.hidden_size is 64 in the base and 32 in the recipe"
    ):
        setup_lora(other, PLACE, recipe())
    with pytest.raises(RecipeError, match=r"'atention'.*matches no layer"):
        setup_lora(base(), PLACE, recipe("lora.targets=[atention]"))
