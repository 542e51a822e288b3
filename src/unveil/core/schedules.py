"""Schedules: lists of noise levels, from noise to data, at which a sampler calls the network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from unveil.core import foreign_names
from unveil.core.elementary import as_tensor, level_by_level
from unveil.core.flow import token_times
from unveil.core.process import DATA, DiscreteVP, Process
from unveil.errors import RecipeError, did_you_mean
from unveil.types import NoiseLevel, like


class Schedule(Sequence[NoiseLevel]):
    """Noise levels of one process, noise first; the last one is that of the sample, and is not evaluated.

    Where levels are one number per sample or per token, a part may keep its level from one to the next.

    Raises:
        RecipeError: There are fewer than two levels, or the levels do not fall.
    """

    def __init__(self, process: Process, levels: Iterable[NoiseLevel]) -> None:
        self.process = process
        self._levels = list(levels)
        if len(self._levels) < 2:
            raise RecipeError(
                f"a schedule of {len(self._levels)} levels: a sampler needs at least 1 network call, 2 levels"
            )
        falls = _falls(*self.steps).tolist()
        if not all(falls):
            k = falls.index(False)
            raise RecipeError(
                f"a schedule goes from noise to data: level {k + 1} (t = {self._levels[k + 1].t}) must be below "
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
        """A level between or beyond the schedule's own, by its log(alpha / sigma); infinity is clean data.

        Raises:
            RecipeError: The process does not reach it.
        """
        return level_at_lambda(self.process, half_log_snr)

    def start(self, noise: Tensor) -> Tensor:
        """Start of a sampler's x: standard normal noise (B, ...) at the first level.

        The deviation is the one that the process was published with, `process.prior`: 1 for variance-preserving
        ones and rectified flow, sigma where alpha stays 1.
        """
        return like(self.process.prior(self._levels[0]), noise) * noise

    def onto_data(self) -> Schedule:
        """The schedule with clean data as its last level, where it does not end there already."""
        last = self._levels[-1]
        if bool((last.sigma == 0).all()):
            return self
        clean = NoiseLevel(*(value.expand_as(last.sigma) for value in DATA))
        return Schedule(self.process, [*self._levels, clean])

    def map(self, change: Callable[[NoiseLevel], NoiseLevel]) -> Schedule:
        """The schedule with every level changed, for example by `process.partly`."""
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
        RecipeError: The process does not reach it.
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

    The ratios are multiplied out, because alpha may be 0.
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


def uniform(process: Process, steps: int) -> Schedule:
    """Evenly spaced in t, from t = 1 to the data.

    Args:
        process: Any process.
        steps: Number of network calls, at least 1; the schedule has steps + 1 levels.

    Raises:
        RecipeError: steps is below 1.
    """
    check_steps(steps)
    return from_times(process, [(steps - i) / steps for i in range(steps + 1)])


def from_times(process: Process, times: Sequence[Tensor | float]) -> Schedule:
    """Schedule of a user's own times, falling; append 0.0 to end at the data."""
    return Schedule(process, levels_at(process, times))


def linear_quadratic(process: Process, steps: int, *, fine: int = 1000) -> Schedule:
    """The first half of the steps as wide as those of a run of `fine` steps, then widths that grow evenly in t.

    Args:
        process: Any process; meant for rectified flow.
        steps: Number of network calls, 1 to `fine`.
        fine: Number of steps of the run whose beginning is followed.

    Raises:
        RecipeError: steps is outside this range.

    Source: Polyak et al. 2024, section 3.4.2 (arXiv:2410.13720), with widths that join without a jump.
    """
    check_steps(steps)
    if steps > fine:
        raise RecipeError(
            f"steps = {steps}: this schedule follows a run of {fine} steps, so at most {fine}; raise fine="
        )
    slow = steps // 2
    rest = steps - slow
    bend = (1 - steps / fine) / rest**2
    gone = [i / fine + bend * max(i - slow, 0) ** 2 for i in range(steps)]
    return from_times(process, [*(1 - share for share in gone), 0.0])


