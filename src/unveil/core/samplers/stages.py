"""Single steps of an exponential integrator as rows: calls inside the step, and the levels of these calls."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from unveil.core import elementary
from unveil.core.elementary import level_by_level, where
from unveil.core.samplers.coefficients import (
    Of,
    Rule,
    between,
    check_order,
    delta_lambda,
    exact,
    half_log_snr,
    linear_step,
    midpoint,
    select_level,
    taylor,
)
from unveil.core.samplers.loop import ZERO, StepRow, in_any_part, rows_of
from unveil.core.schedules import Schedule, levels_of, stacked
from unveil.errors import RecipeError
from unveil.types import NoiseLevel


def last_stage_only(nodes: Sequence[Tensor], reach: Tensor) -> list[Tensor]:
    """Rule of the last stage of a single step: order 2 as `midpoint`, order 3 only from the last inner estimate.

    Source: Lu et al. 2022, algorithms 1 and 2 (arXiv:2206.00927).
    """
    if len(nodes) < 3:
        return midpoint(nodes, reach)
    first, last = taylor([nodes[0], nodes[-1]], reach)
    return [first, *(ZERO for _ in nodes[1:-1]), last]


def orders_for(calls: int, order: int) -> list[int]:
    """Orders of single steps that take `calls` calls: the highest, and lower ones at the end.

    Source: Lu et al. 2022, "DPM-Solver-fast" (arXiv:2206.00927).
    """
    check_order(order, 3)
    if calls < 1:
        raise RecipeError(f"calls = {calls}: a sampler needs at least 1 network call")
    whole, rest = divmod(calls, order)
    if order == 3 and rest == 0:
        return [3] * (whole - 1) + [2, 1]
    return [order] * whole + [rest] * (rest > 0)


def inner_nodes(schedule: Schedule, here: NoiseLevel, there: NoiseLevel, order: int) -> list[NoiseLevel]:
    """The levels of single steps, as tables: here, those between at equal parts of the log-SNR, there."""
    return [here, *(between(schedule, here, there, i / order) for i in range(1, order)), there]


def inner_steps(
    schedule: Schedule,
    tables: tuple[NoiseLevel, NoiseLevel],
    levels: Sequence[NoiseLevel],
    order: int,
    of: Of,
    rule: Rule,
) -> list[list[StepRow]]:
    """The rows of single steps with calls between their ends; one row for a step that touches an end.

    Args:
        schedule: Schedule whose process has the levels between.
        tables: Tables of the levels from and to which the steps go.
        levels: Levels from which the steps go.
        order: Number of calls of each step.
        of: Estimate that is combined, see `stages`.
        rule: Rule of the last stage, see `stages`.
    """
    here, there = tables
    inside = in_any_part(delta_lambda(here, there) != 0).tolist()
    nodes = inner_nodes(schedule, here, there, order)
    steps = single_steps(nodes, [levels, *map(levels_of, nodes[1:-1])], of, rule)
    if all(inside):
        return steps
    plain = single_steps([here, there], [levels], of, rule)
    return [many if split else one for split, many, one in zip(inside, steps, plain, strict=True)]


@level_by_level()
def stages(levels: Sequence[NoiseLevel], of: Of, rule: Rule) -> list[StepRow]:
    """The rows of one single step over its levels, all but the last of which are called.

    Parts of x for which it touches an end go from level to level at order 1.
    """
    [rows] = single_steps([stacked([level]) for level in levels], [[level] for level in levels[:-1]], of, rule)
    return rows


def single_steps(
    nodes: Sequence[NoiseLevel], levels: Sequence[Sequence[NoiseLevel]], of: Of, rule: Rule
) -> list[list[StepRow]]:
    """The rows of each of the single steps of a table, see `stages`.

    Args:
        nodes: Tables of the steps' first levels, second levels and so on.
        levels: Levels of the nodes, without the last ones, which are not called.
        of: Estimate that is combined.
        rule: Rule of the last stage.
    """
    first = linear_step(nodes[0], nodes[1], of)
    calls = [rows_of(levels[0], first.keep, (first.gain,), saves_x=len(nodes) > 2)]
    for i in range(2, len(nodes)):
        keep, weights, usable = stage(nodes[: i + 1], of, rule if i == len(nodes) - 1 else exact)
        plain = linear_step(nodes[i - 1], nodes[i], of)
        newest, *older = reversed(weights)
        gains = where(usable, newest, plain.gain), *(where(usable, weight, 0.0) for weight in older)
        saved_gain = where(usable, keep, 0.0)
        calls.append(rows_of(levels[i - 1], where(usable, 0.0, plain.keep), gains, saved_gain=saved_gain))
    return [list(rows) for rows in zip(*calls, strict=True)]


def stage(nodes: Sequence[NoiseLevel], of: Of, rule: Rule) -> tuple[Tensor, list[Tensor], Tensor]:
    """Step from the first level to the last: the factor of x, and the gains of the estimates, oldest first.

    The third result is the mask of the parts for which this is possible: the step does not touch an end.
    """
    whole = linear_step(nodes[0], nodes[-1], of)
    reaches = [linear_step(nodes[0], node, of).reach for node in nodes[1:-1]]
    usable = whole.reach != 0
    for reach in reaches:
        usable = usable & (reach != 0)
    places = [ZERO, *(elementary.safe_divide(reach, whole.reach, 0.0) for reach in reaches)]
    return whole.keep, [whole.gain * weight for weight in rule(places, whole.reach)], usable


def first_with_signal(schedule: Schedule) -> NoiseLevel:
    """The first level with some signal in it, part by part."""
    first = schedule[0]
    for level in schedule[1:]:
        first = select_level(first.alpha > 0, first, level)
    return first


def last_noisy(schedule: Schedule) -> NoiseLevel:
    """The last level above clean data, part by part; the first one in parts that are clean throughout."""
    last = schedule[0]
    for level in schedule:
        last = select_level(level.sigma > 0, level, last)
    return last


def clamp_level(level: NoiseLevel, last: NoiseLevel) -> NoiseLevel:
    """The level, or with its alpha the log-SNR of the last one where it is cleaner than that."""
    least = last.sigma * elementary.safe_divide(level.alpha, last.alpha, 1.0)
    return level._replace(sigma=where(half_log_snr(level) < half_log_snr(last), level.sigma, least))
