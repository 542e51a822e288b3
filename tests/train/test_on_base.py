"""Training on a base of every layout: the model comes from the base, and the recipe states changes only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from tests.checkpoints.pipeline_tasks import runs
from unveil import load
from unveil.checkpoints import conversion
from unveil.conditioning.controlnet import with_controlnets
from unveil.errors import RecipeError
from unveil.generation.model_loading import config_of
from unveil.model import build
from unveil.model.config import Recipe, dump, load_recipe
from unveil.tasks.train_run import initial_model
from unveil.types import Condition

CODEC = (
    "{kind: kl, model_channels: 32, channel_mult: [1, 2], num_res_blocks: 1, z_channels: 4, latent_channels: 4, "
    "scale: 0.5}"
)
SHORT = """
name: mine
base: BASE
data: {kind: folder, path: images, size: 32, labels: none}
objective: {kind: simple, timestep_sampling: uniform}
train: {batch_size: 2, steps: 2, lr: 1.0e-5}
"""
LAYOUTS = {"ours": "base", "ldm": "one.safetensors", "diffusers": "folder"}
FILE = (
    "file={heads: 8, size: 32, text_heads: 2, activation: quick-gelu}"  # what keys of a file of this size do not tell
)
WAYS = {
    "all weights": ["train.lr=1.0e-4"],
    "lora": ["lora={targets: ['own.*'], rank: 2}"],
    "control": ["control={}", "data.control_image={kind: canny}"],
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion 1 in each layout, and a recipe that names a base and no part of its model."""
    place = tmp_path_factory.mktemp("bases")
    recipe = load_recipe("sd1-finetune", ["base=null", f"autoencoder={CODEC}"], small=True)
    assert isinstance(recipe, Recipe)
    torch.manual_seed(0)
    build(recipe.model).save(place / "base")
    conversion.convert(place / "base", place / "one.safetensors", "ldm")
    conversion.convert(place / "base", place / "folder", "diffusers")
    (place / "short.yaml").write_text(SHORT)
    return place


def on(bases: Path, layout: str, *changes: str) -> Recipe:
    stated = [f"base={bases / LAYOUTS[layout]}", *([FILE] if layout == "ldm" else []), *changes]
    recipe = load_recipe(bases / "short.yaml", stated, config_of=config_of)
    assert isinstance(recipe, Recipe)
    return recipe


@runs("train", of=["StableDiffusionPipeline"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_trained_on(bases: Path, layout: str, way: str):
    recipe = on(bases, layout, *WAYS[way])
    model = initial_model(recipe, torch.device("cpu"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {("lora" in name, "control" in name) for name in trained if "denoiser" in name or "control" in name} == {
        (way == "lora", way == "control")
    }
    hint = {"hint": torch.rand(1, 3, 32, 32)} if way == "control" else {}
    condition = model.encode({"prompt": ["a cat"], **hint}, 1)[0]
    assert isinstance(condition, Condition)
    x = torch.randn(1, 4, 16, 16)
    denoiser = with_controlnets(model.denoiser, model.controls)
    denoiser.output(x, model.process.at(torch.tensor([0.5])), condition)[0].square().mean().backward()
    assert any(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    load_again = load_recipe(written(bases, recipe))
    assert load_again == recipe  # a run's recipe is complete without the base


def written(place: Path, recipe: Recipe) -> Path:
    (place / "written.yaml").write_text(dump(recipe))
    return place / "written.yaml"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_complete_recipe_fits_every_layout(bases: Path, layout: str):
    """The order of rows of a self-attention that the network does not have makes no difference."""
    changes = [f"base={bases / LAYOUTS[layout]}", "lora={targets: ['own.*'], rank: 2}", "condition.0.drop_prob=0.3"]
    changes += [FILE] if layout == "ldm" else []
    recipe = load_recipe("sd1-finetune", changes, small=True, config_of=config_of)
    assert isinstance(recipe, Recipe)
    model: Any = initial_model(recipe, torch.device("cpu"))
    assert model.conditioners["prompt"].drop == 0.3
    assert model.config.network_config() == model.denoiser.network.config


def test_a_recipe_states_changes_and_a_mismatch_names_its_fields(bases: Path):
    base = load(bases / "base").config
    assert base is not None
    recipe = on(bases, "diffusers", "network.dropout=0.1", "condition.0.cache=7", "sample.steps=3")
    assert recipe.network == base.network.model_copy(update={"dropout": 0.1, "attention_order": "qkv-first"})
    assert recipe.condition[0].cache == 7  # type: ignore[union-attr]
    assert recipe.sample.steps == 3
    with pytest.raises(RecipeError, match=r"network.dropout is 0.0 in the base and 0.1 in the recipe; make them equal"):
        initial_model(recipe, torch.device("cpu"))
    other = on(bases, "ours", "network={kind: unet, model_channels: 64, channel_mult: [1, 2], num_res_blocks: 1}")
    with pytest.raises(RecipeError) as refused:
        initial_model(other, torch.device("cpu"))
    assert "network.model_channels is 32 in the base and 64 in the recipe" in str(refused.value)
    with pytest.raises(RecipeError, match="network: missing"):
        load_recipe(bases / "short.yaml")  # where no base is read
