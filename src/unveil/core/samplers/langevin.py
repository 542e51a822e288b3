"""Langevin dynamics, plain and annealed; the reverse SDE's own steps; predictor and corrector together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from unveil.core import elementary, sde
from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.elementary import level_by_level, where
from unveil.core.rng import Noise
from unveil.core.samplers.ancestral import ancestral
from unveil.core.samplers.coefficients import lands
from unveil.core.samplers.loop import CoefficientTable, Plan, SamplerState, StepResult, StepRow, draw_noise, rows_of
from unveil.core.samplers.registry import SamplerSpec
from unveil.core.schedules import Schedule, stacked
from unveil.errors import RecipeError
from unveil.types import NoiseLevel, like

# ---------------------------------------------------------------------- Langevin at given levels


def annealed_langevin(schedule: Schedule, *, each: int = 5, size: float = 0.1) -> CoefficientTable:
    """Langevin dynamics at every noisy level of a schedule in turn, so that modes mix at high noise.

    If the schedule ends with clean data, the last call's estimate of x0 is the sample. A schedule that ends before
    (`schedules.uniform` on a VE process, without `onto_data`) leaves the noise of its last level in the sample.

    Args:
        schedule: Schedule from noise to data; alpha is above 0 everywhere, because x / alpha goes from level to level.
        each: Number of network calls at each noisy level.
        size: Size of a step relative to the level's variance, inside (0, 1). A step adds size sigma^2 score and sqrt(2
            size) sigma noise. Song & Ermon 2020 have epsilon sigma^2 / sigma_L^2 for size sigma^2. See
            `ncsnpp_step_size`.

    Raises:
        RecipeError: The size or the number of calls is out of range, or alpha is 0 at a level.

    Source: Song & Ermon 2019, algorithm 1 (arXiv:1907.05600), whose epsilon of 2e-5 at sigma_L = 0.01 is size 0.1;
        the last call: Jolicoeur-Martineau et al. 2020, section 3.1 (arXiv:2009.05475).
    """
    return CoefficientTable(_dynamics(schedule, list(schedule), each, size))


def langevin(schedule: Schedule, *, each: int = 5, size: float = 0.1) -> CoefficientTable:
    """Langevin dynamics only at the cleanest noisy level, with as many calls as `annealed_langevin` makes.

    It starts at the schedule's first level. Modes that are further apart than the noise of the cleanest level do not
    mix.

    Source: Song & Ermon 2019, eq. 4 (arXiv:1907.05600). Arguments and errors are those of `annealed_langevin`.
    """
    last = schedule[0]
    for level in schedule:
        last = NoiseLevel(*(where(level.sigma > 0, new, old) for new, old in zip(level, last, strict=True)))
    rows = _dynamics(schedule, [last] * len(schedule), each, size)
    return CoefficientTable([StepRow(None, last.alpha / schedule[0].alpha), *rows])


def ncsnpp_step_size(schedule: Schedule, each: int) -> float:
    """The size of step with which `each` steps at a level come nearest to its variance from that of the level before.

    Args:
        schedule: Schedule, geometric in sigma / alpha; only its first two levels are used.
        each: Number of calls at each level.

    Source: Song & Ermon 2020, proposition 3 and technique 4 (arXiv:2006.09011): epsilon 6.2e-6 at sigma_L = 0.01,
        5 calls at each of 232 levels, is size 0.062.
    """
    first, second = (float(level.sigma / level.alpha) for level in schedule[:2])
    size = torch.logspace(-5, 0, 20001, dtype=torch.float64)[:-1]
    settled = 1 / (1 - size / 2)  # the variance that never-ending steps of this size leave, against the level's
    left = (1 - size) ** (2 * each) * ((first / second) ** 2 - settled) + settled
    return size[(left - 1).abs().argmin()].item()


@level_by_level()
def _dynamics(schedule: Schedule, levels: Sequence[NoiseLevel], each: int, size: float) -> list[StepRow]:
    """`each` calls at levels[k] for every level k of the schedule; the last of them goes to levels[k + 1].

    Parts with levels of their own are moved while they are at a level that they will leave, or have come to stay at.
    """
    if each < 1 or not 0 < size < 1:
        raise RecipeError(f"each = {each}, size = {size}: at least 1 call, and a size inside (0, 1); NCSN's is 0.1")
    table = schedule.table
    lost = table.alpha == 0
    if bool(lost.any()):
        raise RecipeError(
            f"Langevin dynamics carries x / alpha from level to level, and alpha is 0 at t = {table.t[lost][0]}; begin "
            "the schedule at a level with alpha > 0"
        )
    moved, called = _moved(schedule), stacked(levels)
    share = size * moved.double()
    columns = 1 - share, share * called.alpha, elementary.sqrt(2 * share) * called.sigma
    staying = _rows(levels, columns)
    ratio = called.alpha[1:] / called.alpha[:-1]
    keep, gain, noise = (ratio * column[:-1] for column in columns)
    going = _rows(levels[:-1], _landing((keep, gain, noise), *schedule.steps))
    rows = [row for row, last in zip(staying, going, strict=False) for row in [row] * (each - 1) + [last]]
    return rows + [staying[-1]] * (each if bool(moved[-1].any()) else 0)


def _moved(schedule: Schedule) -> Tensor:
    """True for the noisy levels that the next step leaves, or that last for the rest of the schedule."""
    here, there = schedule.steps
    leaves = ~_same(here, there)
    never = torch.zeros_like(leaves[:1])
    clean = NoiseLevel(*(part[-1:] for part in schedule.table))
    left, come = torch.cat([leaves, never]), torch.cat([never, leaves]) & _same(schedule.table, clean)
    return (left | come) & (schedule.table.sigma > 0)


_Columns = tuple[Tensor, Tensor, Tensor]  # of rows: keep, the gain and the noise


def _rows(
    levels: Sequence[NoiseLevel], columns: _Columns, spans: Sequence[tuple[NoiseLevel, NoiseLevel]] | None = None
) -> list[StepRow]:
    keep, gain, noise = columns
    return rows_of(levels, keep, (gain,), noise, spans=spans)


def _landing(columns: _Columns, here: NoiseLevel, there: NoiseLevel) -> _Columns:
    """The columns of steps; a step onto clean data takes the estimate of x0, without noise."""
    keep, gain, noise = columns
    last = lands(here, there)
    return where(last, 0.0, keep), where(last, there.alpha, gain), where(last, 0.0, noise)


def _same(here: NoiseLevel, there: NoiseLevel) -> Tensor:
    return (here.sigma == there.sigma) & (here.alpha == there.alpha)


# ---------------------------------------------------------------------- the reverse SDE


@level_by_level()
def euler_maruyama(schedule: Schedule) -> CoefficientTable:
    """Euler-Maruyama steps of the reverse SDE, dx = (f x - g^2 score) dt + g dw, in the process's own time.

    The step onto clean data takes the estimate of x0 and adds no noise.

    Args:
        schedule: Schedule from noise to data; alpha is above 0 at its start, because f is infinite otherwise.

    Raises:
        RecipeError: alpha is 0 at a level of a network call.

    Source: Song et al. 2021, eq. 6 and appendix D.1 (arXiv:2011.13456).
    """
    here, there = schedule.steps
    lost = here.alpha == 0
    if bool(lost.any()):
        raise RecipeError(
            f"at t = {here.t[lost][0]} alpha is 0 and the reverse SDE's drift infinite; begin the schedule at a level "
            "with alpha > 0, or use the sampler reverse-diffusion"
        )
    width, rate = there.t - here.t, sde.neg_dlogsnr_dt(here)
    keep = 1 + width * (sde.drift(here) + rate)  # g^2 score = rate (alpha x0 - x)
    noise = elementary.sqrt(-1.0 * width) * sde.diffusion(here)
    columns = _landing((keep, -1.0 * width * rate * here.alpha, noise), here, there)
    return CoefficientTable(_rows(schedule[:-1], columns, list(pairwise(schedule))))


@level_by_level()
def reverse_diffusion(schedule: Schedule) -> CoefficientTable:
    """The reverse of each step of the forward process: x <- (2 - a) x + beta score + sqrt(beta) z.

    a = alpha_t / alpha_s carries x forward and beta is the variance that is added on the way. The step onto clean
    data takes the estimate of x0 and adds no noise.

    Source: Song et al. 2021, eq. 46 and appendix E (arXiv:2011.13456).
    """
    here, there = schedule.steps
    ratio, beta = _forward(here, there)
    share = elementary.safe_divide(beta, elementary.square(here.sigma), 0.0)
    columns = _landing((2 - ratio - share, share * here.alpha, elementary.sqrt(beta)), here, there)
    return CoefficientTable(_rows(schedule[:-1], columns, list(pairwise(schedule))))


def _forward(here: NoiseLevel, there: NoiseLevel) -> tuple[Tensor, Tensor]:
    """Factor of x in the forward step from the cleaner level, and the variance that the step adds."""
    ratio = elementary.safe_divide(here.alpha, there.alpha, 1.0)
    return ratio, elementary.square(here.sigma) - elementary.square(ratio * there.sigma)


# ---------------------------------------------------------------------- predictor and corrector


class Corrector(Protocol):
    """Moves x within its level."""

    @property
    def steps(self) -> int:
        """Number of corrections before each step of the predictor, each with a network call and its own noise."""
        ...

    def move(self, x: Tensor, level: NoiseLevel, estimate: Estimate, noise: Tensor, scale: Tensor) -> Tensor:
        """The next x at the same level; `scale` is a factor of the step that the predictor's row gives."""
        ...


