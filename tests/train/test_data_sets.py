"""Training on what data sets of users yield gives the weights of training on dicts of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train import tiny
from unveil import train
from unveil.core.denoiser import Denoiser
from unveil.core.objective import DiffusionLoss
from unveil.core.process import CosineVP
from unveil.errors import RecipeError, ShapeError

IMAGES = tiny.Images()
ITEMS = [IMAGES[n] for n in range(len(IMAGES))]


def stream() -> Iterator[Any]:
    yield from ((item["pixels"].permute(1, 2, 0).numpy(), item["label"]) for item in ITEMS)


def fit(run: Path, dataset: Any, **options: Any) -> list[torch.Tensor]:
    model = tiny.model()
    config = tiny.config(steps=2, grad_accum_steps=1)
    train.fit(model, dataset, objective=DiffusionLoss(), config=config, run=run, held_out=dataset, **options)
    return [tensor.clone() for tensor in model.state_dict().values()]


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> list[torch.Tensor]:
    return fit(tmp_path_factory.mktemp("dicts") / "run", IMAGES)


@pytest.mark.parametrize(
    ("dataset", "options"),
    [
        ([(item["pixels"], item["label"]) for item in ITEMS], {}),
        (stream, {}),
        ([(item["pixels"].double(), item["label"]) for item in ITEMS], {"value_range": (0, 255)}),
    ],
)
def test_weights_are_those_of_dicts(tmp_path, expected, dataset, options):
    for one, other in zip(fit(tmp_path / "run", dataset, **options), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_what_does_not_fit_is_named_before_anything_is_written(tmp_path):
    floats = [(item["pixels"].float(), item["label"]) for item in ITEMS]
    with pytest.raises(ShapeError, match=r"floats from 0 to 25\d in 16 items.* give value_range=\(0, 255\)"):
        fit(tmp_path / "run", floats)
    with pytest.raises(RecipeError, match=r"item 0 is \(Tensor\); the model takes \(pixels, label\)"):
        fit(tmp_path / "run", [item["pixels"] for item in ITEMS])
    assert not (tmp_path / "run").exists()


def test_a_run_with_another_range_does_not_resume(tmp_path):
    fit(tmp_path / "run", ITEMS, value_range=(0, 255))
    with pytest.raises(RecipeError, match=r"value_range.1: 255 there, 256 now"):
        fit(tmp_path / "run", ITEMS, value_range=(0, 256))


def test_a_network_alone_takes_tuples_of_arrays(tmp_path):
    denoiser = Denoiser(tiny.Net(), CosineVP())
    config = tiny.config(steps=1, grad_accum_steps=1)
    train.fit(denoiser, stream, objective=DiffusionLoss(), config=config, run=tmp_path / "run")
