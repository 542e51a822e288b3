"""The variance of a reverse step p(x_s | x_t): fixed, learned, or learned between two bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from unveil.core import elementary
from unveil.core.transition import Transition
from unveil.errors import ShapeError
from unveil.types import like


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
