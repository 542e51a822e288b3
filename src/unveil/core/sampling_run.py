"""One batch before it is run: everything that a task may change of it."""

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

# condition and null, each (B, ...) or None -> the guided, clipped step
GuidedDenoiserFactory = Callable[[Condition | None, Condition | None], DenoiseFn]
Precompute = Callable[[list[NoiseLevel]], AbstractContextManager[None]]


@dataclass(frozen=True)
class SamplingRun:
    """Everything that is prepared for sampling one batch; whoever changes it before the run makes another task of it.

    Attributes:
        grid: from noise to data.
        planned: the sampler: a grid to its plan.
        guided: the model's step for a condition.
        condition, null: of the batch.
        streams: the random numbers of its samples.
        shape: of one sample as the network sees it, latents where the model has a codec.
        noise: noise(step, draw=0); that of step START is what the run begins with.
        precompute: lets the network work out beforehand what depends on the levels alone.
        conditioners: what makes conditions, by key, at the size of this batch.
        plain: the model's step for a condition, without guidance.
        step, plan, x: given, they are used in place of what follows from the others.
        onto: given, the run is of what is added to it, and begins at x.
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
        """The step that the run takes."""
        return self.make_guided_denoiser(self.condition, self.null) if self.denoiser is None else self.denoiser

    def start(self) -> Tensor:
        """The x that the run begins at."""
        return self.schedule.start(self.noise(START)) if self.x is None else self.x

    def wrap_denoiser(self, wrap: Callable[[DenoiseFn], DenoiseFn]) -> SamplingRun:
        """The same with its step wrapped."""
        return replace(self, denoiser=wrap(self.active_denoiser()))

    def run(self, on_step: Callable[[SamplingProgress], object] | None = None) -> Tensor:
        """Carries it out: what the sampler ends at, and what that is added to, (B, *shape).

        Raises:
            NonFinite: sampling left the finite numbers.
        """
        plan = self.make_plan(self.schedule) if self.plan is None else self.plan
        x = self.start()
        with self.precompute(list(plan.levels if isinstance(plan, CoefficientTable) else self.schedule)):
            x = run(plan, self.active_denoiser(), x, noise=self.noise, on_step=on_step and self._whole(on_step))
        return x if self.base is None else x + self.base

    def _whole(self, on_step: Callable[[SamplingProgress], object]) -> Callable[[SamplingProgress], object]:
        """The same callback, shown estimates of the whole."""
        if (onto := self.base) is None:
            return on_step

        def shown(progress: SamplingProgress) -> object:
            estimate = progress.estimate
            return on_step(progress._replace(estimate=Estimate(estimate.x0 + onto, estimate.eps, estimate.extra)))

        return shown
