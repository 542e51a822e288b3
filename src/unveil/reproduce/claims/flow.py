"""A claim of Stable Diffusion 3 (Esser et al. 2024, arXiv:2403.03206): at which times to train rectified flow."""

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
        network, found, last = context.network(variant, seed), [], torch.empty(0)
        for count in steps:
            plan = euler_time(schedules.uniform(network.process, count))
            last = sample(plan, clip_static(network), context.scale.samples, seed)
            found.append(frechet(last, reference))
        return found, to_pixels(last[:12])

    normal, uniform = (
        context.each_seed(variant.time, lambda s, a=variant: measure(a, s)) for variant in (NORMAL, UNIFORM)
    )
    again = context.each_placebo(NORMAL.time, lambda seed: measure(NORMAL, seed))
    comparisons, curves = [], []
    for space in FEATURES:
        title = f"FID on {'pixels' if space == 'pixels' else 'features of the digits classifier'}"
        first, last, other = (
            [[at[space] for at in found] for found, _ in variant] for variant in (normal, uniform, again)
        )
        comparisons += [
            compare(
                f"{space}, {count} steps: logit-normal times draw better samples than uniform ones",
                title,
                ("logit-normal", [row[i] for row in first]),
                ("uniform", [row[i] for row in last]),
                ([row[i] for row in other], [row[i] for row in first]),
                paper=PublishedResult(45.78, 49.70, "table 2, ImageNet FID, 25 steps") if count == published else None,
                primary=count == published,
            )
            for i, count in enumerate(steps)
        ]
        curves.append(Curve("Euler steps", title, steps, {"logit-normal": first, "uniform": last}, True, True))
    pixels = torch.cat([normal[0][1], uniform[0][1]])
    sheet = ImageSheet("samples", f"Seed 0, {steps[-1]} steps: logit-normal above, uniform below.", pixels, 12)
    return ExperimentResults(comparisons, curves, [sheet])


CLAIMS = (
    Claim(
        "sd3-times",
        "rectified flow trained at logit-normal times, which are seldom near either end, draws better samples than "
        "trained at uniform ones",
        PAPER,
        "Rectified flow, velocity prediction, an even loss. Logit-normal times have location 0 and scale 1. Samples: "
        "even Euler steps, 25 as in the paper's table and fewer beside the claim, x0 clipped. Placebo: logit-normal "
        "against itself with other seeds.",
        _times,
    ),
)
