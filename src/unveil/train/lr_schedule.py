"""Learning rates as functions of the optimiser step: a schedule returns the factor on the peak rate."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

_log = logging.getLogger(__name__)

# number of the optimiser step, from 0 -> factor in [0, 1]
Schedule = Callable[[int], float]


def warmup_within(steps: int, warmup: int) -> int:
    """Warm-up of a run: `warmup` steps, or a tenth of the run, at least 1 step, where `warmup` is longer than the run.

    A rise that never ends would leave the whole run below its learning rate. A warning says what is changed.
    """
    if warmup <= steps:
        return warmup
    shortened = max(steps // 10, 1)
    _log.warning(
        "warmup = %d is longer than the run of %d steps; the learning rate rises over %d instead",
        warmup,
        steps,
        shortened,
    )
    return shortened


def linear(steps: int, *, warmup: int = 0, decay: float = 0.0) -> Schedule:
    """Schedule that rises over `warmup` steps, is constant, and falls to 0 over the last share `decay` of the steps."""
    fall = max(round(steps * decay), 0)

    def factor(step: int) -> float:
        left = (steps - step) / fall if fall else 1.0
        return max(min(_rise(step, warmup), left), 0.0)

    return factor


def cosine(steps: int, *, warmup: int = 0) -> Schedule:
    """Schedule that rises over `warmup` steps, then follows half a cosine to 0.

    Source: Loshchilov & Hutter 2017, eq. 5 without restarts (arXiv:1608.03983).
    """

    def factor(step: int) -> float:
        place = min(max(step - warmup, 0) / max(steps - warmup, 1), 1.0)
        return min(_rise(step, warmup), 0.5 * (1 + math.cos(math.pi * place)))

    return factor


def inverse_sqrt(*, warmup: int) -> Schedule:
    """Schedule that rises over `warmup` steps, at least 1, then falls with the inverse square root of the step.

    The published peak learning rate for it is (width * warmup)^-0.5.

    Source: Vaswani et al. 2017, eq. 3 (arXiv:1706.03762).
    """
    return lambda step: min((step + 1) / warmup, (warmup / (step + 1)) ** 0.5)


def _rise(step: int, warmup: int) -> float:
    return min((step + 1) / warmup, 1.0) if warmup else 1.0
