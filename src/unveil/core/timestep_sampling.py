"""Times of a training batch, and the weights that keep the loss unbiased."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from unveil.core.process import Process
from unveil.errors import RecipeError
from unveil.types import NoiseLevel


class TimeSampler(Protocol):
    """Map from uniform numbers to times of any process, with importance weights."""

    def times(self, process: Process, u: Tensor, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Times (B,) at which a network is trained, and what the losses there are multiplied with, both float64.

        u: uniform in [0, 1), (B,). samples: the global number of each training example.
        """
        ...


class Uniform:
    """Uniform distribution of times."""

    def times(self, process: Process, u: Tensor, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The process's own even spread, with weight 1."""
        return process.trainable(self.draw(u, samples)[0]), torch.ones_like(u)

    def draw(self, u: Tensor, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The numbers themselves, with weight 1."""
        del samples
        return u, torch.ones_like(u)


class Stratified:
    """One time in each of `strata` equal parts in turn: fewer chance gaps than independent times.

    Args:
        strata: Number of strata.
        of: Distribution that is stratified; None: the uniform one.

    Raises:
        RecipeError: strata is below 1.

    Source: Kingma et al. 2021, appendix I.1 (arXiv:2107.00630).
    """

    def __init__(self, strata: int, of: TimeSampler | None = None) -> None:
        if strata < 1:
            raise RecipeError(f"strata = {strata}: at least 1; the batch size is a good number")
        self.strata = strata
        self.of = of or Uniform()

    def times(self, process: Process, u: Tensor, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Times of the distribution, one in each part of it in turn."""
        return self.of.times(process, self.draw(u, samples)[0], samples)

    def draw(self, u: Tensor, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Example n falls into part n mod strata."""
        part = torch.tensor([n % self.strata for n in samples], dtype=u.dtype)
        return (part + u) / self.strata, torch.ones_like(u)


class LogNormal:
    """log(sigma / alpha) normal: the same noise to signal under every process.

    Values beyond the ends of a process are moved to the ends; of a table the nearest level is taken.

    Args:
        location: Mean of log(sigma / alpha), EDM's P_mean.
        scale: Deviation of log(sigma / alpha), EDM's P_std.

    Raises:
        RecipeError: The scale is not above 0.

    Source: Karras et al. 2022, table 1 (arXiv:2206.00364).
    """

    def __init__(self, location: float = -1.2, scale: float = 1.2) -> None:
        self.location, self.scale = location, _above_0(scale)

    def times(self, process: Process, u: Tensor, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The density is a part of the objective: weight 1."""
        del samples
        return _at(process, -(self.location + self.scale * torch.special.ndtri(u))), torch.ones_like(u)


class LogitNormal:
    """log(t / (1 - t)) normal in the process's own t, so that a shift of the process moves it.

    Under rectified flow, unshifted, it is `LogNormal`: there sigma / alpha = t / (1 - t).

    Args:
        location: Mean of the logit; a value above 0 is noisier.
        scale: Deviation of the logit.

    Raises:
        RecipeError: The scale is not above 0.

    Source: Esser et al. 2024, eq. 19 (arXiv:2403.03206).
    """

    def __init__(self, location: float = 0.0, scale: float = 1.0) -> None:
        self.location, self.scale = location, _above_0(scale)

    def times(self, process: Process, u: Tensor, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The density is a part of the objective: weight 1."""
        del samples
        return process.within(torch.sigmoid(self.location + self.scale * torch.special.ndtri(u))), torch.ones_like(u)


class UniformLogSNR:
    """log(alpha / sigma) even between two ends, under any process.

    Args:
        low: Noisy end; None: the end of the process.
        high: Clean end; None: the end of training on the process.

    Raises:
        RecipeError: The ends do not rise, or an end is not finite when times are drawn.

    Source: Kingma & Gao 2023, section 3 (arXiv:2303.00848).
    """

    def __init__(self, low: float | None = None, high: float | None = None) -> None:
        if low is not None and high is not None and not low < high:
            raise RecipeError(f"low = {low}, high = {high}: must rise")
        self.low, self.high = low, high

    def times(self, process: Process, u: Tensor, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The density is a part of the objective: weight 1."""
        del samples
        noisy, clean = _ends(process)
        low, high = noisy if self.low is None else self.low, clean if self.high is None else self.high
        if not (math.isfinite(low) and math.isfinite(high)):
            raise RecipeError(f"log(alpha / sigma) from {low:g} to {high:g}: set low and high to finite numbers")
        return _at(process, high + (low - high) * u), torch.ones_like(u)


class Importance:
    """Times in proportion to a density, and the weights that undo it: the loss of uniform times, with less spread.

    Args:
        density: Density of a level, positive, of any scale. The best is the loss's own deviation there, such as g^2 /
            sigma^2 for `score_matching.likelihood`.
        cells: Number of pieces on which the density is taken as constant; this causes no bias.

    Source: Song et al. 2021, section 5.1 (arXiv:2101.09258), inverted numerically for any process.
    """

    def __init__(self, density: Callable[[NoiseLevel], Tensor], cells: int = 1000) -> None:
        self.density = density
        self.cells = cells
        self._shares: tuple[Process, Tensor] | None = None

    def times(self, process: Process, u: Tensor, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The process's even spread at numbers drawn with the density, and 1 / density.

        Raises:
            RecipeError: The density is not positive and finite on the whole process.
        """
        del samples
        if self._shares is None or self._shares[0] is not process:
            middles = (torch.arange(self.cells, dtype=torch.float64) + 0.5) / self.cells
            height = torch.as_tensor(self.density(process.at(process.trainable(middles))), dtype=torch.float64)
            if not bool((torch.isfinite(height) & (height > 0)).all()):
                raise RecipeError(f"density {self.density}: must be positive and finite on the whole of {process}")
            self._shares = process, height / height.sum()
        share = self._shares[1]
        cell, inside = _invert(share, u)
        return process.trainable((cell.double() + inside) / self.cells), 1 / (self.cells * share[cell])


class SecondMoment:
    """Index t with probability proportional to sqrt(E[L_t^2]) over its last losses.

    Uniform until every index has `history` losses; `uniform` of the probability always stays uniform.
    Its state is `history_table` and `counts`, part of a checkpoint.

    Source: Nichol & Dhariwal 2021, eq. 18 (arXiv:2102.09672); 10 losses and 0.001 as published.
    """

    def __init__(self, steps: int, history: int = 10, uniform: float = 0.001) -> None:
        self.steps = steps
        self.uniform = uniform
        self.history_table = torch.zeros(steps, history, dtype=torch.float64)
        self.counts = torch.zeros(steps, dtype=torch.int64)

    def weights(self) -> Tensor:
        """The probability of each index, (steps,), summing to 1."""
        if bool((self.counts < self.history_table.shape[1]).any()):
            return torch.full((self.steps,), 1 / self.steps, dtype=torch.float64)
        second = self.history_table.square().mean(1).sqrt()
        return second / second.sum() * (1 - self.uniform) + self.uniform / self.steps

    def times(self, process: Process, u: Tensor, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The times of the drawn indices of a table of betas."""
        place, weight = self.draw(u, samples)
        return process.trainable(place), weight

    def draw(self, u: Tensor, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The middle of index i's interval, drawn by inverting the cumulative sum, and 1 / (steps p_i)."""
        del samples
        p = self.weights()
        cumulative = p.cumsum(0)
        index = torch.searchsorted(cumulative / cumulative[-1], u, right=True).clamp(max=self.steps - 1)
        return (index.double() + 0.5) / self.steps, 1 / (self.steps * p[index])

    def update(self, index: Tensor, losses: Tensor) -> None:
        """Remember unweighted losses (B,) of indices (B,), those of every rank in one order; the oldest go."""
        for i, loss in zip(index.tolist(), losses.tolist(), strict=True):
            self.history_table[i] = self.history_table[i].roll(-1)
            self.history_table[i, -1] = loss
            self.counts[i] = min(int(self.counts[i]) + 1, self.history_table.shape[1])
        # until the buffer is full its filled part is at the end; weights() is uniform then, so order is free

    def state_dict(self) -> dict[str, Tensor]:
        """State for a checkpoint."""
        return {"history_table": self.history_table.clone(), "counts": self.counts.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state of a checkpoint."""
        self.history_table = state["history_table"].clone()
        self.counts = state["counts"].clone()


def _above_0(scale: float) -> float:
    if not scale > 0:
        raise RecipeError(f"scale = {scale}: a deviation must be above 0")
    return scale


def _ends(process: Process) -> tuple[float, float]:
    """log(alpha / sigma) at the noisiest and the cleanest time at which a network is trained."""
    times = process.within(torch.tensor([1.0, 0.0], dtype=torch.float64))
    noisy, clean = process.at(times).half_log_snr.tolist()
    return noisy, clean


def _at(process: Process, half_log_snr: Tensor) -> Tensor:
    """The trained times nearest to these levels."""
    return process.within(process.t_of(half_log_snr.clamp(*_ends(process))))


def _invert(share: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The cell that holds u of the cumulative sum of shares, and how far into it u is, in [0, 1)."""
    cumulative = share.cumsum(0)
    cumulative = cumulative / cumulative[-1]
    cell = torch.searchsorted(cumulative, u, right=True).clamp(max=len(share) - 1)
    below = torch.cat([cumulative.new_zeros(1), cumulative])[cell]
    return cell, ((u - below) / (cumulative[cell] - below)).clamp(0, 1 - 2.0**-53)
