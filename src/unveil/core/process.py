"""Gaussian noise processes: x_t = alpha(t) x0 + sigma(t) eps; t = 0 is data, t = 1 is noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from unveil.core import elementary
from unveil.core.elementary import as_tensor, per_level
from unveil.errors import RecipeError, did_you_mean
from unveil.types import NoiseLevel

# Clean data, where a sample ends. Any dsigma but 0 lets a velocity, too, say that x0 is x there.
DATA = NoiseLevel(0.0, 1.0, 0.0, 0.0, 1.0)


class Process(Protocol):
    """Interface of every noise process; everything else in `core` is written against this."""

    def at(self, t: Tensor | float) -> NoiseLevel:
        """The level at t in [0, 1], a float64 tensor or a number."""
        ...

    def t_of(self, half_log_snr: Tensor | float) -> Tensor:
        """The inverse: the time at which log(alpha / sigma) takes this value."""
        ...

    def timestep(self, level: NoiseLevel) -> Tensor:
        """The network's time input for this level."""
        ...

    def trainable(self, u: Tensor) -> Tensor:
        """Times in [0, 1] at which a network is trained, evenly spread, from uniform numbers in [0, 1)."""
        ...

    def within(self, t: Tensor) -> Tensor:
        """The times at which a network is trained that are nearest to t, for times drawn by other rules."""
        ...

    def prior(self, level: NoiseLevel) -> Tensor:
        """The deviation of x at a noisy level without knowledge of x0: the deviation of a sample's start."""
        ...


def partly(level: NoiseLevel, noised: Tensor) -> NoiseLevel:
    """The level where `noised` is True and clean data elsewhere, so that the other parts stay clean as context.

    Args:
        level: Noise level, one for all or one number per sample (B,).
        noised: Boolean mask of x's rank, broadcastable against x, such as (1, C, 1, 1).
    """
    wide = [v.reshape(v.shape + (1,) * (noised.ndim - v.ndim)) for v in level]
    return NoiseLevel(*(torch.where(noised, v, d) for v, d in zip(wide, DATA, strict=True)))


# ---------------------------------------------------------------------- continuous time


@dataclass(frozen=True)
class LinearVP:
    """The variance-preserving SDE with beta(t) rising linearly: alpha^2 = exp(-integral of beta).

    Args:
        beta_min: Beta at t = 0, per unit of t.
        beta_max: Beta at t = 1.
        index_scale: Factor of t in the network's time embedding.

    Source: Song et al. 2021, eq. 29 and 33 (arXiv:2011.13456).
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
        sigma = elementary.sqrt(-1.0 * elementary.expm1(-total))
        dalpha = -0.5 * beta * alpha
        return NoiseLevel(t, alpha, sigma, dalpha, elementary.safe_divide(-1.0 * alpha * dalpha, sigma, math.inf))

    def t_of(self, half_log_snr: Tensor | float) -> Tensor:
        """The time of a half log-SNR."""
        total = elementary.softplus(-2 * as_tensor(half_log_snr))  # -2 log(alpha)
        rise = self.beta_max - self.beta_min
        return 2 * total / (elementary.sqrt(self.beta_min**2 + 2 * rise * total) + self.beta_min)

    def timestep(self, level: NoiseLevel) -> Tensor:
        """T in thousandths, the range that DDPM's time embedding was made for."""
        return level.t * self.index_scale

    def trainable(self, u: Tensor) -> Tensor:
        """(0, 1], kept off the data end, where x contains no eps."""
        return 1 - u * (1 - 1e-5)

    def within(self, t: Tensor) -> Tensor:
        """(0, 1], kept off the data end by 1e-5."""
        return t.clamp(1e-5, 1)

    def prior(self, level: NoiseLevel) -> Tensor:
        """1: the variance of data is taken as 1."""
        return torch.ones_like(level.t)


