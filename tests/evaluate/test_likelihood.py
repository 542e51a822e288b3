"""Bits per dimension over a data set."""

from __future__ import annotations

import pytest
import torch

from unveil import data
from unveil.config import load_recipe
from unveil.evaluate.likelihood import bits_per_dim
from unveil.model import Model, build
from unveil.types import MediaError, RecipeError


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    recipe = load_recipe("ddpm-digits", ["network.channels=32", "network.multipliers=[1]", "network.attention=[]"])
    return build(recipe.model)


def test_the_bound_is_the_sum_of_its_parts_and_the_batch_does_not_matter(model: Model):
    held_out = data.digits("held-out")
    calls: list[tuple[int, int]] = []
    found = bits_per_dim(model, held_out, count=6, steps=5, batch=4, on_progress=lambda *at: calls.append(at))
    assert found.terms.shape == (6, 5)
    torch.testing.assert_close(found.per_picture, found.prior + found.terms.sum(1))
    assert found.interval.value == pytest.approx(float(found.per_picture.mean()))
    assert found.interval.low <= found.interval.value <= found.interval.high
    assert calls == [(i, 10) for i in range(1, 11)]
    other = bits_per_dim(model, held_out, count=6, steps=5, batch=6)
    torch.testing.assert_close(other.per_picture, found.per_picture, rtol=1e-4, atol=1e-4)
    assert bits_per_dim(model, held_out, count=6, steps=5, seed=1).interval.value != found.interval.value


def test_what_cannot_have_a_bound_is_named(model: Model):
    with pytest.raises(MediaError, match="6 of 6 pictures have no 'label'"):
        bits_per_dim(model, data.Stored(data.digits("held-out").pixels[:6]), steps=5)
    with pytest.raises(MediaError, match="without pictures"):
        bits_per_dim(model, data.Stored(data.digits("held-out").pixels[:0]), steps=5)
    with pytest.raises(RecipeError, match="part 0 has 1000 steps, 5000 asked"):
        bits_per_dim(model, data.digits("held-out"), steps=5000)
