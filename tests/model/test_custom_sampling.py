"""`Model.generate` with functions and noise of the caller in place of names."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch

from tests.model.test_model import config, shaken
from unveil.core import guidance, samplers, schedules
from unveil.core.rng import START, SampleRNG
from unveil.core.samplers import CoefficientTable, StepRow
from unveil.errors import RecipeError, ShapeError
from unveil.model import Model, build

LABELS = [0, 1, 2]


@pytest.fixture(scope="module")
def model() -> Model:
    return shaken(build(config(sample={"steps": 4}, prediction="v")))


def images(model: Model, **options: Any) -> torch.Tensor:
    return model.generate(label=LABELS, **{"steps": 3, "seed": 5, "sampler": "ddim", "threshold": "none", **options})


def ddim(schedule: schedules.Schedule) -> CoefficientTable:
    """DDIM, written by the caller."""
    rows = []
    for here, there in pairwise(schedule):
        keep = there.sigma / here.sigma
        rows.append(StepRow(here, keep, (there.alpha - keep * here.alpha,)))
    return CoefficientTable(rows)


@pytest.mark.parametrize(
    ("function", "by_name"),
    [
        (ddim, {"sampler": "ddim"}),
        (samplers.heun, {"sampler": "heun"}),
        (partial(samplers.ddim, eta=0.5), {"sampler": "ddim", "eta": 0.5}),
        (samplers.dpm_adaptive, {"sampler": "dpm-adaptive"}),
    ],
)
def test_a_sampler_function_gives_the_samples_of_its_name(model, function, by_name):
    torch.testing.assert_close(images(model, sampler=function), images(model, **by_name), atol=1e-4, rtol=1e-4)


def test_a_schedule_function_gets_process_and_steps(model):
    seen: list[tuple[Any, int]] = []

    def falling(process: Any, steps: int) -> schedules.Schedule:
        seen.append((process, steps))
        return schedules.from_times(process, [1.0, 0.7, 0.2, 0.0])

    assert torch.equal(images(model, schedule=falling), images(model, schedule=[1.0, 0.7, 0.2, 0.0]))
    assert seen == [(model.process, 3)]


@pytest.mark.parametrize("batch", [1, 3])
def test_a_guidance_function_takes_the_place_of_the_settings(model, batch):
    ours = images(model, guidance=lambda conditional, null: guidance.cfg(conditional, null, 3.0), batch=batch)
    torch.testing.assert_close(ours, images(model, guidance_scale=3.0), atol=1e-4, rtol=1e-4)
    assert torch.equal(images(model, guidance=lambda conditional, null: conditional), images(model))
    negative = {"negative_cond": {"label": 2}}
    away = images(model, guidance=lambda conditional, null: guidance.cfg(conditional, null, 3.0), **negative)
    torch.testing.assert_close(away, images(model, guidance_scale=3.0, **negative), atol=1e-4, rtol=1e-4)


def test_without_a_null_condition_the_conditional_denoiser_can_be_guided():
    condition = [{"kind": "class-label", "num_classes": 3, "drop_prob": 0.0}]
    plain = shaken(build(config(condition=condition)))
    softened = images(
        plain, guidance=lambda conditional, null: guidance.clip_static(conditional, 0.1), threshold="none"
    )
    assert float(softened.abs().max()) <= 0.1 + 1e-6
    with pytest.raises(RecipeError, match="no null condition, because it was trained without condition dropout"):
        images(plain, guidance=lambda conditional, null: guidance.cfg(conditional, null, 3.0))


def test_latents_are_the_noise_to_start_from(model):
    noise = SampleRNG(5, range(3)).normal((1, 8, 8), START)
    for sampler in ("ddim", "euler-ancestral"):
        assert torch.equal(images(model, latents=noise, sampler=sampler), images(model, sampler=sampler))
    torch.testing.assert_close(images(model, latents=noise.double(), batch=2), images(model), atol=1e-4, rtol=1e-4)
    assert not torch.equal(images(model, latents=-noise), images(model))
    assert len(model.generate(latents=noise, steps=1)) == 3, "as many samples as latents"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"latents": torch.zeros(3, 1, 8, 4)}, ShapeError, r"latents \(3, 1, 8, 4\): must be \(3, 1, 8, 8\)"),
        ({"latents": torch.zeros(2, 1, 8, 8)}, ShapeError, r"latents \(2, 1, 8, 8\): must be \(3, 1, 8, 8\)"),
        ({"latents": torch.zeros(3, 1, 8, 8), "size": (16, 8)}, ShapeError, r"must be \(3, 1, 16, 8\)"),
        ({"sampler": lambda schedule: list(schedule)}, RecipeError, "sampler: the function returned list; it must"),
        ({"schedule": lambda process, steps: [1.0, 0.0]}, RecipeError, "schedule: the function returned list"),
        ({"guidance": lambda conditional, null: None}, RecipeError, "guidance: the function returned NoneType"),
        (
            {"guidance": lambda conditional, null: lambda x, level: x},
            RecipeError,
            "guidance: the denoiser returned Tensor; it must return an Estimate",
        ),
        ({"guidance": lambda c, n: c, "guidance_scale": 2.0}, RecipeError, "guidance_scale and guidance"),
        ({"sampler": samplers.ddim, "eta": 1.0}, RecipeError, "eta with a sampler function: functools.partial"),
    ],
)
def test_what_does_not_fit_is_named(model, options, error, message):
    with pytest.raises(error, match=message):
        images(model, **options)


def test_a_gradient_moves_the_eps_of_a_sampler_function(model):
    def gradient(x: torch.Tensor, level: Any) -> torch.Tensor:
        return torch.ones_like(x)

    moved = images(model, sampler=ddim, cond_grad=gradient)
    torch.testing.assert_close(moved, images(model, cond_grad=gradient), atol=1e-4, rtol=1e-4)
    assert not torch.equal(moved, images(model))
