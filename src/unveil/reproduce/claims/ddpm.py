"""Claim of DDPM (Ho et al. 2020, arXiv:2006.11239) about the prediction target and the training loss."""

from __future__ import annotations

from unveil.evaluate.verdict import PublishedResult
from unveil.reproduce.experiment import Claim, ExperimentContext, ExperimentResults, ImageSheet, compare
from unveil.reproduce.variant import Variant
from unveil.reproduce.variant_metrics import BITS, FID, Quality, first_samples, quality

PAPER = "Denoising Diffusion Probabilistic Models, Ho et al. 2020 (arXiv:2006.11239)"

SIMPLE = Variant("linear")
MEAN_BOUND = Variant("linear", prediction="mean", objective="bound")
EPS_BOUND = Variant("linear", objective="bound")


def _objective(context: ExperimentContext) -> ExperimentResults:
    variants = {"eps + L_simple": SIMPLE, "mean + bound": MEAN_BOUND, "eps + bound": EPS_BOUND}
    results: dict[str, list[Quality]] = {
        name: context.each_seed(name, lambda seed, variant=variant: quality(context, variant, seed))
        for name, variant in variants.items()
    }
    placebo = context.each_placebo("eps + L_simple", lambda seed: quality(context, SIMPLE, seed))
    fid = {name: [metrics.fid for metrics in by_seed] for name, by_seed in results.items()}
    nll = {name: [metrics.bits for metrics in by_seed] for name, by_seed in results.items()}
    placebo_fid = [metrics.fid for metrics in placebo], fid["eps + L_simple"]
    placebo_nll = [metrics.bits for metrics in placebo], nll["eps + L_simple"]
    simple, mean, bound = variants
    comparisons = [
        compare(
            f"{simple} has better samples than {mean}",
            FID,
            (simple, fid[simple]),
            (mean, fid[mean]),
            placebo_fid,
            paper=PublishedResult(3.17, 13.22, "table 2, CIFAR-10 FID"),
        ),
        compare(
            f"{bound} has fewer bits per dimension than {simple}",
            BITS,
            (bound, nll[bound]),
            (simple, nll[simple]),
            placebo_nll,
            paper=PublishedResult(3.70, 3.75, "table 1, CIFAR-10 test bits/dim"),
        ),
        compare(
            f"{simple} has better samples than {bound}",
            FID,
            (simple, fid[simple]),
            (bound, fid[bound]),
            placebo_fid,
            paper=PublishedResult(3.17, 13.51, "table 2, CIFAR-10 FID"),
            primary=False,
        ),
        compare(
            f"{mean} has fewer bits per dimension than {simple}",
            BITS,
            (mean, nll[mean]),
            (simple, nll[simple]),
            placebo_nll,
            primary=False,
        ),
    ]
    caption = f"Seed 0, one row per arm: {', '.join(variants)}."
    sheet = ImageSheet("samples", caption, first_samples(results.values()), 12)
    return ExperimentResults(comparisons, sheets=[sheet])


CLAIMS = (
    Claim(
        "ddpm-objective",
        "predicting eps with L_simple gives better samples than predicting the mean with the bound; training on the "
        "bound gives fewer bits per dimension",
        PAPER,
        "Linear betas and fixed-small variance in all arms. Samples: 50 evenly spaced steps of the ancestral chain, "
        "x0 clipped. The bits per dimension are compared at equal prediction (eps), as the paper's table 1 does. "
        "Placebo: eps + L_simple against itself with other seeds.",
        _objective,
    ),
)
