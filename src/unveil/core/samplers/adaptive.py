"""DPM-Solver with error control: two embedded orders share their calls, and their difference sets the next width.

Every sample has its own clock, so that a batch never couples its members; a norm over the whole batch, as in the
published codes, gives all of them the same steps. The clocks are part of the `SamplerState`: a run can be interrupted
and resumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.core import elementary
from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.elementary import where
from unveil.core.rng import Noise
from unveil.core.samplers.coefficients import (
    Of,
    Rule,
    at_half_log_snr,
    between,
    delta_lambda,
    exact,
    half_log_snr,
    select_level,
)
from unveil.core.samplers.loop import CoefficientTable, SamplerState, StepResult, draw_noise
from unveil.core.samplers.registry import SamplerSpec
from unveil.core.samplers.runge_kutta import sigma_down
from unveil.core.samplers.stages import clamp_level, first_with_signal, last_noisy, last_stage_only, stage, stages
from unveil.core.samplers.step_size import (
    Controller,
    IController,
    PIDController,
    Tolerance,
    batch_norm,
    data_unit,
    max_error,
    per_sample_norm,
    x_unit,
)
from unveil.core.schedules import Schedule
from unveil.errors import NonFinite, RecipeError
from unveil.types import NoiseLevel, like

__all__ = [
    "SAMPLERS",
    "AdaptivePlan",
    "IController",
    "PIDController",
    "Tolerance",
    "batch_norm",
    "data_unit",
    "dpm_adaptive",
    "max_error",
    "per_sample_norm",
    "x_unit",
]


def dpm_adaptive(
    schedule: Schedule,
    order: int = 3,
    *,
    of: Of = "eps",
    tolerance: Tolerance | None = None,
    control: Controller | None = None,
    rule: Rule = last_stage_only,
    eta: float = 0.0,
    noise_scale: float = 1.0,
) -> AdaptivePlan:
    """DPM-Solver-12 or -23 with adaptive steps: `order` calls for each attempt, shared by both orders.

    Args:
        schedule: Schedule, of which only the ends count. Steps that touch alpha = 0 or clean data are made at first
            order.
        order: 2 compares with order 1, 3 with order 2.
        of: "eps" is DPM-Solver, "x0" DPM-Solver++.
        tolerance: None: the published one, every sample by itself.
        control: None: `PIDController()`.
        rule: Rule of the last stage, `last_stage_only` or `exact`.
        eta: Share of the ancestral noise that is added after each step.
        noise_scale: Factor of the noise.

    Raises:
        RecipeError: The order is not 2 or 3, a tolerance is not positive, or eps starts at alpha = 0.

    Source: Lu et al. 2022, the adaptive step size algorithm (arXiv:2206.00927); `PIDController` as in k-diffusion.
    """
    tolerance = tolerance or Tolerance()
    if order not in (2, 3):
        raise RecipeError(f"order = {order}: an adaptive solver has 2 (with 1 inside it) or 3 (with 2)")
    if not (tolerance.absolute > 0 and tolerance.relative >= 0):
        raise RecipeError(
            f"tolerance: absolute = {tolerance.absolute}, relative = {tolerance.relative}; must be above 0, and not "
            "below 0"
        )
    return AdaptivePlan(
        schedule, EmbeddedPair(order, of, rule, eta, noise_scale), tolerance, control or PIDController()
    )


class EmbeddedPair(NamedTuple):
    """Two orders of the single-step solver from the same calls."""

    order: int
    of: Of
    rule: Rule
    eta: float
    noise_scale: float

    def attempt(self, step: DenoiseFn, x: Tensor, nodes: Sequence[NoiseLevel]) -> tuple[Tensor, Tensor, Estimate]:
        """Step from the first level to the last: x at the lower order and at the higher one, and the first estimate."""
        called: list[Estimate] = []
        at = x
        for i in range(self.order):
            called.append(step(at, nodes[i]))
            if i + 1 < self.order:
                at = self._moved(x, nodes[: i + 2], exact, called)
        low = self._moved(x, [*nodes[: self.order - 1], nodes[-1]], self.rule, called)
        return low, self._moved(x, nodes, self.rule, called), called[0]

    def _moved(self, x: Tensor, nodes: Sequence[NoiseLevel], rule: Rule, called: Sequence[Estimate]) -> Tensor:
        keep, weights, _ = stage(nodes, self.of, rule)
        moved = like(keep, x) * x
        for weight, estimate in zip(weights, called, strict=False):
            moved = moved + like(weight, x) * (estimate.x0 if self.of == "x0" else estimate.eps)
        return moved


class IntegratorState(NamedTuple):
    """Position of each sample and state of its controller, (B,) float64 each."""

    place: Tensor
    width: Tensor
    last: Tensor
    before: Tensor

    @classmethod
    def read(cls, numbers: Sequence[float]) -> IntegratorState:
        """Read the state from the numbers of `SamplerState.integrator_state`."""
        return cls(*torch.tensor(numbers, dtype=torch.float64).reshape(4, -1).clone())

    def written(self) -> tuple[float, ...]:
        """Return the state as the numbers of `SamplerState.integrator_state`."""
        return tuple(torch.cat(self).tolist())


class AdaptivePlan:
    """The plan of `dpm_adaptive`: a step's width depends on the error of the one before it.

    `SamplerState.integrator_state` is empty at first, then the stage (0: on the way, 1: over) and the samples'
    `IntegratorState`.
    `SamplerState.past` is x of the lower order after each sample's last good step, in the tolerance's unit.
    """

    def __init__(self, schedule: Schedule, pair: EmbeddedPair, tolerance: Tolerance, control: Controller) -> None:
        self.schedule, self.pair, self.tolerance, self.control = schedule, pair, tolerance, control
        self.start = first_with_signal(schedule)
        self.end = select_level(self.start.sigma > 0, last_noisy(schedule), self.start)
        onto = bool((self.end.sigma != schedule[-1].sigma).any())
        off = bool((self.start.alpha != schedule[0].alpha).any())
        self.opening = (
            CoefficientTable(stages([schedule[0], self.start], pair.of, last_stage_only), pair.of) if off else None
        )
        self.closing = (
            CoefficientTable(stages([self.end, schedule[-1]], pair.of, last_stage_only), pair.of) if onto else None
        )
        self.way = delta_lambda(self.start, self.end)  # 0 in parts of x that do not move
        self.length = self.way.max().item()

    @property
    def total(self) -> None:
        """None: the number of steps is not known before the run."""
        return

    def is_done(self, state: SamplerState) -> bool:
        """Return True if every sample has arrived, and the last step onto the data was made."""
        return bool(state.integrator_state) and state.integrator_state[0] == 1

    def advance(self, state: SamplerState, step: DenoiseFn, noise: Noise | None, out: Tensor) -> StepResult:
        """One attempt of every unfinished sample; it is accepted, or repeated with a smaller width.

        Raises:
            NonFinite: The estimate is not finite.
            RecipeError: The tolerance requires steps that are too small, or noise is needed and there is no source of
                it.
        """
        if not state.integrator_state:
            first = torch.full((len(state.x),), self.control.first, dtype=torch.float64)
            clocks = IntegratorState(torch.zeros_like(first), first, torch.zeros_like(first), torch.zeros_like(first))
            if self.opening is not None:
                return self._plain(self.opening, state, clocks, step, out)
            state = self._standing(state.x, state.number, clocks)
        clocks = IntegratorState.read(state.integrator_state[1:])
        if self.closing is not None and self._arrived(clocks):
            done = self._plain(self.closing, state, clocks, step, out)
            return done._replace(state=done.state._replace(integrator_state=(1.0, *clocks.written())))
        return self._tried(state, clocks, step, noise)

    def _plain(
        self, table: CoefficientTable, state: SamplerState, clocks: IntegratorState, step: DenoiseFn, out: Tensor
    ) -> StepResult:
        """The first-order step that touches an end."""
        done = table.advance(SamplerState(state.x), step, None, out)
        return done._replace(state=self._standing(done.state.x, state.number + 1, clocks))

    def _standing(self, x: Tensor, number: int, clocks: IntegratorState) -> SamplerState:
        """The state of a run that made its first-order steps only."""
        over = float(self.closing is None and self._arrived(clocks) and self.length == 0)
        return SamplerState(x, (self._in_unit(x, self.start),), number, integrator_state=(over, *clocks.written()))

    def _tried(self, state: SamplerState, clocks: IntegratorState, step: DenoiseFn, noise: Noise | None) -> StepResult:
        x, pair, earlier = state.x, self.pair, state.past[0]
        left = self.length - clocks.place
        moving = left > self.tolerance.slack
        taken = torch.where(moving, torch.minimum(clocks.width, left), 0.0)
        here, there = self._level(clocks.place), self._level(clocks.place + taken)
        down = clamp_level(sigma_down(here, there, pair.eta)[0], self.end) if pair.eta else there
        inner = (between(self.schedule, here, down, i / pair.order) for i in range(1, pair.order))
        low, high, estimate = pair.attempt(step, x, [here, *inner, down])
        low_in_unit = self._in_unit(low, there)
        error = self._error(low_in_unit, self._in_unit(high, there), earlier)
        lost = (moving & ~error.isfinite()).nonzero().flatten().tolist()
        if lost:
            t = here.t[lost[0]].max().item()
            raise NonFinite(
                f"step {state.number}: the estimates of sample {lost[0]} from t = {t:.6g} on are not finite"
            )
        good, clocks = self._judged(clocks, error, taken, moving)
        if pair.eta:
            up = pair.noise_scale * elementary.sqrt(elementary.square(there.sigma) - elementary.square(down.sigma))
            high = high + like(up, x) * draw_noise(noise, state.number).to(x.dtype)
        stands = good.reshape(-1, *(1,) * (x.ndim - 1)).to(x.device)
        x, earlier = torch.where(stands, high, x), torch.where(stands, low_in_unit, earlier)
        over = float(self.closing is None and self._arrived(clocks))
        following = SamplerState(x, (earlier,), state.number + 1, integrator_state=(over, *clocks.written()))
        return StepResult(following, here, estimate)

    def _judged(
        self, clocks: IntegratorState, error: Tensor, taken: Tensor, moving: Tensor
    ) -> tuple[Tensor, IntegratorState]:
        """Mask of the samples whose steps are accepted, and the new state of all samples."""
        order = 1.5 if self.pair.eta else float(self.pair.order)
        good, judged = moving.clone(), clocks._make(c.clone() for c in clocks)
        for i in moving.nonzero().flatten().tolist():
            width, last, before = (clock[i].item() for clock in clocks[1:])
            verdict = self.control.judge(error[i].item(), width, taken[i].item(), (last, before), order)
            if not verdict.good and verdict.width < 1e-6:
                raise RecipeError(
                    f"tolerance: absolute = {self.tolerance.absolute}, relative = {self.tolerance.relative}; sample "
                    f"{i} would need steps below 1e-6 in log-SNR: raise them, or use float64"
                )
            good[i] = verdict.good
            judged.width[i] = verdict.width
            judged.last[i], judged.before[i] = verdict.past
        judged.place[good] += taken[good]
        return good, judged

    def _error(self, low: Tensor, high: Tensor, earlier: Tensor) -> Tensor:
        """Mean square of the difference relative to the tolerance, with the tolerance's norm over the batch, (B,)."""
        allowed = (self.tolerance.relative * torch.maximum(low.abs(), earlier.abs())).clamp(min=self.tolerance.absolute)
        squares = ((high - low) / allowed).square()
        squares = squares if squares.dtype == torch.float64 else squares.float()
        moved = torch.ones_like(squares) * like(where(self.way != 0, 1.0, 0.0), squares)
        count = moved.reshape(len(moved), -1).sum(1).clamp(min=1)
        # to the CPU first: a device may lack float64
        return self.tolerance.across(((squares * moved).reshape(len(moved), -1).sum(1) / count).cpu().double())

    def _level(self, place: Tensor) -> NoiseLevel:
        """The level of each sample, (B,), or (B, ...) if parts of x have levels of their own."""
        way = self.way
        if way.ndim:
            place = place.reshape(-1, *(1,) * (way.ndim - 1))
        wanted = half_log_snr(self.start) + place * (way / (self.length or 1.0))
        return at_half_log_snr(self.schedule, where(way != 0, wanted, math.inf), self.start)

    def _in_unit(self, x: Tensor, level: NoiseLevel) -> Tensor:
        return x * like(elementary.safe_divide(1.0, self.tolerance.unit(level), 1.0), x)

    def _arrived(self, clocks: IntegratorState) -> bool:
        return bool((self.length - clocks.place <= self.tolerance.slack).all())


_PAPER = "Lu et al. 2022, adaptive step size algorithm (arXiv:2206.00927)"
_DEFAULTS = {"control": IController(), "tolerance": Tolerance(unit=x_unit)}

SAMPLERS: tuple[SamplerSpec, ...] = (
    SamplerSpec("dpm-adaptive", dpm_adaptive, _PAPER, order=None, calls=None, couples_parts=True, start="finite"),
    SamplerSpec(
        "dpm-solver-12",
        dpm_adaptive,
        _PAPER,
        order=None,
        calls=None,
        couples_parts=True,
        domain="time",
        start="finite",
        options={"order": 2, **_DEFAULTS},
    ),
    SamplerSpec(
        "dpm-solver-23",
        dpm_adaptive,
        _PAPER,
        order=None,
        calls=None,
        couples_parts=True,
        domain="time",
        start="finite",
        options={"order": 3, **_DEFAULTS},
    ),
)
