"""Linear multistep samplers: Adams-Bashforth in sigma / alpha (LMS) and in t, and PLMS/PNDM."""

from __future__ import annotations

from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.core import elementary
from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.elementary import level_by_level, scalar, where
from unveil.core.rng import Noise
from unveil.core.samplers.coefficients import (
    LinearStep,
    TimeEnd,
    adams,
    check_order,
    ends_straight,
    gains,
    linear_step,
    select_level,
)
from unveil.core.samplers.loop import ZERO, CoefficientTable, SamplerState, StepResult, StepRow, rows_of
from unveil.core.samplers.registry import SamplerSpec
from unveil.core.schedules import Schedule
from unveil.types import NoiseLevel, like


@level_by_level()
def lms(schedule: Schedule, order: int = 4) -> CoefficientTable:
    """Adams-Bashforth on eps in r = sigma / alpha, for any spacing: one call a step, defined at sigma = 0.

    In y = x / alpha the path is dy/dr = eps, so the polynomial through the last estimates is integrated exactly.

    Args:
        schedule: Schedule from noise to data, which begins at alpha > 0.
        order: 1 to 4; the first steps have fewer estimates, and a lower order.

    Raises:
        RecipeError: The order does not exist, or alpha is 0 at the first level.

    Source: the linear multistep sampler of k-diffusion; rho-AB of Zhang & Chen 2022, section 3 (arXiv:2204.13902).
    """
    check_order(order, 4)
    here, there = schedule.steps
    fall = elementary.safe_divide(there.sigma, there.alpha, 0.0) - elementary.safe_divide(here.sigma, here.alpha, 0.0)
    now = linear_step(here, there, "eps")._replace(reach=fall)
    weights, counts = gains(now, adams, order)
    return CoefficientTable(rows_of(schedule[:-1], now.keep, weights, counts=counts), "eps")


# ---------------------------------------------------------------------- in the process's own time


def adams_bashforth(schedule: Schedule, order: int = 2, *, end: TimeEnd = "x0") -> AdamsBashforth:
    """Adams-Bashforth in t on the velocity dx/dt = alpha' x0 + sigma' eps, for any spacing: one call a step.

    Args:
        schedule: Schedule from noise to data.
        order: 1 to 4; the first steps have fewer velocities, and a lower order.
        end: Rule of the step onto clean data, see `euler_time`.

    Raises:
        RecipeError: The order or the `end` does not exist.

    Source: Adams & Bashforth 1883; the velocity as in Lipman et al. 2022, eq. 23 (arXiv:2210.02747).
    """
    check_order(order, 4)
    return AdamsBashforth(schedule, order, end)


class AdamsBashforth:
    """Rows of gains on velocities, which are neither x0 nor eps and so do not fit into a `CoefficientTable`."""

    @level_by_level()
    def __init__(self, schedule: Schedule, order: int, end: TimeEnd = "x0") -> None:
        self.levels = list(schedule[:-1])
        self.order = order
        here, there = schedule.steps
        width, straight = where(ends_straight(here, there, end), 0.0, there.t - here.t), linear_step(here, there)
        weights, counts = gains(LinearStep(scalar(1.0), width, width), adams, order)
        rows = rows_of(self.levels, ZERO, weights, counts=counts)
        self.gains = [row.gains for row in rows]
        # (keep, gain of x0) of the straight steps
        leaps = where(width == 0, straight.keep, 1.0), where(width == 0, straight.gain, 0.0)
        self.leaps = list(zip(*(leap.unbind() for leap in leaps), strict=True))

    @property
    def total(self) -> int:
        """The number of steps."""
        return len(self.levels)

    def is_done(self, state: SamplerState) -> bool:
        """Return True if every step was made."""
        return state.number >= len(self.levels)

    def advance(self, state: SamplerState, step: DenoiseFn, noise: Noise | None, out: Tensor) -> StepResult:
        """One step: x + the sum of gains times velocities, newest first."""
        del noise
        level = self.levels[state.number]
        estimate = step(state.x, level)
        past = (velocity(estimate, level, state.x), *state.past)
        keep, gain = (like(value, state.x) for value in self.leaps[state.number])
        moved = [
            earlier * like(weight, state.x) for weight, earlier in zip(self.gains[state.number], past, strict=False)
        ]
        if isinstance(gain, Tensor) or gain != 0:
            moved.append(estimate.x0 * gain)
        x = torch.mul(state.x, keep, out=out)
        for part in moved:
            x.add_(part)
        return StepResult(SamplerState(x, past[: self.order - 1], state.number + 1), level, estimate)


def velocity(estimate: Estimate, level: NoiseLevel, x: Tensor) -> Tensor:
    """dx/dt at an estimate, of x's shape; 0 in parts that are clean data."""
    on_eps = where(level.sigma == 0, 0.0, level.dsigma)
    return like(level.dalpha, x) * estimate.x0 + like(on_eps, x) * estimate.eps


# ---------------------------------------------------------------------- PLMS

# Adams-Bashforth's weights on the estimates of 0, 1, 2, 3 steps ago, for even steps, by how many there are.
BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


