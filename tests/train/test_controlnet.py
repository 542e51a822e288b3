"""Training a ControlNet: it begins as its base, the checkpoints hold it alone, and a run goes on to the bit."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import unveil
from unveil.checkpoints.formats import controlnet
from unveil.data.preprocessors.edges import canny
from unveil.errors import RecipeError, WeightsError
from unveil.io.files import read_header, read_tensors
from unveil.model import Model, build, checkpoint_store, model_folder
from unveil.model.config import Recipe, load_recipe
from unveil.train import fit
from unveil.train.finetuning import setup_controlnet
from unveil.types import BaseModel

CHANGES = ("shape=[1,8,8]", "network.patch=2", "network.groups=4", "network.model_channels=16",
           "network.channel_mult=[1]", "network.attention=[]",
           "process.timesteps=20", "sample.steps=2", "train.batch_size=4", "train.steps=6", "train.warmup=0",
           "train.save_every=3", "train.sample_every=6", "train.validate_every=6", "train.precision=float32",
           "train.ema_decay=0.5", "train.lr_decay_ratio=0", "train.lr=0.01")  # fmt: skip
PLACE = BaseModel("base", "runs/base", "a" * 64)


def recipe(*changes: str) -> Recipe:
    found = load_recipe("controlnet-edges", (*CHANGES, *changes))
    assert isinstance(found, Recipe)
    return found


def base(*changes: str, seed: int = 0) -> Model:
    model = build(recipe(*changes).model)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


class Images:
    """Eight images uint8 (1, 8, 8) of squares, with their classes and edges."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = torch.zeros(1, 8, 8, dtype=torch.uint8)
        pixels[:, index // 2 : index // 2 + 4, index % 4 : index % 4 + 3] = 255
        return {"pixels": pixels, "label": index, "hint": canny(pixels, low=50)}


def trained(run: Path, model: Model | None = None, place: BaseModel = PLACE, *changes: str) -> Model:
    config = recipe(*changes)
    model = setup_controlnet(base() if model is None else model, place, config)
    objective = config.objective.build(config, config.process.build(), config.train.batch_size)
    fit(model, Images(), objective=objective, config=config.train, run=run, held_out=Images(), recipe=config)
    return model


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_begins_as_its_base_to_the_bit():
    model = base()
    wanted = {"label": [3, 4]}
    before = model.generate(cond=wanted, count=2, seed=1)
    hints = torch.stack([Images()[place]["hint"] for place in range(2)])
    under = setup_controlnet(model, PLACE, recipe())
    assert torch.equal(under.generate(cond={**wanted, "hint": hints}, count=2, seed=1), before)


def test_the_base_stays_and_only_the_controlnet_is_kept(tmp_path: Path):
    before = copy.deepcopy(base().state_dict())
    model = trained(tmp_path / "run")
    after = model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert model.controls is not None
    network = model.controls.controls[0].network
    assert all(bool(weight.any()) for weight in network.zero.parameters())
    folder = model_folder.resolve_checkpoint(tmp_path / "run")
    assert {path.name for path in folder.rglob("*.safetensors")} == {"control.safetensors", "train_state.safetensors"}
    assert checkpoint_store.base_of(folder) == PLACE._replace(what="control")
    assert "only the weights of a ControlNet on `base`" in (folder / "card.md").read_text()
    averaged, as_trained = (read_tensors(place / "control.safetensors") for place in (folder / "ema", folder))
    assert torch.equal(averaged["zero.0.weight"], network.state_dict()["zero.0.weight"])
    assert not torch.equal(averaged["zero.0.weight"], as_trained["zero.0.weight"])
    moments = read_header(folder / "train_state.safetensors").tensors
    assert all(name.startswith("optimizer.controls.networks.0.") for name in moments)
    found = controlnet.read_controlnet(tmp_path / "run")
    assert found.base == checkpoint_store.base_of(folder)
    state = found.network.state_dict()
    assert state.keys() == averaged.keys()
    assert all(torch.equal(tensor, averaged[key]) for key, tensor in state.items())
    with pytest.raises(WeightsError, match=r"holds a ControlNet on 'base', not a whole model; .*--controlnet .*=IMAGE"):
        unveil.load(tmp_path / "run")


def test_validation_tells_how_far_hints_are_used(tmp_path: Path):
    trained(tmp_path / "run")
    judged = [line for line in lines(tmp_path / "run") if "condition_use" in line]
    assert [line["step"] for line in judged] == [0, 6]
    assert judged[0]["condition_use"] == 0
    assert judged[0]["validation"] == judged[0]["validation_shuffled"]
    assert judged[-1]["validation"] != judged[-1]["validation_shuffled"]
    assert (tmp_path / "run" / "samples" / "step_000006.png").is_file()


@pytest.mark.slow
def test_it_learns_to_look(tmp_path: Path):
    changes = [f"train.{name}" for name in ("steps=200", "save_every=0", "sample_every=0", "validate_every=200")]
    trained(tmp_path / "run", None, PLACE, *changes)
    judged = [line["condition_use"] for line in lines(tmp_path / "run") if "condition_use" in line]
    assert judged[-1] > 0.02


def test_a_run_goes_on_to_the_bit(tmp_path: Path):
    trained(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step_000006")
    trained(tmp_path / "cut")
    for name in ("control.safetensors", "ema/control.safetensors", "train_state.safetensors"):
        one, two = (read_tensors(tmp_path / run / "checkpoints" / "step_000006" / name) for run in ("whole", "cut"))
        assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())
    assert [line["step"] for line in lines(tmp_path / "cut")] == [line["step"] for line in lines(tmp_path / "whole")]


def test_a_run_does_not_go_on_upon_another_base(tmp_path: Path):
    trained(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000006")
    with pytest.raises(WeightsError, match=r"its ControlNet is on 'base'.*base here is 'other' \(bbbbbbbbbbbb"):
        trained(tmp_path / "run", base(seed=1), BaseModel("other", "runs/base", "b" * 64))


def test_hints_of_latents_are_as_many_times_larger():
    sizes = "model_channels: 8, channel_mult: [1, 1, 1], num_res_blocks: 1, z_channels: 2, groups: 4"
    codec = f"autoencoder={{kind: kl, {sizes}}}"
    config = recipe(codec, "shape=[1,32,32]")
    under = setup_controlnet(build(config.model), PLACE, config)
    assert under.controls is not None
    assert under.controls.controls[0].network.hint_widths == (16, 32, 96, 256)
    hints = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert under.generate(cond={"label": 3, "hint": hints}).shape == (1, 1, 32, 32)


def test_recipe_and_base_have_to_agree():
    with pytest.raises(RecipeError, match=r"control: without base"):
        recipe("base=null")
    with pytest.raises(RecipeError, match=r"control: without data.control_image"):
        recipe("data.control_image=null")
    with pytest.raises(RecipeError, match=r"lora and control: give one of them"):
        recipe("lora={targets: [enter]}")
    with pytest.raises(
        RecipeError, match=r"base = runs/base: network.model_channels is 32 in the base and 16 in the recipe; make"
    ):
        setup_controlnet(base("network.model_channels=32"), PLACE, recipe())
    with pytest.raises(RecipeError, match=r"control.hint_widths = \[16\]: 1 levels.*takes 2; leave it out"):
        setup_controlnet(base(), PLACE, recipe("control.hint_widths=[16]"))
    under = setup_controlnet(base(), PLACE, recipe())
    with pytest.raises(RecipeError, match="a ControlNet itself"):
        setup_controlnet(under, PLACE, recipe())
