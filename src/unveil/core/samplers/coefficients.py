"""One step between two levels: its exact part, and the weights that correct it by other estimates.

With constant q = x0 or eps, x_there = keep x_here + gain q is exact. Neither number needs a logarithm, so both are
finite at the ends alpha = 0 and sigma = 0. Every correction is a weight on estimates at other positions along the step.
If a step touches an end, or does not move, its `reach` is 0 and the corrections vanish.

Everything is float64 tensors: 0-d, of the shape of levels per sample or per token, or tables of such levels, whose
first axis counts the steps. Tables are made within `elementary.level_by_level`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from unveil.core import elementary
from unveil.core.elementary import scalar, where
from unveil.core.samplers.loop import ZERO, in_any_part
from unveil.core.schedules import Schedule
from unveil.errors import RecipeError
from unveil.types import NoiseLevel

Of = Literal["x0", "eps"]
# (nodes, reach) -> the weight of the estimate at each node, in units of the step's gain; they sum to 1. Node 0 is
# where the step begins, 1 where it ends, and what was before it is negative. Of all steps of a table at once,
# so also of steps without such nodes, whose weights are not used.
Rule = Callable[[Sequence[Tensor], Tensor], list[Tensor]]

# where that many nodes can be used
Tier = tuple[Tensor, int]


class LinearStep(NamedTuple):
    """x_there = keep x_here + gain q + noise z, for a constant q.

    reach: how far it goes, in the variable that q is a smooth function of: for x0 the fall in log(alpha / sigma),
        1 + eta times, for eps its rise; 0 where the step touches an end or does not move.
    """

    keep: Tensor
    gain: Tensor
    reach: Tensor
    noise: Tensor = ZERO


def linear_step(here: NoiseLevel, there: NoiseLevel, of: Of = "x0", eta: float = 0.0) -> LinearStep:
    """The step from one level to another.

    Args:
        here: Noise level of x.
        there: Noise level of the next x, which is cleaner.
        of: Estimate that is held constant.
        eta: Noise of a step of x0: 0 is the probability-flow ODE, 1 the reverse SDE.

    Raises:
        RecipeError: A step of eps starts at alpha = 0, where eps contains nothing of x0.

    Source: Lu et al. 2022, section 3, DPM-Solver-1 (arXiv:2206.00927) for eps; section 4 (arXiv:2211.01095) for x0, and
    their SDE form at eta = 1: the same integral with the drift that noise of eta requires.
    """
    if of == "eps":
        lost = (here.alpha == 0) & (there.alpha != 0)
        if bool(lost.any()):
            raise RecipeError(
                f"t = {here.t[lost][0]}: alpha is 0 there, where eps says nothing about x0; begin at alpha > 0, or "
                "take a sampler of x0 such as 'dpmpp-2m' or 'ddim'"
            )
        keep = elementary.safe_divide(there.alpha, here.alpha, 1.0)
        return LinearStep(keep, there.sigma - here.sigma * keep, delta_lambda(here, there))
    left = _left(here, there)
    # a part that is clean already (sigma = 0) stays what it is
    ratio = elementary.safe_divide(there.sigma, here.sigma, elementary.safe_divide(there.alpha, here.alpha, 1.0))
    keep = ratio * elementary.power(left, eta)
    noise = there.sigma * elementary.sqrt(1.0 - elementary.power(left, 2 * eta)) if eta else ZERO
    return LinearStep(keep, there.alpha - here.alpha * keep, -(1.0 + eta) * delta_lambda(here, there), noise)


def delta_lambda(here: NoiseLevel, there: NoiseLevel) -> Tensor:
    """Rise of log(alpha / sigma), 0 where that is infinite."""
    left = _left(here, there)
    return where(left > 0, -1.0 * elementary.log(left), 0.0)


def _left(here: NoiseLevel, there: NoiseLevel) -> Tensor:
    """The share of here's sigma / alpha that is left there, 1 where there was none."""
    return elementary.safe_divide(there.sigma * here.alpha, here.sigma * there.alpha, 1.0)


def lands(here: NoiseLevel, there: NoiseLevel) -> Tensor:
    """True for the parts of a step that go from noise onto clean data.

    There every sampler takes the estimate of x0. A step along a curved path, or one that adds noise, would leave some.
    """
    return (there.sigma == 0) & (here.sigma > 0)


TimeEnd = Literal["x0", "velocity"]


