"""Plans, which samplers return, the loop that executes them, and the sampling of one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.elementary import scalar
from unveil.core.rng import START, Noise, SampleRNG
from unveil.core.schedules import Schedule
from unveil.errors import NonFinite, RecipeError
from unveil.types import Condition, NoiseLevel, like

REMEDY = "set threshold = static, use more steps, or dtype float32"
ZERO = scalar(0.0)
SPARSE = 4  # x is looked at after 1, 4, 16, 64 ... steps and at the end: each look waits for the device


class SamplerState(NamedTuple):
    """State of a run; a saved run can be resumed from it.

    past: the x0 (or eps) of earlier calls, newest first. saved_x: the x that a row saved, for rows that go back to it.
    integrator_state: State of a plan with adaptive steps, such as its position and its next width.
    """

    x: Tensor
    past: tuple[Tensor, ...] = ()
    number: int = 0
    saved_x: Tensor | None = None
    integrator_state: tuple[float, ...] = ()


class SamplingProgress(NamedTuple):
    """State that a run shows after each network call. x is overwritten by later steps: clone it to keep it.

    total is the number of rows, or None if the plan does not know it before the run.
    """

    state: SamplerState
    total: int | None
    level: NoiseLevel
    estimate: Estimate


class StepResult(NamedTuple):
    """Result of one step of a plan: the level and the estimate of its call are None where it made none."""

    state: SamplerState
    level: NoiseLevel | None
    estimate: Estimate | None


class Plan(Protocol):
    """Steps of a run, computed from a schedule before the run, or during the run."""

    @property
    def total(self) -> int | None:
        """The number of steps; None where it depends on the estimates."""
        ...

    def is_done(self, state: SamplerState) -> bool:
        """Return True if the run has ended."""
        ...

    def advance(self, state: SamplerState, step: DenoiseFn, noise: Noise | None, out: Tensor) -> StepResult:
        """One step; `out` is a buffer like x that may be written, or x itself if x is not used again."""
        ...


class StepRow(NamedTuple):
    """One step: x <- keep x + sum(gains[j] * q of j calls ago) + saved_gain * saved_x + noise z.

    q is what the table combines, x0 or eps. level is that of the call, whose estimate is q of 0 calls ago; None: this
    row makes no call, and has no gains. saves_x: this row's x, as it was at the call, is
    the saved_x of later rows.
    span: the levels between which z is the increment of a Brownian path, where it differs from a fresh draw.
    """

    level: NoiseLevel | None
    keep: Tensor
    gains: tuple[Tensor, ...] = ()
    noise: Tensor = ZERO
    saved_gain: Tensor = ZERO
    saves_x: bool = False
    span: tuple[NoiseLevel, NoiseLevel] | None = None


def rows_of(
    levels: Sequence[NoiseLevel | None],
    keep: Tensor,
    gains: Sequence[Tensor] = (),
    noise: Tensor = ZERO,
    *,
    saved_gain: Tensor = ZERO,
    saves_x: bool = False,
    spans: Sequence[tuple[NoiseLevel, NoiseLevel]] | None = None,
    counts: Tensor | None = None,
) -> list[StepRow]:
    """The rows of tables of coefficients, whose first axis counts the levels; a 0-d one is that of every row.

    Args:
        levels: Noise levels of the rows' calls.
        keep: Factors of x, one for each row.
        gains: Gains on the newest estimate, the one before it and so on.
        noise: Factors of the noise, one for each row.
        saved_gain: Factors of the saved x, one for each row.
        saves_x: True if every row saves its x.
        spans: Levels of each row between which its noise is the increment of a Brownian path.
        counts: Number of gains of each row; None: all.
    """
    size = len(levels)
    columns = zip(
        levels,
        _by_row(keep, size),
        zip(*(_by_row(gain, size) for gain in gains), strict=True) if gains else [()] * size,
        _by_row(noise, size),
        _by_row(saved_gain, size),
        [saves_x] * size,
        spans or [None] * size,
        strict=True,
    )
    rows = list(map(StepRow._make, columns))
    if counts is None:
        return rows
    return [row._replace(gains=row.gains[:count]) for row, count in zip(rows, counts.tolist(), strict=True)]


def in_order(*parts: Sequence[StepRow | Sequence[StepRow]]) -> list[StepRow]:
    """The rows of all steps, of which each part has some: a row, or a list of rows."""
    rows: list[StepRow] = []
    for step in zip(*parts, strict=True):
        for part in step:
            rows += [part] if isinstance(part, StepRow) else part
    return rows


def with_noise(
    steps: Sequence[Sequence[StepRow]], noise: Tensor, spans: Sequence[tuple[NoiseLevel, NoiseLevel]] | None
) -> list[StepRow]:
    """The rows of steps, each of which adds noise of a column at its end."""
    noises, size = _by_row(noise, len(steps)), len(steps)
    last = [
        rows[-1]._replace(noise=each, span=span)
        for rows, each, span in zip(steps, noises, spans or [None] * size, strict=True)
    ]
    return in_order([rows[:-1] for rows in steps], last)


def in_any_part(mask: Tensor) -> Tensor:
    """True for each step of a table of masks that is True in some part of x, (N,)."""
    return mask.reshape(len(mask), -1).any(1)


def _by_row(column: Tensor, size: int) -> Sequence[Tensor]:
    return column.unbind() if column.ndim else [column] * size


class _Factor(NamedTuple):
    """A coefficient as the loop multiplies with it: a Python number, or a tensor where parts of x differ."""

    number: float
    parts: Tensor | None

    @classmethod
    def of(cls, value: Tensor) -> _Factor:
        return cls(math.nan, value) if value.ndim else cls(value.item(), None)

    def add_to(self, x: Tensor, other: Tensor) -> None:
        """Add the factor times `other` to x."""
        if self.parts is not None:
            x.add_(other * like(self.parts, x))
        elif self.number != 0:
            x.add_(other, alpha=self.number)


class _Factors(NamedTuple):
    """The coefficients of a row; `gains` are those of earlier calls."""

    keep: _Factor
    gain: _Factor
    gains: tuple[_Factor, ...]
    noise: _Factor
    saved_gain: _Factor

    @classmethod
    def of(cls, row: StepRow) -> _Factors:
        keep, noise, saved_gain = (_Factor.of(value) for value in (row.keep, row.noise, row.saved_gain))
        gain, *gains = (_Factor.of(value) for value in row.gains or (ZERO,))
        if keep.parts is not None or gain.parts is not None:
            keep, gain = (_Factor(math.nan, value) for value in (row.keep, row.gains[0] if row.gains else ZERO))
        return cls(keep, gain, tuple(gains), noise, saved_gain)


class CoefficientTable:
    """A plan of rows of coefficients.

    Args:
        rows: Rows, in order. The noise of a row is noise(number of the row).
        of: Estimate that the gains combine, "x0" or "eps"; use eps if a row reaches back to an eps whose x is gone.
    """

    def __init__(self, rows: Iterable[StepRow], of: Literal["x0", "eps"] = "x0") -> None:
        self.rows = list(rows)
        self.of: Literal["x0", "eps"] = of
        self._factors = [_Factors.of(row) for row in self.rows]
        self._depth = max((len(row.gains) for row in self.rows), default=0)

    @property
    def levels(self) -> list[NoiseLevel]:
        """The level of every network call, in order: known before the run."""
        return [row.level for row in self.rows if row.level is not None]

    @property
    def total(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def is_done(self, state: SamplerState) -> bool:
        """Return True if every row was applied."""
        return state.number >= len(self.rows)

    def advance(self, state: SamplerState, step: DenoiseFn, noise: Noise | None, out: Tensor) -> StepResult:
        """Row `state.number` applied.

        Raises:
            RecipeError: The row adds noise and there is no source of it.
        """
        row, factors = self.rows[state.number], self._factors[state.number]
        x, past = state.x, state.past
        estimate = None if row.level is None else step(x, row.level)
        if row.saves_x or out is state.saved_x:
            out = torch.empty_like(x)  # a saved x stays as it is
        if estimate is None:
            new = torch.mul(x, like(row.keep, x), out=out)
        else:
            if self._depth > 1:  # computed before `out`, which may be the x that it is made of, is written
                past = (self._quantity(estimate), *past)[: self._depth]
            new = self._combined(estimate, x, factors, out)
            for gain, earlier in zip(factors.gains, past[1:], strict=False):
                gain.add_to(new, earlier)
        if state.saved_x is not None:
            factors.saved_gain.add_to(new, state.saved_x)
        if factors.noise.number != 0:  # nan where parts of x differ
            factors.noise.add_to(new, draw_noise(noise, state.number).to(new.dtype))
        # between calls the newest entry is the next call's neighbour; a row without one leaves the past alone
        past = past[: self._depth - 1] if self._depth > 1 else ()
        following = SamplerState(new, past, state.number + 1, x if row.saves_x else state.saved_x)
        return StepResult(following, row.level, estimate)

    def _quantity(self, estimate: Estimate) -> Tensor:
        return estimate.x0 if self.of == "x0" else estimate.eps

    def _combined(self, estimate: Estimate, x: Tensor, factors: _Factors, out: Tensor) -> Tensor:
        keep, gain = factors.keep, factors.gain
        if keep.parts is not None and gain.parts is not None:
            gained = self._quantity(estimate) * like(gain.parts, x)
            return torch.mul(x, like(keep.parts, x), out=out).add_(gained)
        return estimate.mix(x, keep.number, gain.number, out, of=self.of)


def run(
    plan: Plan,
    step: DenoiseFn,
    x: Tensor | SamplerState,
    *,
    noise: Noise | None = None,
    on_step: Callable[[SamplingProgress], object] | None = None,
) -> Tensor:
    """Run a plan, from x at its first level to the sample at its last.

    Args:
        plan: Plan that a sampler returned.
        step: Guided denoiser.
        x: (B, ...) as `Schedule.start(noise)` gives it, or the `SamplerState` of a run that was left half-way.
        noise: noise(step, draw=0), for plans that add some.
        on_step: Function that is called after each step; to stop, let it raise `errors.Cancelled`.

    Raises:
        RecipeError: The plan adds noise and there is no source of it.
        NonFinite: x is not finite; the error names the step and the level.
    """
    state = start = x if isinstance(x, SamplerState) else SamplerState(x)
    taken, due = 0, 1
    with torch.no_grad():
        # one buffer is enough, unless somebody looks at x and the estimate after the step
        spare = [torch.empty_like(state.x)] * 2 if on_step is None else [torch.empty_like(state.x) for _ in range(2)]
        while not plan.is_done(state):
            state, level, estimate = plan.advance(state, step, noise, spare[state.number & 1])
            taken += 1
            if taken == due:
                due *= SPARSE
                if not _is_finite(state.x):
                    raise _blamed(plan, step, start, noise, taken)
            if on_step is not None and level is not None and estimate is not None:
                on_step(SamplingProgress(state, plan.total, level, estimate))
        if not _is_finite(state.x):
            raise _blamed(plan, step, start, noise, taken)
    return state.x


def _is_finite(x: Tensor) -> bool:
    """Return True if all of x is finite; a sum is the cheapest test."""
    return math.isfinite(x.sum(dtype=torch.float32)) or bool(torch.isfinite(x).all())


def _blamed(plan: Plan, step: DenoiseFn, state: SamplerState, noise: Noise | None, most: int) -> NonFinite:
    """Return the error that names the step that became non-finite; the run is repeated with every call checked."""
    place = ""

    def watched(x: Tensor, level: NoiseLevel) -> Estimate:
        nonlocal place
        estimate = step(x, level)
        if not _is_finite(estimate.x0):
            raise NonFinite(f"{place}: the network's estimate at {_words(level)} is not finite; {REMEDY}")
        return estimate

    try:
        for k in range(most):
            place = f"step {k + 1}" if plan.total is None else f"step {k + 1} of {plan.total}"
            state, level, _ = plan.advance(state, watched, noise, torch.empty_like(state.x))
            if not _is_finite(state.x):
                where = "" if level is None else f" from {_words(level)}"
                return NonFinite(f"{place}: x left the finite numbers{where}; {REMEDY}")
    except NonFinite as error:
        return error
    return NonFinite(f"x left the finite numbers within {most} steps, but not when they were repeated; {REMEDY}")


def _words(level: NoiseLevel) -> str:
    t, ratio = (number.max().item() for number in (level.t, level.half_log_snr))
    return f"t = {t:.6g} (log(alpha / sigma) = {ratio:.4g})"


def draw_noise(noise: Noise | None, number: int) -> Tensor:
    """Standard normal noise of step `number`.

    Raises:
        RecipeError: The plan adds noise, and its source is missing.
    """
    if noise is None:
        raise RecipeError("this sampler adds noise: pass noise=, for example Streams(seed, samples).bind(shape)")
    return noise(number)


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
            NonFinite: x is not finite; the error names the step and the level.
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
