"""Targets that a network may be trained to predict: y = a x0 + b eps, with (a, b) a function of the level.

Together with x = alpha x0 + sigma eps this is two equations for two unknowns, so one 2x2 solve turns
any output into x0 and eps:

    det = a sigma - b alpha        x0 = (sigma y - b x) / det        eps = (a x - alpha y) / det

A reverse step p(x_s | x_t) also has a variance: fixed, learned, or learned between two bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.core import elementary
from unveil.core.transition import Chain, Transition
from unveil.errors import RecipeError, ShapeError
from unveil.types import NoiseLevel, like

# level -> (a, b), the coefficients of the target y = a x0 + b eps
Prediction = Callable[[NoiseLevel], tuple[Tensor, Tensor]]


def x0(level: NoiseLevel) -> tuple[Tensor, Tensor]:
    """The clean sample; at sigma = 0 x contains no eps, which is taken as 0."""
    return torch.ones_like(level.t), torch.zeros_like(level.t)


def eps(level: NoiseLevel) -> tuple[Tensor, Tensor]:
    """The noise; at alpha = 0 it does not determine x0. Source: Ho et al. 2020, eq. 11 (arXiv:2006.11239)."""
    return torch.zeros_like(level.t), torch.ones_like(level.t)


def v(level: NoiseLevel) -> tuple[Tensor, Tensor]:
    """V = alpha eps - sigma x0, defined at both ends. Source: Salimans & Ho 2022, section 4 (arXiv:2202.00512)."""
    return -1.0 * level.sigma, level.alpha


def score(level: NoiseLevel) -> tuple[Tensor, Tensor]:
    """The gradient of log p(x | x0), -eps / sigma. Source: Song et al. 2021, eq. 7 (arXiv:2011.13456)."""
    return torch.zeros_like(level.t), elementary.safe_divide(-1.0, level.sigma, -math.inf)


def flow(level: NoiseLevel) -> tuple[Tensor, Tensor]:
    """The velocity dx/dt = alpha' x0 + sigma' eps. Source: Lipman et al. 2022, eq. 23 (arXiv:2210.02747)."""
    return level.dalpha, level.dsigma


def rectified_flow(level: NoiseLevel) -> tuple[Tensor, Tensor]:
    """Eps - x0, rectified flow's velocity in its own time: under a shift, `flow` without the speed of the shift.

    Source: Esser et al. 2024, eq. 13 and section 5.3.2 (arXiv:2403.03206).
    """
    return torch.full_like(level.t, -1.0), torch.ones_like(level.t)


def edm_f(sigma_data: float = 0.5) -> Prediction:
    """EDM's network output F, of unit variance for data of deviation sigma_data.

    Source: Karras et al. 2022, eq. 7 and table 1 (arXiv:2206.00364), solved for F with r = sigma / alpha.
    """

    def coefficients(level: NoiseLevel) -> tuple[Tensor, Tensor]:
        r = level.sigma / level.alpha
        width = elementary.sqrt(r * r + sigma_data**2)
        return r / (sigma_data * width), elementary.divide(-sigma_data, width)

    return coefficients


def posterior_mean(chain: Chain) -> Prediction:
    """DDPM's mu: the mean of the step that starts at the level, so it is bound to one chain.

    Source: Ho et al. 2020, eq. 7 (arXiv:2006.11239).
    """

    def coefficients(level: NoiseLevel) -> tuple[Tensor, Tensor]:
        step = chain.of(level)
        return step.c0 + step.ct * level.alpha, step.ct * level.sigma

    return coefficients


# Those that need no further setting, by the name a recipe uses.
PREDICTIONS: dict[str, Prediction] = {"x0": x0, "eps": eps, "v": v, "score": score, "flow": flow}


@dataclass(frozen=True)
class Solution:
    """x0 = x0_x x + x0_y y and eps = eps_x x + eps_y y, in float64."""

    x0_x: Tensor
    x0_y: Tensor
    eps_x: Tensor
    eps_y: Tensor

    @cached_property
    def scalars(self) -> tuple[float, float, float, float] | None:
        """The four as Python numbers, for fused operations; None where parts of x have levels of their own."""
        four = (self.x0_x, self.x0_y, self.eps_x, self.eps_y)
        if any(number.ndim for number in four):
            return None
        x0_x, x0_y, eps_x, eps_y = (number.item() for number in four)
        return x0_x, x0_y, eps_x, eps_y


def solve(prediction: Prediction, level: NoiseLevel) -> Solution:
    """The 2x2 solve at a level.

    Raises:
        RecipeError: The target contains no information on x0 at this level (eps at alpha = 0, score at sigma = 0).
    """
    a, b = prediction(level)
    det = a * level.sigma - b * level.alpha
    lost = (det == 0) & (b != 0)
    # part by part: given frames are at det = 0 where others are noise alone
    nothing = ((a == 0) & (b == 0)) | (level.alpha == 0)
    if bool((lost | ~det.isfinite() | ((det == 0) & nothing)).any()):
        raise RecipeError(
            f"at t = {level.t} (alpha = {level.alpha}, sigma = {level.sigma}) this prediction does not determine x0; "
            "end the schedule elsewhere, or predict x0 or v"
        )
    # det = 0 is left where b = 0 and sigma = 0: y = a x0, and eps has left no trace, so it is 0
    return Solution(
        elementary.safe_divide(-1.0 * b, det, 0.0),
        elementary.safe_divide(level.sigma, det, elementary.safe_divide(1.0, a, 1.0)),
        elementary.safe_divide(a, det, 0.0),
        elementary.safe_divide(-1.0 * level.alpha, det, 0.0),
    )


class Variance(NamedTuple):
    """A variance and its logarithm. The two differ where the true variance is 0: the logarithm has a floor."""

    value: Tensor
    log: Tensor


# (step, the network's variance channels or None) -> variance, per level or of x's shape
VarianceRule = Callable[[Transition, Tensor | None], Variance]


def fixed_small(step: Transition, extra: Tensor | None = None) -> Variance:
    """beta-tilde, the variance of q(x_s | x_t, x0). Source: Ho et al. 2020, section 3.2 (arXiv:2006.11239)."""
    del extra
    return Variance(step.var, elementary.log(step.floor))


def fixed_large(step: Transition, extra: Tensor | None = None) -> Variance:
    """beta; the step onto the data takes the floor instead, as published. Source: Ho et al. 2020, section 3.2."""
    del extra
    large = elementary.where(step.var > 0, step.beta, step.floor)
    return Variance(large, elementary.log(large))


def learned(step: Transition, extra: Tensor | None) -> Variance:
    """The network's channels are the log variance itself."""
    del step
    extra = _channels(extra, "learned")
    return Variance(extra.exp(), extra)