# ---------------------------------------------------------------------- by the ratio of noise to signal


def from_sigmas(process: Process, sigmas: Sequence[float]) -> Schedule:
    """Schedule of a user's own sigmas, falling; append 0.0 to end at the data.

    Args:
        process: Any process.
        sigmas: Noise-to-signal ratios sigma / alpha, which are sigma if the data is not scaled (VE, EDM).

    Raises:
        RecipeError: The sigmas do not fall, or the process does not reach one of them.
    """
    for k, sigma in enumerate(sigmas):
        if not 0 <= sigma < math.inf:
            raise RecipeError(f"sigma {k} = {sigma}: must be a number of at least 0")
        if k and sigma >= sigmas[k - 1]:
            raise RecipeError(f"sigma {k} = {sigma}: a schedule goes from noise to data, so below {sigmas[k - 1]}")
    return Schedule(process, levels_at_lambda(process, [-math.log(s) if s else math.inf for s in sigmas]))


def karras(
    process: Process,
    steps: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
) -> Schedule:
    """Evenly spaced in (sigma / alpha)^(1 / rho), and a last step onto the data.

    Args:
        process: Any process.
        steps: Number of network calls, at least 1; the schedule has steps + 1 levels.
        sigma_min: Ratio sigma / alpha of the last call; None: the ratio at which training of the process begins.
        sigma_max: Ratio sigma / alpha of the first call; None: that of t = 1.
        rho: Exponent, above 0; a larger value puts more levels near the data, 1 is even in sigma / alpha.

    Raises:
        RecipeError: The process reaches alpha = 0 at t = 1 and sigma_max is missing, or a range or rho is not possible.

    Source: Karras et al. 2022, eq. 5 (arXiv:2206.00364).
    """
    check_steps(steps)
    if rho <= 0:
        raise RecipeError(f"rho = {rho}: must be above 0; 7 is usual")
    low, high = _range(process, sigma_min, sigma_max)
    first, last = high ** (1 / rho), low ** (1 / rho)
    return _onto_data(process, [(first + part * (last - first)) ** rho for part in unit_fractions(steps)])


