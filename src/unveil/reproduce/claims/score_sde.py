"""Claim of score SDE (Song et al. 2021, arXiv:2011.13456) about the correction of each step by Langevin dynamics."""

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
VARIANT = Variant("ve", prediction="edm")
SNR = 0.16  # the published value for variance-exploding processes


def _sample(network: Denoiser, calls: int, corrections: int, count: int, seed: int) -> Tensor:
    """Return samples with this NFE, which steps and their corrections share."""
    schedule = schedules.uniform(network.process, calls // (1 + corrections) - 1).onto_data()
    plan: Plan = (
        predictor_corrector(schedule, snr=SNR, corrections=corrections) if corrections else reverse_diffusion(schedule)
    )
    rng = SampleRNG(seed, range(count))
    return run(plan, network, schedule.start(rng.normal(SHAPE, START)), noise=rng.bind(SHAPE))


def _corrector(context: ExperimentContext) -> ExperimentResults:
    counts = context.scale.pick((50, 100, 200), (8, 16))
    corrected, predicted = "predictor and corrector", "predictor only"
    settings = {corrected: (1, 0), predicted: (0, 0), f"{corrected}, other noise": (1, PLACEBO)}
    reference = context.held_out()

    def measure(seed: int) -> tuple[dict[str, list[dict[str, float]]], list[Tensor]]:
        network, distances, previews = context.network(VARIANT, seed), {}, []
        for name, (corrections, seed_offset) in settings.items():
            by_calls = [
                _sample(network, calls, corrections, context.scale.samples, seed + seed_offset) for calls in counts
            ]
            distances[name] = [frechet(samples, reference) for samples in by_calls]
            previews += [] if seed_offset else [to_pixels(samples[:12]) for samples in by_calls]
        return distances, previews

    by_seed = context.each_seed("samples with and without corrections", measure)
    comparisons, curves = [], []
    for space in FEATURES:
        title = f"FID on {'pixels' if space == 'pixels' else 'features of the digits classifier'}"
        lines = {
            name: [[by_space[space] for by_space in distances[name]] for distances, _ in by_seed] for name in settings
        }
        corrected_fid, predicted_fid, placebo_fid = lines.values()
        comparisons += [
            compare(
                f"{space}, {calls} NFE: {corrected} have better samples than the {predicted}",
                title,
                (corrected, [row[i] for row in corrected_fid]),
                (predicted, [row[i] for row in predicted_fid]),
                ([row[i] for row in placebo_fid], [row[i] for row in corrected_fid]),
                paper=PublishedResult(3.60, 4.74, "table 1, CIFAR-10 FID, VE, reverse diffusion, 2,000 NFE"),
            )
            for i, calls in enumerate(counts)
        ]
        curves.append(Curve("NFE", title, counts, {name: lines[name] for name in (corrected, predicted)}, True, True))
    rows = ", ".join(map(str, counts))
    caption = f"Seed 0: {corrected} with {rows} NFE, then the {predicted}."
    sheet = ImageSheet("samples", caption, torch.cat(by_seed[0][1]), 12)
    return ExperimentResults(comparisons, curves, [sheet])


CLAIMS = (
    Claim(
        "score-sde-corrector",
        "at equal NFE, half of the calls as Langevin corrections give better samples than all calls as steps of the "
        "reverse SDE",
        PAPER,
        "Networks with a variance-exploding process from 0.01 to 10 and EDM's scaling of input and output. Both arms "
        "have the paper's reverse-diffusion steps, evenly spaced in the logarithm of sigma. The corrector is the "
        "paper's Langevin step with a signal-to-noise ratio of 0.16. Nothing is clipped. Placebo: the corrected arm "
        "against itself from other noise.",
        _corrector,
    ),
)
