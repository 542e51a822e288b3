"""The claim of score SDE (Song et al. 2021, arXiv:2011.13456) about correcting each step by Langevin dynamics."""

from __future__ import annotations

import torch
from torch import Tensor

from unveil.analysis.metrics import FEATURES, SHAPE, frechet
from unveil.core import schedules
from unveil.core.denoiser import Denoiser
from unveil.core.rng import START, SampleRNG
from unveil.core.samplers import Plan, run
from unveil.core.samplers.langevin import predictor_corrector, reverse_diffusion
from unveil.evaluate.verdict import PublishedResult
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

PAPER = "Score-Based Generative Modeling through Stochastic Differential Equations, Song et al. 2021 (arXiv:2011.13456)"
ARM = Variant("ve", prediction="edm")
SNR = 0.16  # as published where variance explodes


def _drawn(network: Denoiser, calls: int, corrections: int, count: int, seed: int) -> Tensor:
    """Samples of so many network calls, shared by steps and as many corrections each."""
    grid = schedules.uniform(network.process, calls // (1 + corrections) - 1).onto_data()
    plan: Plan = predictor_corrector(grid, snr=SNR, corrections=corrections) if corrections else reverse_diffusion(grid)
    streams = SampleRNG(seed, range(count))
    return run(plan, network, grid.start(streams.normal(SHAPE, START)), noise=streams.bind(SHAPE))


def _corrector(context: ExperimentContext) -> ExperimentResults:
    counts = context.scale.pick((50, 100, 200), (8, 16))
    both, alone = "predictor and corrector", "predictor alone"
    arms = {both: (1, 0), alone: (0, 0), f"{both}, other noise": (1, PLACEBO)}
    reference = context.held_out()

    def measure(seed: int) -> tuple[dict[str, list[dict[str, float]]], list[Tensor]]:
        network, found, first = context.network(ARM, seed), {}, []
        for name, (corrections, shift) in arms.items():
            drawn = [_drawn(network, n, corrections, context.scale.samples, seed + shift) for n in counts]
            found[name] = [frechet(samples, reference) for samples in drawn]
            first += [] if shift else [to_pixels(samples[:12]) for samples in drawn]
        return found, first

    by_seed = context.each_seed("samples with and without corrections", measure)
    comparisons, curves = [], []
    for space in FEATURES:
        title = f"FID on {'pixels' if space == 'pixels' else 'features of the digits classifier'}"
        lines = {name: [[at[space] for at in found[name]] for found, _ in by_seed] for name in arms}
        first, last, again = lines.values()
        comparisons += [
            compare(
                f"{space}, {calls} calls: {both} draw better samples than the {alone}",
                title,
                (both, [row[i] for row in first]),
                (alone, [row[i] for row in last]),
                ([row[i] for row in again], [row[i] for row in first]),
                paper=PublishedResult(3.60, 4.74, "table 1, CIFAR-10 FID, VE, reverse diffusion, 2,000 calls"),
            )
            for i, calls in enumerate(counts)
        ]
        curves.append(Curve("network calls", title, counts, {n: lines[n] for n in (both, alone)}, True, True))
    rows = ", ".join(map(str, counts))
    sheet = ImageSheet("samples", f"Seed 0: {both} with {rows} calls, then the {alone}.", torch.cat(by_seed[0][1]), 12)
    return ExperimentResults(comparisons, curves, [sheet])


CLAIMS = (
    Claim(
        "score-sde-corrector",
        "with as many network calls, half of them spent on Langevin corrections draw better samples than all of them "
        "spent on steps of the reverse SDE",
        PAPER,
        "Networks trained under exploding variance, 0.01 to 10, with EDM's scaling of input and output. Both arms take "
        "the paper's reverse-diffusion steps, evenly spaced in the logarithm of sigma; the corrector is its Langevin "
        "step with a signal-to-noise ratio of 0.16. Nothing is clipped. Placebo: the corrected arm against itself from "
        "other noise.",
        _corrector,
    ),
)