def exponential(
    process: Process, steps: int, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> Schedule:
    """Evenly spaced in log(sigma / alpha), and a last step onto the data; arguments and errors are `karras`'s."""
    return polyexponential(process, steps, sigma_min=sigma_min, sigma_max=sigma_max, rho=1.0)


def polyexponential(
    process: Process,
    steps: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 1.0,
) -> Schedule:
    """log(sigma / alpha) falls as the power rho of an even ramp, and a last step onto the data.

    rho above 1 puts more levels near the data, 1 is `exponential`; other arguments and errors are `karras`'s.

    Source: the k-diffusion library.
    """
    check_steps(steps)
    if rho <= 0:
        raise RecipeError(f"rho = {rho}: must be above 0; 1 is usual")
    low, high = _range(process, sigma_min, sigma_max)
    width = math.log(high) - math.log(low)
    return _onto_data(process, [math.exp((1 - part) ** rho * width + math.log(low)) for part in unit_fractions(steps)])


def vp(
    process: Process, steps: int, *, beta_d: float = 19.9, beta_min: float = 0.1, smallest: float = 1e-3
) -> Schedule:
    """The ratios sigma / alpha of the linear VP process at even times, on any process; last step onto the data.

    Args:
        process: Any process that reaches these ratios.
        steps: Number of network calls, at least 1.
        beta_d: Rise of beta from t = 0 to 1.
        beta_min: Beta at t = 0.
        smallest: Time t of the last call.

    Source: Karras et al. 2022, table 1, first column (arXiv:2206.00364).
    """
    check_steps(steps)
    times = [1 + part * (smallest - 1) for part in unit_fractions(steps)]
    return _onto_data(process, [math.sqrt(math.expm1(0.5 * beta_d * t * t + beta_min * t)) for t in times])


def uniform_log_snr(process: Process, steps: int, *, low: float | None = None, high: float | None = None) -> Schedule:
    """Evenly spaced in log(alpha / sigma) from low (noise) to high, without a last step onto the data.

    Args:
        process: Any process.
        steps: Number of network calls, at least 1.
        low: First log(alpha / sigma); None: that of t = 1.
        high: Last log(alpha / sigma); None: the one at which training of the process begins.

    Raises:
        RecipeError: low is not below high, or the process reaches alpha = 0 at t = 1 and low is missing.
    """
    check_steps(steps)
    first = -math.log(_noisiest(process)) if low is None else low
    last = -math.log(_cleanest(process)) if high is None else high
    if not first < last:
        raise RecipeError(f"low = {first:.4g}, high = {last:.4g}: log(alpha / sigma) must rise from noise to data")
    return Schedule(process, levels_at_lambda(process, [first + (last - first) * i / steps for i in range(steps + 1)]))


# ---------------------------------------------------------------------- by the indices of a discrete process


def at_indices(process: Process, indices: Iterable[int]) -> Schedule:
    """Indices of a discrete process, in any order, and the data after them.

    Raises:
        RecipeError: The process has no indices, or an index is outside its table.
    """
    discrete = _discrete(process)
    chosen = sorted(set(indices), reverse=True)
    outside = [i for i in chosen if not 0 <= i < discrete.steps]
    if outside:
        raise RecipeError(f"index {outside[0]}: this process has 0 to {discrete.steps - 1}")
    return Schedule(process, [*levels_at(process, [(i + 1) / discrete.steps for i in chosen]), DATA])


def leading(process: Process, steps: int, *, offset: int = 0) -> Schedule:
    """Indices 0, k, 2k, ... with k = N // steps, which begin below the last index.

    It always has `steps` calls. If the published code's range has one more (7 of 1000 gave 8), it ends earlier.

    Args:
        process: Discrete process.
        steps: Number of network calls, 1 to N.
        offset: Number that is added to every index; 1 in Stable Diffusion.

    Source: Song et al. 2020, appendix D.2, "linear" (arXiv:2010.02502).
    """
    discrete = _at_most(process, steps)
    return at_indices(process, [i * (discrete.steps // steps) + offset for i in range(steps)])


def latent_diffusion(process: Process, steps: int) -> Schedule:
    """`leading` with offset 1, and a last step onto index 0 instead of the data: latent diffusion's DDIM.

    Source: Rombach et al. 2022 (arXiv:2112.10752), published code.
    """
    return Schedule(process, [*leading(process, steps, offset=1)[:-1], process.at(1 / _discrete(process).steps)])


def linspace(process: Process, steps: int) -> Schedule:
    """Evenly spaced indices from the last one to 0, fractional where they have to be, and the data after them.

    Source: Lin et al. 2023, table 2, "linspace" (arXiv:2305.08891).
    """
    discrete = _at_most(process, steps)
    places = as_tensor([(1 - part) * (discrete.steps - 1) for part in unit_fractions(steps)])
    times = discrete.t_of_timestep(places).tolist()
    return Schedule(process, [*levels_at(process, times), DATA])


def trailing(process: Process, steps: int) -> Schedule:
    """Evenly spaced indices that begin at the last one. Source: Lin et al. 2023, table 2 (arXiv:2305.08891)."""
    discrete = _at_most(process, steps)
    return at_indices(process, [round(discrete.steps * (steps - i) / steps) - 1 for i in range(steps)])


def quadratic(process: Process, steps: int) -> Schedule:
    """Indices spaced by squares up to 0.8 N, dense near the data.

    Source: Song et al. 2020, appendix D.2, "quadratic", with the published code's factor 0.8.
    """
    discrete = _at_most(process, steps)
    return at_indices(process, [int(i) for i in np.linspace(0, np.sqrt(discrete.steps * 0.8), steps) ** 2])


def respaced(process: Process, spacing: str) -> Schedule:
    """The published strings: "250", "10,15,20" (counts per equal part), "ddim25" (a whole stride), "fast27".

    A respaced chain is a coarser list of levels.

    Raises:
        RecipeError: The string has another form, or a count does not fit.

    Source: Nichol & Dhariwal 2021, section 4 (arXiv:2102.09672); "fast27": Nichol et al. 2021 (arXiv:2112.10741).
    """
    discrete = _discrete(process)
    return at_indices(process, respaced_indices(discrete.steps, spacing))


def respaced_indices(total: int, spacing: str) -> list[int]:
    """The indices that a respacing string keeps, rising. "" keeps all."""
    if spacing == "":
        return list(range(total))
    if spacing == "fast27":
        indices = respaced_indices(total, "10,10,3,2,2")
        return [*indices[:-1], 997] if total == 1000 else indices  # as published: 999 is replaced
    if spacing.startswith("ddim") and spacing[4:].isdigit():
        return _whole_stride(total, int(spacing[4:]))
    try:
        counts = [int(part) for part in spacing.split(",")]
    except ValueError:
        raise RecipeError(f"respacing {spacing!r}: write '250', '10,15,20', 'ddim25' or 'fast27'") from None
    indices, start = [], 0
    for part, count in enumerate(counts):
        size = total // len(counts) + (part < total % len(counts))
        if not 1 <= count <= size:
            raise RecipeError(f"respacing {spacing!r}: part {part} has {size} steps, {count} requested")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        place = 0.0  # summed up, not multiplied: rounding of halves must fall as it did in the published code
        for _ in range(count):
            indices.append(start + round(place))
            place += stride
        start += size
    return indices


def uniform_above(process: Process, steps: int, *, last: float = 1e-3) -> Schedule:
    """Evenly spaced in t from t = 1 to sigma(last), and a last step onto the data: Stable Diffusion 3's levels.

    The last call is at the t that equals the noise of t = `last`. In a shifted process that is `last` shifted, as in
    the published scheduler, which shifts its ends and then all levels between them.

    Args:
        process: Rectified flow, shifted or not.
        steps: Number of network calls, at least 1.
        last: Smallest time of training, before the shift.

    Source: Esser et al. 2024 (arXiv:2403.03206), published scheduler.
    """
    check_steps(steps)
    end = float(process.at(last).sigma)
    return Schedule(process, [*levels_at(process, [1 + part * (end - 1) for part in unit_fractions(steps)]), DATA])


def uniform_to(process: Process, steps: int, *, last: float) -> Schedule:
    """Evenly spaced in t, then stretched in alpha so that the last call has sigma = `last`: LTX-Video's levels.

    Args:
        process: Rectified flow, shifted or not.
        steps: Number of network calls, at least 1; a single one is made at t = 1.
        last: Sigma of the last call, inside (0, 1).

    Source: HaCohen et al. 2024 (arXiv:2501.00103), published scheduler.
    """
    check_steps(steps)
    alphas = [float(level.alpha) for level in levels_at(process, [(steps - i) / steps for i in range(steps)])]
    stretch = (1 - last) / alphas[-1] if steps > 1 else 1.0
    return Schedule(process, [process.at(1.0), *_of_sigmas(process, [1 - a * stretch for a in alphas[1:]]), DATA])


def flow_sigmas(process: Process, steps: int, *, last: float = 1e-3) -> Schedule:
    """Evenly spaced in t from a little below t = 1 to one step above `last`, and a last step onto the data.

    These are the levels of Wan's solver, which requires a finite log-SNR at the first one.

    Args:
        process: Rectified flow, shifted or not.
        steps: Number of network calls, at least 1.
        last: Time that a call after the last one would have.

    Source: Zhao et al. 2023 (arXiv:2302.04867), published scheduler with flow sigmas.
    """
    check_steps(steps)
    times = np.linspace(1, last, steps + 1)[1:-1].tolist()
    return Schedule(process, [*_of_sigmas(process, [ALMOST_NOISE]), *levels_at(process, times), DATA])


def _of_sigmas(process: Process, sigmas: Sequence[float]) -> list[NoiseLevel]:
    """The levels of sigmas inside (0, 1), where alpha is 1 - sigma."""
    return levels_at_lambda(process, [math.log((1 - sigma) / sigma) for sigma in sigmas])


SCHEDULES: dict[str, Callable[[Process, int], Schedule]] = {
    "uniform": uniform,
    "uniform-log-snr": uniform_log_snr,
    "linear-quadratic": linear_quadratic,
    "karras": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "vp": vp,
    "leading": leading,
    "trailing": trailing,
    "quadratic": quadratic,
}
# Variations of them in the schedulers of published folders.
SCHEDULED: dict[str, Callable[[Process, int], Schedule]] = {
    "leading-1": partial(leading, offset=1),
    "latent-diffusion": latent_diffusion,
    "both-ends": linspace,
    "uniform-above": uniform_above,
    "uniform-to-0.1": partial(uniform_to, last=0.1),
    "uniform-to-0.02": partial(uniform_to, last=0.02),
    "size-and-steps": lambda process, steps: Schedule(
        process, [*levels_at(process, token_times(process, steps)), DATA]
    ),
    "flow-sigmas": flow_sigmas,
}


def get_schedule(process: Process, spacing: str, steps: int) -> Schedule:
    """Return the schedule of a name, ours or foreign, or of a respacing string, which contains its number of steps."""
    if spacing not in (schedules := SCHEDULES | SCHEDULED):
        spacing = foreign_names.schedule(spacing, schedules)
    if spacing in schedules:
        return schedules[spacing](process, steps)
    if spacing[:1].isdigit() or spacing.startswith(("ddim", "fast")):
        return respaced(process, spacing)
    raise RecipeError(
        f"schedule {spacing!r}: must be one of {', '.join(schedules)}, or a respacing string"
        f"{did_you_mean(spacing, list(schedules))}"
    )


def _whole_stride(total: int, count: int) -> list[int]:
    for stride in range(1, total):
        if len(range(0, total, stride)) == count:
            return list(range(0, total, stride))
    raise RecipeError(f"'ddim{count}': no whole stride gives {count} of {total} steps; try another number or '{count}'")


def _onto_data(process: Process, sigmas: Sequence[float]) -> Schedule:
    return from_sigmas(process, [*sigmas, 0.0])


def _range(process: Process, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    high = _noisiest(process) if sigma_max is None else sigma_max
    low = min(_cleanest(process), high) if sigma_min is None else sigma_min
    if not 0 < low <= high < math.inf:
        raise RecipeError(f"sigma_min = {low:.4g}, sigma_max = {high:.4g}: must be 0 < sigma_min <= sigma_max")
    return low, high


def _noisiest(process: Process) -> float:
    """Sigma / alpha at t = 1."""
    level = process.at(1.0)
    if level.alpha == 0:
        raise RecipeError(
            f"{type(process).__name__} reaches alpha = 0, where sigma / alpha is infinite: give this schedule a noisy "
            "end (sigma_max, or low), or use the schedule 'uniform'"
        )
    return float(level.sigma / level.alpha)


def _cleanest(process: Process) -> float:
    """Sigma / alpha at the smallest time that the process is trained at."""
    level = process.at(process.within(torch.zeros(1, dtype=torch.float64)).item())
    return float(level.sigma / level.alpha)


def _discrete(process: Process) -> DiscreteVP:
    if not isinstance(process, DiscreteVP):
        raise RecipeError(f"{type(process).__name__} has no indices; use 'uniform' or another continuous schedule")
    return process


def _at_most(process: Process, steps: int) -> DiscreteVP:
    check_steps(steps)
    if steps > (discrete := _discrete(process)).steps:
        raise RecipeError(f"steps = {steps}: this process has {discrete.steps}")
    return discrete


ALMOST_NOISE = 1 - 17 / 2**24  # 1 - 1e-6 in float32, where a published solver begins in place of 1
