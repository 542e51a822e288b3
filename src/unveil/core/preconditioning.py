"""Preconditioning: the scale of a network's input, its time input, and the meaning of its output.

A preconditioned denoiser is D = c_skip x' + c_out F(c_in x'; c_noise), where x' = x / alpha = x0 + r eps and
r = sigma / alpha. Solved for F that is a prediction like any other, y = a x0 + b eps with

    a = (1 - c_skip) / c_out        b = -r c_skip / c_out

so a preconditioning is a prediction that also gives `input_scale` = c_in / alpha and `timestep` = c_noise. The
coefficients are closed forms of alpha and sigma, which stay exact where c_out is 0.

Source: Karras et al. 2022, eq. 7 and table 1 (arXiv:2206.00364).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from unveil.core import elementary
from unveil.core.prediction import edm_f, eps, solve
from unveil.core.process import COSINE_OFFSET, LARGEST_BETA, DiscreteVP, betas
from unveil.errors import RecipeError
from unveil.types import NoiseLevel

_LEAST = 1e-44  # stands for sigma = 0 in logarithms


@runtime_checkable
class Preconditioning(Protocol):
    """Prediction that also defines the network's inputs, instead of x and the process's index."""

    def __call__(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """The coefficients (a, b) of the target y = a x0 + b eps."""
        ...

    def input_scale(self, level: NoiseLevel) -> Tensor:
        """Factor of x: c_in / alpha."""
        ...

    def timestep(self, level: NoiseLevel) -> Tensor:
        """The network's time input for the level: c_noise."""
        ...


