"""Recipes that read latents, from a file to a trained run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Cli
from unveil import data
from unveil.autoencoders import AutoencoderKL, AutoencoderKLConfig
from unveil.model import Model, build
from unveil.model.config import Recipe, load_recipe, recipe_names
from unveil.tasks import train_run as train

PUBLISHED = [name for name in recipe_names() if name.startswith(("dit-", "sit-")) and "imagenet" in name]


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    chunks = [5 * torch.randn(4, 4, 32, 32) for _ in range(5)]
    return data.write_latents(tmp_path / "latents.safetensors", chunks, labels=50 * torch.arange(20), scale=0.18215)


def test_published_recipes_read_latents_of_their_shape():
    assert len(PUBLISHED) == 6
    for name in PUBLISHED:
        for small in (False, True):
            recipe = load_recipe(name, small=small)
            assert isinstance(recipe, Recipe)
            assert isinstance(recipe.data.build(), data.LatentsConfig)
            assert (recipe.key, recipe.train.random_flip) == ("latents", False)
            assert recipe.shape == ((4, 64, 64) if name.endswith("512") else (4, 32, 32))


def test_check_reports_the_contents_of_a_file(cli: Cli, latents: Path):
    done = cli("data", "check", latents.name)
    assert done.code == 0, done.err
    assert "20 latents of shape (4, 32, 32), F32" in done.out
    assert cli("data", "check", latents.name, "--json").json["metadata"] == {"scale": "0.18215"}
    absent = cli("data", "check", "latent.safetensors")
    assert absent.code == 4
    assert "latent.safetensors: no such file; nearest: 'latents.safetensors'" in absent.err
    shown = cli("data", "show", "dit-s-2-imagenet256", f"data.path={latents}")
    assert shown.code == 2
    assert "latents, not images" in shown.err


def test_a_run_is_estimated(cli: Cli, latents: Path):
    done = cli("train", "dit-xl-2-imagenet256", "--quick", f"data.path={latents}", "--dry-run", "--json")
    assert done.code == 0, done.err
    assert (done.json["items"], done.json["shape"]) == (19, [4, 32, 32])
    absent = cli("train", "dit-xl-2-imagenet256")
    assert absent.code == 4
    assert "imagenet256-latents.safetensors: no such file" in absent.err


@pytest.mark.slow
def test_a_run_is_trained_on_them(cli: Cli, latents: Path):
    done = cli("train", "dit-xl-2-imagenet256", "--quick", f"data.path={latents}", "--output-dir", "run", "--json")
    assert done.code == 0, done.err
    assert done.json["step"] == 2
    for command in (["evaluate", "run"], ["analyze", "guidance", "run"]):
        refused = cli(*command)
        assert refused.code == 2, refused.err
        assert "generates latents" in refused.err


def encoding(recipe: Recipe) -> Model:
    """The recipe's model with a codec that leaves the number of channels and the size as they are."""
    model = build(recipe.model)
    torch.manual_seed(0)
    sizes = {
        "in_channels": 3,
        "out_channels": 3,
        "z_channels": 3,
        "model_channels": 8,
        "channel_mult": (1,),
        "groups": 4,
    }
    model.autoencoder = AutoencoderKL(AutoencoderKLConfig(**sizes, num_res_blocks=1)).requires_grad_(False)  # type: ignore[arg-type]
    return model


@pytest.mark.slow
def test_latents_of_a_recipe_are_cached_once(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path / "cache"))
    refused = cli("data", "cache-latents", "ddpm-digits")
    assert refused.code == 2
    assert "Identity, encodes nothing; set train.cache_latents: false" in refused.err
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(train, "init_model", encoding)
    changes = ["data.count=24", "data.num_val=8", "data.size=16", "shape=[3, 16, 16]", "train.random_flip=true"]
    first = cli("data", "cache-latents", "ddpm-scenes", *changes, "--json")
    assert first.code == 0, first.err
    found = first.json["latents"]
    assert [(one["part"], one["items"], one["versions"], one["shape"], one["there"]) for one in found] == [
        ("train", 24, 2, [3, 16, 16], False),
        ("held-out", 8, 2, [3, 16, 16], False),
    ]
    assert (
        "train: 24 x 2 of shape (3, 16, 16), 289 KiB, already in"
        in cli("data", "cache-latents", "ddpm-scenes", *changes).out
    )
    checked = cli("data", "check", found[0]["path"])
    assert (checked.code, "48 latents of shape (3, 16, 16), F32" in checked.out) == (0, True), checked.err
    files = sorted((tmp_path / "cache" / "latents").glob("*.safetensors"))
    changes += ["train.cache_latents=true", "train.steps=2", "train.warmup=0", "train.batch_size=4"]
    changes += ["network.model_channels=16", "network.groups=4", "train.sample_every=0"]
    done = cli("train", "ddpm-scenes", *changes, "--output-dir", "run", "--json")
    assert done.code == 0, done.err
    assert done.json["step"] == 2
    assert sorted((tmp_path / "cache" / "latents").glob("*.safetensors")) == files
    wrong = cli("train", "ddpm-scenes", "train.cache_latents=cached")
    assert wrong.code == 2
    assert "train.cache_latents = 'cached': must be a valid boolean" in wrong.err
