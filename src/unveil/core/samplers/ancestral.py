"""Ancestral sampling: x_s drawn from p(x_s | x_t), as DDPM does it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from unveil.core import elementary
from unveil.core.denoiser import DenoiseFn
from unveil.core.elementary import level_by_level
from unveil.core.prediction import VarianceRule, fixed_small, is_learned
from unveil.core.rng import Noise
from unveil.core.samplers.loop import (
    ZERO,
    CoefficientTable,
    Plan,
    SamplerState,
    StepResult,
    draw_noise,
    in_any_part,
    rows_of,
)
from unveil.core.samplers.registry import SamplerSpec
from unveil.core.schedules import Schedule
from unveil.core.transition import Chain
from unveil.types import NoiseLevel, like

# (x, level) -> gradient of log p(y | x), of x's shape
Shift = Callable[[Tensor, NoiseLevel], Tensor]


def ancestral(schedule: Schedule, variance: VarianceRule = fixed_small, *, shift: Shift | None = None) -> Plan:
    """DDPM's reverse chain over the levels of a schedule; a respaced chain is a coarser schedule.

    Args:
        schedule: Schedule from noise to data.
        variance: Variance of each step; the last step onto the data adds none.
        shift: Shift of the mean, by variance * shift(x, level), as in classifier guidance.

    Source: Ho et al. 2020, algorithm 2 (arXiv:2006.11239); shift: Dhariwal & Nichol 2021, algorithm 1.
    """
    chain = Chain(schedule)
    if shift is not None or is_learned(variance):
        return AncestralPlan(chain, variance, shift)
    table = chain.table
    with level_by_level():
        spread = elementary.exp(0.5 * variance(table, None).log)
    rows = rows_of(schedule[:-1], table.ct, (table.c0,), spread, spans=list(pairwise(schedule)))
    noisy = in_any_part(table.s.sigma != 0).tolist()
    return CoefficientTable([row if some else row._replace(noise=ZERO) for row, some in zip(rows, noisy, strict=True)])


class AncestralPlan:
    """Chain whose variance or mean depends on the estimate, so that it does not fit into a table."""

    def __init__(self, chain: Chain, variance: VarianceRule, shift: Shift | None) -> None:
        self.chain = chain
        self.variance = variance
        self.shift = shift

    @property
    def total(self) -> int:
        """The number of steps."""
        return len(self.chain)

    def is_done(self, state: SamplerState) -> bool:
        """Return True if the chain has reached the data."""
        return state.number >= len(self.chain)

    def advance(self, state: SamplerState, step: DenoiseFn, noise: Noise | None, out: Tensor) -> StepResult:
        """One step: mean + deviation z."""
        del out
        move = self.chain[state.number]
        estimate = step(state.x, move.t)
        spread = self.variance(move, estimate.extra)
        x = move.mean(estimate.x0, state.x)
        if self.shift is not None:
            x = x + like(spread.value, x) * self.shift(state.x, move.t)
        if not _onto_data(move.s):
            deviation = like(elementary.exp(0.5 * spread.log), x)
            x = x + deviation * draw_noise(noise, state.number).to(x.dtype)
        return StepResult(SamplerState(x, state.past, state.number + 1), move.t, estimate)


def _onto_data(level: NoiseLevel) -> bool:
    return bool((level.sigma == 0).all())


SAMPLERS = (
    SamplerSpec(
        "ancestral",
        ancestral,
        "Ho et al. 2020, algorithm 2 (arXiv:2006.11239)",
        order=1,
        strong_order=1,
        stochastic=True,
    ),
)
