"""The cost of a request is its number of network calls, for any settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from unveil.errors import RecipeError
from unveil.io.images import png
from unveil.server.jobs.catalog import RUNS, Catalog
from unveil.server.jobs.job_types import JobTooLarge, job_cost
from unveil.server.jobs.outputs import UploadStore

SIDE = 28
PIXELS = SIDE * SIDE / 1e6  # millions
PC = {"sampler": "pc-reverse-diffusion"}


@pytest.fixture
def cost(queue, inputs: UploadStore):
    """Return the cost of an image request in network calls; the model's default is 20 steps."""

    def weigh(sampling: Mapping[str, Any], budget: float | None = None, task: str = "sample", **more: Any) -> float:
        request = {"model": "ddpm-digits", "width": SIDE, "height": SIDE, "sampling": sampling, **more}
        return job_cost(task, request, Catalog(queue.folder / RUNS), inputs, budget) / PIXELS

    return weigh


@pytest.mark.parametrize(
    ("sampling", "calls"),
    [
        ({}, 20),
        ({"steps": 7}, 7),
        ({"steps": 1, "schedule": [1 - n / 4000 for n in range(4000)]}, 4000),
        ({"steps": 1, "schedule": "250"}, 250),
        ({"steps": 1, "schedule": "100,100,50"}, 250),
        ({"steps": 1, "schedule": "ddim25"}, 25),
        ({"steps": 5, "schedule": "trailing"}, 5),
        ({"steps": 5, "sampler": "heun"}, 10),
        ({"steps": 5, **PC}, 10),
        ({"steps": 5, **PC, "options": {"corrections": 9}}, 50),
        ({"steps": 5, "sampler": "annealed-langevin", "options": {"each": 40}}, 200),
        ({"steps": 5, "sampler": "dpm-solver-2", "options": {"orders": 3}}, 15),
        ({"steps": 5, "sampler": "dpmpp-grouped", "options": {"orders": 3}}, 5),
        ({"steps": 5, "sampler": "dpm-fast", "options": {"calls": 300}}, 300),
    ],
)
def test_the_cost_is_the_number_of_network_calls(cost, sampling, calls: int):
    assert cost(sampling) == pytest.approx(calls)


def test_a_sampler_that_chooses_its_steps_costs_no_less_than_it_takes(cost):
    assert cost({"steps": 1, "sampler": "dpm-adaptive"}) > 100


@pytest.mark.parametrize(("verb", "steps", "calls"), [("inpaint", 250, 2410), ("outpaint", 50, 410)])
def test_repeated_steps_are_counted_each_time(cost, inputs: UploadStore, verb: str, steps: int, calls: int):
    sent = inputs.store(png(torch.zeros(1, 28, 28, dtype=torch.uint8))).name
    edit = {"task": verb, "image": sent, **({"mask": sent} if verb == "inpaint" else {})}
    plain, again = (cost({"steps": steps}, **edit, method=way) for way in ("replace", "repaint"))
    assert (plain, again) == (pytest.approx(steps), pytest.approx(calls))


@pytest.mark.parametrize(
    "sampling",
    [
        {"steps": 10_000},
        {"steps": 1, "schedule": [1 - n / 10_000 for n in range(10_000)]},
        {"steps": 10, **PC, "options": {"corrections": 1000}},
        {"steps": 10, "sampler": "langevin", "options": {"each": 1000}},
    ],
)
def test_requests_over_the_budget_are_refused_in_every_form(cost, sampling):
    with pytest.raises(JobTooLarge, match="megapixel evaluations, and a job may take 5"):
        cost(sampling, budget=5.0)
    assert cost({"steps": 100}, budget=5.0) == pytest.approx(100)  # control


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"steps": 10**9}, "1e[+]09 network evaluations per sample; at most 100,000"),
        ({"steps": 20, **PC, "options": {"corrections": 9_000}}, "1.8e[+]05 network"),
        ({**PC, "options": {"corrections": 10**9}}, "corrections = 1000000000: must be a whole number from 0"),
        ({**PC, "options": {"corrections": 1.5}}, "a valid integer"),
        ({**PC, "options": {"corrections": -1}}, "a whole number"),
        ({**PC, "options": {"snr": 1e300}}, "a number of at most 10,000"),
        ({**PC, "options": {"snr": "x"}}, "a valid number"),
        (
            {**PC, "options": {"predictor": "ancestral"}},
            "predictor: sampler .* takes no such setting",
        ),
        (
            {"sampler": "dpm-adaptive", "options": {"tolerance": 1}},
            "tolerance: sampler .* takes no such setting",
        ),
        ({"sampler": "dpm-adaptive", "options": {"eta": 100.0}}, "eta = 100.0: must be a number of at most 1"),
        ({"sampler": "dpm-adaptive", "options": {"of": "v"}}, "should be 'x0' or 'eps'"),
    ],
)
def test_settings_that_never_end_are_refused(cost, sampling, message: str):
    with pytest.raises(RecipeError, match=message):
        cost(sampling)


def test_a_video_costs_its_frames(queue, inputs: UploadStore):
    request = {"prompt": "a ring", "frames": 8, "width": 16, "height": 16, "steps": 5}
    found = job_cost("video-generate", request, Catalog(queue.folder / RUNS), inputs)
    assert found == pytest.approx(5 * 8 * 16 * 16 / 1e6)
