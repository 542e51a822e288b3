"""The cross table: every process with every prediction and every sampler, on a mixture that is known exactly.

    python -m tests.core.cross null     the distances that exact draws have from their own mixture: cross_null.json
    python -m tests.core.cross table    docs/cross.md, from a run of every cell

A cell is a network that knows the mixture, but sees it as a trained one does: scaled x and an index in, a prediction
out. Its 4,000 samples must not lie further from the mixture than 4,000 exact draws do but once in 10,000 times.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.core.mixture import MEANS, SPREADS, WEIGHTS, draw, exact_x0
from unveil.core import preconditioning, schedules
from unveil.core.denoiser import Denoiser
from unveil.core.flow import RectifiedFlow, TimeShift
from unveil.core.prediction import PREDICTIONS, Prediction
from unveil.core.process import CosineVP, DiscreteVP, LinearVP, Process, betas, zero_terminal_snr
from unveil.core.rng import START, SampleRNG
from unveil.core.samplers import Plan, SamplerSpec, run, sampler_specs
from unveil.core.samplers.adaptive import Tolerance
from unveil.core.schedules import Schedule
from unveil.core.sde import SubVP
from unveil.core.ve import VE, EDMProcess
from unveil.types import Condition, NoiseLevel, like

COUNT, PIXELS = 40, (100,)  # 4,000 numbers; norms over a sample see a hundred of them
SIZE = COUNT * math.prod(PIXELS)
SEED = 20  # of the samples; the null has its own
NULL = Path(__file__).with_name("cross_null.json")
ONCE_IN = 10_000

PREDICTED: dict[str, Prediction] = {**PREDICTIONS, "edm": preconditioning.EDMPreconditioning()}


# ---------------------------------------------------------------------- how far samples are from the mixture


def _mean_distance(place: Tensor, spread: Tensor) -> Tensor:
    """E|Z| of a normal Z with this mean and deviation."""
    z = place / spread
    density = (-0.5 * z * z).exp() / math.sqrt(2 * math.pi)
    return spread * (2 * density + z * torch.erf(z / math.sqrt(2)))


_PAIRS = WEIGHTS[:, None] * WEIGHTS
_WITHIN = (_PAIRS * _mean_distance(MEANS[:, None] - MEANS, (SPREADS[:, None] ** 2 + SPREADS**2).sqrt())).sum()


def distance(samples: Tensor) -> float:
    """The energy distance of float64 numbers (N,) from the mixture itself, in closed form; never below 0.

    Source: Szekely & Rizzo 2013, eq. 6.1; the sum over all pairs of sorted numbers is one over their ranks.
    """
    count = len(samples)
    across = (WEIGHTS * _mean_distance(samples[:, None] - MEANS, SPREADS.expand(count, -1))).sum(1).mean()
    ranks = 2 * torch.arange(count, dtype=torch.float64) - count + 1
    own = 2 / count**2 * (ranks * samples.sort().values).sum()
    return float(2 * across - own - _WITHIN)


@cache
def threshold() -> float:
    """What exact draws exceed once in 10,000 times."""
    return float(json.loads(NULL.read_text())["exceeded once in"][str(ONCE_IN)])


# ---------------------------------------------------------------------- a network that knows the mixture


def consistent(x: Tensor, level: NoiseLevel) -> Tensor:
    """The data that the deterministic path through x ends at: the quantile of the data where x is at its level."""
    alpha, sigma = (torch.as_tensor(value, dtype=torch.float64) for value in level[1:3])
    wide = ((alpha * SPREADS) ** 2 + sigma**2).sqrt()
    rank = _cumulative(x, alpha * MEANS, wide)
    low, high = torch.full_like(x, -6.0), torch.full_like(x, 6.0)
    for _ in range(40):
        middle = (low + high) / 2
        above = _cumulative(middle, MEANS, SPREADS) > rank
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


def _cumulative(x: Tensor, means: Tensor, spreads: Tensor) -> Tensor:
    return (WEIGHTS * torch.special.ndtr((x[..., None] - means) / spreads)).sum(-1)


class Knowing(nn.Module):
    """Sees what a trained network sees, and answers what one would that had learned everything."""

    def __init__(self, case: Case, prediction: Prediction, known: Callable[[Tensor, NoiseLevel], Tensor]) -> None:
        super().__init__()
        self.case, self.prediction, self.known = case, prediction, known

    def forward(self, x: Tensor, index: Tensor, condition: Condition | None = None) -> Tensor:
        times = [self._time(one) for one in dict.fromkeys(index.tolist())]
        if len(times) > 1:  # samples at levels of their own
            times = [self._time(one) for one in index.tolist()]
        level = self.case.process.at(times[0] if len(times) == 1 else torch.tensor(times, dtype=torch.float64))
        if isinstance(self.prediction, preconditioning.Preconditioning):
            x = x / like(self.prediction.input_scale(level), x)
        x0 = self.known(x, level)
        a, b, alpha, sigma = (like(number, x) for number in (*self.prediction(level), level.alpha, level.sigma))
        return a * x0 + b * (x - alpha * x0) / sigma

    def _time(self, index: float) -> float:
        if isinstance(self.prediction, preconditioning.Preconditioning):
            # the index is log(sigma / alpha) / 4
            t = float(self.case.process.t_of(min(-4 * index, self.case.cleanest)))
        else:
            t = self.case.time(index)
        # float32 may round an index beyond an end; churn may lead above 1, and not by so little
        return 1.0 if 1 < t < 1 + 1e-6 else max(t, 0.0)


# ---------------------------------------------------------------------- the three axes


@dataclass(frozen=True)
class Case:
    """A process with the schedule that its cells run on.

    Attributes:
        time: from the index that a network gets back to t.
        schedule: number of steps -> levels from noise to the data.
    """

    process: Process
    time: Callable[[float], float]
    schedule: Callable[[Process, int], Schedule]

    @cached_property
    def cleanest(self) -> float:
        """log(alpha / sigma) at t = 0: infinite where that is clean data."""
        return float(self.process.at(0.0).half_log_snr)

    @cached_property
    def is_blind(self) -> bool:
        """Whether it begins where nothing is left of the data: alpha = 0."""
        return self.schedule(self.process, 2)[0].alpha == 0


def _even(process: Process, steps: int) -> Schedule:
    return schedules.uniform(process, steps).onto_data()


def _sighted(process: Process, steps: int) -> Schedule:
    """Evenly spaced from a little below t = 1, where alpha is above 0."""
    return schedules.from_times(process, [0.999 * (1 - k / steps) for k in range(steps + 1)])


def _thousandths(index: float) -> float:
    return index / 1000


def _discrete(process: DiscreteVP) -> Case:
    return Case(process, lambda index: min((index + 1) / process.steps, 1.0), _even)


def _exploding(process: VE | EDMProcess, schedule: Callable[[Process, int], Schedule]) -> Case:
    # the index is a float32, which may round the cleanest sigma to below itself
    return Case(process, lambda sigma: float(process.t_of(-math.log(max(sigma, process.sigma_min)))), schedule)


CASES: Mapping[str, Case] = {
    "linear VP": Case(LinearVP(), _thousandths, _even),
    "cosine VP": Case(CosineVP(), _thousandths, _even),
    "cosine VP, t < 0.999": Case(CosineVP(), _thousandths, _sighted),
    "linear betas": _discrete(DiscreteVP(betas("linear", 1000))),
    "cosine betas": _discrete(DiscreteVP(betas("cosine", 1000))),
    "cosine betas, t < 0.999": replace(_discrete(DiscreteVP(betas("cosine", 1000))), schedule=_sighted),
    "zero-SNR betas": _discrete(DiscreteVP(zero_terminal_snr(betas("linear", 1000)))),
    "sub-VP": Case(SubVP(), _thousandths, _even),
    "VE": _exploding(VE(), _even),
    "EDM": _exploding(EDMProcess(), schedules.karras),
    "rectified flow": Case(RectifiedFlow(), _thousandths, _even),
    "rectified flow, t < 0.999": Case(RectifiedFlow(), _thousandths, _sighted),
    "shifted flow": Case(TimeShift(RectifiedFlow(), 3.0), lambda i: i / 1000 / (3 - 2 * i / 1000), _even),
}


def steps_of(sampler: SamplerSpec) -> int:
    """Steps that leave less error than 4,000 samples can show."""
    if sampler.denoiser == "consistency":
        return 8  # each of them ends at the data itself
    if sampler.fine_options:
        return 40
    several = sampler.fine_options is None or (sampler.order is not None and sampler.order >= 2)
    return 60 if several else 200


def plan_of(case: Case, sampler: SamplerSpec) -> tuple[Schedule, Plan]:
    """The sampler over the case's schedule, with the options that it needs to be exact."""
    schedule = case.schedule(case.process, steps_of(sampler))
    options = {**sampler.options, **(sampler.fine_options or {})}
    if sampler.calls is None:  # it chooses its own steps, as fine as its tolerance
        options["tolerance"] = replace(options.get("tolerance", Tolerance()), absolute=1e-3, relative=1e-2)
    return schedule, sampler.build(schedule, **options)


