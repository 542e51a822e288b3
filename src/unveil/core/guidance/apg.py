"""Classifier-free guidance without the harmful part of its difference: APG and CFG-Zero*."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unveil.core import elementary, prediction
from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.guidance.classifier_free import target_of
from unveil.core.guidance.schedule import Scale, scale_at
from unveil.core.prediction import Prediction, solve
from unveil.errors import RecipeError
from unveil.types import NoiseLevel, like


class Momentum:
    """Running sum of APG's differences, the state of one run. Make one for each run.

    A call continues the sum of the call at the next noisier level. So a corrector's second call at a level replaces the
    first. A jump back to noisier levels continues the sum of those levels. A run that starts again starts from 0.

    Args:
        beta: Share of the earlier sum, inside (-1, 1). The paper's values are negative and damp what repeats.

    Raises:
        RecipeError: beta is outside (-1, 1).
    """

    def __init__(self, beta: float = -0.5) -> None:
        if not -1 < beta < 1:
            raise RecipeError(f"beta = {beta}: must lie inside (-1, 1); the paper uses -0.5 and -0.75")
        self.beta = beta
        self._past: list[tuple[float, Tensor]] = []  # (t, sum), noisier first; three are enough for any corrector

    def add(self, difference: Tensor, level: NoiseLevel) -> Tensor:
        """The difference plus beta times the sum so far."""
        t = level.t.max().item()
        self._past = [(at, total) for at, total in self._past if at > t and total.shape == difference.shape][-2:]
        if self._past:
            difference = difference + self.beta * self._past[-1][1]
        self._past.append((t, difference))
        return difference


def apg(
    conditional: DenoiseFn,
    null: DenoiseFn,
    scale: Scale,
    *,
    parallel: float = 0.0,
    radius: float = math.inf,
    momentum: Momentum | None = None,
) -> DenoiseFn:
    """Adaptive projected guidance: the difference in x0, damped, bounded, and mostly across the conditional x0.

    The part along the conditional x0 saturates colours. With parallel = 1 and no other option this is `cfg`.

    Args:
        conditional: Denoiser with the condition.
        null: Denoiser without the condition.
        scale: Guidance scale, as in `cfg`; 1: without guidance and without a call of the null step.
        parallel: Share of the part along the conditional x0 that is kept (the paper's eta).
        radius: Maximum norm of the difference over all numbers of a sample (the paper's r: 2.5 to 20).
        momentum: Momentum of this run; None: no momentum.

    Raises:
        RecipeError: The radius is not positive.

    Source: Sadat et al. 2024, algorithm 1 (arXiv:2410.02416).
    """
    if not radius > 0:
        raise RecipeError(f"radius = {radius}: must be above 0; leave it away for no bound")

    def guided(x: Tensor, level: NoiseLevel) -> Estimate:
        weight = scale_at(scale, level)
        if not weight.ndim and weight == 1:
            return conditional(x, level)
        without, plain = null(x, level), conditional(x, level)
        difference = plain.x0 - without.x0
        if momentum is not None:
            difference = momentum.add(difference, level)
        size = _dot(difference, difference).sqrt()
        difference = difference * like(torch.where(size > radius, radius / size, 1.0), x)
        ray = _noised(plain.x0, level)
        along = like(elementary.safe_divide(_dot(difference, ray), _dot(ray, ray), 0.0), x) * ray
        update = difference - (1 - parallel) * along
        return Estimate.of_x0(plain.x0 + like(weight - 1, x) * update, x, level, plain.extra)

    return guided


def cfg_zero(
    conditional: DenoiseFn,
    null: DenoiseFn,
    scale: Scale,
    *,
    still_from: float = 1.0,
    of: Prediction = prediction.flow,
) -> DenoiseFn:
    """CFG-Zero*: the null velocity is scaled to fit the conditional one; in the first steps the velocity is 0.

    If the velocity is set to 0, neither step is called and x does not change. The first guess of a flow model is worse
    than none.

    Args:
        conditional: Denoiser with the condition.
        null: Denoiser without the condition.
        scale: Guidance scale, as in `cfg`.
        still_from: Time t from which the velocity is 0, inclusive. 1.0 is the first call of a schedule that starts at t
            = 1. The paper's 4 % of the steps is 0.96. A value above 1 switches this off.
        of: Quantity that is guided: the paper's velocity, or `prediction.eps` for models that predict noise.

    Source: Fan et al. 2025, eq. 8 and algorithm 1 (arXiv:2503.18886).
    """

    def guided(x: Tensor, level: NoiseLevel) -> Estimate:
        still = level.t >= still_from
        if bool(still.all()):
            return Estimate.solved(solve(of, level), x, torch.zeros_like(x))
        weight = scale_at(scale, level)
        without, plain = null(x, level), conditional(x, level)
        y0, y = target_of(of, without, x, level), target_of(of, plain, x, level)
        fit = like(elementary.safe_divide(_dot(y, y0), _dot(y0, y0), 1.0), x)  # eq. 8: s* = <v, v0> / |v0|^2
        y = like(weight, x) * y + (1 - like(weight, x)) * fit * y0
        if still.ndim:
            y = y * like((~still).to(torch.float64), x)
        return Estimate.solved(solve(of, level), x, y, plain.extra)

    return guided


def _noised(x0: Tensor, level: NoiseLevel) -> Tensor:
    """x0 with 0 in the parts that are already clean, which guidance must not move."""
    return x0 if not level.sigma.ndim else x0 * like((level.sigma > 0).to(torch.float64), x0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample, (B,)."""
    return (a * b).reshape(len(a), -1).sum(1)
