"""Sampling run of one batch: the schedule, sampler, denoiser and noise, which a task may change before it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.rng import START, Noise, SampleRNG
from unveil.core.samplers.loop import CoefficientTable, Plan, SamplingProgress, run
from unveil.core.schedule import Schedule
from unveil.types import Condition, NoiseLevel

# condition and null condition, each (B, ...) or None -> the denoiser with guidance and thresholding
GuidedDenoiserFactory = Callable[[Condition | None, Condition | None], DenoiseFn]
Precompute = Callable[[list[NoiseLevel]], AbstractContextManager[None]]


@dataclass(frozen=True)
class SamplingRun:
    """Prepared sampling run of one batch. Tasks replace some of its fields before it runs.

    Attributes:
        schedule: Noise levels from noise to data.
        make_plan: The sampler: makes the plan for a schedule.
        make_guided_denoiser: Makes the model's denoiser for a condition and a null condition.
        condition, null: Condition and null condition of the batch.
        streams: Random numbers of its samples.
        shape: Shape of one sample of the network, of latents if the model has an autoencoder.
        noise: noise(step, draw=0); the run begins with the noise of step START.
        precompute: Lets the network compute before the run what depends only on the noise levels.
        conditioners: Conditioners by key, at the size of this batch.
        make_denoiser: Makes the model's denoiser for a condition, without guidance.
        denoiser, plan, x: Denoiser, plan and first state; None: they follow from the other fields.
        base: Tensor that is added to the result, so that the run integrates only the residual and begins at x; or None.
    """

    schedule: Schedule
    make_plan: Callable[[Schedule], Plan]
    make_guided_denoiser: GuidedDenoiserFactory
    condition: Condition | None
    null: Condition | None
    streams: SampleRNG
    shape: tuple[int, ...]
    noise: Noise
    precompute: Precompute
    conditioners: Mapping[str, Any]
    make_denoiser: Callable[[Condition | None], DenoiseFn]
    denoiser: DenoiseFn | None = None
    plan: Plan | None = None
    x: Tensor | None = None
    base: Tensor | None = None

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.streams.samples)

    def active_denoiser(self) -> DenoiseFn:
        """Return the denoiser of the run."""
        return self.make_guided_denoiser(self.condition, self.null) if self.denoiser is None else self.denoiser

    def start(self) -> Tensor:
        """Return the state at which the run begins."""
        return self.schedule.start(self.noise(START)) if self.x is None else self.x

    def wrap_denoiser(self, wrap: Callable[[DenoiseFn], DenoiseFn]) -> SamplingRun:
        """Return the run with its denoiser wrapped."""
        return replace(self, denoiser=wrap(self.active_denoiser()))

    def run(self, on_step: Callable[[SamplingProgress], object] | None = None) -> Tensor:
        """Run the sampler and return its result, added to the base if there is one, (B, *shape).

        Raises:
            NonFinite: A state is not finite.
        """
        plan = self.make_plan(self.schedule) if self.plan is None else self.plan
        x = self.start()
        with self.precompute(list(plan.levels if isinstance(plan, CoefficientTable) else self.schedule)):
            x = run(plan, self.active_denoiser(), x, noise=self.noise, on_step=on_step and self._whole(on_step))
        return x if self.base is None else x + self.base

    def _whole(self, on_step: Callable[[SamplingProgress], object]) -> Callable[[SamplingProgress], object]:
        """Return the callback with estimates that include the base."""
        if (onto := self.base) is None:
            return on_step

        def shown(progress: SamplingProgress) -> object:
            estimate = progress.estimate
            return on_step(progress._replace(estimate=Estimate(estimate.x0 + onto, estimate.eps, estimate.extra)))

        return shown
