"""DDIM: one family from the deterministic path (eta = 0) to DDPM's ancestral chain (eta = 1)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from unveil.core import elementary
from unveil.core.elementary import level_by_level
from unveil.core.samplers.loop import CoefficientTable, in_any_part, rows_of
from unveil.core.samplers.registry import SamplerSpec
from unveil.core.schedules import Schedule
from unveil.types import NoiseLevel


@level_by_level()
def ddim(schedule: Schedule, eta: float = 0.0) -> CoefficientTable:
    """DDIM over any schedule; first order, one call a step, defined at both ends alpha = 0 and sigma = 0.

    Args:
        schedule: Schedule from noise to data.
        eta: 0 adds no noise, 1 that of the ancestral chain with fixed-small variance.

    Source: Song et al. 2020, eq. 12 and 16 (arXiv:2010.02502), for any pair of levels.
    """
    here, there = schedule.steps
    # eq. 16: sigma = eta sqrt(beta-tilde), with beta the variance added between the two levels
    ratio = elementary.safe_divide(here.alpha, there.alpha, 1.0)
    beta = elementary.square(here.sigma) - elementary.square(ratio * there.sigma)
    noise = eta * elementary.safe_divide(there.sigma, here.sigma, 0.0) * elementary.sqrt(beta)
    # eq. 12: what is left to point at x_t
    direction = elementary.sqrt(elementary.square(there.sigma) - elementary.square(noise))
    # a part of x that is clean already (sigma = 0) is kept as it is, along the process's own alpha
    keep = elementary.safe_divide(direction, here.sigma, elementary.safe_divide(there.alpha, here.alpha, 0.0))
    gain = there.alpha - keep * here.alpha
    return CoefficientTable(rows_of(schedule[:-1], keep, (gain,), noise, spans=list(pairwise(schedule))))


@level_by_level()
def encode(schedule: Schedule) -> CoefficientTable:
    """The same path from data to noise: `run(encode(schedule), step, x0)` gives the noise that decodes to x0.

    The first step takes its eps at the level that it goes to, because the data itself contains no noise for the network
    to predict.

    Source: Song et al. 2020, section 4.3 and eq. 14 (arXiv:2010.02502).
    """
    there, here = (NoiseLevel(*(part.flip(0) for part in level)) for level in schedule.steps)  # from data to noise
    levels = list(schedule)[::-1]
    # x alpha_t / alpha_s + sigma_t eps with eps = (x - alpha_t x0) / sigma_t
    first = rows_of(levels[1:], there.alpha / here.alpha + 1.0, (-1.0 * there.alpha,))
    keep = there.sigma / here.sigma
    later = rows_of(levels[:-1], keep, (there.alpha - keep * here.alpha,))
    clean = in_any_part(here.sigma == 0).tolist()
    return CoefficientTable([one if data else other for data, one, other in zip(clean, first, later, strict=True)])


def slerp(first: Tensor, last: Tensor, weight: float | Tensor) -> Tensor:
    """Interpolate two noises (B, ...) along the sphere, per sample: weight 0 is the first, 1 the last, bit by bit.

    Args:
        weight: Weight, one for all samples or (B,).

    Source: Shoemake 1985; Song et al. 2020, eq. 67 (arXiv:2010.02502).
    """
    a, b = first.flatten(1), last.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1).clamp(-1, 1)
    angle = cosine.arccos()[:, None]
    sine = angle.sin()
    weight = torch.as_tensor(weight, dtype=a.dtype, device=a.device).expand(len(a))[:, None]
    flat = sine < 1e-6  # parallel: the sphere's arc is the straight line
    safe = torch.where(flat, torch.ones_like(sine), sine)
    on_a = torch.where(flat, 1 - weight, ((1 - weight) * angle).sin() / safe)
    on_b = torch.where(flat, weight, (weight * angle).sin() / safe)
    return (on_a * a + on_b * b).reshape(first.shape)


SAMPLERS = (SamplerSpec("ddim", ddim, "Song et al. 2020, eq. 12 (arXiv:2010.02502)", order=1),)
