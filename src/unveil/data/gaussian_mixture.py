"""A Gaussian mixture, whose denoiser is known in closed form: the fake that tests and studies measure against."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from unveil.core.denoiser import Estimate
from unveil.errors import RecipeError, ShapeError
from unveil.types import Condition, NoiseLevel, like


class Mixture:
    """A mixture of isotropic Gaussians over tensors of any shape; called as a denoiser or a step is.

    Args:
        weights: Weights of the K components, positive; they are scaled to sum to 1.
        means: (K, ...): the rest is the shape of one sample, () for numbers.
        spreads: standard deviation of each component, positive.

    Raises:
        RecipeError: not as many means and spreads as weights, or a number that is not positive.
    """

    def __init__(self, weights: Sequence[float], means: Tensor, spreads: Sequence[float]) -> None:
        if not len(weights) == len(means) == len(spreads):
            raise RecipeError(f"{len(weights)} weights, {len(means)} means, {len(spreads)} spreads: must be as many")
        if not weights or min(*weights, *spreads) <= 0:
            raise RecipeError(f"weights {list(weights)} and spreads {list(spreads)}: must be positive")
        self.weights = torch.tensor(weights, dtype=torch.float64) / math.fsum(weights)
        self.means = means.to(torch.float64)
        self.spreads = torch.tensor(spreads, dtype=torch.float64)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.means.shape[1:])

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition | None = None) -> Estimate:
        """E[x0 | x] and E[eps | x], exact, of x's shape (B, ...) and type; float64 inside.

        The level may differ per sample or per element of x. The condition is ignored.

        Source: for x = alpha x0 + sigma eps the posterior of each component is Gaussian, and that of the
        component given x is Bayes' rule.
        """
        del condition
        share, offset, variance, alpha, sigma = self._posterior(x, level)
        gain = self._each(self.spreads**2, x) / variance
        x0 = (share * (self._each(self.means, x) + alpha * gain * offset)).sum(0)
        eps = (share * (sigma / variance * offset)).sum(0)
        return Estimate(x0.to(x.dtype), eps.to(x.dtype))

    def log_density(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """Log p(x) at this level: (B,) float64."""
        return torch.logsumexp(self._log_joint(x, level)[0], dim=0)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Independent draws of x0: (count, ...) float64."""
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn((count, *self.shape), generator=generator, dtype=torch.float64)
        return self.means[chosen] + like(self.spreads[chosen], noise) * noise

    def part(self, components: Sequence[int]) -> Mixture:
        """Return the mixture of some of the components, as for a class-conditional denoiser."""
        chosen = list(components)
        return Mixture(self.weights[chosen].tolist(), self.means[chosen], self.spreads[chosen].tolist())

    def _posterior(self, x: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        joint, offset, variance, alpha, sigma = self._log_joint(x, level)
        share = torch.softmax(joint, dim=0)  # (K, B)
        return share.reshape(share.shape + (1,) * (x.ndim - 1)), offset, variance, alpha, sigma

    def _log_joint(self, x: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Log of weight times density of x, (K, B); x - alpha mean and its variance, (K, B, ...)."""
        if tuple(x.shape[1:]) != self.shape:
            raise ShapeError(f"x {tuple(x.shape)}: a sample of this mixture is {self.shape}")
        x = x.to(torch.float64)
        alpha = torch.as_tensor(like(level.alpha, x), dtype=torch.float64).expand_as(x)
        sigma = torch.as_tensor(like(level.sigma, x), dtype=torch.float64).expand_as(x)
        variance = (alpha * self._each(self.spreads, x)) ** 2 + sigma**2
        offset = x - alpha * self._each(self.means, x)
        log_density = -0.5 * (offset**2 / variance + variance.log() + math.log(2 * math.pi))
        per_sample = log_density.flatten(2).sum(2) if x.ndim > 1 else log_density
        joint = self.weights.log()[:, None] + per_sample
        return joint, offset, variance, alpha, sigma

    def _each(self, values: Tensor, x: Tensor) -> Tensor:
        """Values per component, (K,) or (K, ...), so that they broadcast against (K, B, ...)."""
        if values.ndim == 1:
            return values.reshape(-1, *(1,) * x.ndim)
        return values.unsqueeze(1)
