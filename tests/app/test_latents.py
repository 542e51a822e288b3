"""Recipes that read latents, from a file to a trained run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.app.conftest import Cli
from unveil import data
from unveil.config import Recipe, load_recipe, recipe_names

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
            assert (recipe.key, recipe.train.flip) == ("latents", False)
            assert recipe.shape == ((4, 64, 64) if name.endswith("512") else (4, 32, 32))


def test_check_tells_what_a_file_holds(cli: Cli, latents: Path):
    done = cli("data", "check", latents.name)
    assert done.code == 0, done.err
    assert "20 latents of shape (4, 32, 32), F32" in done.out
    assert cli("data", "check", latents.name, "--json").json["metadata"] == {"scale": "0.18215"}
    absent = cli("data", "check", "latent.safetensors")
    assert absent.code == 4
    assert "latent.safetensors: no such file; nearest: 'latents.safetensors'" in absent.err
    shown = cli("data", "show", "dit-s-2-imagenet256", f"data.path={latents}")
    assert shown.code == 2
    assert "latents, which are no pictures" in shown.err


def test_a_run_is_estimated(cli: Cli, latents: Path):
    done = cli("train", "dit-xl-2-imagenet256", "--small", f"data.path={latents}", "--dry-run", "--json")
    assert done.code == 0, done.err
    assert (done.json["items"], done.json["shape"]) == (19, [4, 32, 32])
    absent = cli("train", "dit-xl-2-imagenet256")
    assert absent.code == 4
    assert "imagenet256-latents.safetensors: no such file" in absent.err


@pytest.mark.slow
def test_a_run_is_trained_on_them(cli: Cli, latents: Path):
    done = cli("train", "dit-xl-2-imagenet256", "--small", f"data.path={latents}", "--run", "run", "--json")
    assert done.code == 0, done.err
    assert done.json["step"] == 2
    for command in (["evaluate", "run"], ["study", "guidance", "run"]):
        refused = cli(*command)
        assert refused.code == 2, refused.err
        assert "makes latents" in refused.err