@dataclass(frozen=True)
class CosineVP:
    """The continuous cosine schedule: alpha = cos(pi t / 2), sigma = sin(pi t / 2).

    alpha reaches 0 at t = 1, where eps-prediction carries no information; v and x0 do.

    Source: Salimans & Ho 2022, section 2 (arXiv:2202.00512).
    """

    index_scale: float = 1000.0

    def at(self, t: Tensor | float) -> NoiseLevel:
        """The level at t."""
        t = checked_time(t)
        angle = 0.5 * math.pi * t
        alpha, sigma = elementary.cos(angle), elementary.sin(angle)
        return NoiseLevel(t, alpha, sigma, -0.5 * math.pi * sigma, 0.5 * math.pi * alpha)

    def t_of(self, half_log_snr: Tensor | float) -> Tensor:
        """The time of a half log-SNR."""
        return 2 / math.pi * elementary.atan(elementary.exp(-1.0 * as_tensor(half_log_snr)))

    def timestep(self, level: NoiseLevel) -> Tensor:
        """T in thousandths, the range that DDPM's time embedding was made for."""
        return level.t * self.index_scale

    def trainable(self, u: Tensor) -> Tensor:
        """(0, 1), kept off both ends by 1e-4."""
        return 1e-4 + (1 - u) * (1 - 2e-4)

    def within(self, t: Tensor) -> Tensor:
        """(0, 1), kept off both ends by 1e-4."""
        return t.clamp(1e-4, 1 - 1e-4)

    def prior(self, level: NoiseLevel) -> Tensor:
        """1: the variance of data is taken as 1."""
        return torch.ones_like(level.t)


# ---------------------------------------------------------------------- discrete time


