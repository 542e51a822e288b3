"""What a sampler returns, and the one loop that carries it out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from unveil.core.denoiser import Estimate, Step
from unveil.core.noise import Noise
from unveil.core.real import Number
from unveil.types import Level, RecipeError, like


class State(NamedTuple):
    """Where a run stands; saved, it can go on later. past: the x0 of earlier calls, newest first."""

    x: Tensor
    past: tuple[Tensor, ...] = ()
    number: int = 0


class Progress(NamedTuple):
    """What a run shows after each step. x is overwritten by later steps: clone it to keep it."""

    state: State
    total: int
    level: Level
    estimate: Estimate


class Plan(Protocol):
    """The steps of a run, worked out from a grid."""

    @property
    def levels(self) -> Sequence[Level]:
        """The level of every network call, in order."""
        ...

    def __len__(self) -> int:
        """The number of steps."""
        ...

    def advance(self, state: State, step: Step, noise: Noise | None, out: Tensor) -> tuple[State, Estimate]:
        """One step; `out` is a buffer like x that may be written, or x itself when nobody will look at it again."""
        ...


class Row(NamedTuple):
    """One step: x <- keep x + sum(gains[j] * x0 of j calls ago) + noise z; level is that of the call."""

    level: Level
    keep: Number
    gains: tuple[Number, ...]
    noise: Number = 0.0


class Table:
    """A plan of rows of coefficients."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self.levels = [row.level for row in self.rows]
        self._depth = max(len(row.gains) for row in self.rows)

    def __len__(self) -> int:
        """The number of steps."""
        return len(self.rows)

    def advance(self, state: State, step: Step, noise: Noise | None, out: Tensor) -> tuple[State, Estimate]:
        """Row `state.number` applied.

        Raises:
            RecipeError: the row adds noise and no source of it was given.
        """
        level, keep, gains, amount = self.rows[state.number]
        x, past = state.x, state.past
        estimate = step(x, level)
        if self._depth > 1:
            past = (estimate.x0, *past)[: self._depth]
        if isinstance(keep, Tensor):
            gained = estimate.x0 * like(gains[0], x)
            new = torch.mul(x, like(keep, x), out=out).add_(gained)
        else:
            new = estimate.mix(x, keep, gains[0], out)  # type: ignore[arg-type]  # one kind of number per row
        for gain, x0 in zip(gains[1:], past[1:], strict=False):
            new.add_(x0 * like(gain, x))
        if isinstance(amount, Tensor) or amount != 0:
            new.add_(_drawn(noise, state.number).to(new.dtype) * like(amount, new))
        return State(new, past[: self._depth - 1], state.number + 1), estimate


def run(
    plan: Plan,
    step: Step,
    x: Tensor | State,
    *,
    noise: Noise | None = None,
    on_step: Callable[[Progress], object] | None = None,
) -> Tensor:
    """Carry out a plan: from x at its first level to the sample at its last.

    Args:
        plan: what a sampler returned.
        step: the guided estimate.
        x: (B, ...) as `grid.start(noise)` gives it, or the `State` of a run that was left half-way.
        noise: noise(step, draw=0), for plans that add some.
        on_step: called after each step; to stop, let it raise `types.Cancelled`.

    Raises:
        RecipeError: the plan adds noise and no source of it was given.
    """
    state = x if isinstance(x, State) else State(x)
    total = len(plan)
    with torch.no_grad():
        # one buffer is enough, unless somebody looks at x and the estimate after the step
        spare = [torch.empty_like(state.x)] * 2 if on_step is None else [torch.empty_like(state.x) for _ in range(2)]
        while state.number < total:
            level = plan.levels[state.number] if on_step else None
            state, estimate = plan.advance(state, step, noise, spare[state.number & 1])
            if on_step is not None and level is not None:
                on_step(Progress(state, total, level, estimate))
    return state.x


def _drawn(noise: Noise | None, number: int) -> Tensor:
    if noise is None:
        raise RecipeError("this sampler adds noise: pass noise=, for example Streams(seed, samples).bind(shape)")
    return noise(number)
