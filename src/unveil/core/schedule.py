"""A list of levels from noise to data, and levels between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from unveil.core.elementary import as_tensor, level_by_level
from unveil.core.process import DATA, Process
from unveil.errors import RecipeError
from unveil.types import NoiseLevel, like


class Schedule(Sequence[NoiseLevel]):
    """Levels of one process, noise first; the last one is where the sample ends, and is not evaluated.

    Where levels are one number per sample or per token, a part may keep its level from one to the next.

    Raises:
        RecipeError: fewer than two levels, or levels that do not fall.
    """

    def __init__(self, process: Process, levels: Iterable[NoiseLevel]) -> None:
        self.process = process
        self._levels = list(levels)
        if len(self._levels) < 2:
            raise RecipeError(
                f"a grid of {len(self._levels)} levels: a sampler needs at least 1 network call, 2 levels"
            )
        falls = _falls(*self.steps).tolist()
        if not all(falls):
            k = falls.index(False)
            raise RecipeError(
                f"a grid goes from noise to data: level {k + 1} (t = {self._levels[k + 1].t}) must be below "
                f"level {k} (t = {self._levels[k].t})"
            )

    def __len__(self) -> int:
        """The number of levels, one more than network calls of a first-order sampler."""
        return len(self._levels)

    def __getitem__(self, k):  # type: ignore[no-untyped-def]  # int or slice, as Sequence has it
        """Level k, 0 the noisiest."""
        return self._levels[k]

    @cached_property
    def table(self) -> NoiseLevel:
        """All levels as one: each quantity of theirs in a tensor whose first axis counts the levels."""
        return stacked(self._levels)

    @property
    def steps(self) -> tuple[NoiseLevel, NoiseLevel]:
        """Tables of the levels from which and to which each step goes."""
        return NoiseLevel(*(part[:-1] for part in self.table)), NoiseLevel(*(part[1:] for part in self.table))

    def at(self, half_log_snr: Tensor | float) -> NoiseLevel:
        """A level between or beyond the grid's own, by its log(alpha / sigma); infinity is clean data.

        Raises:
            RecipeError: the process does not reach it.
        """
        return level_at_lambda(self.process, half_log_snr)

    def start(self, noise: Tensor) -> Tensor:
        """Start of a sampler's x: standard normal noise (B, ...) at the first level.

        The deviation is the one that the process was published with, `process.prior`: 1 for variance-preserving
        ones and rectified flow, sigma where alpha stays 1.
        """
        return like(self.process.prior(self._levels[0]), noise) * noise

    def onto_data(self) -> Schedule:
        """The grid with clean data as its last level, where it does not end there already."""
        last = self._levels[-1]
        if bool((last.sigma == 0).all()):
            return self
        clean = NoiseLevel(*(value.expand_as(last.sigma) for value in DATA))
        return Schedule(self.process, [*self._levels, clean])

    def map(self, change: Callable[[NoiseLevel], NoiseLevel]) -> Schedule:
        """The grid with every level changed, for example by `process.partly`."""
        return Schedule(self.process, map(change, self._levels))


def stacked(levels: Sequence[NoiseLevel]) -> NoiseLevel:
    """A table of levels: each quantity in a tensor whose first axis counts the levels."""
    if any(part.ndim for level in levels for part in level):
        shape = torch.broadcast_shapes(*(part.shape for level in levels for part in level))
        return NoiseLevel(*(torch.stack([part.expand(shape) for part in parts]) for parts in zip(*levels, strict=True)))
    return NoiseLevel(*as_tensor([[part.item() for part in parts] for parts in zip(*levels, strict=True)]))


def levels_of(table: NoiseLevel) -> list[NoiseLevel]:
    """The levels of a table."""
    parts = torch.broadcast_tensors(*table)
    return list(map(NoiseLevel._make, zip(*(part.unbind() for part in parts), strict=True)))


def levels_at(process: Process, times: Sequence[Tensor | float]) -> list[NoiseLevel]:
    """The levels at these times, with the numbers that `process.at` gives to each."""
    if any(isinstance(t, Tensor) and t.ndim for t in times):
        return [process.at(t) for t in times]
    with level_by_level():
        return levels_of(process.at(as_tensor([float(t) for t in times])))


def levels_at_lambda(process: Process, half_log_snrs: Sequence[float]) -> list[NoiseLevel]:
    """The levels of these log(alpha / sigma), with the numbers that `level_at_lambda` gives to each."""
    with level_by_level():
        return levels_of(level_at_lambda(process, as_tensor(half_log_snrs)))


def level_at_lambda(process: Process, half_log_snr: Tensor | float) -> NoiseLevel:
    """The level of a log(alpha / sigma), infinity is clean data.

    Raises:
        RecipeError: the process does not reach it.
    """
    half_log_snr = as_tensor(half_log_snr)
    clean = half_log_snr == math.inf
    if not half_log_snr.ndim and clean:
        return DATA
    places, which = half_log_snr.unique(return_inverse=True)
    # clean parts are looked up at t = 0, which every process has, and replaced below
    noisy = places != math.inf
    times = torch.zeros_like(places)
    times[noisy] = _times(process, places[noisy])
    level = process.at(times[which])
    if not bool(clean.any()):
        return level
    return NoiseLevel(*(torch.where(clean, data, value) for data, value in zip(DATA, level, strict=True)))


def check_steps(steps: int) -> None:
    """Raises RecipeError for fewer than one network call."""
    if steps < 1:
        raise RecipeError(f"steps = {steps}: a sampler needs at least 1 network call")


def unit_fractions(steps: int) -> list[float]:
    """0 to 1, one for each call; a single call is the first."""
    return [i / max(steps - 1, 1) for i in range(steps)]


def _falls(here: NoiseLevel, there: NoiseLevel) -> Tensor:
    """True for the steps of a table on which sigma / alpha falls; where parts differ it may stay.

    Multiplied out, since alpha may be 0.
    """
    before, after = here.sigma * there.alpha, there.sigma * here.alpha
    return after < before if before.ndim == 1 else (before - after >= 0).flatten(1).all(1)


def _times(process: Process, half_log_snrs: Tensor) -> Tensor:
    """The times of half log-SNRs, (N,), checked: finite, or minus infinity where the process reaches alpha = 0."""
    pure_noise = half_log_snrs == -math.inf
    if bool(pure_noise.any()) and process.at(1.0).alpha == 0:
        times = torch.ones_like(half_log_snrs)
        if not bool(pure_noise.all()):
            times[~pure_noise] = _times(process, half_log_snrs[~pure_noise])
        return times
    try:
        with level_by_level():
            t = process.t_of(half_log_snrs)
            t = torch.where((t > 1) & (t < 1 + 1e-12), 1.0, t)  # rounded beyond an end
            t = torch.where((t < 0) & (t > -1e-12), 0.0, t)
            process.at(t)
    except (RecipeError, OverflowError) as error:
        if len(half_log_snrs) > 1:  # the error is that of the first one that the process does not reach
            return torch.cat([_times(process, one) for one in half_log_snrs.split(1)])
        sigma = math.exp(min(-half_log_snrs.item(), 700.0))
        raise RecipeError(f"sigma / alpha = {sigma:.6g} is outside of {type(process).__name__}: {error}") from None
    return t
