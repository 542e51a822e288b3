"""Recipes of the papers' own size: the network of the released file, its process, and a small form that trains."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unveil import build, data
from unveil.checkpoints import openai_keys
from unveil.checkpoints.formats import edm, score_sde
from unveil.checkpoints.formats.openai import release
from unveil.core.process import DiscreteVP
from unveil.model.config import ClassifierRecipe, Recipe, load_recipe
from unveil.nn.classifier import NoisyClassifier, NoisyClassifierConfig
from unveil.nn.edm_unet import SongUNetConfig
from unveil.nn.unet import UNetConfig
from unveil.train.classifier import ClassifierConfig, train_classifier

ROOT = os.environ.get("UNVEIL_GOLDEN")
needs_facts = pytest.mark.skipif(not ROOT, reason="UNVEIL_GOLDEN names no folder of recorded facts")
SIZES = (64, 128, 256, 512)
# Recipe -> released file, of those whose keys and shapes were recorded.
UNETS = {
    "iddpm-cifar10": "cifar10_uncond_50M_500K",
    "iddpm-imagenet64": "imagenet64_uncond_100M_1500K",
    **{f"adm-imagenet{size}": f"{size}x{size}_diffusion" for size in SIZES},
    "adm-upsampler-64-256": "64_256_upsampler",
    "adm-upsampler-128-512": "128_512_upsampler",
}
CLASSIFIERS = {f"classifier-imagenet{size}": f"{size}x{size}_classifier" for size in SIZES}
SONGS = ("score-sde-cifar10", "score-sde-vp-cifar10", "edm-cifar10")
# One small run of each family; the others are like these.
SHOWN = ("adm-upsampler-64-256", "score-sde-cifar10", "edm-cifar10")


def diffusion(name: str, *, small: bool = False, changes: tuple[str, ...] = ()) -> Recipe:
    recipe = load_recipe(name, changes, small=small)
    assert isinstance(recipe, Recipe)
    return recipe


def classifier(name: str, *, small: bool = False, changes: tuple[str, ...] = ()) -> ClassifierRecipe:
    recipe = load_recipe(name, changes, small=small)
    assert isinstance(recipe, ClassifierRecipe)
    return recipe


def recorded(file: str) -> dict[str, Any]:
    (path,) = (Path(ROOT or "") / "published_keys").glob(f"*__{file}.json")
    return json.loads(path.read_text())


def facts(repository: str) -> dict[str, Any]:
    return json.loads((Path(ROOT or "") / repository / "param_counts.json").read_text())


def shapes(theirs: dict[str, Tensor]) -> dict[str, list[int]]:
    return {key: list(tensor.shape) for key, tensor in theirs.items()}


def plain(config: UNetConfig) -> UNetConfig:
    """Without the number of heads where their width overrides it."""
    return replace(config, heads=1) if config.head_channels is not None else config


@needs_facts
@pytest.mark.parametrize("name", UNETS)
def test_its_network_and_labels_are_those_of_the_released_file(name: str):
    recipe = diffusion(name)
    with torch.device("meta"):
        model = build(recipe.model)
    config: Any = model.denoiser.network.config
    assert isinstance(config, UNetConfig)
    conditioners = dict(model.conditioners.items())
    label = conditioners["label"].state_dict() if "label" in conditioners else None
    fact = recorded(UNETS[name])
    theirs = openai_keys.published_state_dict(model.denoiser.network.state_dict(), config, label)
    assert shapes(theirs) == fact["keys"]
    assert sum(p.numel() for p in model.parameters()) == fact["params"]


@pytest.mark.parametrize("name", UNETS)
def test_settings_not_in_the_keys_match_the_table_of_released_files(name: str):
    """Heads and their order, dropout, the schedule, rescaling, and how the variance is learned."""
    recipe = diffusion(name)
    found = next(release(files) for files in _files() if UNETS[name] in files)
    theirs = found.model_config()
    assert plain(recipe.network_config()) == plain(theirs.network_config())
    ours, published = recipe.process.build(), theirs.process.build()
    assert isinstance(ours, DiscreteVP)
    assert isinstance(published, DiscreteVP)
    torch.testing.assert_close(ours.betas, published.betas)
    assert ours.timestep(ours.at(0.5)) == published.timestep(published.at(0.5))
    assert (recipe.shape, recipe.prediction, recipe.variance) == (theirs.shape, theirs.prediction, theirs.variance)
    assert [one.key for one in recipe.condition] == [one.key for one in theirs.condition]


@needs_facts
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_is_that_of_the_released_file(name: str):
    recipe = classifier(name)
    config = recipe.network.build()
    found = next(release(files) for files in _files() if CLASSIFIERS[name] in files)
    assert isinstance(config, NoisyClassifierConfig)
    assert config == found.network
    with torch.device("meta"):
        theirs = openai_keys.published_classifier_state_dict(NoisyClassifier(config).state_dict(), config)
    fact = recorded(CLASSIFIERS[name])
    assert shapes(theirs) == fact["keys"]
    assert sum(tensor.numel() for tensor in theirs.values()) == fact["params"]
    # it reads the levels of the model that it guides
    assert recipe.process == diffusion(name.replace("classifier", "adm")).process


@needs_facts
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("score-sde-cifar10", "cifar10_ncsnpp_continuous (ve)"),
        ("score-sde-vp-cifar10", "cifar10_ddpmpp_continuous (vp)"),
    ],
)
def test_score_sde_networks_are_those_of_the_released_files(name: str, published: str):
    for changes, deep in (((), ""), (("network.num_res_blocks=8",), "_deep")):
        recipe = diffusion(name, changes=changes)
        with torch.device("meta"):
            network = recipe.build_network()
        fact = facts("score_sde_pytorch")[published.replace("_continuous", f"{deep}_continuous")]
        assert sum(p.numel() for p in network.parameters()) == fact["trainable"]
        theirs = score_sde.published_state_dict(
            network.state_dict(), recipe.network_config(), score_sde.sigmas(0.01, 50, 1000)
        )
        assert len(theirs) == fact["n_keys"]


@needs_facts
def test_edm_has_the_published_network_except_augmentation_labels():
    fact = facts("edm")["edm-cifar10-32x32-cond-vp"]
    published = edm.config_from_arguments(fact["inner_class"], fact["inner_arguments"])
    recipe = diffusion("edm-cifar10")
    assert isinstance(published, SongUNetConfig)
    assert recipe.network_config() == replace(published, augment_dim=0)
    with torch.device("meta"):
        count = sum(p.numel() for p in recipe.build_network().parameters())
    augmentation, labels = published.augment_dim * published.vector_dim, (10 + 1) * published.vector_dim
    assert count == fact["params"] - augmentation - labels


# ---------------------------------------------------------------------- the small form


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of three images each."""
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for name in ("cat/a", "cat/b", "cat/c", "dog/a", "dog/b", "dog/c"):
        (folder / name).parent.mkdir(exist_ok=True)
        small = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        small.resize((70, 66), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SHOWN else pytest.mark.release) for name in (*UNETS, *SONGS)]
)
def test_the_small_form_trains_two_steps_and_samples(name: str, photos: Path, tmp_path: Path):
    from unveil.train import fit

    recipe = diffusion(name, small=True, changes=(f"data.path={photos}", "train.precision=float32"))
    items = data.open(recipe.data)
    objective = recipe.objective.build(recipe, recipe.process.build(), recipe.train.batch_size)
    torch.manual_seed(0)
    model = build(recipe.model)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    fit(model, items, objective=objective, config=recipe.train, run=tmp_path / "run", recipe=recipe)
    assert any(not torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    raw = {key: items[0][key] for key in model.conditioners}
    raw = {key: value[None] if isinstance(value, Tensor) else value for key, value in raw.items()}
    sample = model.generate(cond=raw, seed=0)
    assert sample.shape == (1, *recipe.shape)
    assert bool(torch.isfinite(sample).all())


def test_a_small_classifier_trains(photos: Path):
    recipe = classifier("classifier-imagenet512", small=True, changes=(f"data.path={photos}", "data.val_fraction=0.3"))
    assert recipe.process is not None
    settings = recipe.train.model_dump()
    config = ClassifierConfig(recipe.network.build(), **settings, process=recipe.process.build())
    steps: list[int] = []
    parts = (data.open(recipe.data), data.open(recipe.data, "held-out"))
    trained = train_classifier(config, *parts, lambda progress: steps.append(progress.step))
    assert steps == [1, 2]
    assert len(trained.by_level) == 10


def _files() -> list[tuple[str, ...]]:
    from unveil.checkpoints.formats.openai import FILES

    return list(FILES)
