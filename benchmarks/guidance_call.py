"""Classifier-free guidance: conditional and unconditional prediction in one batched network call, against two calls.

The network of `ddpm-fashion` at batch 1 and 16, 5 steps. Small batches gain by one call: they leave parts of a
machine idle. The CPU is full at a few samples, so that `guidance.together` takes two calls beyond 8 there.
"""

from __future__ import annotations

from collections.abc import Callable

import harness
import torch

from unveil.core import guidance, samplers, schedules
from unveil.core.rng import START, SampleRNG
from unveil.model import build
from unveil.model.config import Recipe, load_recipe

STEPS = 5


def timed(batched: bool, batch: int) -> Callable[[], dict[str, float]]:
    """A case: CPU seconds of one guided run."""

    def case() -> dict[str, float]:
        torch.manual_seed(0)
        recipe = load_recipe("ddpm-fashion")
        assert isinstance(recipe, Recipe)
        model = build(recipe.model).eval()
        condition, null = model.encode({"label": 3}, batch)
        assert condition is not None
        assert null is not None
        steps = (
            guidance.batch_cond_uncond(model.denoiser, condition, null)
            if batched
            else [model.denoise_fn(condition), model.denoise_fn(null)]
        )
        guided = guidance.cfg(steps[0], steps[1], 3.0)
        schedule = schedules.uniform(model.process, STEPS)
        x = schedule.start(SampleRNG(0, range(batch)).normal(model.shape, START))
        plan = samplers.ddim(schedule)
        return harness.measure(lambda: samplers.run(plan, guided, x), repeats=6)

    return case


CASES = {
    f"{name}-b{batch}": timed(batched, batch)
    for batch in (1, 16)
    for name, batched in (("two-calls", False), ("one-call", True))
}
RATIOS = [harness.Ratio(f"one call against two, batch {b}", f"one-call-b{b}", f"two-calls-b{b}") for b in (1, 16)]

if __name__ == "__main__":
    harness.main("guidance_call", CASES, RATIOS)