# What runs, and is not exact by its own nature: steps that lead eps on, from sigma / alpha = 20,000
LED_ON = (("cosine betas", "heun"), ("cosine betas", "pndm"), ("cosine betas", "unipc-3-eps"))


# ---------------------------------------------------------------------- cells


def refusal(case: Case, prediction: str, sampler: SamplerSpec) -> str | None:
    """What the error of a cell that cannot work must say; None where it can."""
    if not case.is_blind:
        return None
    if sampler.start == "finite":
        return "alpha is 0|alpha = 0|alpha > 0|infinite"
    if prediction in ("eps", "score"):
        return "this prediction does not determine x0"
    return "alpha is 0 and sigma / alpha" if prediction == "edm" else None


def cell(case: Case, prediction: str, sampler: SamplerSpec, planned: tuple[Schedule, Plan] | None = None) -> float:
    """The energy distance of a cell's samples from the mixture, or the error that it ends in."""
    schedule, plan = planned or plan_of(case, sampler)
    known = exact_x0 if sampler.denoiser == "mean" else consistent
    chosen = PREDICTED[prediction]
    step = Denoiser(Knowing(case, chosen, known), case.process, prediction=chosen)
    streams = SampleRNG(SEED, range(COUNT))
    x = schedule.start(streams.normal(PIXELS, START).double())
    return distance(run(plan, step, x, noise=streams.bind(PIXELS)).flatten())