def ends_straight(here: NoiseLevel, there: NoiseLevel, end: TimeEnd) -> Tensor:
    """True for the parts of a step in time that hold x0 and eps instead of the velocity.

    These are the steps onto clean data, unless `end` is "velocity", and those at the end of a process that stops before
    clean data, because its time stops there, too.

    Raises:
        RecipeError: `end` is neither of the two.
    """
    if end not in get_args(TimeEnd):
        raise RecipeError(f"end = {end!r}: must be 'x0' or 'velocity'")
    return (there.t == here.t) | (lands(here, there) & (end == "x0"))


# ---------------------------------------------------------------------- levels between those of a schedule


def between(schedule: Schedule, here: NoiseLevel, there: NoiseLevel, share: Tensor | float) -> NoiseLevel:
    """The process's level at a share of the way in log(alpha / sigma); `here` where the way touches an end."""
    way = delta_lambda(here, there)
    return at_half_log_snr(schedule, where(way != 0, half_log_snr(here) + share * way, math.inf), here)


def half_log_snr(level: NoiseLevel) -> Tensor:
    """Log(alpha / sigma), infinite at the ends."""
    return elementary.log(elementary.safe_divide(level.alpha, level.sigma, math.inf))


def at_half_log_snr(schedule: Schedule, wanted: Tensor, otherwise: NoiseLevel) -> NoiseLevel:
    """The levels of the schedule's process at these half log-SNRs, and `otherwise` where they are not finite.

    A tensor is computed at once, without the checks of `Schedule.at`: the values must be within the schedule.
    """
    finite = wanted.isfinite()
    if not bool(finite.any()):
        return otherwise
    if not wanted.ndim:
        return schedule.at(wanted)
    times = schedule.process.t_of(torch.where(finite, wanted, wanted[finite][0]))
    latest = schedule[0].t.max().item()
    return select_level(
        finite, schedule.process.at(times.clamp(0, max(latest, 1.0))), otherwise
    )  # rounded beyond the ends


# ---------------------------------------------------------------------- weights


_INVERSE = [1 / math.factorial(k) for k in range(24)]


def phi_functions(count: int, z: Tensor) -> list[Tensor]:
    """phi_1(z) to phi_count(z), where phi_k is the sum of z^j / (j + k)! over j: phi_1(z) = (exp(z) - 1) / z.

    Source: Hochbruck & Ostermann 2010, eq. 2.10, Acta Numerica 19.
    """
    small = z.abs() < 1
    if not z.ndim:
        return _from_above(count, z) if small else _from_below(count, z)
    near, far = _from_above(count, z * small), _from_below(count, torch.where(small, 1.0, z))
    return [where(small, a, b) for a, b in zip(near, far, strict=True)]


def _from_above(count: int, z: Tensor) -> list[Tensor]:
    """The last one's series, and the others by phi_k = z phi_(k+1) + 1 / k!."""
    value = 0.0 * z
    for term in _INVERSE[count + 18 : count - 1 : -1]:  # |z| < 1: what is left out is below 1e-17
        value = value * z + term
    values = [value]
    for k in range(count - 1, 0, -1):
        values.append(z * values[-1] + _INVERSE[k])
    return values[::-1]


def _from_below(count: int, z: Tensor) -> list[Tensor]:
    values = [elementary.expm1(z) / z]
    for k in range(1, count):
        values.append((values[-1] - _INVERSE[k]) / z)
    return values


def exact(nodes: Sequence[Tensor], reach: Tensor) -> list[Tensor]:
    """The polynomial through all nodes, integrated with the exponential weight of the linear part.

    Source: Hochbruck & Ostermann 2010, section 2.3: exponential Adams and Runge-Kutta methods.
    """
    first, *others = phi_functions(len(nodes), reach)
    slopes = (math.factorial(k) * other / first for k, other in enumerate(others, 1))
    return interpolated(nodes, [scalar(1.0), *slopes])


def adams(nodes: Sequence[Tensor], reach: Tensor) -> list[Tensor]:
    """The polynomial through all nodes, integrated as it is. Source: Adams and Bashforth 1883, for any widths."""
    del reach
    return interpolated(nodes, [scalar(1 / (k + 1)) for k in range(len(nodes))])


def midpoint(nodes: Sequence[Tensor], reach: Tensor) -> list[Tensor]:
    """Order 2: half the difference, as if the estimate in the middle were constant over the step. Order 3: `taylor`.

    Source: Lu et al. 2022, algorithm 2, "2M" (arXiv:2211.01095).
    """
    return interpolated(nodes, [scalar(1.0), scalar(0.5)]) if len(nodes) == 2 else taylor(nodes, reach)


