"""Loss weights over noise levels, defined once in x0 space and converted to any prediction.

A weight w multiplies |x0 - x0_hat|^2. At a given x an error in x0 is one in y = a x0 + b eps of
det / sigma times its size, with det = a sigma - b alpha, so on |y - y_hat|^2 the weight is w (sigma / det)^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from unveil.core import elementary
from unveil.core.prediction import Prediction
from unveil.core.transition import Chain
from unveil.types import NoiseLevel

# level with (B,) tensors -> weight (B,) on |x0 - x0_hat|^2
Weight = Callable[[NoiseLevel], Tensor]


def snr(level: NoiseLevel) -> Tensor:
    """alpha^2 / sigma^2: constant on eps, DDPM's L_simple. Source: Salimans & Ho 2022, section 4."""
    return level.alpha**2 / level.sigma**2


def truncated_snr(level: NoiseLevel) -> Tensor:
    """max(SNR, 1). Source: Salimans & Ho 2022, section 4 (arXiv:2202.00512)."""
    return snr(level).clamp(min=1)


def min_snr(gamma: float = 5.0) -> Weight:
    """min(SNR, gamma). Source: Hang et al. 2023, eq. 8 (arXiv:2303.09556)."""
    return lambda level: snr(level).clamp(max=gamma)


def p2(k: float = 1.0, gamma: float = 1.0) -> Weight:
    """SNR / (k + SNR)^gamma, that is 1 / (k + SNR)^gamma on eps. Source: Choi et al. 2022, eq. 8 (arXiv:2204.00227)."""
    return lambda level: snr(level) / (k + snr(level)) ** gamma


def flow(most: float = math.inf) -> Weight:
    """min((1 + alpha / sigma)^2, most): even on a rectified flow's velocity eps - x0, except for the cleanest levels.

    Source: a velocity loss on predicted data: Li & He 2025 (arXiv:2511.13720), who bound t at the clean end instead.
    """
    return lambda level: ((1 + level.alpha / level.sigma) ** 2).clamp(max=most)


def edm(sigma_data: float = 0.5) -> Weight:
    """1 / s^2 + alpha^2 / sigma^2, EDM's (sigma^2 + s^2) / (sigma s)^2 with sigma / alpha for sigma: 1 on its F.

    Args:
        sigma_data: Deviation s of the data.

    Source: Karras et al. 2022, table 1 and eq. 8 (arXiv:2206.00364).
    """
    return lambda level: 1 / sigma_data**2 + snr(level)


def sigmoid(bias: float = 0.0) -> Weight:
    """Sigmoid weight: on eps it is 1 in the noise and falls to 0 as a sigmoid of bias - log SNR.

    Published over levels even in log-SNR: train with `timestep_sampling.UniformLogSNR`.

    Source: Kingma & Gao 2023, section 5 (arXiv:2303.00848); Hoogeboom et al. 2024, section 3 (arXiv:2410.19324).
    """
    return lambda level: snr(level) * torch.sigmoid(bias - snr(level).log())


def elbo(chain: Chain) -> Weight:
    """c0^2 / (2 var): that of the variational bound's terms, in nats. Source: Ho et al. 2020, eq. 8 and 12.

    The step onto the data, whose term is not a KL divergence, takes its neighbour's weight in eps space, as the latent
    diffusion framework does for `original_elbo_weight`.
    """
    neighbour = chain[-2] if len(chain) > 1 else chain[-1]
    on_eps = (
        elementary.square(neighbour.c0)
        / (2 * neighbour.floor)
        * elementary.square(neighbour.t.sigma / neighbour.t.alpha)
    )

    def weight(level: NoiseLevel) -> Tensor:
        step = chain.of(level)
        last = step.s.sigma == 0
        inner = step.c0**2 / (2 * step.floor)
        return torch.where(last, on_eps * snr(level), inner)

    return weight


def on_target(weight: Weight, prediction: Prediction, level: NoiseLevel) -> Tensor:
    """The weight on |y - y_hat|^2 that equals `weight` on |x0 - x0_hat|^2, (B,) float64."""
    a, b = prediction(level)
    det = a * level.sigma - b * level.alpha
    return weight(level) * elementary.safe_divide(level.sigma, det, 0.0) ** 2


WEIGHTS: dict[str, Weight] = {
    "snr": snr,
    "truncated-snr": truncated_snr,
    "min-snr": min_snr(),
    "p2": p2(),
    "edm": edm(),
    "flow": flow(),
    "sigmoid": sigmoid(),
}
