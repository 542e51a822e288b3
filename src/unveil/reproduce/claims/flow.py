"""Claim of Stable Diffusion 3 (Esser et al. 2024, arXiv:2403.03206): distribution of the training times of a flow."""

from __future__ import annotations

import torch
from torch import Tensor

from unveil.analysis.metrics import FEATURES, frechet, sample
from unveil.core import schedules
from unveil.core.guidance import clip_static
from unveil.core.samplers import euler_time
from unveil.evaluate.verdict import PublishedResult
from unveil.io.images import to_pixels
from unveil.reproduce.experiment import Claim, Curve, ExperimentContext, ExperimentResults, ImageSheet, compare
from unveil.reproduce.variant import Variant

PAPER = "Scaling Rectified Flow Transformers, Esser et al. 2024 (arXiv:2403.03206)"
UNIFORM = Variant("flow", prediction="flow")
NORMAL = Variant("flow", prediction="flow", time="logit-normal")


def _times(context: ExperimentContext) -> ExperimentResults:
    steps, published = context.scale.pick((5, 10, 25), (3, 5)), context.scale.pick(25, 5)
    reference = context.held_out()

    def measure(variant: Variant, seed: int) -> tuple[list[dict[str, float]], Tensor]:
        network, distances, samples = context.network(variant, seed), [], torch.empty(0)
        for count in steps:
            plan = euler_time(schedules.uniform(network.process, count))
            samples = sample(plan, clip_static(network), context.scale.samples, seed)
            distances.append(frechet(samples, reference))
        return distances, to_pixels(samples[:12])

    normal, uniform = (
        context.each_seed(variant.time, lambda seed, variant=variant: measure(variant, seed))
        for variant in (NORMAL, UNIFORM)
    )
    placebo = context.each_placebo(NORMAL.time, lambda seed: measure(NORMAL, seed))
    comparisons, curves = [], []
    for space in FEATURES:
        title = f"FID on {'pixels' if space == 'pixels' else 'features of the digits classifier'}"
        normal_fid, uniform_fid, placebo_fid = (
            [[by_space[space] for by_space in distances] for distances, _ in by_seed]
            for by_seed in (normal, uniform, placebo)
        )
        comparisons += [
            compare(
                f"{space}, {count} steps: logit-normal times give better samples than uniform times",
                title,
                ("logit-normal", [row[i] for row in normal_fid]),
                ("uniform", [row[i] for row in uniform_fid]),
                ([row[i] for row in placebo_fid], [row[i] for row in normal_fid]),
                paper=PublishedResult(45.78, 49.70, "table 2, ImageNet FID, 25 steps") if count == published else None,
                primary=count == published,
            )
            for i, count in enumerate(steps)
        ]
        lines = {"logit-normal": normal_fid, "uniform": uniform_fid}
        curves.append(Curve("Euler steps", title, steps, lines, True, True))
    pixels = torch.cat([normal[0][1], uniform[0][1]])
    sheet = ImageSheet("samples", f"Seed 0, {steps[-1]} steps: logit-normal above, uniform below.", pixels, 12)
    return ExperimentResults(comparisons, curves, [sheet])


CLAIMS = (
    Claim(
        "sd3-times",
        "rectified flow that is trained at logit-normal times, which are rarely near either end, has better samples "
        "than with uniform times",
        PAPER,
        "Rectified flow, velocity prediction, an unweighted loss. Logit-normal times have location 0 and scale 1. "
        "Samples: uniform Euler steps, 25 as in the paper's table and fewer beside the claim, x0 clipped. Placebo: "
        "logit-normal against itself with other seeds.",
        _times,
    ),
)
