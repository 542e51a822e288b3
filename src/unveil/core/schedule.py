"""A list of levels from noise to data, and levels between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from unveil.core.process import DATA, Process, as_tensor
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
        for k, (here, there) in enumerate(pairwise(self._levels)):
            if not _falls(here, there):
                raise RecipeError(
                    f"a grid goes from noise to data: level {k + 1} (t = {there.t}) must be below "
                    f"level {k} (t = {here.t})"
                )

    def __len__(self) -> int:
        """The number of levels, one more than network calls of a first-order sampler."""
        return len(self._levels)

    def __getitem__(self, k):  # type: ignore[no-untyped-def]  # int or slice, as Sequence has it
        """Level k, 0 the noisiest."""
        return self._levels[k]

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


def level_at_lambda(process: Process, half_log_snr: Tensor | float) -> NoiseLevel:
    """The level of a log(alpha / sigma), infinity is clean data.

    Raises:
        RecipeError: the process does not reach it.
    """
    half_log_snr = as_tensor(half_log_snr)
    if not half_log_snr.ndim:
        return DATA if half_log_snr == math.inf else process.at(_time(process, half_log_snr.item()))
    clean = half_log_snr == math.inf
    places, which = half_log_snr.unique(return_inverse=True)
    # clean parts are looked up at t = 0, which every process has, and replaced below
    times = [0.0 if place == math.inf else _time(process, place) for place in places.tolist()]
    level = process.at(as_tensor(times)[which])
    return NoiseLevel(*(torch.where(clean, data, value) for data, value in zip(DATA, level, strict=True)))


def check_steps(steps: int) -> None:
    """Raises RecipeError for fewer than one network call."""
    if steps < 1:
        raise RecipeError(f"steps = {steps}: a sampler needs at least 1 network call")


def unit_fractions(steps: int) -> list[float]:
    """0 to 1, one for each call; a single call is the first."""
    return [i / max(steps - 1, 1) for i in range(steps)]


def _falls(here: NoiseLevel, there: NoiseLevel) -> bool:
    """Return True if sigma / alpha falls; for tensors it may stay. Multiplied out, since alpha may be 0."""
    before, after = here.sigma * there.alpha, there.sigma * here.alpha
    return bool(((before - after >= 0) if before.ndim or after.ndim else after < before).all())


def _time(process: Process, half_log_snr: float) -> float:
    """The time of a finite half log-SNR, checked, or of minus infinity where the process reaches alpha = 0."""
    if half_log_snr == -math.inf and process.at(1.0).alpha == 0:
        return 1.0
    try:
        t = float(process.t_of(half_log_snr))
        t = 1.0 if 1 < t < 1 + 1e-12 else 0.0 if -1e-12 < t < 0 else t  # rounded beyond an end
        process.at(t)
    except (RecipeError, OverflowError) as error:
        sigma = math.exp(min(-half_log_snr, 700.0))
        raise RecipeError(f"sigma / alpha = {sigma:.6g} is outside of {type(process).__name__}: {error}") from None
    return t
