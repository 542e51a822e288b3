"""Models of latents: their codec in recipes and folders, frozen in training, and in images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import unveil
from unveil.autoencoders import AutoencoderKL, VideoAutoencoderKL
from unveil.core.rng import SampleRNG
from unveil.data import open as open_data
from unveil.errors import RecipeError, ShapeError
from unveil.model import Model, build, checkpoint_store
from unveil.model.config import AutoencoderModelConfig, ModelConfig, Recipe, dump, parse_recipe, read_yaml, validate
from unveil.model.model_card import autoencoder_card
from unveil.train import fit
from unveil.train.batch_preparation import ENCODE, prepare
from unveil.train.data_order import Batch

CODEC: dict[str, Any] = {
    "kind": "kl", "model_channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "z_channels": 3, "groups": 4,
    "latent_channels": 2, "scale": [1.0, 2.0], "dropout": 0.5,
}  # fmt: skip
PLAIN: dict[str, Any] = {
    "shape": [1, 8, 12],
    "network": {"kind": "unet", "model_channels": 16, "channel_mult": [1, 2], "num_res_blocks": 1, "groups": 4},
    "process": {"kind": "discrete-vp", "timesteps": 50},
    "sample": {"steps": 3, "clip": "none"},
    "autoencoder": CODEC,
}


def model(**changes: Any) -> Model:
    torch.manual_seed(0)
    return build(validate(ModelConfig, PLAIN | changes, "test"))


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_latent_diffusion_model_generates_images_and_is_loaded_complete(tmp_path, kind):
    codec = CODEC if kind == "kl" else CODEC | {"kind": "vq", "codebook_size": 16, "learned": "ema"}
    made = model(autoencoder=codec)
    assert made.config is not None
    assert made.config.latent_shape == (2, 4, 6)
    assert made.denoiser.network.config.in_channels == 2
    images = made.generate(count=2, seed=1)
    assert images.shape == (2, 1, 8, 12)
    made.save(tmp_path / "model")
    again = unveil.load(tmp_path / "model")
    assert torch.equal(again.generate(count=2, seed=1), images)
    assert again.config == made.config
    assert validate(ModelConfig, read_yaml(dump(made.config), "it"), "it") == made.config
    assert not any(parameter.requires_grad for parameter in again.autoencoder.parameters())  # type: ignore[attr-defined]


def test_a_saved_codec_becomes_a_part_of_the_model(tmp_path, monkeypatch):
    first = model()
    first.save(tmp_path / "first")
    saved = {"kind": "saved", "path": str(tmp_path / "first")}
    second = model(autoencoder=saved)
    assert second.config is not None
    assert second.config.autoencoder.kind == "kl"
    assert isinstance(first.autoencoder, AutoencoderKL)
    assert isinstance(second.autoencoder, AutoencoderKL)
    for key, tensor in first.autoencoder.state_dict().items():
        assert torch.equal(second.autoencoder.state_dict()[key], tensor)
    second.save(tmp_path / "second")
    (tmp_path / "first").rename(tmp_path / "away")
    assert torch.equal(unveil.load(tmp_path / "second").generate(seed=1), second.generate(seed=1))
    with pytest.raises(RecipeError, match="no such folder; train the autoencoder first, or state the shape of"):
        validate(ModelConfig, PLAIN | {"autoencoder": saved}, "test")
    config = validate(ModelConfig, PLAIN | {"autoencoder": saved | {"latents": [2, 4, 6]}}, "test")
    assert config.latent_shape == (2, 4, 6)
    (tmp_path / "away").rename(tmp_path / "first")
    with pytest.raises(RecipeError, match=r"latents = \[9, 4, 6\]: the autoencoder in .* has latents \[2, 4, 6\]"):
        validate(ModelConfig, PLAIN | {"autoencoder": saved | {"latents": [9, 4, 6]}}, "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"shape": [1, 9, 12]},
            r"autoencoder: shape = \[1, 9, 12\]: height 9 px: must be a multiple of 2; nearest 8 or 10",
        ),
        ({"autoencoder": CODEC | {"z_chanels": 3}}, "autoencoder.z_chanels: unknown key; nearest: 'z_channels'"),
        (
            {"autoencoder": {"kind": "klm"}},
            "autoencoder.kind = 'klm': must be one of .*, kl, vq, video; nearest: 'kl'",
        ),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(RecipeError, match=message):
        validate(ModelConfig, PLAIN | changes, "test")


def test_in_training_the_codec_stays_as_it_is_and_its_noise_is_the_examples_own():
    made = model()
    made.train()
    assert not any(module.training for module in made.autoencoder.modules())  # type: ignore[attr-defined]
    assert not any(parameter.requires_grad for parameter in made.autoencoder.parameters())  # type: ignore[attr-defined]
    pixels = torch.randint(0, 256, (3, 1, 8, 12), dtype=torch.uint8)

    def latents(numbers: list[int], step: int | None) -> Tensor:
        return prepare(made, Batch(numbers, pixels[numbers], {}), SampleRNG(0, numbers), step)[0]

    whole = latents([0, 1, 2], 5)
    assert isinstance(made.autoencoder, AutoencoderKL)
    noise = SampleRNG(0, [0, 1, 2]).normal((2, 4, 6), 5, ENCODE)
    torch.testing.assert_close(whole, made.autoencoder.encode(pixels / 127.5 - 1, noise))
    torch.testing.assert_close(latents([2, 0], 5), whole[[2, 0]], rtol=1e-4, atol=1e-5)
    assert not torch.equal(latents([0, 1, 2], 6), whole)
    torch.testing.assert_close(latents([0, 1, 2], None), made.autoencoder.encode(pixels / 127.5 - 1))


def test_images_that_do_not_fit_into_memory_are_decoded_in_tiles():
    made = model()
    latents = torch.randn(2, 2, 4, 6)
    with torch.no_grad():
        whole = made.autoencoder.decode(latents)
    inner, calls = made.autoencoder.decoder.forward, []  # type: ignore[attr-defined]

    def full(z: Tensor) -> Tensor:
        calls.append(z.shape)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return inner(z)

    made.autoencoder.decoder.forward = full  # type: ignore[attr-defined]
    torch.testing.assert_close(made.decode(latents), whole, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- clips

CLIP: dict[str, Any] = {
    "kind": "video", "model_channels": 8, "channel_mult": [1], "num_res_blocks": 1, "z_channels": 4,
    "patch": 4, "span": 4,
}  # fmt: skip
LATENT_VIDEO: dict[str, Any] = {
    "name": "tiny", "paper": "none", "data": {"kind": "playground", "frames": [9], "count": 20, "held_out": 4},
    "shape": [3, 9, 32, 32],
    "network": {"kind": "video-dit", "patch": [1, 2, 2], "depth": 1, "hidden_size": 32, "heads": 2},
    "process": {"kind": "rectified-flow"}, "prediction": "x0", "objective": {"kind": "diffusion-forcing"},
    "train": {"batch": 2, "steps": 2, "precision": "float32", "save_every": 0, "sample_every": 0, "validate_every": 0},
    "sample": {"sampler": "euler-time", "steps": 2, "clip": "none"},
}  # fmt: skip


def test_a_model_of_the_latents_of_clips_trains_on_a_saved_codec_and_samples(tmp_path):
    described = validate(
        AutoencoderModelConfig, {"kind": "autoencoder", "shape": [3, 9, 32, 32], "autoencoder": CLIP}, "it"
    )
    codec = described.build()
    codec.scale.copy_(torch.tensor([0.5, 1.0, 2.0, 3.0]))
    files = {
        **checkpoint_store.weight_files(codec),
        "model.yaml": dump(described),
        "card.md": autoencoder_card(codec, described),
    }
    checkpoint_store.save(tmp_path / "codec", files)
    saved = {"kind": "saved", "path": str(tmp_path / "codec")}
    recipe = parse_recipe(LATENT_VIDEO | {"autoencoder": saved}, "it")
    assert isinstance(recipe, Recipe)
    assert recipe.latent_shape == (4, 3, 8, 8)
    torch.manual_seed(0)
    made = build(recipe.model)
    assert made.config is not None
    assert made.config.autoencoder.kind == "video"
    assert isinstance(made.autoencoder, VideoAutoencoderKL)
    assert torch.equal(made.autoencoder.scale, codec.scale)
    objective = recipe.objective.build(recipe, made.process, 2)
    fit(made, open_data(recipe.data.build()), objective=objective, config=recipe.train, run=tmp_path / "run")
    clips = made.generate(count=1, seed=1)
    assert clips.shape == (1, 3, 9, 32, 32)
    assert torch.equal(unveil.load(tmp_path / "run").generate(count=1, seed=1), clips)
    assert made.generate(count=1, size=(1, 32, 32)).shape == (1, 3, 1, 32, 32)
    assert made.generate(count=1, size=(13, 32, 48)).shape == (1, 3, 13, 32, 48)
    with pytest.raises(ShapeError, match=r"8 frames: must be 1 \+ a multiple of 4; nearest 5 or 9"):
        made.generate(count=1, size=(8, 32, 32))


def test_clips_of_a_length_that_does_not_fit_are_named():
    with pytest.raises(RecipeError, match=r"autoencoder: shape = \[3, 16, 32, 32\]: 16 frames: .* nearest 13 or 17"):
        parse_recipe(LATENT_VIDEO | {"shape": [3, 16, 32, 32], "autoencoder": CLIP}, "it")
