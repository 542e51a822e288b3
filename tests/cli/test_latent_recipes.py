"""Recipes of latent diffusion from the command line, in small: fine-tuning a base, and scenes from layouts."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.conftest import Cli
from tests.needs import needs_fashion
from unveil import load
from unveil.checkpoints.formats import single_file
from unveil.core.process import betas
from unveil.errors import RecipeError
from unveil.model import Model, build
from unveil.model.config import Recipe, dump, load_recipe
from unveil.tasks.train_run import initial_model
from unveil.train.finetuning import model_config_on_base
from unveil.types import BaseModel

ROOT = os.environ.get("UNVEIL_GOLDEN")
CODEC = (
    "{kind: kl, model_channels: 32, channel_mult: [1, 2], num_res_blocks: 1, z_channels: 4, latent_channels: 4, "
    "scale: 0.5}"
)


def recipe(name: str, *changes: str, small: bool = True) -> Recipe:
    found = load_recipe(name, changes, small=small)
    assert isinstance(found, Recipe)
    return found


@pytest.mark.skipif(not ROOT, reason="UNVEIL_GOLDEN names no folder of recorded facts")
@pytest.mark.slow
def test_fine_tuning_describes_stable_diffusion_1():
    recorded = json.loads((Path(ROOT or "") / "latent-diffusion" / "sd1_keys.json").read_text())
    theirs = {key: torch.empty(shape, device="meta") for key, shape in recorded["keys"].items()}
    theirs["betas"] = betas("sqrt-linear", 1000, start=0.00085, end=0.012).float()
    model = single_file.read_checkpoint(theirs).model
    ours = model_config_on_base(model, BaseModel("sd1", "sd1.safetensors", ""), recipe("sd1-finetune", small=False))
    assert model.config is not None
    assert ours.autoencoder == model.config.autoencoder
    assert ours.latent_shape == (4, 64, 64)
    assert model.conditioners["prompt"]._cache.room == 256 * 2**20  # that is the recipe's to say


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny model of Stable Diffusion's parts with random weights, as a folder."""
    torch.manual_seed(0)
    model = build(recipe("sd1-finetune", "base=null", f"autoencoder={CODEC}").model)
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six images with captions."""
    folder = tmp_path / "photos"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"image {number} of noise")
    return folder


@pytest.mark.slow
def test_fine_tuning_starts_from_the_base_and_changes_only_the_network(cli: Cli, base: Path, photos: Path):
    pytest.importorskip("transformers")
    changes = (
        f"base={base}",
        f"autoencoder.path={base}",
        f"data.path={photos}",
        "train.ema_decay=0",
        "train.precision=float32",
    )
    done = cli("train", "sd1-finetune", "--quick", *changes, "--output-dir", "run", "--json")
    assert done.code == 0, done.err
    before, after = load(str(base)), load("run")
    for own in ("conditioners", "autoencoder"):
        theirs = getattr(before, own).state_dict()
        assert theirs
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in getattr(after, own).state_dict().items())
    pairs = zip(before.denoiser.parameters(), after.denoiser.parameters(), strict=True)
    moved = torch.tensor([float((one - two).detach().abs().max()) for one, two in pairs])
    assert 0 < float(moved.max()) < 3 * 1.0e-5  # two steps of AdamW at the published rate
    assert after.generate(cond={"prompt": "noise"}, steps=2).shape == (1, 3, 32, 32)


def test_the_caption_reaches_the_text_encoder(base: Path, photos: Path):
    """Prompts are what data call text."""
    pytest.importorskip("transformers")
    from unveil import data
    from unveil.train.batch_preparation import fixed_subset

    config = recipe("sd1-finetune", f"data.path={photos}")
    batch = fixed_subset(data.open(config.data.build()), 2, config.key, ["prompt"])
    assert all(text.endswith("of noise") for text in batch.raw["prompt"])


def test_another_base_is_refused(base: Path):
    pytest.importorskip("transformers")
    config = recipe("sd1-finetune", f"base={base}", f"autoencoder.path={base}", "network.num_res_blocks=2")
    with pytest.raises(
        RecipeError, match=r"base = .*: network.num_res_blocks is 1 in the base and 2 in the recipe; make"
    ):
        initial_model(config, torch.device("cpu"))


@pytest.mark.slow
def test_a_layout_model_is_trained_sampled_and_evaluated(cli: Cli, tmp_path: Path):
    settings = ["train.steps=2", "train.warmup=0", "train.sample_every=1", "train.validate_every=0"]
    done = cli("train", "ldm-layout", "--quick", *settings, "--output-dir", "run", "--json")
    assert done.code == 0, done.err
    drawn = cli("sample", "run", "--cond", "layout=circle 0.5 0.5 0.3 0.3; ring 0.2 0.2 0.2 0.2", "--out", "drawn")
    assert drawn.code == 0, drawn.err
    wrong = cli("sample", "run", "--cond", "layout=circel 0.5 0.5 0.3 0.3", "--out", "wrong")
    assert wrong.code == 2
    assert "'circle'" in wrong.err
    judged = cli("evaluate", "run", "--json")
    assert judged.code == 0, judged.err
    found = judged.json["results"]["iou"]
    assert found["real_pictures"] > 0.85
    assert 0 <= found["value"] < 0.5  # it has learned nothing yet
    assert (tmp_path / "run" / "report.html").is_file()


def test_other_boxes_generate_another_image():
    torch.manual_seed(0)
    model: Model = build(recipe("ldm-layout").model)
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    one, other = ([[("circle", x, 0.5, 0.3, 0.3)]] for x in (0.3, 0.7))
    first, second = (model.generate(cond={"layout": given}, steps=2) for given in (one, other))
    assert not torch.equal(first, second)
    assert torch.equal(first, model.generate(cond={"layout": one}, steps=2))


def test_a_small_latent_recipe_is_complete(tmp_path: Path):
    """Without a trained autoencoder the model has a new one, which is saved with it."""
    config = recipe("ldm-fashion")
    assert config.autoencoder.kind == "kl"
    assert "runs/ae-fashion" not in dump(config.model)
    assert build(config.model).autoencoder.latent_shape(config.shape) == recipe("ldm-fashion", small=False).latent_shape


def test_a_typed_value_is_its_nearest_code():
    own: Any = build(recipe("ldm-values").model).conditioners["largest"]
    rows = own.encode(["0.31", 0.30, 0.325, "0.2"]).vector
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], own.encode([0.3]).vector[0])
    assert not torch.equal(rows[1], rows[2])
    assert not torch.equal(rows[0], rows[3])
    with pytest.raises(RecipeError, match=r"largest \['large'\]: must be numbers from 0.15 to 0.5"):
        own.encode(["large"])
    with pytest.raises(RecipeError, match=r"largest 0.9: must be from 0.15 to 0.5; nearest: 0.5"):
        own.encode([0.9])


@pytest.mark.slow
def test_a_text_to_image_model_is_trained_sampled_and_evaluated(cli: Cli, tmp_path: Path):
    settings = ["train.steps=2", "train.warmup=0", "train.sample_every=1", "train.validate_every=1"]
    done = cli("train", "words-scenes", "--quick", *settings, "--output-dir", "run", "--json")
    assert done.code == 0, done.err
    command = ["sample", "run", "\u7ea2\u8272\u5706\u5f62", "--steps", "2"]
    drawn = [cli(*command, *more, "--out", f"{n}.png") for n, more in enumerate(([], ["--negative-prompt", "red"]))]
    assert [one.code for one in drawn] == [0, 0], drawn[1].err
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "1.png").read_bytes()
    again = cli("sample", "run", "--from-metadata", "1.png", "--out", "again.png")
    assert again.code == 0, again.err
    images = [np.asarray(Image.open(tmp_path / name)) for name in ("1.png", "again.png")]
    assert np.array_equal(*images)
    wrong = cli("sample", "run", "crimson", "--out", "wrong")
    assert wrong.code == 2
    assert "none of its words is known" in wrong.err
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as outside of tests, where a warning is not an error
        done = cli("sample", "run", "a red circel", "--steps", "2", "--out", "left.png")
    assert done.code == 0, done.err
    assert "left out: circel (nearest: 'circle')" in done.err
    judged = cli("evaluate", "run", "--json")
    assert judged.code == 0, judged.err
    found = judged.json["results"]
    assert found["named"]["real_pictures"] > 0.9
    assert found["negative"]["count"] == 20


@pytest.mark.slow
@needs_fashion
def test_a_super_resolution_model_is_trained_sampled_and_evaluated(cli: Cli, tmp_path: Path):
    settings = ["train.steps=2", "train.warmup=0", "train.sample_every=1", "train.validate_every=0"]
    done = cli("train", "upsampler-fashion", "--quick", *settings, "--output-dir", "run", "--json")
    assert done.code == 0, done.err
    small = np.random.default_rng(0).integers(0, 256, (7, 7), dtype=np.uint8)
    Image.fromarray(small).save(tmp_path / "small.png")
    larger = cli("upscale", "run", "small.png", "--factor", "4", "--out", "large.png")
    assert larger.code == 0, larger.err
    with Image.open(tmp_path / "large.png") as large:
        assert large.size == (28, 28)
    judged = cli("evaluate", "run", "--json")
    assert judged.code == 0, judged.err
    found = judged.json["results"]["enlarged"]
    assert found["psnr"]["high"] < 0  # it has learned nothing yet
    assert found.keys() == {"psnr", "ssim", "perceptual", "kept"}
