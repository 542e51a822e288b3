"""UniPC: a multistep predictor, and a corrector that uses the next step's own call and so costs no call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from unveil.core import elementary
from unveil.core.elementary import level_by_level, scalar, where
from unveil.core.samplers.coefficients import (
    LinearStep,
    Of,
    Rule,
    Tier,
    check_order,
    exact,
    gains,
    highest_usable,
    interpolated,
    linear_step,
    most_nodes,
    phi_functions,
    steps_ago,
    steps_left,
)
from unveil.core.samplers.exponential import order_per_step
from unveil.core.samplers.loop import ZERO, CoefficientTable, rows_of
from unveil.core.samplers.registry import SamplerSpec
from unveil.core.schedules import Schedule

# The paper's B(h) cancels wherever the equations for the weights determine them. What is left of it is the one weight
# that a single difference has: B / 2 instead of phi_2.


def b1(nodes: Sequence[Tensor], reach: Tensor) -> list[Tensor]:
    """B_1(h) = h. Source: Zhao et al. 2023, section 3 (arXiv:2302.04867)."""
    return (
        interpolated(nodes, [scalar(1.0), 0.5 / phi_functions(1, reach)[0]]) if len(nodes) == 2 else exact(nodes, reach)
    )


def b2(nodes: Sequence[Tensor], reach: Tensor) -> list[Tensor]:
    """B_2(h) = exp(h) - 1. Source: Zhao et al. 2023, section 3 (arXiv:2302.04867)."""
    return interpolated(nodes, [scalar(1.0), scalar(0.5)]) if len(nodes) == 2 else exact(nodes, reach)


# Coefficients that vary with the step: every weight from the equations, and no B. Source: their UniPC_v.
varying = exact


@level_by_level()
def unipc(
    schedule: Schedule,
    order: int = 3,
    *,
    of: Of = "x0",
    predict: Rule = b2,
    correct: Rule = b2,
    lower_below: float = float("inf"),
) -> CoefficientTable:
    """UniPC of any order: one call a step, where the corrector raises the predictor's order by one.

    A step's call is made at its predicted x. It corrects that x before the next step leaves from it, and both are
    one row: what the corrector adds is a sum of estimates, like the next prediction. The last x is not corrected.

    Args:
        schedule: Schedule from noise to data; with `of` "eps" it begins at alpha > 0.
        order: Order of the predictor, 1 or more; the first steps have fewer estimates, and a lower order. Rounding
            grows with the order: the differences of k estimates are divided by the k-th power of a step.
        of: Estimate that is combined, "x0" or "eps".
        predict: `b1`, `b2` or `varying`.
        correct: Rule of the corrector; its first node is the start of the corrected step, the second its end.
        lower_below: Number of steps below which the last steps have order 2 and 1. The default is always, as published;
            0: never.

    Raises:
        RecipeError: The order does not exist, or eps starts at alpha = 0.

    Source: Zhao et al. 2023, section 3, algorithms 1 and 2 (arXiv:2302.04867).
    """
    check_order(order, math.inf)
    now = linear_step(*schedule.steps, of)
    left, most = steps_left(schedule)[1:], order_per_step(schedule, order, lower_below)
    predicted, counts = gains(now, predict, order, most)
    correction, corrected = _correction(now, (predicted, counts), correct, order, where(left > 0, most, 0.0))
    before = [steps_ago(gain, 1) for gain in correction]
    counts = torch.maximum(counts, steps_ago(corrected, 1))
    # the corrected x is carried along, and the prediction added
    both = [now.keep * old + new for old, new in zip_longest(before, predicted, fillvalue=ZERO)]
    return CoefficientTable(rows_of(schedule[:-1], now.keep, both, counts=counts), of)


def _correction(
    now: LinearStep, prediction: tuple[Sequence[Tensor], Tensor], rule: Rule, order: int, most: Tensor
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Correction of x by the call at a step's end, as gains on that call and those before it, and their number.

    A step that touches an end, and the last step, have no correction. The correction uses fewer estimates if an earlier
    step touched an end.
    """
    predicted, counts = prediction
    nodes = [ZERO, scalar(1.0)]
    tiers: list[Tier] = []
    usable = (now.reach != 0) & (most >= 1)
    back = ZERO
    for number in range(order):
        if number:
            reach = steps_ago(now.reach, number)
            usable = usable & (reach != 0) & (most > number)
            back = back - elementary.safe_divide(reach, now.reach, 0.0)
            nodes.append(back)
        if not bool(usable.any()):
            break
        tiers.append((usable, len(nodes)))

    def weights_of(count: int) -> list[Tensor]:
        start, end, *rest = (now.gain * weight for weight in rule(nodes[:count], now.reach))
        return [end, *(new - old for new, old in zip_longest([start, *rest], predicted, fillvalue=ZERO))]

    used = most_nodes(tiers, now.gain)
    counts = torch.where(used > 0, 1 + torch.maximum(used - 1, counts), 1)
    return highest_usable(tiers, weights_of, (torch.zeros_like(now.gain),)), counts


_PAPER = "Zhao et al. 2023, algorithms 1 and 2 (arXiv:2302.04867)"

# Order + 1 of each without lower orders at the end, which as published leave order 2.
SAMPLERS: tuple[SamplerSpec, ...] = (
    SamplerSpec("unipc-1", unipc, _PAPER, order=2, options={"order": 1}),
    SamplerSpec("unipc-2", unipc, _PAPER, order=2, options={"order": 2}),
    SamplerSpec("unipc-3", unipc, _PAPER, order=2),
    SamplerSpec("unipc-3-b1", unipc, _PAPER, order=2, options={"predict": b1, "correct": b1}),
    SamplerSpec("unipc-3-varying", unipc, _PAPER, order=2, options={"predict": varying, "correct": varying}),
    SamplerSpec("unipc-3-eps", unipc, _PAPER, order=2, start="finite", options={"of": "eps"}),
)
