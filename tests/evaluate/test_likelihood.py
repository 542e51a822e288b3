"""Bits per dimension over a data set."""

from __future__ import annotations

import copy

import pytest
import torch

from unveil import data
from unveil.core.ode_likelihood import ode_bits
from unveil.core.rng import SampleRNG
from unveil.errors import DataError, RecipeError
from unveil.evaluate.likelihood import TOLERANCE, bits_per_dim, ode_bits_per_dim
from unveil.io.images import to_unit
from unveil.model import Model, build
from unveil.model.config import load_recipe


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    recipe = load_recipe(
        "ddpm-digits", ["network.model_channels=32", "network.channel_mult=[1]", "network.attention=[]"]
    )
    return build(recipe.model)


def test_the_bound_is_the_sum_of_its_parts_and_the_batch_does_not_matter(model: Model):
    held_out = data.digits("held-out")
    calls: list[tuple[int, int]] = []
    found = bits_per_dim(model, held_out, count=6, steps=5, batch=4, on_progress=lambda *at: calls.append(at))
    assert found.terms.shape == (6, 5)
    torch.testing.assert_close(found.per_image, found.prior + found.terms.sum(1))
    assert found.interval.value == pytest.approx(float(found.per_image.mean()))
    assert found.interval.low <= found.interval.value <= found.interval.high
    assert calls == [(i, 10) for i in range(1, 11)]
    other = bits_per_dim(model, held_out, count=6, steps=5, batch=6)
    torch.testing.assert_close(other.per_image, found.per_image, rtol=1e-4, atol=1e-4)
    assert bits_per_dim(model, held_out, count=6, steps=5, seed=1).interval.value != found.interval.value


def test_the_ode_likelihood_is_the_mean_over_images_each_with_its_condition_and_noise(model: Model):
    model = copy.deepcopy(model)
    for weight in model.parameters():  # a fresh network is 0 everywhere
        weight.data += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    held_out = data.digits("held-out")
    progress: list[tuple[int, int]] = []
    found = ode_bits_per_dim(model, held_out, count=3, probes=2, batch=2, on_progress=lambda *at: progress.append(at))
    assert progress == [(2, 3), (3, 3)]
    row = 150  # the second of three out of 450
    condition, _ = model.encode({"label": [held_out[row]["label"]]}, 1)
    x0, noise = to_unit(held_out[row]["pixels"][None]), SampleRNG(0, [row]).bind((1, 8, 8))
    alone = ode_bits(model.denoise_fn(condition), model.process, x0, noise=noise, probes=2, tolerance=TOLERANCE)
    assert float(found.per_image[1]) == pytest.approx(float(alone.value), rel=1e-3)
    assert found.interval.value == pytest.approx(float(found.per_image.mean()))
    assert 0 < found.error < found.interval.value
    with pytest.raises(RecipeError, match="probe"):
        ode_bits_per_dim(model, held_out, count=1, probes=0)


def test_what_cannot_have_a_bound_is_named(model: Model):
    with pytest.raises(DataError, match="6 of 6 images have no 'label'"):
        bits_per_dim(model, data.ImageTensorDataset(data.digits("held-out").pixels[:6]), steps=5)
    with pytest.raises(DataError, match="without images"):
        bits_per_dim(model, data.ImageTensorDataset(data.digits("held-out").pixels[:0]), steps=5)
    with pytest.raises(RecipeError, match="part 0 has 1000 steps, 5000 requested"):
        bits_per_dim(model, data.digits("held-out"), steps=5000)
