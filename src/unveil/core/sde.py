"""A level as a stochastic differential equation, dx = f x dt + g dw, and the sub-VP process of that view."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from unveil.core import elementary
from unveil.core.elementary import as_tensor
from unveil.core.process import checked_time
from unveil.types import NoiseLevel


def drift(level: NoiseLevel) -> Tensor:
    """f, with which the mean of x moves: alpha' / alpha; minus infinity at alpha = 0.

    Source: Song et al. 2021, appendix B and Kingma et al. 2021, eq. 3 (arXiv:2011.13456, arXiv:2107.00630).
    """
    return elementary.safe_divide(level.dalpha, level.alpha, -math.inf)


def neg_dlogsnr_dt(level: NoiseLevel) -> Tensor:
    """Rate at which log SNR falls with t: g^2 / sigma^2 = 2 (sigma' / sigma - f). Source: as `drift`."""
    return 2 * (elementary.safe_divide(level.dsigma, level.sigma, 0.0) - drift(level))


def diffusion(level: NoiseLevel) -> Tensor:
    """g, the deviation of the noise per root of time: g^2 = (sigma^2)' - 2 f sigma^2; taken as 0 at sigma = 0.

    Source: as `drift`.
    """
    return level.sigma * elementary.sqrt(neg_dlogsnr_dt(level))


@dataclass(frozen=True)
class SubVP:
    """The sub-VP SDE: the alpha of `LinearVP`, and less noise on the way, sigma = 1 - alpha^2.

    Args:
        beta_min: Beta at t = 0, per unit of t.
        beta_max: Beta at t = 1.
        index_scale: Factor of t in the network's time embedding.

    Source: Song et al. 2021, eq. 29 (arXiv:2011.13456).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    index_scale: float = 1000.0

    def at(self, t: Tensor | float) -> NoiseLevel:
        """The level at t."""
        t = checked_time(t)
        beta = self.beta_min + t * (self.beta_max - self.beta_min)
        total = t * self.beta_min + 0.5 * t * t * (self.beta_max - self.beta_min)
        alpha = elementary.exp(-0.5 * total)
        return NoiseLevel(
            t, alpha, -1.0 * elementary.expm1(-total), -0.5 * beta * alpha, beta * elementary.square(alpha)
        )

    def t_of(self, half_log_snr: Tensor | float) -> Tensor:
        """The time of a half log-SNR: sigma / alpha = 1 / alpha - alpha = 2 sinh(-log(alpha))."""
        half = 0.5 * elementary.exp(-1.0 * as_tensor(half_log_snr))
        total = 2 * elementary.asinh(half)  # -2 log(alpha)
        rise = self.beta_max - self.beta_min
        return 2 * total / (elementary.sqrt(self.beta_min**2 + 2 * rise * total) + self.beta_min)

    def timestep(self, level: NoiseLevel) -> Tensor:
        """T in thousandths, the range that DDPM's time embedding was made for."""
        return level.t * self.index_scale

    def trainable(self, u: Tensor) -> Tensor:
        """(0, 1], kept off the data end by 1e-5."""
        return 1 - u * (1 - 1e-5)

    def within(self, t: Tensor) -> Tensor:
        """(0, 1], kept off the data end by 1e-5."""
        return t.clamp(1e-5, 1)

    def prior(self, level: NoiseLevel) -> Tensor:
        """The deviation of x when that of the data is 1; 1 - 2e-5 at t = 1, where it was published as 1."""
        return elementary.sqrt(elementary.square(level.alpha) + elementary.square(level.sigma))