def taylor(nodes: Sequence[Tensor], reach: Tensor) -> list[Tensor]:
    """The slope with its exact weight phi_2; at order 3 the curvature as well, with phi_3 as published.

    The second divided difference is half of the second derivative, so 2 phi_3 would be exact: as published, the third
    estimate lowers the error, and the order stays 2. `exact` has the 2.

    Source: Lu et al. 2022, section 4 (arXiv:2211.01095), and order 3 as in the authors' code.
    """
    first, *others = phi_functions(len(nodes), reach)
    return interpolated(nodes, [scalar(1.0), *(other / first for other in others)])


def interpolated(nodes: Sequence[Tensor], moments: Sequence[Tensor]) -> list[Tensor]:
    """The weight of the value at each node in the integral of the polynomial through them.

    Args:
        nodes: Positions of the values.
        moments: Integrals of 1, s, s^2 ..., as many as nodes.
    """
    weights: list[Tensor] = []
    for i, mine in enumerate(nodes):
        powers = [scalar(1.0)]  # of Lagrange's polynomial that is 0 at the others, lowest power first
        size = scalar(1.0)  # what it is here
        for j, other in enumerate(nodes):
            if j != i:
                powers = [u - other * d for u, d in zip([scalar(0.0), *powers], [*powers, scalar(0.0)], strict=True)]
                size = size * (mine - other)
        weights.append(
            elementary.safe_divide(sum((c * m for c, m in zip(powers, moments, strict=True)), scalar(0.0)), size, 0.0)
        )
    return weights


def gains(now: LinearStep, rule: Rule, order: int, most: Tensor | None = None) -> tuple[tuple[Tensor, ...], Tensor]:
    """Gains on the estimates of 0, 1, 2 ... calls ago, for multistep methods.

    Args:
        now: Table of the steps.
        rule: Rule of the weights.
        order: Maximum number of estimates.
        most: Maximum number of estimates of each step; None: `order`.

    If one of the steps before touched an end or did not move, the order is reduced to the usable estimates. The second
    result is the number of estimates of each step.
    """
    nodes = [ZERO]
    tiers: list[Tier] = []
    usable = now.reach != 0
    for back in range(1, order):
        reach = steps_ago(now.reach, back)
        usable = usable & (reach != 0)
        if most is not None:
            usable = usable & (most > back)
        if not bool(usable.any()):
            break
        nodes.append(nodes[-1] - elementary.safe_divide(reach, now.reach, 0.0))
        tiers.append((usable, len(nodes)))

    weights = highest_usable(tiers, lambda count: [now.gain * w for w in rule(nodes[:count], now.reach)], (now.gain,))
    return weights, most_nodes(tiers, now.gain).clamp(min=1)


def highest_usable(
    tiers: Sequence[Tier], gains: Callable[[int], Sequence[Tensor]], otherwise: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Gains from the largest number of nodes that can be used, in every step and part of x."""
    best = otherwise
    for usable, count in tiers:
        best = tuple(where(usable, new, old) for new, old in zip_longest(gains(count), best, fillvalue=0.0))
    return best


def most_nodes(tiers: Sequence[Tier], column: Tensor) -> Tensor:
    """Number of nodes that can be used in some part of x, for each step of a column; 0 without a tier."""
    most = torch.zeros(len(column), dtype=torch.long)
    for usable, count in tiers:
        most[in_any_part(usable)] = count
    return most


def steps_ago(column: Tensor, count: int) -> Tensor:
    """A column of steps, shifted by `count` steps; 0 before the first one."""
    return torch.cat([torch.zeros_like(column[:count]), column[:-count]])


def steps_left(schedule: Schedule) -> Tensor:
    """Number of steps from each level to the end, without those that do not move."""
    here, there = schedule.steps
    moves = (here.sigma != there.sigma).double()
    return torch.cat([moves, torch.zeros_like(moves[:1])]).flip(0).cumsum(0).flip(0)


def check_order(order: int, most: float) -> None:
    """Refuses an order outside 1 to `most`, which is infinite where a method exists at every order.

    Raises:
        RecipeError: The order does not exist.
    """
    if not 1 <= order <= most:
        raise RecipeError(
            f"order = {order}: must be 1 or more" if most == math.inf else f"order = {order}: must lie in 1 to {most}"
        )


def select_level(mask: Tensor, yes: NoiseLevel, no: NoiseLevel) -> NoiseLevel:
    """The level `yes` where the mask is True, `no` elsewhere."""
    if not mask.ndim:
        return yes if mask else no
    return NoiseLevel(*(where(mask, a, b) for a, b in zip(yes, no, strict=True)))
