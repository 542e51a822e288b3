"""Lists of levels from noise to data: where a sampler calls the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from torch import Tensor

from unveil.core.process import DATA, DiscreteVP, Process
from unveil.types import Level, RecipeError, nearest


class Grid(Sequence[Level]):
    """Levels of one process, noise first; the last one is where the sample ends, and is not evaluated."""

    def __init__(self, process: Process, levels: Iterable[Level]) -> None:
        self.process = process
        self._levels = list(levels)
        if len(self._levels) < 2:
            raise RecipeError(
                f"a grid of {len(self._levels)} levels: a sampler needs at least 1 network call, 2 levels"
            )

    def __len__(self) -> int:
        """The number of levels, one more than network calls of a first-order sampler."""
        return len(self._levels)

    def __getitem__(self, k):  # type: ignore[no-untyped-def]  # int or slice, as Sequence has it
        """Level k, 0 the noisiest."""
        return self._levels[k]

    def at(self, half_log_snr: float) -> Level:
        """A level between or beyond the grid's own."""
        return self.process.at(self.process.t_of(half_log_snr))

    def start(self, noise: Tensor) -> Tensor:
        """What a sampler's x must be: standard normal noise (B, ...) at the first level.

        The mean of the data is taken as 0 and its variance as 1 where alpha > 0, so a variance-preserving
        process starts from the noise itself, as published.
        """
        first = self._levels[0]
        return (first.alpha**2 + first.sigma**2) ** 0.5 * noise

    def map(self, change: Callable[[Level], Level]) -> Grid:
        """The grid with every level changed, for example by `process.partly`."""
        return Grid(self.process, map(change, self._levels))


def uniform(process: Process, steps: int) -> Grid:
    """Evenly spaced in t, from t = 1 to the data.

    Args:
        process: any.
        steps: network calls, at least 1; the grid has steps + 1 levels.

    Raises:
        RecipeError: steps below 1.
    """
    _check(steps)
    return Grid(process, [process.at((steps - i) / steps) for i in range(steps + 1)])


def at_times(process: Process, times: Sequence[float]) -> Grid:
    """A user's own times, falling; append 0.0 to end at the data."""
    return Grid(process, [process.at(t) for t in times])


def uniform_log_snr(process: Process, steps: int, *, low: float, high: float) -> Grid:
    """Evenly spaced in log(alpha / sigma) from low (noise) to high, without a last step onto the data."""
    _check(steps)
    places = [low + (high - low) * i / steps for i in range(steps + 1)]
    return Grid(process, [process.at(process.t_of(place)) for place in places])


def at_indices(process: Process, indices: Iterable[int]) -> Grid:
    """Indices of a discrete process, in any order, and the data after them.

    Raises:
        RecipeError: a process without indices, or an index outside its table.
    """
    discrete = _discrete(process)
    chosen = sorted(set(indices), reverse=True)
    outside = [i for i in chosen if not 0 <= i < discrete.steps]
    if outside:
        raise RecipeError(f"index {outside[0]}: this process has 0 to {discrete.steps - 1}")
    return Grid(process, [*(process.at((i + 1) / discrete.steps) for i in chosen), DATA])


def leading(process: Process, steps: int) -> Grid:
    """Indices 0, k, 2k, ... with k = N // steps, which begin below the last index.

    Always `steps` calls: where the published code's range has one more (7 of 1000 gave 8), it ends earlier.

    Source: Song et al. 2020, appendix D.2, "linear" (arXiv:2010.02502).
    """
    discrete = _at_most(process, steps)
    return at_indices(process, [i * (discrete.steps // steps) for i in range(steps)])


def trailing(process: Process, steps: int) -> Grid:
    """Evenly spaced indices that begin at the last one. Source: Lin et al. 2023, table 2 (arXiv:2305.08891)."""
    discrete = _at_most(process, steps)
    return at_indices(process, [round(discrete.steps * (steps - i) / steps) - 1 for i in range(steps)])


def quadratic(process: Process, steps: int) -> Grid:
    """Indices spaced by squares up to 0.8 N, dense near the data.

    Source: Song et al. 2020, appendix D.2, "quadratic", with the published code's factor 0.8.
    """
    discrete = _at_most(process, steps)
    return at_indices(process, [int(i) for i in np.linspace(0, np.sqrt(discrete.steps * 0.8), steps) ** 2])


def respaced(process: Process, spacing: str) -> Grid:
    """The published strings: "250", "10,15,20" (counts per equal part), "ddim25" (a whole stride), "fast27".

    A respaced chain is nothing but a coarser list of levels.

    Raises:
        RecipeError: a string of another form, or a count that does not fit.

    Source: Nichol & Dhariwal 2021, section 4 (arXiv:2102.09672); "fast27": Nichol et al. 2021 (arXiv:2112.10741).
    """
    discrete = _discrete(process)
    return at_indices(process, respaced_indices(discrete.steps, spacing))


def respaced_indices(total: int, spacing: str) -> list[int]:
    """The indices that a respacing string keeps, rising. "" keeps all."""
    if spacing == "":
        return list(range(total))
    if spacing == "fast27":
        kept = respaced_indices(total, "10,10,3,2,2")
        return [*kept[:-1], 997] if total == 1000 else kept  # as published: 999 is replaced
    if spacing.startswith("ddim") and spacing[4:].isdigit():
        return _whole_stride(total, int(spacing[4:]))
    try:
        counts = [int(part) for part in spacing.split(",")]
    except ValueError:
        raise RecipeError(f"respacing {spacing!r}: write '250', '10,15,20', 'ddim25' or 'fast27'") from None
    kept, start = [], 0
    for part, count in enumerate(counts):
        size = total // len(counts) + (part < total % len(counts))
        if not 1 <= count <= size:
            raise RecipeError(f"respacing {spacing!r}: part {part} has {size} steps, {count} asked")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        place = 0.0  # summed up, not multiplied: rounding of halves must fall as it did in the published code
        for _ in range(count):
            kept.append(start + round(place))
            place += stride
        start += size
    return kept


GRIDS: dict[str, Callable[[Process, int], Grid]] = {
    "uniform": uniform,
    "leading": leading,
    "trailing": trailing,
    "quadratic": quadratic,
}


def named(process: Process, spacing: str, steps: int) -> Grid:
    """A grid by its name in `GRIDS`, or by a respacing string, which holds its own number of steps."""
    if spacing in GRIDS:
        return GRIDS[spacing](process, steps)
    if spacing[:1].isdigit() or spacing.startswith(("ddim", "fast")):
        return respaced(process, spacing)
    raise RecipeError(f"grid {spacing!r}; known: {', '.join(GRIDS)}{nearest(spacing, list(GRIDS))}")


def _whole_stride(total: int, count: int) -> list[int]:
    for stride in range(1, total):
        if len(range(0, total, stride)) == count:
            return list(range(0, total, stride))
    raise RecipeError(f"'ddim{count}': no whole stride gives {count} of {total} steps; try another number or '{count}'")


def _check(steps: int) -> None:
    if steps < 1:
        raise RecipeError(f"steps = {steps}: a sampler needs at least 1 network call")


def _discrete(process: Process) -> DiscreteVP:
    if not isinstance(process, DiscreteVP):
        raise RecipeError(f"{type(process).__name__} has no indices; use grids.uniform or another continuous grid")
    return process


def _at_most(process: Process, steps: int) -> DiscreteVP:
    _check(steps)
    discrete = _discrete(process)
    if steps > discrete.steps:
        raise RecipeError(f"steps = {steps}: this process has {discrete.steps}")
    return discrete
