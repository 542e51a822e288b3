"""Recipes with EDM's networks and preconditionings: they build, train a step, sample, and name their mistakes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unveil.core import preconditioning
from unveil.core.objective import DiffusionLoss
from unveil.core.rng import SampleRNG
from unveil.errors import RecipeError
from unveil.model import build
from unveil.model.config import ModelConfig, dump, read_yaml, validate
from unveil.nn.edm_unet import DhariwalUNet, SongUNet

SONG = {"kind": "song-unet", "model_channels": 16, "channel_mult": [1, 2], "num_res_blocks": 1, "filter": [1, 3, 3, 1]}
BASE: dict[str, Any] = {
    "shape": [2, 8, 8],
    "network": SONG,
    "process": {"kind": "edm"},
    "prediction": {"kind": "edm", "sigma_data": 0.6},
    "condition": [{"kind": "class-label", "num_classes": 3, "drop_prob": 0.1}],
}
RECIPES = {
    "edm": BASE,
    "ve": BASE
    | {
        "network": SONG | {"embedding": "fourier", "noise_multiplier": 2, "encoder": "residual"},
        "process": {"kind": "ve"},
        "prediction": {"kind": "ve"},
    },
    "vp": BASE | {"process": {"kind": "linear-vp"}, "prediction": {"kind": "vp"}},
    "adm": BASE
    | {
        "network": {
            "kind": "dhariwal-unet", "model_channels": 16, "channel_mult": [1, 2], "num_res_blocks": 1, "attention": [],
            "head_channels": 16,
        },
        "process": {"kind": "discrete-vp", "beta_schedule": "cosine", "timesteps": 100},
        "prediction": {"kind": "iddpm", "steps": 100},
        "variance": "learned-range",
    },
    "consistency": BASE | {"prediction": {"kind": "consistency"}},
}  # fmt: skip


def made(plain: dict[str, Any]) -> ModelConfig:
    return validate(ModelConfig, plain, "recipe")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_learns_and_samples(name):
    config = made(RECIPES[name])
    assert validate(ModelConfig, read_yaml(dump(config), "again"), "again") == config
    torch.manual_seed(0)
    model = build(config)
    assert isinstance(model.denoiser.network, DhariwalUNet if name == "adm" else SongUNet)
    x0 = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    streams = SampleRNG(0, range(4))
    trained = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        condition, _ = model.encode({"label": [0, 1, 2, 0]})
        loss = DiffusionLoss()(model.denoiser, x0, condition, streams, 0)
        losses.append(loss.per_sample.mean().item())
        trained.zero_grad()
        loss.value.backward()
        trained.step()
    assert losses[-1] < losses[0]
    assert torch.isfinite(model.generate(count=2, seed=0, steps=3, cond={"label": 1})).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": "epz"}, "prediction = 'epz': must be one of x0, eps, .*; nearest: 'eps'"),
        ({"prediction": {"kind": "emd"}}, "prediction.kind = 'emd': must be one of .*; nearest: 'edm'"),
        ({"prediction": {"kind": "edm", "sigma": 1}}, "prediction.sigma: unknown key; nearest: 'sigma_data'"),
        ({"prediction": 3}, "prediction = 3: needs a map with a kind; allowed: vp, ve, iddpm, edm, consistency"),
        ({"network": SONG | {"encoder": "skipp"}}, "network.encoder = 'skipp': must be one of .*; nearest: 'skip'"),
        ({"network": SONG | {"filter": [1, 2, 1]}}, "network: taps .* must be an even number and symmetric"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(RecipeError, match=message):
        made(BASE | change)


def test_a_prediction_is_a_name_or_a_map():
    assert made(BASE | {"prediction": "v"}).prediction == "v"
    config = made(BASE)
    assert config.build_prediction(config.process.build()) == preconditioning.EDMPreconditioning(0.6)
    assert "prediction: {kind: edm, sigma_data: 0.6, index_scale: 1.0}" in dump(config)
