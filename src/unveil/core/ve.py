"""Variance-exploding processes: alpha = 1, and noise is added until it dominates the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unveil.core import elementary
from unveil.core.elementary import as_tensor
from unveil.core.process import checked_time
from unveil.errors import RecipeError
from unveil.types import NoiseLevel


@dataclass(frozen=True)
class VE:
    """The variance-exploding SDE: sigma rises geometrically, from sigma_min at t = 0 to sigma_max at t = 1.

    Times above 1, which added noise can reach, continue the curve. The network gets sigma itself.

    Args:
        sigma_min: Cleanest level, t = 0; clean data is beyond it.
        sigma_max: Noisiest level, t = 1; about the largest distance between two samples of the data.

    Raises:
        RecipeError: Not 0 < sigma_min < sigma_max.

    Source: Song et al. 2021, eq. 30 (arXiv:2011.13456); sigma_max: Song & Ermon 2020, section 3.1 (arXiv:2006.09011).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        """Refuses ends that do not rise."""
        _check_ends(self.sigma_min, self.sigma_max)

    def at(self, t: Tensor | float) -> NoiseLevel:
        """The level at t."""
        return _geometric(t, self.sigma_min, self.sigma_max)

    def t_of(self, half_log_snr: Tensor | float) -> Tensor:
        """The time of a half log-SNR.

        Raises:
            RecipeError: The level is cleaner than sigma_min.
        """
        return _geometric_t(half_log_snr, self.sigma_min, self.sigma_max)

    def timestep(self, level: NoiseLevel) -> Tensor:
        """Sigma, of which the published networks take the logarithm themselves."""
        return level.sigma

    def trainable(self, u: Tensor) -> Tensor:
        """(0, 1]."""
        return 1 - u

    def within(self, t: Tensor) -> Tensor:
        """[0, 1]."""
        return t.clamp(0, 1)

    def prior(self, level: NoiseLevel) -> Tensor:
        """Sigma: the data is negligible beside it."""
        return level.sigma


@dataclass(frozen=True)
class DiscreteVE:
    """NCSN's noise levels: a geometric table, whose network gets a level's number, 0 the noisiest.

    Number i is at t = 1 - i / (levels - 1); between the numbers the curve is that of `VE`.

    Args:
        sigma_min: Cleanest level, t = 0; clean data is beyond it.
        sigma_max: Noisiest level, t = 1.
        levels: Number of levels, both ends included.

    Raises:
        RecipeError: Not 0 < sigma_min < sigma_max, or there are fewer than 2 levels.

    Source: Song & Ermon 2019, section 4.2 (arXiv:1907.05600): 10 levels, 1 to 0.01.
    """

    sigma_min: float = 0.01
    sigma_max: float = 1.0
    levels: int = 10

    def __post_init__(self) -> None:
        """Refuses ends that do not rise, and a table of one."""
        _check_ends(self.sigma_min, self.sigma_max)
        if self.levels < 2:
            raise RecipeError(f"levels = {self.levels}: a schedule needs at least 2")

    def at(self, t: Tensor | float) -> NoiseLevel:
        """The level at t."""
        return _geometric(t, self.sigma_min, self.sigma_max)

    def t_of(self, half_log_snr: Tensor | float) -> Tensor:
        """The time of a half log-SNR.

        Raises:
            RecipeError: The level is cleaner than sigma_min.
        """
        return _geometric_t(half_log_snr, self.sigma_min, self.sigma_max)

    def timestep(self, level: NoiseLevel) -> Tensor:
        """The number of the nearest level, 0 the noisiest; the network was trained on these only."""
        number = (1.0 - level.t) * (self.levels - 1)
        return number.round().clamp(0, self.levels - 1)

    def trainable(self, u: Tensor) -> Tensor:
        """The levels of the table, each equally often, the noisiest first."""
        return 1 - (u * self.levels).floor().clamp(max=self.levels - 1) / (self.levels - 1)

    def within(self, t: Tensor) -> Tensor:
        """The nearest level of the table."""
        return (t.clamp(0, 1) * (self.levels - 1)).round() / (self.levels - 1)

    def prior(self, level: NoiseLevel) -> Tensor:
        """Sigma: the data is negligible beside it."""
        return level.sigma


@dataclass(frozen=True)
class EDMProcess:
    """Process with sigma as its time: sigma = sigma_max t, so that dx/dsigma is eps itself.

    t = 0 is clean data. Times above 1, which churn can reach, continue the line. The network gets sigma; a
    preconditioning turns it into log(sigma) / 4 or another number.

    Args:
        sigma_min: Cleanest level of schedules and training.
        sigma_max: Noisiest level, t = 1.

    Raises:
        RecipeError: Not 0 < sigma_min < sigma_max.

    Source: Karras et al. 2022, table 1 and eq. 4 (arXiv:2206.00364).
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        """Refuses ends that do not rise."""
        _check_ends(self.sigma_min, self.sigma_max)

    def at(self, t: Tensor | float) -> NoiseLevel:
        """The level at t."""
        t = checked_time(t, math.inf)
        return _constant(t, self.sigma_max * t, torch.full_like(t, self.sigma_max))

    def t_of(self, half_log_snr: Tensor | float) -> Tensor:
        """The time of a half log-SNR."""
        return elementary.exp(-1.0 * as_tensor(half_log_snr)) / self.sigma_max

    def timestep(self, level: NoiseLevel) -> Tensor:
        """Sigma."""
        return level.sigma

    def trainable(self, u: Tensor) -> Tensor:
        """Sigma evenly in (sigma_min, sigma_max]."""
        return 1 - u * (1 - self.sigma_min / self.sigma_max)

    def within(self, t: Tensor) -> Tensor:
        """Sigma in [sigma_min, sigma_max]."""
        return t.clamp(self.sigma_min / self.sigma_max, 1)

    def prior(self, level: NoiseLevel) -> Tensor:
        """Sigma: the data is negligible beside it."""
        return level.sigma


def _check_ends(low: float, high: float) -> None:
    if not 0 < low < high:
        raise RecipeError(f"sigma_min = {low}, sigma_max = {high}: must rise, and sigma_min be above 0")


def _geometric(t: Tensor | float, low: float, high: float) -> NoiseLevel:
    t = checked_time(t, math.inf)
    rise = math.log(high / low)
    sigma = low * elementary.exp(rise * t)
    return _constant(t, sigma, rise * sigma)


def _geometric_t(half_log_snr: Tensor | float, low: float, high: float) -> Tensor:
    half_log_snr = as_tensor(half_log_snr)
    t = (-1.0 * half_log_snr - math.log(low)) / math.log(high / low)
    beyond = t < -1e-9
    if bool(beyond.any()):
        raise RecipeError(
            f"log(alpha / sigma) = {half_log_snr[beyond][0]}: this schedule ends at {-math.log(low):.4g}, "
            f"sigma = {low:g}; clean data, where a schedule may end, lies beyond"
        )
    return t.clamp(min=0)


def _constant(t: Tensor, sigma: Tensor, dsigma: Tensor) -> NoiseLevel:
    """A level whose alpha does not move."""
    return NoiseLevel(t, torch.ones_like(t), sigma, torch.zeros_like(t), dsigma)
