"""Training of the codec of clips: lengths, frames that are looked at, a discriminator, statistics of each channel."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from unveil.autoencoders import VideoAutoencoderKL
from unveil.core.rng import SampleRNG
from unveil.errors import RecipeError
from unveil.model import model_folder
from unveil.model.config import AutoencoderRecipe, parse_recipe
from unveil.train.autoencoder import AutoencoderLearner, fit_autoencoder, learner_of
from unveil.train.batch_preparation import to_float
from unveil.train.data_order import Batch


class Clips:
    """Random clips uint8 (3, 9, 8, 8) of which each frame is of one colour."""

    def __init__(self, count: int = 12) -> None:
        chosen = torch.Generator().manual_seed(2)
        colours = torch.randint(0, 256, (count, 3, 9, 1, 1), generator=chosen)
        self.pixels = colours.expand(-1, -1, -1, 8, 8).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixels": self.pixels[index]}


def recipe(**changes: Any) -> AutoencoderRecipe:
    """A recipe of milliseconds; `changes` by section."""
    codec = {
        "kind": "video",
        "model_channels": 8,
        "channel_mult": [1],
        "num_res_blocks": 1,
        "z_channels": 4,
        "patch": 4,
        "span": 4,
    }
    train = {"batch": 4, "steps": 4, "lr": 1e-3, "ema": 0.5, "precision": "float32"}
    train |= {"save_every": 0, "sample_every": 4, "validate_every": 4}
    raw: dict[str, Any] = {
        "kind": "autoencoder", "name": "tiny", "paper": "none", "shape": [3, 9, 8, 8], "scale": "channel",
        "data": {"kind": "playground", "frames": [9]}, "autoencoder": codec, "lengths": {"image_prob": 0.5},
        "train": train | changes.pop("train", {}), "loss": changes.pop("loss", {}), **changes,
    }  # fmt: skip
    found = parse_recipe(raw, "test")
    assert isinstance(found, AutoencoderRecipe)
    return found


def learner(config: AutoencoderRecipe) -> AutoencoderLearner:
    torch.manual_seed(0)
    return learner_of(config, config.build())


def batch() -> Batch:
    return Batch(list(range(4)), torch.stack([Clips()[n]["pixels"] for n in range(4)]), {})


def lengths_seen(config: AutoencoderRecipe, steps: int) -> list[tuple[int, float]]:
    """Of each step the length of its clips, and the first value of the first frame."""
    made = learner(config)
    seen: list[tuple[int, float]] = []
    made.model.encoder.forward = lambda x: (
        seen.append((x.shape[2], x[0, 0, 0, 0, 0].item())) or torch.zeros(len(x), 8, 1 + (x.shape[2] - 1) // 4, 2, 2)
    )
    for step in range(steps):
        made.loss(batch(), SampleRNG(0, range(4)), step, False)
    return seen


def test_a_step_has_one_length_and_position_and_the_requested_fraction_of_images():
    seen = lengths_seen(recipe(), 120)
    counted = Counter(length for length, _ in seen)
    assert set(counted) == {1, 5, 9}
    assert 45 <= counted[1] <= 75
    assert 15 <= counted[5] <= 45
    values = to_float(batch().data)[0, 0, :, 0, 0].tolist()
    assert {round(value, 4) for length, value in seen if length == 1} == {round(value, 4) for value in values}
    assert {round(value, 4) for length, value in seen if length == 9} == {round(values[0], 4)}
    assert lengths_seen(recipe(), 5) == seen[:5]
    assert {length for length, _ in lengths_seen(recipe(lengths=None), 5)} == {9}
    assert {length for length, _ in lengths_seen(recipe(lengths={"image_prob": 0.0, "min_frames": 9}), 5)} == {9}


def test_the_perceptual_distance_uses_the_configured_number_of_frames():
    config = recipe(loss={"perceptual": {"network": "digits", "frames": 2}}, lengths=None)
    made = learner(config)
    seen: list[int] = []
    assert made.judge is not None
    made.judge.forward = lambda x, y: seen.append(x.shape[2]) or (x - y).flatten(1).mean(1)
    for step in range(3):
        made.loss(batch(), SampleRNG(0, range(4)), step, False)
    with torch.no_grad():
        made.loss(batch(), SampleRNG(0, range(4)), 0, False)
    assert seen == [2, 2, 2, 9]


def test_training_stores_the_statistics_of_each_channel_and_leaves_what_comes_back(tmp_path):
    settings = recipe(
        loss={"perceptual": {"network": "digits", "frames": 1}, "discriminator": {"start": 2, "layers": 1, "width": 4}}
    )
    torch.manual_seed(0)
    codec = settings.build()
    fit_autoencoder(settings, codec, Clips(), run=tmp_path / "run", held_out=Clips(4))
    assert isinstance(codec, VideoAutoencoderKL)
    latents = codec.encode(to_float(Clips().pixels))
    torch.testing.assert_close(latents.mean((0, 2, 3, 4)), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(latents.std((0, 2, 3, 4)), torch.ones(4), rtol=1e-2, atol=1e-3)
    assert len(set(codec.scale.tolist())) == 4
    config, again = model_folder.load_autoencoder(tmp_path / "run")
    assert isinstance(again, VideoAutoencoderKL)
    assert config.shape == (3, 9, 8, 8)
    torch.testing.assert_close(again.encode(to_float(Clips().pixels)), latents, rtol=0, atol=0)
    assert (tmp_path / "run" / "samples" / "step_000004.png").is_file()
    assert "of shape (4, 3, 2, 2)" in (tmp_path / "run" / "card.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": {"shortest": 7}}, r"lengths.min_frames = 7: must be 1 \+ a multiple of 4, .*nearest (5|9)"),
        ({"lengths": {"shortest": 13}}, r"at most the 9 frames of the videos; nearest 9"),
        ({"shape": [3, 8, 8, 8]}, r"autoencoder: 8 frames: must be 1 \+ a multiple of 4; nearest 5 or 9"),
        ({"shape": [3, 8, 8]}, r"autoencoder: clips of shape \(3, 8, 8\): must be \(3, T, H, W\)"),
        ({"loss": {"codebook": 1.0}}, r"loss.codebook_weight: a video autoencoder has no codebook"),
        ({"loss": {"discriminator": {"start": 1, "layers": 3}}}, r"layers = 3: shrinks images of 8 pixels"),
    ],
)
def test_settings_that_cannot_work_are_named(changes, message):
    with pytest.raises(RecipeError, match=message):
        recipe(**changes)


def test_lengths_are_of_clips_alone():
    codec = {
        "kind": "kl",
        "model_channels": 8,
        "channel_mult": [1],
        "num_res_blocks": 1,
        "z_channels": 2,
        "norm": "rms",
    }
    with pytest.raises(RecipeError, match="lengths: this autoencoder is for images"):
        recipe(autoencoder=codec | {"middle": "blocks"}, shape=[3, 8, 8])