class DiscreteVP:
    """A table of betas, as DDPM, Stable Diffusion and DiT use; exact at its N indices.

    Index i is at t = (i + 1) / N, so that t = 0 is clean data, one step below index 0. Between indices log(alpha /
    sigma) is interpolated linearly ("log-snr", k-diffusion's rule), or log(alpha) is ("log-alpha", DPM-Solver's). Every
    continuous sampler can therefore run. Below index 0 the first line continues until t = 0, where the level jumps to
    clean data, which has no finite ratio. A last beta of 1 gives alpha = 0 at t = 1; the last segment interpolates
    alpha, because the logarithm is infinite. The derivatives are those of the interpolant, at an index those of the
    segment below it.

    Args:
        betas: Variances added by the steps, inside (0, 1), at least two; the last may be 1.
        interpolate: Quantity that is linear between indices.
        rescale: Scale of the network's index, which is index * rescale / N. Improved DDPM has 1000. None: the index
            itself.
        rounding: "nearest" gives a network that was trained on whole indices nothing else.

    Raises:
        RecipeError: A beta is outside (0, 1), or there are fewer than two.

    Source: Ho et al. 2020, section 2 (arXiv:2006.11239).
    """

    def __init__(
        self,
        betas: Sequence[float] | Tensor,
        *,
        interpolate: Literal["log-snr", "log-alpha"] = "log-snr",
        rescale: float | None = None,
        rounding: Literal["none", "nearest"] = "none",
    ) -> None:
        table = torch.as_tensor(betas, dtype=torch.float64)
        if table.ndim != 1 or len(table) < 2:
            raise RecipeError(f"betas: {table.numel()} given; a schedule needs a list of at least 2")
        for i, beta in enumerate(table.tolist()):
            if not 0 < beta < 1 and not (beta == 1 and i == len(table) - 1):
                raise RecipeError(f"betas[{i}] = {beta}: must lie inside (0, 1); the last one may be 1")
        self.betas = table
        self.steps = len(table)
        self.interpolate = interpolate
        self.index_scale = 1.0 if rescale is None else rescale / self.steps
        self.rounding = rounding
        # eq. 4: alpha_bar_t = prod(1 - beta_s); entry 0 is the data, entry i + 1 is index i
        self.alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - table, 0)])
        ratio = self.alpha_bar.log() - (1 - self.alpha_bar).log() if interpolate == "log-snr" else self.alpha_bar.log()
        self._keys = 0.5 * ratio
        self._reaches_noise = bool(self.alpha_bar[-1] == 0)
        self._last_alpha = self.alpha_bar[-2].sqrt()  # where the way down to alpha = 0 begins

    def __repr__(self) -> str:
        """Return the values that distinguish two tables."""
        first, last = self.betas[0].item(), self.betas[-1].item()
        return f"DiscreteVP({self.steps} betas, {first:.3g}...{last:.3g}, interpolate={self.interpolate!r})"

    def at(self, t: Tensor | float) -> NoiseLevel:
        """The level at t; exact at the indices, interpolated between them.

        Raises:
            RecipeError: t is outside [0, 1].
        """
        t = checked_time(t)
        place = t * self.steps
        below = place.ceil().long().sub(1).clamp(1, self.steps - 1)
        slope = self._keys[below + 1] - self._keys[below]
        alpha2 = self._alpha2(self._keys[below] + (place - below) * slope).clamp(max=1)
        whole = place.round()
        exact = (place - whole).abs() < 1e-9 * self.steps
        falling = (below == self.steps - 1) & self._reaches_noise
        alpha2 = torch.where(falling, (self._last_alpha * (self.steps - place)) ** 2, alpha2)
        alpha2 = torch.where(exact, self.alpha_bar[whole.long()], alpha2)
        alpha, sigma2 = per_level(torch.sqrt, alpha2), 1 - alpha2
        # d log(alpha) / dt is the slope itself, or sigma^2 times that of the half log-SNR
        dalpha = alpha * slope * self.steps * (sigma2 if self.interpolate == "log-snr" else 1.0)
        dalpha = torch.where(falling, -self._last_alpha * self.steps, dalpha)
        sigma = per_level(torch.sqrt, sigma2)
        return NoiseLevel(t, alpha, sigma, dalpha, -alpha * dalpha / sigma)

    def t_of(self, half_log_snr: Tensor | float) -> Tensor:
        """The time of a half log-SNR, by the same interpolation.

        Raises:
            RecipeError: The table does not reach this ratio.
        """
        wanted = as_tensor(half_log_snr)
        key = wanted if self.interpolate == "log-snr" else -0.5 * per_level(_log_of_1_plus_exp, -2 * wanted)
        above = torch.searchsorted(-self._keys, -key).clamp(2, self.steps)
        low, high = self._keys[above - 1], self._keys[above]
        place = above - 1 + (key - low) / (high - low)
        falling = (above == self.steps) & self._reaches_noise
        place = torch.where(falling, self.steps - per_level(torch.sqrt, self._alpha2(key)) / self._last_alpha, place)
        t = place / self.steps
        inside = (t >= -1e-9) & (t <= 1 + 1e-9)
        if not bool(inside.all()):
            noisiest, cleanest = (self.at(e).half_log_snr for e in (1.0, 1 / self.steps))
            raise RecipeError(
                f"log(alpha / sigma) = {wanted[~inside][0]}: this schedule holds {noisiest:.4g} to {cleanest:.4g}"
            )
        return t.clamp(0, 1)

    def t_of_timestep(self, index: Tensor | float) -> Tensor:
        """The time of an index: (index + 1) / N."""
        return (as_tensor(index) + 1) / self.steps

    def timestep(self, level: NoiseLevel) -> Tensor:
        """The index of a level, fractional between indices, scaled by `rescale`."""
        place = level.t * self.steps - 1
        whole = place.round()
        exact = place.sub(whole).abs().lt(1e-6) | (self.rounding == "nearest")
        return torch.where(exact, whole, place) * self.index_scale

    def trainable(self, u: Tensor) -> Tensor:
        """The table's own times, each equally often."""
        return (u * self.steps).floor().clamp(max=self.steps - 1).add(1) / self.steps

    def within(self, t: Tensor) -> Tensor:
        """The nearest time of the table."""
        return (t * self.steps).round().clamp(1, self.steps) / self.steps

    def prior(self, level: NoiseLevel) -> Tensor:
        """1: the variance of data is taken as 1."""
        return torch.ones_like(level.t)

    def _alpha2(self, key: Tensor) -> Tensor:
        return per_level(torch.sigmoid if self.interpolate == "log-snr" else torch.exp, 2 * key)


def checked_time(t: Tensor | float, most: float = 1.0) -> Tensor:
    """Times as a float64 tensor, every one of them in [0, most].

    Raises:
        RecipeError: A time is outside [0, 1].
    """
    t = as_tensor(t)
    inside = (t >= 0) & (t <= most)
    if not bool(inside.all()):
        raise RecipeError(f"t = {t[~inside][0]}: must lie in [0, {most:g}], 0 the data and 1 the noise")
    return t


