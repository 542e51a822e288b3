"""UniPC: a multistep predictor, and a corrector that uses the next step's own call, so that it costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from torch import Tensor

from unveil.core import elementary
from unveil.core.elementary import scalar, where
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
    phi_functions,
    steps_left,
)
from unveil.core.samplers.exponential import order_per_step
from unveil.core.samplers.loop import CoefficientTable, StepRow
from unveil.core.samplers.registry import SamplerSpec
from unveil.core.schedule import Schedule

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


def unipc(
    grid: Schedule,
    order: int = 3,
    *,
    of: Of = "x0",
    predict: Rule = b2,
    correct: Rule = b2,
    lower_below: float = float("inf"),
) -> CoefficientTable:
    """UniPC of order 1 to 3: one call a step, where the corrector raises the predictor's order by one.

    A step's call is made at its predicted x. It corrects that x before the next step leaves from it, and both are
    one row: what the corrector adds is a sum of estimates, like the next prediction. The last x is not corrected.

    Args:
        grid: from noise to data; with `of` "eps" it begins at alpha > 0.
        order: of the predictor; the first steps have fewer estimates, and a lower order.
        of: the estimate that is combined, "x0" or "eps".
        predict: `b1`, `b2` or `varying`.
        correct: the same of the corrector; its first node is where the corrected step began, the second its end.
        lower_below: with fewer steps than this the last ones fall to order 2 and 1: always, as published; 0 never.

    Raises:
        RecipeError: an order that does not exist, or eps from alpha = 0.

    Source: Zhao et al. 2023, section 3, algorithms 1 and 2 (arXiv:2302.04867).
    """
    check_order(order, 3)
    rows: list[StepRow] = []
    correction: tuple[Tensor, ...] = ()
    before: list[LinearStep] = []
    left = steps_left(grid)
    for number, most in enumerate(order_per_step(grid, order, lower_below)):
        now = linear_step(grid[number], grid[number + 1], of)
        predicted = gains(now, before, predict, most)
        both = zip_longest(correction, predicted, fillvalue=scalar(0.0))
        # the corrected x is carried along, and the prediction added
        rows.append(StepRow(grid[number], now.keep, tuple(now.keep * corrected + new for corrected, new in both)))
        correction = _correction(now, before, predicted, correct, where(left[number + 1] > 0, most, 0.0))
        before = [now, *before][: order - 1]
    return CoefficientTable(rows, of)


def _correction(
    now: LinearStep, before: Sequence[LinearStep], predicted: Sequence[Tensor], rule: Rule, most: Tensor
) -> tuple[Tensor, ...]:
    """Correction of x by the call at a step's end, as gains on that call and those before it.

    Nothing where the step touches an end or is the last; from fewer estimates where one before it touched an end.
    """
    nodes = [scalar(0.0), scalar(1.0)]
    tiers: list[Tier] = []
    usable = (now.reach != 0) & (most >= 1)
    back = scalar(0.0)
    for number in range(len(before) + 1):
        if number:
            usable = usable & (before[number - 1].reach != 0) & (most > number)
            back = back - elementary.safe_divide(before[number - 1].reach, now.reach, 0.0)
            nodes.append(back)
        if not bool(usable.any()):
            break
        tiers.append((usable, len(nodes)))

    def weights_of(count: int) -> list[Tensor]:
        start, end, *rest = (now.gain * weight for weight in rule(nodes[:count], now.reach))
        return [end, *(new - old for new, old in zip_longest([start, *rest], predicted, fillvalue=scalar(0.0)))]

    return highest_usable(tiers, weights_of, (scalar(0.0),))


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
