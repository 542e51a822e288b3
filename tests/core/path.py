"""The mixture's deterministic path in closed form, and its denoiser in fewer operations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.core.mixture import MEANS, SPREADS, WEIGHTS
from unveil.core.denoiser import Estimate
from unveil.core.samplers import CoefficientTable, run
from unveil.types import NoiseLevel


def marginal(x: Tensor, level: NoiseLevel) -> Tensor:
    """P(X < x) at a level, float64."""
    deviation = ((level.alpha * SPREADS) ** 2 + level.sigma**2).sqrt()
    return (WEIGHTS * torch.special.ndtr((x[..., None] - level.alpha * MEANS) / deviation)).sum(-1)


def quantile(share: Tensor, level: NoiseLevel) -> Tensor:
    """The x below which this share of the marginal lies, by halving."""
    size = 3 * float(level.alpha) + 9 * float(level.sigma)
    low, high = torch.full_like(share, -size), torch.full_like(share, size)
    for _ in range(60):
        middle = (low + high) / 2
        below = marginal(middle, level) < share
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def consistent(x: Tensor, level: NoiseLevel) -> Estimate:
    """The exact consistency function: in one dimension the path keeps a point's share of the marginal."""
    return Estimate.of_x0(quantile(marginal(x, level), NoiseLevel(0.0, 1.0, 0.0)), x, level)


def quick(x: Tensor, level: NoiseLevel) -> Estimate:
    """`mixture.exact` for a float level and two components, about five times as fast."""
    alpha, sigma = float(level.alpha), float(level.sigma)
    means, variances, odds = [], [], []
    for weight, mean, spread in zip(WEIGHTS.tolist(), MEANS.tolist(), SPREADS.tolist(), strict=True):
        variance = (alpha * spread) ** 2 + sigma**2
        gain = alpha * spread**2 / variance
        means.append((mean - gain * alpha * mean, gain))
        variances.append((variance, alpha * mean))
        odds.append(math.log(weight) - 0.5 * math.log(variance))
    (v0, m0), (v1, m1) = variances
    # log odds of the second component: a quadratic in x
    square, line = 0.5 / v0 - 0.5 / v1, m1 / v1 - m0 / v0
    rest = odds[1] - odds[0] + 0.5 * m0**2 / v0 - 0.5 * m1**2 / v1
    belief = (square * x).add_(line).mul_(x).add_(rest).sigmoid_()
    (a0, b0), (a1, b1) = means
    x0 = (b1 - b0) * x + (a1 - a0)
    return Estimate.of_x0(x0.mul_(belief).add_(x, alpha=b0).add_(a0), x, level)


def affine_moments(table: CoefficientTable, first: NoiseLevel, mean: float, deviation: float) -> tuple[float, float]:
    """Mean and variance, without any error of sampling, that a table makes of a Gaussian's noise at `first`.

    The denoiser of a Gaussian is affine, so the sample is an affine function of the start and of each noise; its
    coefficients are read off one run with a unit in each place.
    """
    noisy = [k for k, row in enumerate(table.rows) if row.noise != 0]
    count = len(noisy) + 2
    x = torch.zeros(count, dtype=torch.float64)
    x[1] = 1.0

    def noise(number: int, draw: int = 0) -> Tensor:
        z = torch.zeros(count, dtype=torch.float64)
        z[2 + noisy.index(number)] = 1.0
        return z

    def step(x: Tensor, level: NoiseLevel) -> Estimate:
        variance = (level.alpha * deviation) ** 2 + level.sigma**2
        x0 = mean + level.alpha * deviation**2 / variance * (x - level.alpha * mean)
        return Estimate.of_x0(x0, x, level)

    end = run(table, step, x, noise=noise)
    offset, factors = end[0], end[1:] - end[0]
    alpha, sigma = float(first.alpha), float(first.sigma)
    start = (alpha * deviation) ** 2 + sigma**2
    return (offset + factors[0] * alpha * mean).item(), (factors[0] ** 2 * start + (factors[1:] ** 2).sum()).item()