def _log_of_1_plus_exp(value: Tensor) -> Tensor:
    return torch.logaddexp(value, torch.zeros_like(value))


# ---------------------------------------------------------------------- tables of betas


def _linear(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _cosine(steps: int, offset: float, largest: float) -> Tensor:
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    alpha_bar = ((t + offset) / (1 + offset) * math.pi / 2).cos() ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=largest)


COSINE_OFFSET, LARGEST_BETA = 0.008, 0.999  # Nichol & Dhariwal 2021, section 3.2

BETAS = {
    "linear": _linear,  # Ho et al. 2020, section 4
    "linear-scaled": lambda n, a, b: _linear(n, 1000 / n * a, 1000 / n * b),  # Improved DDPM: any N, one curve
    "cosine": lambda n, a, b: _cosine(n, COSINE_OFFSET, LARGEST_BETA),  # has no ends
    "sqrt-linear": lambda n, a, b: _linear(n, a**0.5, b**0.5) ** 2,  # latent diffusion's "linear"
    "quad": lambda n, a, b: _linear(n, a**0.5, b**0.5) ** 2,  # the same curve under DDPM's name
    "sqrt": lambda n, a, b: _linear(n, a, b) ** 0.5,
    "const": lambda n, a, b: torch.full((n,), b, dtype=torch.float64),
    "jsd": lambda n, a, b: 1 / _linear(n, n, 1),  # 1/N ... 1: Sohl-Dickstein et al. 2015, section 2.4.1
    "sigmoid": lambda n, a, b: torch.sigmoid(_linear(n, -6, 6)) * (b - a) + a,
}


def betas(
    kind: str,
    steps: int,
    *,
    start: float = 1e-4,
    end: float = 0.02,
    offset: float = COSINE_OFFSET,
    largest: float = LARGEST_BETA,
) -> Tensor:
    """A published table of betas, (steps,) float64.

    Args:
        kind: Name in `BETAS`.
        steps: Length of the table, at least 2.
        start: First beta, for the kinds that have one.
        end: Last beta. "jsd" ends at beta = 1, which destroys x: eps-prediction fails there.
        offset: s of "cosine", above 0: the share of the curve by which it begins below alpha = 1.
        largest: Largest beta of "cosine", inside (0, 1]; larger ones are clipped to it.

    Raises:
        RecipeError: The kind is unknown, steps is below 2, or offset or largest is outside its range.
    """
    if kind not in BETAS:
        raise RecipeError(f"betas: {kind!r}; known: {', '.join(BETAS)}{did_you_mean(kind, list(BETAS))}")
    if steps < 2:
        raise RecipeError(f"steps = {steps}: a schedule needs at least 2")
    if not offset > 0 or not 0 < largest <= 1:
        raise RecipeError(f"offset = {offset}, largest = {largest}: the offset must be > 0, the largest beta in (0, 1]")
    return _cosine(steps, offset, largest) if kind == "cosine" else BETAS[kind](steps, start, end)


def zero_terminal_snr(table: Tensor) -> Tensor:
    """The table whose last level contains no data: alpha is shifted and scaled so that it ends at 0.

    The first level does not change. At the last one eps does not determine x0: predict v or x0.

    Args:
        table: Betas, (steps,).

    Source: Lin et al. 2023, algorithm 1 (arXiv:2305.08891).
    """
    alpha = torch.cumprod(1 - table.to(torch.float64), 0).sqrt()
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), alpha**2])
    return 1 - alpha_bar[1:] / alpha_bar[:-1]


def snr_shifted(table: Tensor, scale: float) -> Tensor:
    """The table with its signal-to-noise ratio divided by `scale` at every level: more noise where it is above 1.

    Args:
        table: Betas, (steps,).
        scale: Scale, above 0; 1 changes nothing.

    Source: Esser et al. 2024, section 5.3.2 (arXiv:2403.03206), for tables as CogVideoX has it (arXiv:2408.06072).
    """
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - table.to(torch.float64), 0)])
    alpha_bar = alpha_bar / (scale + (1 - scale) * alpha_bar)
    return 1 - alpha_bar[1:] / alpha_bar[:-1]
