"""The exact denoiser of a one-dimensional Gaussian mixture: claims about samplers are proved on it."""

from __future__ import annotations

import torch
from torch import Tensor

from unveil.core.denoiser import Estimate
from unveil.types import NoiseLevel, like

WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
MEANS = torch.tensor([-1.0, 0.6], dtype=torch.float64)
SPREADS = torch.tensor([0.2, 0.35], dtype=torch.float64)
MEAN = (WEIGHTS * MEANS).sum().item()
DEVIATION = ((WEIGHTS * (SPREADS**2 + MEANS**2)).sum() - MEAN**2).sqrt().item()


def exact_x0(x: Tensor, level: NoiseLevel) -> Tensor:
    """E[x0 | x] in closed form, x of any shape in float64."""
    alpha, sigma = (torch.as_tensor(like(v, x), dtype=x.dtype)[..., None] for v in (level.alpha, level.sigma))
    variance = (alpha * SPREADS) ** 2 + sigma**2
    centred = x[..., None] - alpha * MEANS
    belief = torch.softmax(WEIGHTS.log() - 0.5 * variance.log() - centred**2 / (2 * variance), -1)
    return (belief * (MEANS + alpha * SPREADS**2 / variance * centred)).sum(-1)


def exact(x: Tensor, level: NoiseLevel) -> Estimate:
    """The step of the exact denoiser."""
    return Estimate.of_x0(exact_x0(x, level), x, level)


def draw(count: int, seed: int = 0) -> Tensor:
    """Samples of the mixture, (count,) float64."""
    generator = torch.Generator().manual_seed(seed)
    which = (torch.rand(count, generator=generator, dtype=torch.float64) > WEIGHTS[0]).long()
    return MEANS[which] + SPREADS[which] * torch.randn(count, generator=generator, dtype=torch.float64)
