"""Losses of training: the error of a prediction, the variational bound, or both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.core.denoiser import Denoiser, Estimate
from unveil.core.likelihood import bound_term
from unveil.core.loss_weights import Weight, elbo, on_target
from unveil.core.prediction import VarianceRule, fixed_small
from unveil.core.process import DiscreteVP, partly
from unveil.core.rng import SampleRNG
from unveil.core.timestep_sampling import SecondMoment, TimeSampler, Uniform
from unveil.core.transition import Chain, chain_of
from unveil.errors import RecipeError
from unveil.types import Condition, NoiseLevel, like

TIME, NOISE = 0, 1  # draws of a training example's stream; what wraps the objective numbers its own from 2

Distance = Callable[[Tensor], Tensor]
DISTANCES: dict[str, Distance] = {
    "l2": torch.square,
    "l1": torch.abs,
    # quadratic within 1, straight beyond
    "huber": lambda error: torch.where(error.abs() < 1, 0.5 * error.square(), error.abs() - 0.5),
}


class LossOutput(NamedTuple):
    """Result of an objective for one training step.

    value: the scalar to descend. per_sample: (B,) detached, before importance weights. t: (B,) float64.
    terms: parts of it by name, (B,) detached.
    """

    value: Tensor
    per_sample: Tensor
    t: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class DiffusionLoss:
    """simple * w(t) * distance(y, y_hat) + bound * N * L_t, over random times.

    N L_t, with t uniform, estimates the whole variational bound in bits/dim, so `bound` = 0.001 with `simple` = 1 is
    Improved DDPM's L_hybrid. Together with a simple term the bound trains only the variance: the mean is detached in it
    (section 3.1).

    Args:
        simple: Factor of the prediction's error, L_simple at 1.
        bound: Factor of the whole bound; needs a chain.
        distance: Name in `DISTANCES`.
        weight: Weight of the error, in x0 space; None: the predicted target has weight 1.
        elbo: Factor of the error weighed as in the bound, latent diffusion's `original_elbo_weight` (there `simple` is
            called `l_simple_weight`); needs a chain.
        time: Distribution of the times.
        variance: Variance of p(x_s | x_t), for the bound.
        chain: Chain of the bound; None: the discrete process's own.
        noised: Mask per channel (axis 1), False for context that stays clean and has no loss; None: all channels are
            noised.

    Source: Ho et al. 2020, eq. 14 (arXiv:2006.11239); Nichol & Dhariwal 2021, eq. 16 (arXiv:2102.09672).
    """

    simple: float = 1.0
    bound: float = 0.0
    distance: str = "l2"
    weight: Weight | None = None
    elbo: float = 0.0
    time: TimeSampler = field(default_factory=Uniform)
    variance: VarianceRule = fixed_small
    chain: Chain | None = None
    noised: tuple[bool, ...] | None = None

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, condition: Condition | None, streams: SampleRNG, step: int
    ) -> LossOutput:
        """The loss of a batch x0 (B, ...) at training step `step`, with that step's random numbers."""
        u = streams.uniform(step, TIME)
        t, importance = self.time.times(denoiser.process, u, streams.samples)
        noise = streams.normal(x0.shape[1:], step, NOISE).to(x0)
        return self.at(denoiser, x0, condition, t, noise, importance)

    def at(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        condition: Condition | None,
        t: Tensor,
        noise: Tensor,
        importance: Tensor | None = None,
    ) -> LossOutput:
        """The loss at given times (B,) float64 and noise."""
        level = denoiser.process.at(t)
        seen = level if self.noised is None else partly(level, self._mask(x0))
        x = like(seen.alpha, x0) * x0 + like(seen.sigma, x0) * noise
        y, extra = denoiser.output(x, seen, condition)
        terms: dict[str, Tensor] = {}
        total = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
        if self.simple or self.elbo:
            error = self._error(denoiser, level, x0, noise, y)
            if self.simple:
                terms["simple"] = (
                    error if self.weight is None else error * self._on_target(self.weight, denoiser, level)
                )
                total = total + self.simple * terms["simple"]
            if self.elbo:
                terms["elbo"] = error * self._on_target(elbo(self._chain(denoiser)), denoiser, level)
                total = total + self.elbo * terms["elbo"]
        if self.bound:
            estimate = Estimate.solved(denoiser.solve(level), x, y.detach() if self.simple else y, extra)
            chain = self._chain(denoiser)
            terms["bound"] = self._bound(chain, level, x0, x, estimate)  # bits/dim of the whole: len(chain) L_t
            total = total + self.bound * terms["bound"]
        weighted = total if importance is None else total * importance.to(total)
        detached = {name: term.detach() for name, term in terms.items()}
        return LossOutput(weighted.mean(), total.detach(), t, detached)

    def observe(self, process: object, t: Tensor, per_sample: Tensor) -> None:
        """Pass the losses of a step, gathered from every rank, to the time sampler."""
        if isinstance(self.time, SecondMoment) and isinstance(process, DiscreteVP):
            self.time.update((t * process.steps).round().long().cpu() - 1, per_sample.double().cpu())

    def _error(self, denoiser: Denoiser, level: NoiseLevel, x0: Tensor, noise: Tensor, y: Tensor) -> Tensor:
        a, b = denoiser.prediction(level)
        target = like(a, x0) * x0 + like(b, x0) * noise
        error = DISTANCES[self.distance](y - target)
        if self.noised is not None:
            error = error[:, list(self.noised)]
        return error.flatten(1).mean(1)

    def _on_target(self, weight: Weight, denoiser: Denoiser, level: NoiseLevel) -> Tensor:
        return on_target(weight, denoiser.prediction, level).to(torch.float32)

    def _bound(self, chain: Chain, level: NoiseLevel, x0: Tensor, x: Tensor, estimate: Estimate) -> Tensor:
        step = chain.of(level)
        mean = step.mean(estimate.x0, x)
        log_variance = self.variance(step, estimate.extra).log
        return len(chain) * bound_term(step, x0, x, mean, log_variance)

    def _chain(self, denoiser: Denoiser) -> Chain:
        if self.noised is not None:
            raise RecipeError(
                "objective: the bound is defined for a whole sample; set bound = 0 where channels are context"
            )
        return self.chain or chain_of(denoiser.process)

    def _mask(self, x0: Tensor) -> Tensor:
        assert self.noised is not None
        if len(self.noised) != x0.shape[1]:
            raise RecipeError(f"noised lists {len(self.noised)} channels; x has {x0.shape[1]}")
        return torch.tensor(self.noised).reshape(1, -1, *(1,) * (x0.ndim - 2))


def simple() -> DiffusionLoss:
    """L_simple. Source: Ho et al. 2020, eq. 14."""
    return DiffusionLoss()


def vlb(variance: VarianceRule, time: TimeSampler | None = None) -> DiffusionLoss:
    """Only the variational bound, in bits/dim. Source: Nichol & Dhariwal 2021, section 3.3."""
    return DiffusionLoss(simple=0.0, bound=1.0, variance=variance, time=time or Uniform())


def hybrid(variance: VarianceRule, weight: float = 0.001) -> DiffusionLoss:
    """L_simple + 0.001 L_vlb; the bound trains only the variance. Source: Nichol & Dhariwal 2021, eq. 16."""
    return DiffusionLoss(bound=weight, variance=variance)
