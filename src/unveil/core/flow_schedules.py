"""Levels of published schedulers of rectified flow, which may be shifted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from unveil.core.process import DATA, Process
from unveil.core.schedule import Schedule, check_steps, levels_at, levels_at_lambda, unit_fractions
from unveil.types import NoiseLevel

ALMOST_NOISE = 1 - 17 / 2**24  # 1 - 1e-6 in float32, where a published solver begins in place of 1


def uniform_above(process: Process, steps: int, *, last: float = 1e-3) -> Schedule:
    """Evenly spaced in t from t = 1 to sigma(last), and a last step onto the data: Stable Diffusion 3's levels.

    The last call lies at the t that equals the noise of t = `last`: in a shifted process that is `last` shifted, as
    in the published scheduler, which shifts its ends and then all levels between them.

    Args:
        process: rectified flow, shifted or not.
        steps: network calls, at least 1.
        last: the smallest time of training, before the shift.

    Source: Esser et al. 2024 (arXiv:2403.03206), published scheduler.
    """
    check_steps(steps)
    end = float(process.at(last).sigma)
    return Schedule(process, [*levels_at(process, [1 + part * (end - 1) for part in unit_fractions(steps)]), DATA])


def uniform_to(process: Process, steps: int, *, last: float) -> Schedule:
    """Evenly spaced in t, then stretched in alpha so that the last call has sigma = `last`: LTX-Video's levels.

    Args:
        process: rectified flow, shifted or not.
        steps: network calls, at least 1; a single one is made at t = 1.
        last: sigma of the last call, inside (0, 1).

    Source: HaCohen et al. 2024 (arXiv:2501.00103), published scheduler.
    """
    check_steps(steps)
    alphas = [float(level.alpha) for level in levels_at(process, [(steps - i) / steps for i in range(steps)])]
    stretch = (1 - last) / alphas[-1] if steps > 1 else 1.0
    return Schedule(process, [process.at(1.0), *_of_sigmas(process, [1 - a * stretch for a in alphas[1:]]), DATA])


def flow_sigmas(process: Process, steps: int, *, last: float = 1e-3) -> Schedule:
    """Evenly spaced in t from a little below t = 1 to one step above `last`, and a last step onto the data.

    These are the levels of Wan's solver, which asks for a finite log-SNR at the first one.

    Args:
        process: rectified flow, shifted or not.
        steps: network calls, at least 1.
        last: the time that a call after the last one would have.

    Source: Zhao et al. 2023 (arXiv:2302.04867), published scheduler with flow sigmas.
    """
    check_steps(steps)
    times = np.linspace(1, last, steps + 1)[1:-1].tolist()
    return Schedule(process, [*_of_sigmas(process, [ALMOST_NOISE]), *levels_at(process, times), DATA])


def _of_sigmas(process: Process, sigmas: Sequence[float]) -> list[NoiseLevel]:
    """The levels of sigmas inside (0, 1), where alpha is 1 - sigma."""
    return levels_at_lambda(process, [math.log((1 - sigma) / sigma) for sigma in sigmas])