class Scalings(NamedTuple):
    """The four columns of the paper's table, for x' = x / alpha."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def scalings(shell: Preconditioning, level: NoiseLevel) -> Scalings:
    """The coefficients c_skip, c_out, c_in and c_noise at a level."""
    solution = solve(shell, level)
    return Scalings(
        level.alpha * solution.x0_x, solution.x0_y, level.alpha * shell.input_scale(level), shell.timestep(level)
    )


@dataclass(frozen=True)
class VPPreconditioning:
    """Score SDE's variance-preserving networks: c_skip 1, c_out -r, c_in 1 / sqrt(r^2 + 1).

    The network predicts eps and gets (timesteps - 1) t, where t is the VP process's time of this r.

    Args:
        beta_min, beta_max: Betas of the process that the network was trained under.
        timesteps: M of the paper.

    Source: Karras et al. 2022, table 1, column VP, and appendix C.1.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    timesteps: int = 1000

    def __call__(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """Coefficients of eps."""
        return eps(level)

    def input_scale(self, level: NoiseLevel) -> Tensor:
        """1 / sqrt(alpha^2 + sigma^2): 1 under any VP process."""
        return _unit(level)

    def timestep(self, level: NoiseLevel) -> Tensor:
        """The VP process's time in steps."""
        total = elementary.log(1 + elementary.square(_ratio(level)))  # -2 log(alpha) of the VP process
        rise = self.beta_max - self.beta_min
        return (self.timesteps - 1) * 2 * total / (elementary.sqrt(self.beta_min**2 + 2 * rise * total) + self.beta_min)


@dataclass(frozen=True)
class VEPreconditioning:
    """Score SDE's variance-exploding networks: c_skip 1, c_out r, c_in 1, c_noise log(r / 2).

    The network predicts -eps, sigma times the score. The factor 1/2 is there because its images are in [0, 1].

    Source: Karras et al. 2022, table 1, column VE, and appendix C.2.
    """

    def __call__(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """Coefficients of -eps."""
        return torch.zeros_like(level.t), torch.full_like(level.t, -1.0)

    def input_scale(self, level: NoiseLevel) -> Tensor:
        """1 / alpha."""
        _ratio(level)
        return 1 / level.alpha

    def timestep(self, level: NoiseLevel) -> Tensor:
        """log(r / 2)."""
        return elementary.log((_ratio(level) / 2).clamp(min=_LEAST))


@dataclass(frozen=True)
class IDDPMPreconditioning:
    """Improved DDPM's and ADM's networks: c_skip 1, c_out -r, c_in 1 / sqrt(r^2 + 1), on a table of levels.

    The network predicts eps and gets the index, in the cosine table of betas, whose r is nearest.

    Args:
        timesteps: M of the paper, the length of the table.
        offset: C_2 of the paper, the offset of the cosine, above 0.
        largest_beta: 1 - C_1 of the paper, the largest beta of the table, inside (0, 1).

    Source: Karras et al. 2022, table 1, column iDDPM, and appendix C.3.
    """

    timesteps: int = 1000
    offset: float = COSINE_OFFSET
    largest_beta: float = LARGEST_BETA

    def __call__(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """Coefficients of eps."""
        return eps(level)

    def input_scale(self, level: NoiseLevel) -> Tensor:
        """1 / sqrt(alpha^2 + sigma^2): 1 under any VP process."""
        return _unit(level)

    def timestep(self, level: NoiseLevel) -> Tensor:
        """The index of the nearest level of the table; clean data, nearest to r = 0, is -1."""
        return self._place(_ratio(level)).to(torch.float64) - 1

    def rounded(self, r: Tensor) -> Tensor:
        """The nearest value of sigma / alpha that the network was trained at, or 0."""
        return self.ratios[self._place(r)]

    @cached_property
    def ratios(self) -> Tensor:
        """Sigma / alpha of clean data and of every index, (timesteps + 1,) float64: u of the paper, from the last."""
        alpha2 = DiscreteVP(betas("cosine", self.timesteps, offset=self.offset, largest=self.largest_beta)).alpha_bar
        return ((1 - alpha2) / alpha2).sqrt()

    def _place(self, r: Tensor) -> Tensor:
        middles = (self.ratios[1:] + self.ratios[:-1]) / 2
        return torch.searchsorted(middles, r)


@dataclass(frozen=True)
class EDMPreconditioning:
    """The paper's own: a network whose input, output and target have unit variance at every level.

    With d = sigma_data and w^2 = r^2 + d^2: c_skip d^2 / w^2, c_out r d / w, c_in 1 / w, c_noise log(r) / 4.

    Args:
        sigma_data: Deviation of the data.
        index_scale: Factor of c_noise; 1000 for the teachers of consistency models.

    Source: Karras et al. 2022, table 1, column "ours", and appendix B.6.
    """

    sigma_data: float = 0.5
    index_scale: float = 1.0

    def __call__(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """Coefficients of F, which goes from -eps near the data to x0 / sigma_data in the noise."""
        _ratio(level)
        return edm_f(self.sigma_data)(level)

    def input_scale(self, level: NoiseLevel) -> Tensor:
        """1 / sqrt(sigma^2 + (alpha sigma_data)^2)."""
        return _unit(level, self.sigma_data)

    def timestep(self, level: NoiseLevel) -> Tensor:
        """log(r) / 4, times `index_scale`."""
        return 0.25 * self.index_scale * elementary.log(_ratio(level).clamp(min=_LEAST))


@dataclass(frozen=True)
class ConsistencyPreconditioning:
    """Consistency models' networks: like EDM's, but D is x' itself where r is sigma_min, for any output of the network.

    With d = sigma_data, g = r - sigma_min and w^2 = r^2 + d^2: c_skip d^2 / (g^2 + d^2), c_out g d / w, c_in 1 / w,
    c_noise 250 log(r).

    Args:
        sigma_data: Deviation of the data.
        sigma_min: Noise level of the boundary.

    Source: Song et al. 2023, section 3 and appendix C (arXiv:2303.01469).
    """

    sigma_data: float = 0.5
    sigma_min: float = 0.002

    def __call__(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """Coefficients of F; both tend to infinity towards the boundary."""
        d, r = self.sigma_data, _ratio(level).clamp(min=1e-12)  # clean parts of x stay as they are
        gap = r - self.sigma_min
        gap = gap + 1e-12 * (gap == 0)  # there x0 = x' to rounding, as it has to be
        width = elementary.sqrt(r * r + d * d) / (gap * gap + d * d)
        return gap * width / d, -1.0 * d * r * width / gap

    def input_scale(self, level: NoiseLevel) -> Tensor:
        """1 / sqrt(sigma^2 + (alpha sigma_data)^2)."""
        return _unit(level, self.sigma_data)

    def timestep(self, level: NoiseLevel) -> Tensor:
        """250 log(r)."""
        return 250 * elementary.log(_ratio(level).clamp(min=_LEAST))


def _unit(level: NoiseLevel, sigma_data: float = 1.0) -> Tensor:
    """Factor that gives x unit variance, for data of deviation sigma_data."""
    return 1 / elementary.sqrt(elementary.square(level.sigma) + elementary.square(level.alpha * sigma_data))


def _ratio(level: NoiseLevel) -> Tensor:
    """Sigma / alpha."""
    if bool((level.alpha == 0).any()):
        raise RecipeError(
            f"at t = {level.t} alpha is 0 and sigma / alpha, by which this preconditioning tells its network the "
            "level, infinite; begin the schedule at a level with alpha > 0, or use another prediction"
        )
    return level.sigma / level.alpha
