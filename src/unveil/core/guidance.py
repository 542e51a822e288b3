"""Functions from steps to a step: they compose left to right, in the order written."""

from __future__ import annotations

import torch
from torch import Tensor

from unveil.core.denoiser import Estimate, Step
from unveil.types import Level, RecipeError


def cfg(conditional: Step, null: Step, scale: float) -> Step:
    """Classifier-free guidance: null + scale (conditional - null); scale 1 is no guidance.

    The paper's w is scale - 1. At scale 1 the null step is not called.

    Source: Ho & Salimans 2022, eq. 6 (arXiv:2207.12598).
    """
    if scale == 1:
        return conditional

    def guided(x: Tensor, level: Level) -> Estimate:
        return null(x, level).towards(conditional(x, level), scale)

    return guided


def clip_static(step: Step, limit: float = 1.0) -> Step:
    """x0 clamped to [-limit, limit], and eps to what that leaves of x.

    Source: Ho et al. 2020, the published sampler (arXiv:2006.11239).
    """

    def guided(x: Tensor, level: Level) -> Estimate:
        estimate = step(x, level)
        return Estimate.of_x0(estimate.x0.clamp(-limit, limit), x, level, estimate.extra)

    return guided


def clip_dynamic(step: Step, percentile: float = 0.995, limit: float = 1.0) -> Step:
    """x0 clamped to a percentile of its own absolute values, if above `limit`, and scaled back to it.

    Args:
        step: the step to guide.
        percentile: in (0, 1), taken over each sample.
        limit: never clamp below this.

    Raises:
        RecipeError: percentile outside (0, 1).

    Source: Saharia et al. 2022, section 2.3 (arXiv:2205.11487).
    """
    if not 0 < percentile < 1:
        raise RecipeError(f"percentile = {percentile}: must lie inside (0, 1)")

    def guided(x: Tensor, level: Level) -> Estimate:
        estimate = step(x, level)
        bound = torch.quantile(estimate.x0.abs().flatten(1), percentile, dim=1).clamp(min=limit)
        bound = bound.reshape(-1, *(1,) * (x.ndim - 1))
        x0 = estimate.x0.clamp(-bound, bound) * (limit / bound)
        return Estimate.of_x0(x0, x, level, estimate.extra)

    return guided