def held(sampler: SamplerSpec) -> bool:
    """Whether the registry says that a fine schedule leads to the distribution itself."""
    return sampler.fine_options is not None


# ---------------------------------------------------------------------- schedules

BY_RATIO = ("karras", "exponential", "polyexponential", "uniform-log-snr")
NOISIEST_VP = math.sqrt(math.expm1(0.5 * 19.9 + 0.1)) - 1e-9  # where the schedule "vp" begins
BY_INDEX = ("leading", "trailing", "quadratic")
# What runs, and does not lead to the data by its own nature: the letter says why, below the table.
UNFIT = {
    ("EDM", "uniform"): "g",
    ("EDM", "linear-quadratic"): "g",
    ("cosine betas", "quadratic"): "h",
    ("cosine betas, t < 0.999", "quadratic"): "h",
}


def schedule_refusal(case: Case, name: str) -> str | None:
    """What the error of a process must say that cannot have this schedule; None where it can."""
    level = case.process.at(1.0)
    if name in BY_INDEX and not isinstance(case.process, DiscreteVP):
        return "has no indices"
    if name in BY_RATIO and level.alpha == 0:
        return "reaches alpha = 0"
    ends = not isinstance(case.process, VE | EDMProcess)  # these go on above t = 1
    if name == "vp" and ends and level.alpha > 0 and level.sigma / level.alpha < NOISIEST_VP:
        return "is outside of"
    return None


def schedule_cell(case: Case, name: str, steps: int = 100) -> float:
    """The energy distance of DPM-Solver++(2M) on a schedule by its name, as a network of x0 draws."""
    schedule = schedules.get_schedule(case.process, name, steps).onto_data()
    return cell(case, "x0", sampler_specs()["dpmpp-2m"], (schedule, sampler_specs()["dpmpp-2m"].plan(schedule)))


# ---------------------------------------------------------------------- what is written


