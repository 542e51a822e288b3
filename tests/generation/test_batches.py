"""Batches that do not fit into memory are generated one by one, with the same samples."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.generation.tiny import drawn, random_images, tiny
from unveil.conditioning.batching import in_batches
from unveil.errors import OutOfResources
from unveil.generation.generate import Request, generate
from unveil.generation.invert import invert
from unveil.model import Model

REQUEST = Request({"label": [0, 1, 2, 0, 1]}, seed=3, count=5, batch=2)


def limited(model: Model, room: int, problem: Exception) -> list[int]:
    """Let the network fail with more than `room` samples; return the list of the sizes that it was given."""
    sizes: list[int] = []

    def check(module: Any, arguments: tuple[Tensor, ...]) -> None:
        sizes.append(len(arguments[0]))
        if len(arguments[0]) > room:
            raise problem

    model.denoiser.network.register_forward_pre_hook(check)
    return sizes


@pytest.mark.parametrize(
    "problem", [torch.OutOfMemoryError("CUDA out of memory."), OutOfResources("out of memory while decoding")]
)
def test_samples_that_do_not_fit_are_generated_one_by_one(caplog, problem):
    model, steps = tiny(), []
    expected = drawn(model, REQUEST)
    sizes = limited(model, 1, problem)
    made = list(generate(model, REQUEST, on_step=lambda done, total: steps.append((done, total))))
    assert torch.allclose(torch.stack([sample.sample for sample in made]), expected, atol=1e-4)
    assert [sample.facts["place"] for sample in made] == [0] * 5, "each is its own batch"
    assert (sizes.count(2), sizes.count(1)) == (1, 5 * 6)
    assert steps == [(step + 1, 30) for step in range(30)]
    assert caplog.text.count("out of memory with 2 samples at a time; repeated one by one") == 1


def test_one_sample_that_does_not_fit_is_an_error():
    model = tiny()
    sizes = limited(model, 0, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(torch.OutOfMemoryError):
        drawn(model, REQUEST)
    assert sizes == [2, 1], "repeated once"


def test_other_errors_are_not_repeated():
    model = tiny()
    sizes = limited(model, 1, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        drawn(model, REQUEST)
    assert sizes == [2]


def test_inversions_that_do_not_fit_are_computed_one_by_one():
    model, images = tiny(), random_images(3)
    request = Request({"label": [0]}, batch=3)
    expected = invert(model, images, request).noise
    limited(model, 1, torch.OutOfMemoryError("CUDA out of memory."))
    assert torch.allclose(invert(model, images, request).noise, expected, atol=1e-4)


def test_a_failed_batch_is_not_kept_in_memory():
    kept: list[Any] = []

    def run(rows: slice, number: int, batches: int) -> slice:
        gc.collect()
        assert not [one for one in kept if one() is not None]
        values = torch.zeros(rows.stop - rows.start)
        kept.append(weakref.ref(values))
        if len(values) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return rows

    assert [rows.start for rows, _ in in_batches(3, 3, run)] == [0, 1, 2]