class WarmupSteps(NamedTuple):
    """Rows of a step with too few earlier estimates: calls along the step, each from its beginning.

    nodes: where the calls after the first are, as shares of the step in t; each is reached with the newest eps.
    weights: of all calls' eps in the step itself, oldest first.
    steps: how many steps do so.
    """

    nodes: tuple[float, ...]
    weights: tuple[float, ...]
    steps: int


# What latent diffusion's PLMS begins with: 1 call more in all.
improved_euler = WarmupSteps((1.0,), (1 / 2, 1 / 2), 1)
# What PNDM begins with, Liu et al. 2022, section 3 (arXiv:2202.09778): 9 calls more in all.
runge_kutta = WarmupSteps((0.5, 0.5, 1.0), (1 / 6, 2 / 6, 2 / 6, 1 / 6), 3)


def plms(schedule: Schedule, start: WarmupSteps = improved_euler) -> CoefficientTable:
    """PLMS, the pseudo linear multistep method: an average of the last four eps, carried along as in DDIM.

    Second order: the average's weights are those of an integral in even steps, but the transfer is not linear.

    Args:
        schedule: Schedule from noise to data, evenly spaced in t or in log-SNR, which begins at alpha > 0.
        start: Method of the first steps: `improved_euler`, or `runge_kutta` (PNDM).

    Raises:
        RecipeError: alpha is 0 at the first level.

    Source: Liu et al. 2022, section 3 (arXiv:2202.09778): the transfer is DDIM's, the gradient is averaged.
    """
    with level_by_level():
        here, there = schedule.steps
        now, moves = linear_step(here, there, "eps"), here.sigma != there.sigma
        age = _steps_moved(moves)
        weights = [(now.gain * weight).unbind() for weight in _averaged(age)]
        starting = moves & (age < start.steps) & (there.sigma != 0)
    rows: list[StepRow] = []
    called: list[int] = []  # the rows whose calls are at the beginning of a step
    for number, keep in enumerate(now.keep.unbind()):
        called.append(len(rows))
        row_gains = [ZERO] * (called[-1] - called[-4:][0] + 1)
        for weight, call in zip(weights, reversed(called), strict=False):
            row_gains[called[-1] - call] = weight[number]
        row = StepRow(schedule[number], keep, tuple(row_gains))
        begins = starting[number]
        rows += _started(schedule, row, schedule[number + 1], start, begins) if bool(begins.any()) else [row]
    return CoefficientTable(rows, "eps")


def _steps_moved(moves: Tensor) -> Tensor:
    """Number of consecutive steps that have moved before each step of a table, in each part of x."""
    number = torch.arange(len(moves)).reshape(-1, *(1,) * (moves.ndim - 1))
    stopped = torch.where(moves, 0, number + 1).cummax(0).values
    return (number - torch.cat([torch.zeros_like(stopped[:1]), stopped[:-1]])).double()


def pndm(schedule: Schedule) -> CoefficientTable:
    """`plms` begun with Runge-Kutta's formula: four calls in each of the first three steps."""
    return plms(schedule, runge_kutta)


def _averaged(age: Tensor) -> list[Tensor]:
    """Weights of the estimates of 0, 1, 2, 3 steps ago, by their number."""
    weights = [scalar(weight) for weight in (1.0, 0.0, 0.0, 0.0)]
    for have, better in enumerate(BASHFORTH):
        weights = [where(age >= have, new, old) for new, old in zip_longest(better, weights, fillvalue=0.0)]
    return weights


def _started(
    schedule: Schedule, row: StepRow, there: NoiseLevel, start: WarmupSteps, starting: Tensor
) -> list[StepRow]:
    """The rows of a step that restarts in some parts of x, while the others follow `row`."""
    here = row.level
    assert here is not None
    nodes = [there if share == 1 else schedule.process.at(here.t + share * (there.t - here.t)) for share in start.nodes]
    nodes = [select_level(starting, node, there) for node in nodes]
    first = linear_step(here, nodes[0], "eps")
    newest, *older = row.gains
    row_gains = where(starting, first.gain, newest), *(where(starting, 0.0, gain) for gain in older)
    rows = [row._replace(keep=where(starting, first.keep, row.keep), gains=row_gains, saves_x=True)]
    for number, node in enumerate(nodes):
        last = number == len(nodes) - 1
        leg = linear_step(here, there if last else nodes[number + 1], "eps")
        weights = reversed(start.weights) if last else [1.0]
        row_gains = tuple(where(starting, leg.gain * weight, 0.0) for weight in weights)
        rows.append(StepRow(node, where(starting, 0.0, 1.0), row_gains, saved_gain=where(starting, leg.keep, 0.0)))
    return rows


SAMPLERS: tuple[SamplerSpec, ...] = (
    SamplerSpec(
        "lms",
        lms,
        "Zhang & Chen 2022, section 3 (arXiv:2204.13902)",
        order=2,
        start="finite",
    ),
    SamplerSpec("adams-bashforth-2", adams_bashforth, "Adams & Bashforth 1883", order=2, domain="time"),
    SamplerSpec("plms", plms, "Liu et al. 2022, section 3 (arXiv:2202.09778)", order=2, start="finite"),
    SamplerSpec("pndm", pndm, "Liu et al. 2022, section 3 (arXiv:2202.09778)", order=2, domain="time", start="finite"),
)