def per_sample(x: Tensor) -> Tensor:
    """The Euclidean norm of each sample, (B,)."""
    return x.flatten(1).norm(dim=1) if x.ndim > 1 else x.abs()


@dataclass(frozen=True)
class LangevinPlan:
    """Langevin step whose size makes the noise `1 / snr` times as long as the part of the score.

    Args:
        snr: Signal-to-noise ratio of the paper: 0.16 for variance-exploding networks, 0.01 for its variance-preserving
            ones.
        steps: Number of corrections before each step of the predictor.
        norm: Norm of a noise or a score, (B,) or one number. The published code takes the mean over the batch; here no
            sample depends on the others.
        largest: Maximum size of a step relative to the level's variance, because the score is 0 at the top of a mode.

    Source: Song et al. 2021, algorithms 4 and 5 (arXiv:2011.13456).
    """

    snr: float = 0.16
    steps: int = 1
    norm: Callable[[Tensor], Tensor] = per_sample
    largest: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges of the settings."""
        if not self.snr >= 0 or self.steps < 0:
            raise RecipeError(f"snr = {self.snr}, steps = {self.steps}: neither may be below 0")

    def move(self, x: Tensor, level: NoiseLevel, estimate: Estimate, noise: Tensor, scale: Tensor) -> Tensor:
        """The next x, x + size sigma^2 score + sqrt(2 size) sigma z with size = 2 scale (snr |z| / |eps|)^2."""
        eps, sigma = estimate.eps, like(level.sigma, x)
        if scale.ndim:  # parts that stay do not count in the norms
            eps, noise = (like(scale != 0, x) * part for part in (eps, noise))
        ratio = (self.norm(noise) / self.norm(eps)).nan_to_num(nan=0.0)
        size = 2 * (self.snr * like(ratio.reshape(-1), x)) ** 2 * like(scale, x)
        size = torch.as_tensor(size).clamp(max=self.largest)
        return x - size * sigma * eps + (2 * size).sqrt() * sigma * noise


class PredictorCorrectorPlan:
    """Corrections at each level before the step from it.

    Args:
        table: Rows of the predictor.
        levels: Noise level of each row's corrections.
        corrector: Corrector of all levels.
        scales: Scale of each row's corrections, see `Corrector.move`.
    """

    def __init__(
        self, table: CoefficientTable, levels: Sequence[NoiseLevel], corrector: Corrector, scales: Sequence[Tensor]
    ) -> None:
        self.table = table
        self.levels = list(levels)
        self.corrector = corrector
        self.scales = list(scales)

    @property
    def total(self) -> int:
        """The number of corrections and steps."""
        return len(self.table) * (1 + self.corrector.steps)

    def is_done(self, state: SamplerState) -> bool:
        """Return True if every step was made."""
        return state.number >= self.total

    def advance(self, state: SamplerState, step: DenoiseFn, noise: Noise | None, out: Tensor) -> StepResult:
        """A correction or a step; each draws noise by its number."""
        row, done = divmod(state.number, 1 + self.corrector.steps)
        number = state.number + 1
        if done == self.corrector.steps:
            row_noise = None if noise is None else lambda _, draw=0: noise(state.number, draw)
            moved = self.table.advance(state._replace(number=row), step, row_noise, out)
            return moved._replace(state=moved.state._replace(number=number))
        level = self.levels[row]
        estimate = step(state.x, level)
        z = draw_noise(noise, state.number).to(state.x)
        x = self.corrector.move(state.x, level, estimate, z, self.scales[row])
        return StepResult(state._replace(x=x, number=number), level, estimate)


def predictor_corrector(
    schedule: Schedule,
    *,
    predictor: Callable[[Schedule], Plan] = reverse_diffusion,
    snr: float = 0.16,
    corrections: int = 1,
) -> Plan:
    """Langevin corrections at each level, then a step to the next one.

    Args:
        schedule: Schedule from noise to data.
        predictor: `euler_maruyama`, `reverse_diffusion`, `ancestral` or another sampler that is a table.
        snr: Signal-to-noise ratio of the corrector; a smaller value gives smaller steps.
        corrections: Number of corrections at each level, each with one network call.

    Source: Song et al. 2021, algorithm 1 and appendix G (arXiv:2011.13456); per-sample norms, see `LangevinPlan`.
    """
    table = predictor(schedule)
    if not isinstance(table, CoefficientTable) or len(table) != len(schedule) - 1:
        raise RecipeError("predictor: needs a sampler that is a table of one row for each step")
    here, there = schedule.steps
    with level_by_level():
        scales = where(_same(here, there), 0.0, elementary.square(_forward(here, there)[0]))
    return PredictorCorrectorPlan(table, schedule[:-1], LangevinPlan(snr, corrections), scales.unbind())


_NCSN = "Song & Ermon 2019, algorithm 1 (arXiv:1907.05600)"
_SDE = "Song et al. 2021, appendix E (arXiv:2011.13456)"
_PC = "Song et al. 2021, algorithm 1 and appendix G (arXiv:2011.13456)"

SAMPLERS = (
    SamplerSpec("langevin", langevin, _NCSN, order=None, stochastic=True, calls=5, start="finite", fine_options=None),
    SamplerSpec(
        "annealed-langevin",
        annealed_langevin,
        _NCSN,
        order=None,
        stochastic=True,
        calls=5,
        start="finite",
        fine_options={"each": 40, "size": 0.06},
    ),
    SamplerSpec(
        "euler-maruyama", euler_maruyama, _SDE, order=1, strong_order=1, stochastic=True, domain="time", start="finite"
    ),
    SamplerSpec("reverse-diffusion", reverse_diffusion, _SDE, order=1, strong_order=1, stochastic=True, domain="time"),
    SamplerSpec(
        "pc-euler-maruyama",
        predictor_corrector,
        _PC,
        order=None,
        stochastic=True,
        calls=2,
        couples_parts=True,
        fine_options=None,
        domain="time",
        start="finite",
        options={"predictor": euler_maruyama},
    ),
    SamplerSpec(
        "pc-reverse-diffusion",
        predictor_corrector,
        _PC,
        order=None,
        stochastic=True,
        calls=2,
        couples_parts=True,
        fine_options=None,
        domain="time",
    ),
    SamplerSpec(
        "pc-ancestral",
        predictor_corrector,
        _PC,
        order=None,
        stochastic=True,
        calls=2,
        couples_parts=True,
        fine_options=None,
        domain="time",
        options={"predictor": ancestral},
    ),
)
