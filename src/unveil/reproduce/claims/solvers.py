"""Claims about solvers of the probability-flow ODE: distance to its solution with few function evaluations (NFE)."""

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
from unveil.core.schedules import Schedule
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
VARIANT = Variant("ve", prediction="edm")
DISTANCE = "distance to the fine solve, rms of pixels in [-1, 1]"

# (process, NFE) -> plan from t = 1 to the lowest noise level of training, with at most this NFE
Method = Callable[[Process, int], Plan]


def heun_karras(process: Process, calls: int) -> CoefficientTable:
    """Return Heun's method on the Karras schedule, with two function evaluations per step."""
    return heun(karras(process, calls // 2))


def euler_uniform(process: Process, calls: int) -> CoefficientTable:
    """Return Euler steps in the time of the process, evenly spaced in it."""
    return euler_time(schedules.uniform(process, calls))


def ddim_uniform(process: Process, calls: int) -> CoefficientTable:
    """Return Euler steps in sigma / alpha, which is DDIM, evenly spaced in time."""
    return euler(schedules.uniform(process, calls))


def karras(process: Process, steps: int) -> Schedule:
    """Return the Karras schedule without its last step, which returns the estimate and does not follow the ODE."""
    return Schedule(process, schedules.karras(process, steps + 1)[:-1])


def fine_solve(network: Denoiser, x: Tensor, steps: int) -> Tensor:
    """Return the solution of the ODE from x by Heun's method with many steps, the reference of all distances."""
    return run(heun(karras(network.process, steps)), network, x)


class Distances:
    """Distances to the fine solve by method and seed, and the first samples."""

    def __init__(self, context: ExperimentContext, methods: Sequence[tuple[str, Method, int]]) -> None:
        count, steps = context.scale.pick((128, 400), (8, 20))

        def measure(
            seed: int, seed_offset: int = 0
        ) -> tuple[dict[tuple[str, int], float], dict[tuple[str, int], Tensor]]:
            network = context.network(VARIANT, seed)
            noise = SampleRNG(seed + seed_offset, range(count)).normal(SHAPE, START)
            x = schedules.uniform(network.process, 1).start(noise)
            exact = fine_solve(network, x, steps)
            distances: dict[tuple[str, int], float] = {}
            previews = {("fine solve", 0): to_pixels(exact[:12])}
            for name, method, calls in methods:
                samples = run(method(network.process, calls), network, x)
                distances[name, calls] = float(rms(samples - exact).double().mean())
                previews[name, calls] = to_pixels(samples[:12])
            return distances, previews

        self._by_seed = context.each_seed("distance to the fine solve", measure)
        self._placebo = context.each_seed("distance with other noise", lambda seed: measure(seed, PLACEBO)[0])

    def by_seed(self, name: str, calls: int) -> list[float]:
        """Return the distances of a method by seed."""
        return [distances[name, calls] for distances, _ in self._by_seed]

    def compare(self, better: tuple[str, int], worse: tuple[str, int], *, primary: bool = True) -> Comparison:
        """Return the comparison of a method and NFE that is claimed to be nearer with another one."""
        first, second = (f"{name}, {calls} NFE" for name, calls in (better, worse))
        placebo = [distances[better] for distances in self._placebo]
        return compare(
            f"{first} is nearer to the fine solve than {second}",
            DISTANCE,
            (first, self.by_seed(*better)),
            (second, self.by_seed(*worse)),
            (placebo, self.by_seed(*better)),
            primary=primary,
        )

    def curve(self, names: Sequence[str], calls: Sequence[int]) -> Curve:
        """Return the distances against the NFE with one line per method."""
        lines = {
            name: [[distances[name, number] for number in calls] for distances, _ in self._by_seed] for name in names
        }
        return Curve("NFE", DISTANCE, calls, lines, True, True)

    def previews(self, settings: Sequence[tuple[str, int]]) -> Tensor:
        """Return the first samples of the first seed: the fine solve, then one row per setting."""
        by_setting = self._by_seed[0][1]
        return torch.cat([by_setting["fine solve", 0], *(by_setting[setting] for setting in settings)])


def _heun(context: ExperimentContext) -> ExperimentResults:
    published, calls = (35, 79), context.scale.pick((9, 19, 35, 79), (9, 35))
    methods: dict[str, Method] = {
        "Heun, Karras": heun_karras,
        "Euler, uniform": euler_uniform,
        "DDIM, uniform": ddim_uniform,
    }
    heun_name, euler_name, ddim_name = methods
    distances = Distances(context, [(name, method, number) for name, method in methods.items() for number in calls])
    comparisons = [
        distances.compare((heun_name, number), (euler_name, number), primary=number in published) for number in calls
    ]
    comparisons += [
        distances.compare((heun_name, number), (ddim_name, number), primary=False)
        for number in calls
        if number in published
    ]
    curve = distances.curve(list(methods), calls)
    middle = calls[len(calls) // 2]
    caption = f"Seed 0: the fine solve, then {'; '.join(methods)}, each with {middle} NFE from the same noise."
    sheet = ImageSheet("samples", caption, distances.previews([(name, middle) for name in methods]), 12)
    return ExperimentResults(comparisons, [curve], [sheet])


def _few(context: ExperimentContext) -> ExperimentResults:
    few, many = 10, 20
    multistep, corrected, slow = "DPM-Solver++(2M)", "UniPC", "DDIM"
    methods: dict[str, Method] = {
        multistep: lambda process, calls: dpmpp_2m(schedules.uniform_log_snr(process, calls)),
        corrected: lambda process, calls: unipc(schedules.uniform_log_snr(process, calls)),
        slow: lambda process, calls: ddim(schedules.uniform_log_snr(process, calls)),
    }
    calls = context.scale.pick((5, few, many, 40), (few, many))
    distances = Distances(context, [(name, method, number) for name, method in methods.items() for number in calls])
    comparisons = [distances.compare((name, few), (slow, many)) for name in (multistep, corrected)]
    comparisons += [distances.compare((name, few), (slow, few), primary=False) for name in (multistep, corrected)]
    settings = [(multistep, few), (corrected, few), (slow, many)]
    names = "; ".join(f"{name}, {number} NFE" for name, number in settings)
    caption = f"Seed 0: the fine solve, then {names}, from the same noise."
    curve = distances.curve(list(methods), calls)
    return ExperimentResults(comparisons, [curve], [ImageSheet("samples", caption, distances.previews(settings), 12)])


_METHOD = (
    "The networks have EDM's scaling of input and output and a variance-exploding process from 0.01 to 10. All arms "
    "use the same weights. 128 samples go from the same noise to the lowest noise level. The fine solve has 400 steps "
    "of Heun's method on the Karras schedule. Nothing is clipped. {} Placebo: the better arm against itself from other "
    "noise."
)

CLAIMS = (
    Claim(
        "edm-heun",
        "at equal NFE, Heun's method on the Karras schedule is nearer to the solution of the ODE than Euler steps on a "
        "uniform schedule",
        EDM,
        _METHOD.format(
            "Euler steps are evenly spaced in the time of the process, here the logarithm of sigma, as in earlier "
            "continuous models. Steps of DDIM on this schedule are beside the claim. The claim is about 35 and 79 NFE, "
            "which are the paper's."
        ),
        _heun,
    ),
    Claim(
        "dpm-solver-few",
        "multistep solvers of higher order are nearer to the solution of the ODE with 10 NFE than DDIM with 20",
        FAST,
        _METHOD.format("All solvers use one schedule, evenly spaced in log-SNR. UniPC has order 3."),
        _few,
    ),
)
