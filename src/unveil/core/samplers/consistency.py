"""Sampling with a consistency function, which maps any level straight to the data."""

from __future__ import annotations

from itertools import pairwise

from unveil.core import elementary
from unveil.core.elementary import level_by_level
from unveil.core.samplers.loop import CoefficientTable, rows_of
from unveil.core.samplers.registry import SamplerSpec
from unveil.core.schedules import Schedule
from unveil.types import NoiseLevel


@level_by_level()
def consistency(schedule: Schedule, *, least: NoiseLevel | None = None) -> CoefficientTable:
    """Multistep consistency sampling: to the data in one call, back up to the next level with new noise, again.

    A schedule of one step is one-step sampling.

    Args:
        schedule: Schedule from noise to `least` or to the data.
        least: Level at which the function was trained to return its input. Its output therefore still contains the
            noise of this level. None: the last level of the schedule.

    Source: Song et al. 2023, algorithm 1 (arXiv:2303.01469), for any alpha.
    """
    clean = schedule[-1] if least is None else least
    left = clean.sigma / clean.alpha
    here, there = schedule.steps
    fall = here.sigma * there.alpha - there.sigma * here.alpha
    moves = elementary.safe_divide(fall, fall, 0.0)  # 0 in parts that keep their level, and so their x
    noise = elementary.sqrt(elementary.square(there.sigma) - elementary.square(there.alpha * left))
    rows = rows_of(schedule[:-1], 1.0 - moves, (moves * there.alpha,), moves * noise, spans=list(pairwise(schedule)))
    return CoefficientTable(rows)


SAMPLERS = (
    SamplerSpec(
        "consistency",
        consistency,
        "Song et al. 2023, algorithm 1 (arXiv:2303.01469)",
        order=None,
        stochastic=True,
        denoiser="consistency",
    ),
)
