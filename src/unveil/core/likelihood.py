"""The variational bound on -log p(x0) in bits per dimension: prior, one term per step, decoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.core import elementary
from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.prediction import VarianceRule
from unveil.core.rng import Noise
from unveil.core.transition import Chain, Transition
from unveil.types import NoiseLevel, like


def normal_kl(mean1: Tensor, log_var1: Tensor | float, mean2: Tensor, log_var2: Tensor | float) -> Tensor:
    """KL(N1 || N2) of diagonal Gaussians in nats, element by element."""
    log_var1, log_var2 = (torch.as_tensor(v, dtype=mean1.dtype, device=mean1.device) for v in (log_var1, log_var2))
    apart = (mean1 - mean2) ** 2 * torch.exp(-log_var2)
    return 0.5 * (log_var2 - log_var1 - 1 + torch.exp(log_var1 - log_var2) + apart)


def decoder_nll(x0: Tensor, mean: Tensor, log_std: Tensor, *, bins: int = 256) -> Tensor:
    """-log of a Gaussian's mass in the bin of each value of x0, in nats, element by element.

    The normal distribution function is its tanh approximation, as in the published code; the outermost
    bins reach to infinity.

    Args:
        x0: Whole values 0 ... bins - 1, scaled to [-1, 1].
        mean: Mean of the Gaussian, of x0's shape.
        log_std: Logarithm of its deviation, of x0's shape.
        bins: Number of values that x0 may take.

    Source: Ho et al. 2020, eq. 13 (arXiv:2006.11239).
    """
    half = 1 / (bins - 1)
    scale = torch.exp(-log_std)
    upper = _normal_cdf(scale * (x0 - mean + half))
    lower = _normal_cdf(scale * (x0 - mean - half))
    mass = torch.where(x0 < -0.999, upper, torch.where(x0 > 0.999, 1 - lower, upper - lower))
    return -mass.clamp(min=1e-12).log()


def bound_term(
    step: Transition, x0: Tensor, x: Tensor, mean: Tensor, log_variance: Tensor, *, bins: int = 256
) -> Tensor:
    """One term of the bound per sample, (B,) in bits/dim: the KL of a step, or the decoder's term if s is the data.

    Args:
        step: Step of the chain, one for all or one per sample (B,).
        x0: Data, (B, ...).
        x: Data noised to step.t.
        mean: Mean of p(x_s | x_t).
        log_variance: Logarithm of the variance of p(x_s | x_t): a number, (B,) or of x's shape.
        bins: Number of values that x0 may take.
    """
    log_variance, log_floor = (_cast(value, x) for value in (log_variance, elementary.log(step.floor)))
    kl = normal_kl(step.mean(x0, x), log_floor, mean, log_variance)
    onto_data = step.s.sigma.reshape(-1).expand(len(x)) == 0
    terms = kl.flatten(1).mean(1)
    if bool(onto_data.any()):
        nll = decoder_nll(x0, mean, 0.5 * log_variance * torch.ones_like(x0), bins=bins).flatten(1).mean(1)
        terms = torch.where(onto_data.to(x.device), nll, terms)
    return terms / math.log(2)


def prior_term(level: NoiseLevel, x0: Tensor) -> Tensor:
    """KL(q(x_T | x0) || N(0, 1)) per sample, (B,) in bits/dim."""
    log_var = 2 * math.log(float(level.sigma))
    kl = normal_kl(like(level.alpha, x0) * x0, log_var, torch.zeros_like(x0), 0.0)
    return kl.flatten(1).mean(1) / math.log(2)


class VariationalBound(NamedTuple):
    """The bound of each sample; columns run from the noisiest step to the data.

    prior: (B,) bits/dim. terms: (B, T) bits/dim. x0_mse and eps_mse: (B, T), of the estimates.
    """

    prior: Tensor
    terms: Tensor
    x0_mse: Tensor
    eps_mse: Tensor

    @property
    def total(self) -> Tensor:
        """The whole bound, (B,) bits/dim."""
        return self.prior + self.terms.sum(1)


def bound(
    step: DenoiseFn,
    chain: Chain,
    x0: Tensor,
    variance: VarianceRule,
    *,
    noise: Noise,
    bins: int = 256,
    on_term: Callable[[int, int], object] | None = None,
) -> VariationalBound:
    """All terms of the bound, with one network call each.

    Args:
        step: Denoiser with its condition bound. Clip x0 by wrapping it, which may only tighten the bound for data in
            [-1, 1].
        chain: Chain of the steps; a respaced chain is its own model, with its own bound.
        x0: (B, ...), whole values of `bins` scaled to [-1, 1].
        variance: Variance of p(x_s | x_t).
        noise: noise(k) at the k-th term, noisiest first.
        bins: Number of values that x0 may take.
        on_term: Function that is called with (finished terms, total of terms).

    Source: Ho et al. 2020, eq. 5 (arXiv:2006.11239).
    """
    terms, x0_mse, eps_mse = [], [], []
    with torch.no_grad():
        for k, move in enumerate(chain):
            eps = noise(k).to(x0)
            x = like(move.t.alpha, x0) * x0 + like(move.t.sigma, x0) * eps
            estimate: Estimate = step(x, move.t)
            log_variance = variance(move, estimate.extra).log
            mean = move.mean(estimate.x0, x)
            terms.append(bound_term(move, x0, x, mean, log_variance, bins=bins))
            x0_mse.append((estimate.x0 - x0).square().flatten(1).mean(1))
            eps_mse.append((estimate.eps - eps).square().flatten(1).mean(1))
            if on_term is not None:
                on_term(k + 1, len(chain))
        prior = prior_term(chain[0].t, x0)
    return VariationalBound(prior, *(torch.stack(column, 1) for column in (terms, x0_mse, eps_mse)))


def _cast(value: Tensor, x: Tensor) -> Tensor:
    """A tensor of x's type that broadcasts against x, also of a single number."""
    cast = like(value if value.ndim else value[None], x)
    assert isinstance(cast, Tensor)
    return cast


def _normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
