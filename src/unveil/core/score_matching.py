"""Score matching: against the noise that was added (denoising), and without a target (sliced)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from unveil.core import sde
from unveil.core.denoiser import Denoiser, Estimate
from unveil.core.loss_weights import Weight, snr
from unveil.core.objective import NOISE, TIME, DiffusionLoss, LossOutput
from unveil.core.rng import SampleRNG
from unveil.core.timestep_sampling import TimeSampler, Uniform
from unveil.types import Condition, NoiseLevel, like

PROJECTION = 1 << 20  # the first projection's draw of an example's stream, far from what others number

# level with (B,) tensors -> weight (B,) on |score - score_hat|^2
ScoreWeight = Callable[[NoiseLevel], Tensor]


def variance(level: NoiseLevel) -> Tensor:
    """sigma^2, under which every level weighs about the same. Source: Song & Ermon 2019, eq. 6 (arXiv:1907.05600)."""
    return level.sigma**2


def likelihood(level: NoiseLevel) -> Tensor:
    """g^2, which bounds the likelihood when times are even. Source: Song et al. 2021, eq. 8 (arXiv:2101.09258)."""
    return sde.diffusion(level) ** 2


SCORE_WEIGHTS: dict[str, ScoreWeight] = {"variance": variance, "likelihood": likelihood}


def on_x0(weight: ScoreWeight) -> Weight:
    """A weight on the score, converted to a weight on x0, whose error is sigma^2 / alpha times the score's."""
    return lambda level: weight(level) * snr(level) / level.sigma**2


def denoising(weight: ScoreWeight = variance, time: TimeSampler | None = None) -> DiffusionLoss:
    """Denoising score matching, 1/2 weight |score_hat + eps / sigma|^2, for a network of any prediction.

    The square is a mean over the elements of a sample. With `variance` it is half of L_simple.

    Source: Vincent 2011; Song & Ermon 2019, eq. 5 and 6 (arXiv:1907.05600).
    """
    return DiffusionLoss(simple=0.5, weight=on_x0(weight), time=time or Uniform())


@dataclass(frozen=True)
class Sliced:
    """Sliced score matching of noised data: weight (v^T grad(v^T score) + 1/2 |score|^2) over random directions v.

    No target is needed: up to a constant of the data it is 1/2 weight |score_hat - score|^2, so it may be negative. The
    loss is a mean over the elements of a sample. It differentiates the network twice.

    Args:
        weight: Weight of each level, on the score.
        projections: Number of directions v (with entries 1 and -1) for each example.
        square: "whole" takes |score|^2 itself, which varies less; "projected" takes (v^T score)^2.
        time: Distribution of the times.

    Source: Song et al. 2019, eq. 7 and 8 (arXiv:1905.07088); Song & Ermon 2019, section 2.1 (arXiv:1907.05600).
    """

    weight: ScoreWeight = variance
    projections: int = 1
    square: Literal["whole", "projected"] = "whole"
    time: TimeSampler = field(default_factory=Uniform)

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, condition: Condition | None, streams: SampleRNG, step: int
    ) -> LossOutput:
        """The loss of a batch x0 (B, ...) at training step `step`, with that step's random numbers."""
        t, importance = self.time.times(denoiser.process, streams.uniform(step, TIME), streams.samples)
        shape = x0.shape[1:]
        noise = streams.normal(shape, step, NOISE).to(x0)
        draws = [streams.normal(shape, step, PROJECTION + k).to(x0) for k in range(self.projections)]
        return self.at(denoiser, x0, condition, t, noise, importance, directions=[_signs(v) for v in draws])

    def at(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        condition: Condition | None,
        t: Tensor,
        noise: Tensor,
        importance: Tensor | None = None,
        *,
        directions: Sequence[Tensor] | None = None,
    ) -> LossOutput:
        """The loss at given times (B,) float64, noise and directions; without these always the same ones are taken."""
        if directions is None:
            fixed = SampleRNG(0, range(len(x0)), device=x0.device)
            directions = [_signs(fixed.normal(x0.shape[1:], 0, k)).to(x0) for k in range(self.projections)]
        level = denoiser.process.at(t)
        x = (like(level.alpha, x0) * x0 + like(level.sigma, x0) * noise).requires_grad_(True)
        # the fused kernels of attention cannot be differentiated twice
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            y, extra = denoiser.output(x, level, condition)
            eps = Estimate.solved(denoiser.solve(level), x, y, extra).eps
            score = eps * like(-1.0 / level.sigma, x0)
            curvature = square = x.new_zeros(len(x))
            for v in directions:
                along = (score * v).flatten(1)
                (slope,) = torch.autograd.grad(along.sum(), x, create_graph=True)
                curvature = curvature + (slope * v).flatten(1).mean(1) / len(directions)
                projected = along.sum(1) ** 2 / along.shape[1]
                whole = score.square().flatten(1).mean(1)
                square = square + 0.5 * (whole if self.square == "whole" else projected) / len(directions)
        weight = like(self.weight(level), square)
        total = weight * (curvature + square)
        weighted = total if importance is None else total * importance.to(total)
        terms = {"curvature": (weight * curvature).detach(), "square": (weight * square).detach()}
        return LossOutput(weighted.mean(), total.detach(), t, terms)

    def observe(self, process: object, t: Tensor, per_sample: Tensor) -> None:
        """Do nothing: the times do not depend on the losses."""


def _signs(noise: Tensor) -> Tensor:
    return torch.where(noise < 0, -1.0, 1.0).to(noise)
