"""Euler, Heun and midpoint steps, in the noise ratio sigma / alpha or in the process's own time; EDM's churn.

There are two families with different names. In r = sigma / alpha the path of y = x / alpha is dy/dr = eps for every
process: "euler", "heun", "dpm2" give one sample on one log-SNR schedule. In the process's own time the path is dx/dt =
alpha' x0 + sigma' eps: "euler-time" and "heun-time" differ from process to process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.core import elementary
from unveil.core.elementary import level_by_level, where
from unveil.core.samplers.coefficients import TimeEnd, ends_straight
from unveil.core.samplers.loop import ZERO, CoefficientTable, StepRow, in_any_part, in_order, rows_of, with_noise
from unveil.core.samplers.registry import SamplerSpec
from unveil.core.schedules import Schedule, levels_of
from unveil.errors import RecipeError
from unveil.types import NoiseLevel

# ---------------------------------------------------------------------- in the noise ratio


@level_by_level()
def euler(
    schedule: Schedule, *, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0
) -> CoefficientTable:
    """Euler steps in sigma / alpha: DDIM without noise, with EDM's churn before each step.

    Args:
        schedule: Schedule from noise to data.
        s_churn: Amount of noise added in the whole run; each step raises sigma / alpha by s_churn / steps of itself, at
            most sqrt(2) - 1.
        s_tmin: Minimum of sigma / alpha for churn.
        s_tmax: Maximum of sigma / alpha for churn.
        s_noise: Deviation of the noise that is added, near 1.

    Source: Karras et al. 2022, algorithm 2 without lines 6 to 8 (arXiv:2206.00364).
    """
    raised, levels, here = Churn(s_churn, s_tmin, s_tmax, s_noise).raised(schedule)
    keep, gain = first_order_step(here, schedule.steps[1])
    return CoefficientTable(in_order(raised, rows_of(levels, keep, (gain,))))


@level_by_level()
def heun(
    schedule: Schedule,
    *,
    node: float = 1.0,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> CoefficientTable:
    """Second-order steps in sigma / alpha, the last one onto the data of first order; churn as in `euler`.

    Args:
        schedule: Schedule from noise to data.
        node: Position of the second call in the step, above 0: 1 is Heun's method, 2/3 Ralston's, 1/2 the midpoint's.
        s_churn: Amount of noise, see `euler`.
        s_tmin: Minimum for churn, see `euler`.
        s_tmax: Maximum for churn, see `euler`.
        s_noise: Deviation of the noise, see `euler`.

    Source: Karras et al. 2022, algorithm 2, and algorithm 3 for the node (arXiv:2206.00364).
    """
    _check_node(node)
    raised, levels, here = Churn(s_churn, s_tmin, s_tmax, s_noise).raised(schedule)
    there = schedule.steps[1]
    between, inner = there, schedule[1:]
    if node != 1:
        place = _ratio(here) + node * (_ratio(there) - _ratio(here))
        # the step onto clean data is of first order, and a table of levels need not reach below its first
        place = where(_onto_data(there), math.nan, place)
        _check_overshoot(node, place, _ratio(there))
        between = _at_ratio(schedule, place, there)
        inner = levels_of(between)
    weight = where(there.sigma == 0, 0.0, 0.5 / node)
    return CoefficientTable(in_order(raised, _two_calls((levels, inner), here, between, there, weight)))


@level_by_level()
def dpm2(
    schedule: Schedule,
    *,
    power: float = 0.0,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> CoefficientTable:
    """The midpoint's slope over the whole step, where the middle is a mean of the two sigma / alpha.

    Args:
        schedule: Schedule from noise to data.
        power: Power of the mean, 0 to 1. 0 is the geometric mean (DPM-Solver-2's middle in log-SNR), 1/3 is that of
            consistency models.
        s_churn: Amount of noise, see `euler`.
        s_tmin: Minimum for churn, see `euler`.
        s_tmax: Maximum for churn, see `euler`.
        s_noise: Deviation of the noise, see `euler`.

    Source: Karras et al. 2022, algorithm 2, with the middle of Lu et al. 2022, algorithm 1 (arXiv:2206.00927).
    """
    raised, levels, here = Churn(s_churn, s_tmin, s_tmax, s_noise).raised(schedule)
    there = schedule.steps[1]
    between = _at_ratio(schedule, _mean(_ratio(here), _ratio(there), power), there)
    rows = _two_calls((levels, levels_of(between)), here, between, there, elementary.scalar(1.0))
    return CoefficientTable(in_order(raised, rows))


# ---------------------------------------------------------------------- with noise after each step


@level_by_level()
def euler_ancestral(schedule: Schedule, *, eta: float = 1.0, noise_scale: float = 1.0) -> CoefficientTable:
    """Euler steps to below the next level, and noise back up to it: DDIM with eta, on any process.

    Args:
        schedule: Schedule from noise to data.
        eta: 0 adds no noise, 1 that of the ancestral chain.
        noise_scale: Factor of the noise.

    Source: Song et al. 2020, eq. 12 and 16 (arXiv:2010.02502), in the k-diffusion library's form.
    """
    here, there = schedule.steps
    below, noise = sigma_down(here, there, eta)
    keep, gain = first_order_step(here, below)
    return CoefficientTable(rows_of(schedule[:-1], keep, (gain,), noise_scale * noise, spans=list(pairwise(schedule))))


@level_by_level()
def dpm2_ancestral(
    schedule: Schedule, *, eta: float = 1.0, noise_scale: float = 1.0, power: float = 0.0
) -> CoefficientTable:
    """`dpm2`'s steps to below the next level, and noise back up to it.

    Args:
        schedule: Schedule from noise to data.
        eta: Share of the ancestral noise, see `euler_ancestral`.
        noise_scale: Factor of the noise, see `euler_ancestral`.
        power: Power of the mean, see `dpm2`.

    Source: the k-diffusion library.
    """
    here, there = schedule.steps
    below, noise = sigma_down(here, there, eta)
    between = _at_ratio(schedule, _mean(_ratio(here), _ratio(below), power), there)
    steps = _two_calls((schedule[:-1], levels_of(between)), here, between, below, elementary.scalar(1.0))
    return CoefficientTable(with_noise(steps, noise_scale * noise, list(pairwise(schedule))))


def sigma_down(here: NoiseLevel, there: NoiseLevel, eta: float) -> tuple[NoiseLevel, Tensor]:
    """The level below `there` that a step goes to, and the deviation of the noise that leads back up to it."""
    noise = sigma_up(here, there, eta)
    return there._replace(sigma=elementary.sqrt(elementary.square(there.sigma) - elementary.square(noise))), noise


def sigma_up(here: NoiseLevel, there: NoiseLevel, eta: float) -> Tensor:
    """The share eta of the ancestral step's deviation, at most the next level's. Source: Song et al. 2020, eq. 16."""
    ratio = elementary.safe_divide(here.alpha, there.alpha, 1.0)
    beta = elementary.square(here.sigma) - elementary.square(ratio * there.sigma)
    noise = eta * elementary.safe_divide(there.sigma, here.sigma, 0.0) * elementary.sqrt(beta)
    return torch.minimum(there.sigma, noise)


# ---------------------------------------------------------------------- in the process's own time


@level_by_level()
def euler_time(
    schedule: Schedule,
    *,
    end: TimeEnd = "x0",
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> CoefficientTable:
    """Euler steps in t: rectified flow's sampler, and EDM's ablation.

    Args:
        schedule: Schedule from noise to data.
        end: "x0": the step onto clean data takes the estimate of x0. "velocity": it follows the velocity, as EDM's
            ablation does, which leaves noise if the path is curved in t; on a straight path both are the same.
        s_churn: Amount of noise, see `euler`.
        s_tmin: Minimum for churn, see `euler`.
        s_tmax: Maximum for churn, see `euler`.
        s_noise: Deviation of the noise, see `euler`.

    Source: Karras et al. 2022, eq. 4 and algorithm 1 (arXiv:2206.00364); Liu et al. 2022, section 2.2
    (arXiv:2209.03003).
    """
    raised, levels, here = Churn(s_churn, s_tmin, s_tmax, s_noise).raised(schedule)
    keep, gain = _along(here, schedule.steps[1], end)
    return CoefficientTable(in_order(raised, rows_of(levels, keep, (gain,))))


@level_by_level()
def heun_time(
    schedule: Schedule,
    *,
    node: float = 1.0,
    end: TimeEnd = "x0",
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> CoefficientTable:
    """Second-order steps in t, the last one onto the data of first order.

    Args:
        schedule: Schedule from noise to data.
        node: Position of the second call in the step, see `heun`.
        end: Rule of the step onto clean data, see `euler_time`.
        s_churn: Amount of noise, see `euler`.
        s_tmin: Minimum for churn, see `euler`.
        s_tmax: Maximum for churn, see `euler`.
        s_noise: Deviation of the noise, see `euler`.

    Source: Karras et al. 2022, algorithm 1, and algorithm 3 for the node (arXiv:2206.00364).
    """
    _check_node(node)
    raised, levels, here = Churn(s_churn, s_tmin, s_tmax, s_noise).raised(schedule)
    there = schedule.steps[1]
    second = where(there.sigma == 0, 0.0, 0.5 / node)  # the weight of the second slope
    straight = in_any_part(second != 0).logical_not().tolist()
    width = there.t - here.t
    place = where(_onto_data(there), there.t, here.t + node * width)
    _check_overshoot(node, place, there.t)
    between, inner = there, schedule[1:]
    if node != 1:
        between = schedule.process.at(place)
        inner = levels_of(between)
    on_x, on_x0 = _velocity(here)
    then_x, then_x0 = _velocity(between)
    whole, part = width * second, width * (1 - second)
    first = rows_of(levels, 1 + node * width * on_x, (node * width * on_x0,), saves_x=True)
    keep, gain = _along(here, there, end)
    gains = whole * then_x0, where(second == 0, gain, part * on_x0)
    last = rows_of(inner, whole * then_x, gains, saved_gain=where(second == 0, keep, 1 + part * on_x))
    single = rows_of(levels, keep, (gain,))
    steps = [[one] if alone else [*two] for alone, one, *two in zip(straight, single, first, last, strict=True)]
    return CoefficientTable(in_order(raised, steps))


def _along(here: NoiseLevel, there: NoiseLevel, end: TimeEnd) -> tuple[Tensor, Tensor]:
    """Euler steps, and straight ones at the end: their factors of x and x0."""
    width = there.t - here.t
    on_x, on_x0 = _velocity(here)
    keep, gain = first_order_step(here, there)
    straight = ends_straight(here, there, end)
    return where(straight, keep, 1 + width * on_x), where(straight, gain, width * on_x0)


def _velocity(level: NoiseLevel) -> tuple[Tensor, Tensor]:
    """dx/dt as factors of x and x0; clean parts do not move."""
    on_x = elementary.safe_divide(level.dsigma, level.sigma, 0.0)
    return on_x, where(level.sigma == 0, 0.0, level.dalpha - level.alpha * on_x)


# ---------------------------------------------------------------------- churn


class Churn(NamedTuple):
    """Noise added before each step; levels are sigma / alpha."""

    amount: float
    low: float
    high: float
    noise: float

    def raised(self, schedule: Schedule) -> tuple[list[list[StepRow]], list[NoiseLevel], NoiseLevel]:
        """The row of each step that raises x to a noisier level, if any, and the level at which the step begins.

        The levels are returned as they are and as a table.

        Raises:
            RecipeError: The process does not reach such a level.
        """
        here, there = schedule.steps
        if self.amount == 0:
            return [[]] * len(here.t), list(schedule[:-1]), here
        ratio = _ratio(here)
        steps = _falls(here, there).sum(0).clamp(min=1.0)
        share = elementary.divide(self.amount, steps).clamp(max=math.sqrt(2) - 1)
        # a part that keeps its level, and pure noise, get none
        chosen = (ratio >= self.low) & (ratio <= self.high) & (_ratio(there) < ratio) & (ratio < math.inf)
        rise = where(chosen, share, 0.0)
        higher = where(chosen & (rise != 0), ratio * (1 + rise), math.nan)
        try:
            top = _at_ratio(schedule, higher, here)
        except RecipeError as error:
            raise RecipeError(f"s_churn = {self.amount}: {error}; lower s_churn, or s_tmax to where it holds") from None
        # what y = x / alpha gains: the difference of the two r^2
        deviation = where(chosen, top.alpha * elementary.sqrt((_ratio(top) - ratio) * (_ratio(top) + ratio)), 0.0)
        keep = elementary.safe_divide(top.alpha, here.alpha, 1.0)
        rows = rows_of([None] * len(ratio), keep, noise=self.noise * deviation, spans=list(pairwise(schedule)))
        rises = in_any_part(rise != 0).tolist()
        levels = [new if up else old for up, new, old in zip(rises, levels_of(top), schedule, strict=False)]
        return [[row] if up else [] for up, row in zip(rises, rows, strict=True)], levels, top


def _falls(here: NoiseLevel, there: NoiseLevel) -> Tensor:
    """1 where a step lowers the level, 0 in parts of x that keep their level."""
    return (_ratio(there) < _ratio(here)).double()


# ---------------------------------------------------------------------- rows


def first_order_step(here: NoiseLevel, there: NoiseLevel) -> tuple[Tensor, Tensor]:
    """The first-order step that holds x0 and eps fixed: its factors of x and x0; clean parts keep their x."""
    keep = elementary.safe_divide(there.sigma, here.sigma, elementary.safe_divide(there.alpha, here.alpha, 0.0))
    return keep, there.alpha - keep * here.alpha


def _two_calls(
    levels: tuple[Sequence[NoiseLevel], Sequence[NoiseLevel]],
    here: NoiseLevel,
    between: NoiseLevel,
    there: NoiseLevel,
    weight: Tensor,
) -> list[list[StepRow]]:
    """Straight steps corrected by weight (eps at `between` - eps at `here`); one row where that cannot be.

    At `between`, reached on the straight line, the two eps differ by (x0 there - x0 here) over its sigma / alpha
    and the other sign, so the correction needs x0 alone. `levels` are those of the two calls.
    """
    keep, gain = first_order_step(here, there)
    width = _ratio(here) - _ratio(there)
    correction = where(
        (_ratio(between) > 0) & (_ratio(here) < math.inf),
        weight * there.alpha * elementary.safe_divide(width, _ratio(between), 0.0),
        0.0,
    )
    on_x, on_x0 = first_order_step(here, between)
    corrected = in_any_part(correction != 0).tolist()
    single = rows_of(levels[0], keep, (gain,))
    first = rows_of(levels[0], on_x, (on_x0,), saves_x=True)
    last = rows_of(levels[1], ZERO, (correction, gain - correction), saved_gain=keep)
    return [[*two] if both else [one] for both, one, *two in zip(corrected, single, first, last, strict=True)]


def _onto_data(level: NoiseLevel) -> Tensor:
    """The steps of a table whose end is clean data in all of x, of the shape of its levels."""
    return ~in_any_part(level.sigma != 0).reshape(-1, *(1,) * (level.sigma.ndim - 1)).expand_as(level.sigma)


def _ratio(level: NoiseLevel) -> Tensor:
    return elementary.safe_divide(level.sigma, level.alpha, math.inf)


def _mean(a: Tensor, b: Tensor, power: float) -> Tensor:
    """The power mean, of a power of 0 to 1; 0 is the geometric one, and 0 wherever b is."""
    if not 0 <= power <= 1:
        raise RecipeError(f"power = {power}: of the mean, must be 0 to 1, such as 0.333")
    if power == 0:
        return elementary.sqrt(a) * elementary.sqrt(b)
    mean = 0.5 * (elementary.power(a, power) + elementary.power(b, power))
    return elementary.power(mean, 1 / power)


def _at_ratio(schedule: Schedule, ratio: Tensor, otherwise: NoiseLevel) -> NoiseLevel:
    """The level of a sigma / alpha; `otherwise` where that is not a finite number or keeps a part's own level."""
    same = ~ratio.isfinite()
    if ratio.ndim > 1:
        same = same | (ratio == _ratio(otherwise))
    level = schedule.at(where(same, math.inf, -elementary.log(ratio)))
    return NoiseLevel(*(where(same, old, new) for old, new in zip(otherwise, level, strict=True)))


def _check_node(node: float) -> None:
    if not node > 0:
        raise RecipeError(f"node = {node}: must be above 0; 1 is Heun's method, 0.5 the midpoint's")


def _check_overshoot(node: float, place: Tensor, there: Tensor) -> None:
    beyond = (place <= 0) & (there > 0)
    if bool(beyond.any()):
        raise RecipeError(f"node = {node}: the second call would lie beyond clean data; use more steps, or node = 1")


_EDM = "Karras et al. 2022, algorithm 2 (arXiv:2206.00364)"
_CHURN = {"s_churn": 20.0, "s_tmin": 0.05, "s_tmax": 50.0}  # near the published ones, which are searched per data set

SAMPLERS = (
    SamplerSpec("euler", euler, _EDM, order=1),
    SamplerSpec("heun", heun, _EDM, order=2, calls=2),
    SamplerSpec("dpm2", dpm2, _EDM + "; Lu et al. 2022, algorithm 1 (arXiv:2206.00927)", order=2, calls=2),
    SamplerSpec("euler-churn", euler, _EDM, order=1, stochastic=True, options=_CHURN),
    SamplerSpec("heun-churn", heun, _EDM, order=2, stochastic=True, calls=2, options=_CHURN),
    SamplerSpec(
        "euler-ancestral",
        euler_ancestral,
        "Song et al. 2020, eq. 12 and 16 (arXiv:2010.02502)",
        order=1,
        strong_order=1,
        stochastic=True,
    ),
    SamplerSpec("dpm2-ancestral", dpm2_ancestral, "k-diffusion", order=2, strong_order=1, stochastic=True, calls=2),
    SamplerSpec(
        "euler-time",
        euler_time,
        "Karras et al. 2022, eq. 4 (arXiv:2206.00364); Liu et al. 2022, section 2.2 (arXiv:2209.03003)",
        order=1,
        domain="time",
    ),
    SamplerSpec(
        "heun-time", heun_time, "Karras et al. 2022, algorithm 1 (arXiv:2206.00364)", order=2, calls=2, domain="time"
    ),
    SamplerSpec(
        "midpoint-time",
        heun_time,
        "Karras et al. 2022, algorithm 3 (arXiv:2206.00364)",
        order=2,
        calls=2,
        domain="time",
        options={"node": 0.5},
    ),
)
