"""One batch before it is run: everything that a task may change of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from unveil.core.denoiser import Estimate, Step
from unveil.core.rng import START, Noise, Streams
from unveil.core.samplers.loop import Plan, Progress, Table, run
from unveil.core.schedule import Grid
from unveil.types import Condition, Level

# condition and null, each (B, ...) or None -> the guided, clipped step
Guided = Callable[[Condition | None, Condition | None], Step]
Ahead = Callable[[list[Level]], AbstractContextManager[None]]


@dataclass(frozen=True)
class Course:
    """What a model has made ready for one batch; whoever changes it before the run makes another task of it.

    Attributes:
        grid: from noise to data.
        planned: the sampler: a grid to its plan.
        guided: the model's step for a condition.
        condition, null: of the batch.
        streams: the random numbers of its samples.
        shape: of one sample as the network sees it, latents where the model has a codec.
        noise: noise(step, draw=0); that of step START is what the run begins with.
        ahead: lets the network work out beforehand what depends on the levels alone.
        conditioners: what makes conditions, by key, at the size of this batch.
        plain: the model's step for a condition, without guidance.
        step, plan, x: given, they are used in place of what follows from the others.
        onto: given, the run is of what is added to it, and begins at x.
    """

    grid: Grid
    planned: Callable[[Grid], Plan]
    guided: Guided
    condition: Condition | None
    null: Condition | None
    streams: Streams
    shape: tuple[int, ...]
    noise: Noise
    ahead: Ahead
    conditioners: Mapping[str, Any]
    plain: Callable[[Condition | None], Step]
    step: Step | None = None
    plan: Plan | None = None
    x: Tensor | None = None
    onto: Tensor | None = None

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.streams.samples)

    def estimating(self) -> Step:
        """The step that the run takes."""
        return self.guided(self.condition, self.null) if self.step is None else self.step

    def start(self) -> Tensor:
        """The x that the run begins at."""
        return self.grid.start(self.noise(START)) if self.x is None else self.x

    def around(self, wrap: Callable[[Step], Step]) -> Course:
        """The same with its step wrapped."""
        return replace(self, step=wrap(self.estimating()))

    def run(self, on_step: Callable[[Progress], object] | None = None) -> Tensor:
        """Carries it out: what the sampler ends at, and what that is added to, (B, *shape).

        Raises:
            NonFinite: sampling left the finite numbers.
        """
        plan = self.planned(self.grid) if self.plan is None else self.plan
        x = self.start()
        with self.ahead(list(plan.levels if isinstance(plan, Table) else self.grid)):
            x = run(plan, self.estimating(), x, noise=self.noise, on_step=on_step and self._whole(on_step))
        return x if self.onto is None else x + self.onto

    def _whole(self, on_step: Callable[[Progress], object]) -> Callable[[Progress], object]:
        """The same callback, shown estimates of the whole."""
        if (onto := self.onto) is None:
            return on_step

        def shown(progress: Progress) -> object:
            found = progress.estimate
            return on_step(progress._replace(estimate=Estimate(found.x0 + onto, found.eps, found.extra)))

        return shown
