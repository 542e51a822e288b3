"""The claim of NCSN (Song & Ermon 2019, arXiv:1907.05600) about modes that lie far apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unveil.analysis.metrics import energy_distance
from unveil.core import schedules
from unveil.core.rng import START, SampleRNG
from unveil.core.samplers import Plan, run
from unveil.core.samplers.langevin import annealed_langevin, langevin
from unveil.core.schedule import Schedule
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

# The paper's own example, section 3.2.2: a fifth of the data lies in one of two modes that do not touch
SMALLER = 0.2
MODES = Mixture([SMALLER, 1 - SMALLER], torch.tensor([[-5.0, -5.0], [5.0, 5.0]]), [1.0, 1.0])
PROCESS = VE(0.01, 20.0)
NOISIEST, CLEANEST, LEVELS = PROCESS.sigma_max, 0.1, 10
# Plain Langevin at one level: 0.2 times its variance is 0.05, half of the paper's step of 0.1
SINGLE, SINGLE_SIZE = 0.5, 0.2


def _annealed(each: int) -> tuple[Schedule, Plan]:
    grid = schedules.exponential(PROCESS, LEVELS, sigma_min=CLEANEST)
    return grid, annealed_langevin(grid, each=each)


def _plain(each: int) -> tuple[Schedule, Plan]:
    """As many calls, from the same start, at one level."""
    grid = schedules.from_sigmas(PROCESS, [NOISIEST, SINGLE, 0.0])
    return grid, langevin(grid, each=each * LEVELS // 2, size=SINGLE_SIZE)


def _drawn(method: Callable[[int], tuple[Schedule, Plan]], each: int, count: int, seed: int) -> Tensor:
    grid, plan = method(each)
    streams = SampleRNG(seed, range(count))
    return run(plan, MODES, grid.start(streams.normal((2,), START)), noise=streams.bind((2,)))


def share(samples: Tensor) -> float:
    """How many of the samples (B, 2) lie nearer to the smaller mode."""
    return float((samples.sum(1) < 0).double().mean())


def density(samples: Tensor, size: int = 64, reach: float = 9.0) -> Tensor:
    """Where samples (B, 2) lie, as a picture uint8 (1, 1, size, size): dark where they are many."""
    place = ((samples + reach) / (2 * reach) * size).long()
    inside = ((place >= 0) & (place < size)).all(1)
    flat = place[inside][:, 0] + size * (size - 1 - place[inside][:, 1])
    counts = torch.bincount(flat, minlength=size * size).double()
    dark = (counts / counts.max().clamp(min=1)).sqrt()
    return (255 * (1 - dark)).round().to(torch.uint8).reshape(1, 1, size, size)


def _annealing(context: ExperimentContext) -> ExperimentResults:
    each, count = context.scale.pick((10, 30, 100), (2, 4)), context.scale.pick(1000, 100)
    exact = MODES.sample(count, torch.Generator().manual_seed(0)).float()
    arms = {"annealed": (_annealed, 0), "plain": (_plain, 0), "annealed, other noise": (_annealed, PLACEBO)}

    def measure(seed: int) -> tuple[dict[str, list[tuple[float, float]]], list[Tensor]]:
        found: dict[str, list[tuple[float, float]]] = {}
        last: list[Tensor] = []
        for name, (method, shift) in arms.items():
            drawn = [_drawn(method, n, count, seed + shift) for n in each]
            found[name] = [(share(samples), energy_distance(samples, exact)) for samples in drawn]
            last.append(density(drawn[-1]))
        return found, last

    by_seed = context.each_seed("two modes that lie apart", measure)
    calls = [n * LEVELS for n in each]
    title = "error of the smaller mode's share"
    errors = {name: [abs(found[name][-1][0] - SMALLER) for found, _ in by_seed] for name in arms}
    distances = {name: [found[name][-1][1] for found, _ in by_seed] for name in arms}
    comparisons = [
        compare(
            f"{calls[-1]} calls: {words}",
            measured,
            ("annealed", values["annealed"]),
            ("plain", values["plain"]),
            (values["annealed, other noise"], values["annealed"]),
        )
        for words, measured, values in (
            ("annealed Langevin meets the share of the smaller mode better than plain Langevin", title, errors),
            ("its samples are nearer to the mixture", "energy distance to as many exact draws", distances),
        )
    ]
    lines = {name: [[at[0] for at in found[name]] for found, _ in by_seed] for name in ("annealed", "plain")}
    lines["the mixture"] = [[SMALLER] * len(calls)]
    curve = Curve("network calls", "share of samples in the smaller mode", calls, lines, log_x=True)
    images = torch.cat([density(exact), *by_seed[0][1][:2]])
    sheet = ImageSheet("modes", f"Exact draws, annealed and plain Langevin with {calls[-1]} calls; seed 0.", images, 3)
    return ExperimentResults(comparisons, [curve], [sheet])


CLAIMS = (
    Claim(
        "ncsn-annealing",
        "Langevin dynamics at a single noise level does not find how much of the data lies in each of two modes; "
        "annealed over noise levels it does",
        PAPER,
        "The exact score of the paper's mixture of two Gaussians, a fifth of it in one. Annealed: 10 levels from "
        f"{NOISIEST:g} to {CLEANEST:g}, geometric, steps of 0.1 times the level's variance. Plain: level {SINGLE:g} "
        f"alone, steps of {SINGLE_SIZE:g} times its variance. Both start from the same noise, make as many calls and "
        "end with the estimate of the data. Placebo: annealed against itself from other noise.",
        _annealing,
        "an exact mixture of two Gaussians in the plane, (-5, -5) with weight 0.2 and (5, 5) with 0.8, deviation 1",
    ),
)
