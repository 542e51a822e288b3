"""Claim of NCSN (Song & Ermon 2019, arXiv:1907.05600) about separated modes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unveil.analysis.metrics import energy_distance
from unveil.core import schedules
from unveil.core.rng import START, SampleRNG
from unveil.core.samplers import Plan, run
from unveil.core.samplers.langevin import annealed_langevin, langevin
from unveil.core.schedules import Schedule
from unveil.core.ve import VE
from unveil.data.gaussian_mixture import Mixture
from unveil.reproduce.experiment import (
    PLACEBO,
    Claim,
    Curve,
    ExperimentContext,
    ExperimentResults,
    ImageSheet,
    compare,
)

PAPER = "Generative Modeling by Estimating Gradients of the Data Distribution, Song & Ermon 2019 (arXiv:1907.05600)"

# The example of section 3.2.2: a fifth of the data is in one of two separated modes
SMALLER = 0.2
MODES = Mixture([SMALLER, 1 - SMALLER], torch.tensor([[-5.0, -5.0], [5.0, 5.0]]), [1.0, 1.0])
PROCESS = VE(0.01, 20.0)
NOISIEST, CLEANEST, LEVELS = PROCESS.sigma_max, 0.1, 10
# Plain Langevin at one level: 0.2 times its variance is 0.05, half of the paper's step of 0.1
SINGLE, SINGLE_SIZE = 0.5, 0.2


def _annealed(steps_per_level: int) -> tuple[Schedule, Plan]:
    schedule = schedules.exponential(PROCESS, LEVELS, sigma_min=CLEANEST)
    return schedule, annealed_langevin(schedule, each=steps_per_level)


def _plain(steps_per_level: int) -> tuple[Schedule, Plan]:
    """Return Langevin dynamics at one noise level with the same NFE and initial noise level."""
    schedule = schedules.from_sigmas(PROCESS, [NOISIEST, SINGLE, 0.0])
    return schedule, langevin(schedule, each=steps_per_level * LEVELS // 2, size=SINGLE_SIZE)


def _sample(method: Callable[[int], tuple[Schedule, Plan]], steps_per_level: int, count: int, seed: int) -> Tensor:
    schedule, plan = method(steps_per_level)
    rng = SampleRNG(seed, range(count))
    return run(plan, MODES, schedule.start(rng.normal((2,), START)), noise=rng.bind((2,)))


def share(samples: Tensor) -> float:
    """Return the share of samples (B, 2) that are nearer to the smaller mode."""
    return float((samples.sum(1) < 0).double().mean())


def density(samples: Tensor, size: int = 64, reach: float = 9.0) -> Tensor:
    """Return the density of samples (B, 2) as an image uint8 (1, 1, size, size), dark for a high density."""
    cell = ((samples + reach) / (2 * reach) * size).long()
    inside = ((cell >= 0) & (cell < size)).all(1)
    flat = cell[inside][:, 0] + size * (size - 1 - cell[inside][:, 1])
    counts = torch.bincount(flat, minlength=size * size).double()
    dark = (counts / counts.max().clamp(min=1)).sqrt()
    return (255 * (1 - dark)).round().to(torch.uint8).reshape(1, 1, size, size)


def _annealing(context: ExperimentContext) -> ExperimentResults:
    steps, count = context.scale.pick((10, 30, 100), (2, 4)), context.scale.pick(1000, 100)
    exact = MODES.sample(count, torch.Generator().manual_seed(0)).float()
    methods = {"annealed": (_annealed, 0), "plain": (_plain, 0), "annealed, other noise": (_annealed, PLACEBO)}

    def measure(seed: int) -> tuple[dict[str, list[tuple[float, float]]], list[Tensor]]:
        metrics: dict[str, list[tuple[float, float]]] = {}
        densities: list[Tensor] = []
        for name, (method, seed_offset) in methods.items():
            by_steps = [_sample(method, steps_per_level, count, seed + seed_offset) for steps_per_level in steps]
            metrics[name] = [(share(samples), energy_distance(samples, exact)) for samples in by_steps]
            densities.append(density(by_steps[-1]))
        return metrics, densities

    by_seed = context.each_seed("samples of two separated modes", measure)
    calls = [steps_per_level * LEVELS for steps_per_level in steps]
    title = "error of the smaller mode's share"
    errors = {name: [abs(metrics[name][-1][0] - SMALLER) for metrics, _ in by_seed] for name in methods}
    distances = {name: [metrics[name][-1][1] for metrics, _ in by_seed] for name in methods}
    comparisons = [
        compare(
            f"{calls[-1]} NFE: {words}",
            measure_name,
            ("annealed", values["annealed"]),
            ("plain", values["plain"]),
            (values["annealed, other noise"], values["annealed"]),
        )
        for words, measure_name, values in (
            ("the share of the smaller mode is more accurate by annealed than by plain Langevin", title, errors),
            (
                "samples of annealed Langevin are nearer to the mixture",
                "energy distance to the same number of exact samples",
                distances,
            ),
        )
    ]
    lines = {
        name: [[share_of_mode for share_of_mode, _ in metrics[name]] for metrics, _ in by_seed]
        for name in ("annealed", "plain")
    }
    lines["the mixture"] = [[SMALLER] * len(calls)]
    curve = Curve("NFE", "share of samples in the smaller mode", calls, lines, log_x=True)
    images = torch.cat([density(exact), *by_seed[0][1][:2]])
    caption = f"Exact samples, annealed and plain Langevin with {calls[-1]} NFE; seed 0."
    return ExperimentResults(comparisons, [curve], [ImageSheet("modes", caption, images, 3)])


CLAIMS = (
    Claim(
        "ncsn-annealing",
        "Langevin dynamics at a single noise level does not reproduce the shares of two modes; annealed Langevin "
        "dynamics does",
        PAPER,
        "The exact score of the paper's mixture of two Gaussians, with a fifth of the data in one of them. Annealed: "
        f"10 geometric noise levels from {NOISIEST:g} to {CLEANEST:g}, with steps of 0.1 times the variance of the "
        f"level. Plain: only noise level {SINGLE:g}, with steps of {SINGLE_SIZE:g} times its variance. Both start from "
        "the same noise, have the same NFE and end with the estimate of the data. Placebo: annealed against itself "
        "from other noise.",
        _annealing,
        "an exact mixture of two Gaussians in the plane, (-5, -5) with weight 0.2 and (5, 5) with 0.8, deviation 1",
    ),
)