def learned_range(step: Transition, extra: Tensor | None) -> Variance:
    """Log var = v log beta + (1 - v) log beta-tilde, with the network's channels in [-1, 1] for v in [0, 1].

    Source: Nichol & Dhariwal 2021, eq. 15 (arXiv:2102.09672).
    """
    extra = _channels(extra, "learned-range")
    high, low = (like(elementary.log(bound), extra) for bound in (step.beta, step.floor))
    part = (extra + 1) / 2
    log = part * high + (1 - part) * low
    return Variance(log.exp(), log)


def posterior_mix(v: float) -> VarianceRule:
    """(1 - v) beta-tilde + v beta, the `v_posterior` of latent diffusion's framework; v in [0, 1]."""

    def rule(step: Transition, extra: Tensor | None = None) -> Variance:
        del extra
        value = (1 - v) * step.var + v * step.beta
        return Variance(value, elementary.log(value.clamp(min=1e-20)))

    return rule


FIXED: dict[str, VarianceRule] = {"fixed-small": fixed_small, "fixed-large": fixed_large}
LEARNED: dict[str, VarianceRule] = {"learned": learned, "learned-range": learned_range}
VARIANCES: dict[str, VarianceRule] = {**FIXED, **LEARNED}


def is_learned(rule: VarianceRule) -> bool:
    """Return True if the rule needs the network's variance channels."""
    return rule in LEARNED.values()


def _channels(extra: Tensor | None, name: str) -> Tensor:
    if extra is None:
        raise ShapeError(f"variance {name!r} needs a network with variance channels; this one has none")
    return extra