def null(draws: int = 200_000, seed: int = 0) -> dict[str, object]:
    """Quantiles of the distance of exact draws; draw k has the generator's seed `seed + k`."""
    found = torch.tensor([distance(draw(SIZE, seed + k)) for k in range(draws)], dtype=torch.float64)
    once = {str(n): float(np.quantile(found.numpy(), 1 - 1 / n)) for n in (2, 100, 1000, ONCE_IN)}
    return {"samples": SIZE, "draws": draws, "seeds": f"{seed} to {seed + draws - 1}", "exceeded once in": once}


SAMPLER_NOTES = (
    "a: the schedule begins at alpha = 0, where `eps` and `score` contain no information on the data and the "
    "noise-to-signal ratio of `edm` is infinite; the number is the worst of the other predictions.",
    "b: the sampler must begin at alpha > 0; begin the schedule of such a process at t = 0.999.",
    "c: the first steps extrapolate eps from sigma / alpha = 20,000; begin the schedule at t = 0.999.",
    "`*`: an approximation whose error no schedule removes; the number may be above 1.",
)
SCHEDULE_NOTES = (
    "d: needs the timesteps of a beta schedule.",
    "e: needs finite noise-to-signal ratios; the process reaches alpha = 0.",
    "f: the process does not contain these noise-to-signal ratios.",
    "g: equal steps of sigma, too coarse near the data.",
    "h: begins at four fifths of the table, where a tenth of the signal is left.",
)


def page() -> str:
    """Return docs/cross.md from a run of every cell."""
    samplers = [
        [f"`{name}`{'' if held(entry) else ' *'}", *(_cell(case, entry) for case in CASES)]
        for name, entry in sampler_specs().items()
    ]
    spaced = [[f"`{name}`", *(_schedule_cell(of, name) for of in CASES)] for name in schedules.SCHEDULES]
    parts = [
        "<!-- generated by `python -m tests.core.cross table`; do not edit -->",
        "# Noise process, prediction, sampler",
        "Every noise process works with every prediction and every sampler, except for the combinations marked below. "
        f"Each number is computed from {SIZE:,} samples. The network is the exact denoiser of a mixture of two "
        "Gaussians; its inputs are those of a trained network, scaled x and timestep. The number is the energy "
        f"distance of the samples from the mixture, divided by the distance ({threshold():.5f}) that exact draws "
        f"exceed once in {ONCE_IN:,} times. Below 1 the samples cannot be distinguished from exact draws. The "
        "number is the worst of all predictions that determine the data.",
        f"Predictions: {', '.join(f'`{name}`' for name in PREDICTED)}; `edm` is EDM's F with its scaling of x.",
        "## Samplers",
        _table("sampler", samplers),
        " ".join(SAMPLER_NOTES),
        "## Schedules",
        "The same for every sampling schedule, with DPM-Solver++(2M) and x0 prediction.",
        _table("schedule", spaced),
        " ".join(SCHEDULE_NOTES),
        "Combinations without a number raise an error with the reason and a remedy; the tests check each of them.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: str, rows: list[list[str]]) -> str:
    return "\n".join([_row([head, *CASES]), _row(["---"] * (1 + len(CASES))), *map(_row, rows)])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(name: str, sampler: SamplerSpec) -> str:
    if (name, sampler.name) in LED_ON:
        return "c"
    case = CASES[name]
    fits = [name for name in PREDICTED if refusal(case, name, sampler) is None]
    if not fits:
        return "b"
    planned = plan_of(case, sampler)
    worst = max(cell(case, name, sampler, planned) for name in fits) / threshold()
    return f"{worst:.2f}" + ("" if len(fits) == len(PREDICTED) else " a")


def _schedule_cell(name: str, schedule: str) -> str:
    if (name, schedule) in UNFIT:
        return UNFIT[name, schedule]
    unfit = schedule_refusal(CASES[name], schedule)
    if unfit is not None:
        return {"has no indices": "d", "reaches alpha = 0": "e"}.get(unfit, "f")
    return f"{schedule_cell(CASES[name], schedule) / threshold():.2f}"


def main() -> None:
    """Write the null distribution or the page."""
    arguments = sys.argv[1:]
    if arguments == ["null"]:
        NULL.write_text(json.dumps(null(), indent=1) + "\n")
    elif arguments == ["table"]:
        (Path(__file__).parents[2] / "docs" / "cross.md").write_text(page())
    else:
        raise SystemExit("python -m tests.core.cross null, or table")


if __name__ == "__main__":
    main()
