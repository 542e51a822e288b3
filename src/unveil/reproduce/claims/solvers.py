"""Claims about solvers of the probability-flow ODE: how near they come to its solution with few network calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unveil.analysis.metrics import SHAPE, rms
from unveil.core import schedules
from unveil.core.denoiser import Denoiser
from unveil.core.process import Process
from unveil.core.rng import START, SampleRNG
from unveil.core.samplers import CoefficientTable, Plan, ddim, euler, euler_time, heun, run
from unveil.core.samplers.exponential import dpmpp_2m
from unveil.core.samplers.unipc import unipc
from unveil.core.schedule import Schedule
from unveil.evaluate.verdict import Comparison
from unveil.io.images import to_pixels
from unveil.reproduce.experiment import (
    PLACEBO,
    Claim,
    Curve,
    ExperimentContext,
    ExperimentResults,
    ImageSheet,
    compare,
)
from unveil.reproduce.variant import Variant

EDM = "Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al. 2022 (arXiv:2206.00364)"
FAST = "DPM-Solver++, Lu et al. 2022 (arXiv:2211.01095), and UniPC, Zhao et al. 2023 (arXiv:2302.04867)"
ARM = Variant("ve", prediction="edm")
DISTANCE = "distance to the fine solve, rms of pixels in [-1, 1]"

# (process, network calls) -> plan, from t = 1 to the cleanest level that networks are trained at; no call too many
Method = Callable[[Process, int], Plan]


def heun_karras(process: Process, calls: int) -> CoefficientTable:
    """Heun's steps on the Karras grid, two calls each."""
    return heun(karras(process, calls // 2))


def euler_uniform(process: Process, calls: int) -> CoefficientTable:
    """Euler steps in the process's own time, evenly spaced in it."""
    return euler_time(schedules.uniform(process, calls))


def ddim_uniform(process: Process, calls: int) -> CoefficientTable:
    """Euler steps in sigma / alpha, which is DDIM, evenly spaced in time."""
    return euler(schedules.uniform(process, calls))


def karras(process: Process, steps: int) -> Schedule:
    """The Karras grid without its last step, which takes the estimate for the data and is no step of the ODE."""
    return Schedule(process, schedules.karras(process, steps + 1)[:-1])


def fine_solve(network: Denoiser, x: Tensor, steps: int) -> Tensor:
    """The ODE's solution from x, as good as taken for exact: Heun's method with many more steps."""
    return run(heun(karras(network.process, steps)), network, x)


class Distances:
    """Distances to the fine solve, by method and seed, with the samples behind them."""

    def __init__(self, context: ExperimentContext, methods: Sequence[tuple[str, Method, int]]) -> None:
        count, steps = context.scale.pick((128, 400), (8, 20))

        def measure(seed: int, shift: int = 0) -> tuple[dict[tuple[str, int], float], dict[tuple[str, int], Tensor]]:
            network = context.network(ARM, seed)
            noise = SampleRNG(seed + shift, range(count)).normal(SHAPE, START)
            x = schedules.uniform(network.process, 1).start(noise)
            exact = fine_solve(network, x, steps)
            found: dict[tuple[str, int], float] = {}
            drawn = {("fine solve", 0): to_pixels(exact[:12])}
            for name, method, calls in methods:
                samples = run(method(network.process, calls), network, x)
                found[name, calls] = float(rms(samples - exact).double().mean())
                drawn[name, calls] = to_pixels(samples[:12])
            return found, drawn

        self._own = context.each_seed("distance to the fine solve", measure)
        self._other = context.each_seed("the same from other noise", lambda seed: measure(seed, PLACEBO)[0])

    def of(self, name: str, calls: int) -> list[float]:
        """By seed."""
        return [found[name, calls] for found, _ in self._own]

    def other(self, name: str, calls: int) -> list[float]:
        """By seed, from other noise."""
        return [found[name, calls] for found in self._other]

    def compare(self, better: tuple[str, int], worse: tuple[str, int], *, primary: bool = True) -> Comparison:
        """The claim that one method at some calls is nearer than another."""
        first, second = (f"{name}, {calls} calls" for name, calls in (better, worse))
        return compare(
            f"{first} is nearer to the fine solve than {second}",
            DISTANCE,
            (first, self.of(*better)),
            (second, self.of(*worse)),
            (self.other(*better), self.of(*better)),
            primary=primary,
        )

    def curve(self, names: Sequence[str], calls: Sequence[int]) -> Curve:
        """One line per method."""
        lines = {name: [[found[name, n] for n in calls] for found, _ in self._own] for name in names}
        return Curve("network calls", DISTANCE, calls, lines, True, True)

    def rows(self, shown: Sequence[tuple[str, int]]) -> Tensor:
        """The first samples of the first seed, one row each, below those of the fine solve."""
        drawn = self._own[0][1]
        return torch.cat([drawn["fine solve", 0], *(drawn[one] for one in shown)])


def _heun(context: ExperimentContext) -> ExperimentResults:
    published, calls = (35, 79), context.scale.pick((9, 19, 35, 79), (9, 35))
    named: dict[str, Method] = {
        "Heun, Karras": heun_karras,
        "Euler, uniform": euler_uniform,
        "DDIM, uniform": ddim_uniform,
    }
    first, plain, ours = named
    found = Distances(context, [(name, method, n) for name, method in named.items() for n in calls])
    comparisons = [found.compare((first, n), (plain, n), primary=n in published) for n in calls]
    comparisons += [found.compare((first, n), (ours, n), primary=False) for n in calls if n in published]
    curve = found.curve(list(named), calls)
    middle = calls[len(calls) // 2]
    caption = f"Seed 0: the fine solve, then {'; '.join(named)}, each with {middle} calls from the same noise."
    return ExperimentResults(
        comparisons, [curve], [ImageSheet("samples", caption, found.rows([(n, middle) for n in named]), 12)]
    )


def _few(context: ExperimentContext) -> ExperimentResults:
    few, many = 10, 20
    multistep, corrected, slow = "DPM-Solver++(2M)", "UniPC", "DDIM"
    named: dict[str, Method] = {
        multistep: lambda process, calls: dpmpp_2m(schedules.uniform_log_snr(process, calls)),
        corrected: lambda process, calls: unipc(schedules.uniform_log_snr(process, calls)),
        slow: lambda process, calls: ddim(schedules.uniform_log_snr(process, calls)),
    }
    calls = context.scale.pick((5, few, many, 40), (few, many))
    found = Distances(context, [(name, method, n) for name, method in named.items() for n in calls])
    comparisons = [found.compare((name, few), (slow, many)) for name in (multistep, corrected)]
    comparisons += [found.compare((name, few), (slow, few), primary=False) for name in (multistep, corrected)]
    shown = [(multistep, few), (corrected, few), (slow, many)]
    caption = (
        f"Seed 0: the fine solve, then {'; '.join(f'{name}, {n} calls' for name, n in shown)}, from the same noise."
    )
    curve = found.curve(list(named), calls)
    return ExperimentResults(comparisons, [curve], [ImageSheet("samples", caption, found.rows(shown), 12)])


_METHOD = (
    "Networks with EDM's scaling of input and output, trained under exploding variance from 0.01 to 10, are left as "
    "they are. 128 samples go from the same noise to the cleanest level; the fine solve takes 400 steps of "
    "Heun's method on the Karras grid. Nothing is clipped. {} Placebo: the better arm against itself from other noise."
)

CLAIMS = (
    Claim(
        "edm-heun",
        "at equal network calls, Heun's method on the Karras grid comes nearer to the solution of the ODE than Euler "
        "steps on a uniform grid",
        EDM,
        _METHOD.format(
            "Euler steps are taken in the process's own time, evenly spaced, as the continuous models before did: in "
            "the logarithm of sigma. Beside it, steps of DDIM on this grid. The claim is made at 35 and 79 calls, "
            "which are the paper's."
        ),
        _heun,
    ),
    Claim(
        "dpm-solver-few",
        "multistep solvers of higher order come nearer to the solution of the ODE with 10 network calls than DDIM "
        "does with 20",
        FAST,
        _METHOD.format("All solvers run on one grid, evenly spaced in log-SNR; UniPC is of order 3."),
        _few,
    ),
)
