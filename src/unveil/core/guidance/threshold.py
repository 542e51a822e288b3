"""Keeps x0 where images are, after guidance has pushed it out."""

from __future__ import annotations

import torch
from torch import Tensor

from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.errors import RecipeError
from unveil.types import NoiseLevel


def clip_static(step: DenoiseFn, limit: float = 1.0) -> DenoiseFn:
    """x0 clamped to [-limit, limit], and eps to what that leaves of x.

    Source: Ho et al. 2020, the published sampler (arXiv:2006.11239).
    """

    def guided(x: Tensor, level: NoiseLevel) -> Estimate:
        estimate = step(x, level)
        return Estimate.of_x0(estimate.x0.clamp(-limit, limit), x, level, estimate.extra)

    return guided


def clip_dynamic(step: DenoiseFn, percentile: float = 0.995, limit: float = 1.0) -> DenoiseFn:
    """x0 clamped to its own percentile absolute values, if above `limit`, and scaled back to it.

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

    def guided(x: Tensor, level: NoiseLevel) -> Estimate:
        estimate = step(x, level)
        sizes = estimate.x0.abs().reshape(len(x), -1)
        sizes = sizes if sizes.dtype == torch.float64 else sizes.float()  # quantile knows no half precision
        # row by row: quantile refuses more than 2^24 numbers at once
        bound = torch.stack([row.quantile(percentile) for row in sizes]).clamp(min=limit)
        bound = bound.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
        x0 = estimate.x0.clamp(-bound, bound) * (limit / bound)
        return Estimate.of_x0(x0, x, level, estimate.extra)

    return guided
