"""Claims about classifier-free guidance: what the scale trades, and what keeps pictures in range at a high one."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from torch import Tensor

from unveil.core.denoiser import DenoiseFn
from unveil.core.guidance import cfg, clip_dynamic, clip_static
from unveil.evaluate.verdict import PublishedResult
from unveil.reproduce.experiment import (
    LABELLED,
    PLACEBO,
    Claim,
    Curve,
    ExperimentContext,
    ExperimentResults,
    ImageSheet,
    compare,
)
from unveil.reproduce.fidelity import (
    ERROR_RATE,
    FID,
    GUIDED,
    IMPRECISION,
    RECALL,
    Fidelity,
    ScoredSamples,
    first_of_each_class,
    plot_metrics,
    score_ancestral,
)
from unveil.reproduce.variant import CLASSES

FREE = "Classifier-Free Diffusion Guidance, Ho & Salimans 2022 (arXiv:2207.12598)"
IMAGEN = "Photorealistic Text-to-Image Diffusion Models (Imagen), Saharia et al. 2022 (arXiv:2205.11487)"

LOW, MODERATE, HIGH = 1.5, 3.0, 8.0


def _static(scale: float, step: DenoiseFn, null: DenoiseFn) -> DenoiseFn:
    return clip_static(cfg(step, null, scale))


def _dynamic(scale: float, step: DenoiseFn, null: DenoiseFn) -> DenoiseFn:
    return clip_dynamic(cfg(step, null, scale))


def _open(scale: float, step: DenoiseFn, null: DenoiseFn) -> DenoiseFn:
    return cfg(step, null, scale)


# ---------------------------------------------------------------------- the scale


def _scale(context: ExperimentContext) -> ExperimentResults:
    scales = context.scale.pick((1.0, LOW, 2.0, MODERATE, 5.0, HIGH), (1.0, LOW, MODERATE, HIGH))

    def measure(seed: int) -> tuple[dict[float, ScoredSamples], dict[float, Fidelity]]:
        network = context.network(GUIDED, seed)
        own = {scale: score_ancestral(context, network, partial(_static, scale), seed) for scale in scales}
        other = (1.0, LOW, MODERATE)
        return own, {s: score_ancestral(context, network, partial(_static, s), seed + PLACEBO).metrics for s in other}

    by_seed = context.each_seed("samples along the scale", measure)

    def values(field: str, scale: float) -> list[float]:
        return [getattr(own[scale].metrics, field) for own, _ in by_seed]

    def placebo(field: str, scale: float) -> tuple[list[float], list[float]]:
        return [getattr(other[scale], field) for _, other in by_seed], values(field, scale)

    rows = (
        (f"scale {MODERATE:g} is read as its class more often than scale 1", "error_rate", ERROR_RATE, MODERATE, 1.0),
        (f"scale {MODERATE:g} has more precision than scale 1", "imprecision", IMPRECISION, MODERATE, 1.0),
        (f"scale {MODERATE:g} has less recall than scale 1", "recall", RECALL, MODERATE, 1.0),
        (f"FID is better at scale {LOW:g} than at {HIGH:g}", "fid", FID, LOW, HIGH),
        (f"FID is better at scale {LOW:g} than at 1", "fid", FID, LOW, 1.0),
    )
    published = {HIGH: PublishedResult(1.55, 26.22, "table 1, ImageNet 64, scales 1.1 and 5"), 1.0: None}
    comparisons = [
        compare(
            name,
            title,
            (f"scale {better:g}", values(field, better)),
            (f"scale {worse:g}", values(field, worse)),
            placebo(field, better),
            paper=published[worse] if field == "fid" else None,
            primary=(field, worse) != ("fid", 1.0),
        )
        for name, field, title, better, worse in rows
    ]
    lines = {"digits": [[own[s].metrics for s in scales] for own, _ in by_seed]}
    shown = f"Seed 0, one row per scale, every class once: {', '.join(f'{s:g}' for s in scales)}."
    sheet = ImageSheet("samples", shown, first_of_each_class(by_seed[0][0].values()), CLASSES)
    return ExperimentResults(comparisons, plot_metrics("scale", scales, lines, log_x=True), [sheet])


# ---------------------------------------------------------------------- thresholding


class _Clipped(NamedTuple):
    drawn: ScoredSamples
    full: float  # share of pixels that are as bright as can be


def _threshold(context: ExperimentContext) -> ExperimentResults:
    arms = {"dynamic": _dynamic, "static": _static, "none": _open}
    scales = context.scale.pick((1.0, MODERATE, HIGH), (1.0, HIGH))

    def bright(pixels: Tensor) -> float:
        return float((pixels == 255).double().mean())

    def measure(seed: int) -> dict[tuple[str, float], _Clipped]:
        network, found = context.network(GUIDED, seed), {}
        settings = [(name, scale, 0) for name in arms for scale in scales] + [("dynamic", HIGH, PLACEBO)]
        for name, scale, shift in settings:
            drawn = score_ancestral(context, network, partial(arms[name], scale), seed + shift)
            found[f"{name}, other noise" if shift else name, scale] = _Clipped(drawn, bright(drawn.pixels))
        return found

    by_seed = context.each_seed("three ways to threshold", measure)

    def values(field: str, name: str, scale: float = HIGH) -> list[float]:
        at = [found[name, scale] for found in by_seed]
        return [one.full if field == "full" else getattr(one.drawn.metrics, field) for one in at]

    saturated = "share of pixels as bright as can be"
    rows = (
        ("dynamic thresholding draws better samples than static", "fid", FID, "static", True),
        ("dynamic thresholding saturates fewer pixels than static", "full", saturated, "static", True),
        ("dynamic thresholding is read as its class more often than static", "error_rate", ERROR_RATE, "static", False),
        ("dynamic thresholding draws better samples than none", "fid", FID, "none", False),
    )
    comparisons = [
        compare(
            f"scale {HIGH:g}: {name}",
            title,
            ("dynamic", values(field, "dynamic")),
            (worse, values(field, worse)),
            (values(field, "dynamic, other noise"), values(field, "dynamic")),
            primary=primary,
        )
        for name, field, title, worse, primary in rows
    ]
    real = bright(context.held_out())
    lines = {n: [[found[n, s].full for s in scales] for found in by_seed] for n in arms}
    lines["held-out pictures"] = [[real] * len(scales)]
    fidelity = {name: [[found[name, s].drawn.metrics for s in scales] for found in by_seed] for name in arms}
    panels = [Curve("scale", saturated, scales, lines, True), *plot_metrics("scale", scales, fidelity, log_x=True)]
    caption = f"Seed 0 at scale {HIGH:g}, every class once: {', '.join(arms)}."
    sheet = ImageSheet("samples", caption, first_of_each_class(by_seed[0][name, HIGH].drawn for name in arms), CLASSES)
    return ExperimentResults(
        comparisons, panels, [sheet], [f"Of held-out pictures {real:.1%} of the pixels are that bright."]
    )


_CHAIN = (
    "Class-conditional networks (cosine betas, a tenth of the labels dropped) draw 450 samples, every class in turn, "
    "by 50 steps of the ancestral chain. The judge is the shipped digits classifier, which had no part in making them"
)

CLAIMS = (
    Claim(
        "cfg-scale",
        "raising the scale of classifier-free guidance trades diversity for fidelity, and FID is best at a small scale",
        FREE,
        f"{_CHAIN}: it reads the class, and its features give precision, recall and FID. x0 is clipped. The scale is "
        "the paper's w + 1, so that 1 is no guidance. Placebo: the same scale from other noise.",
        _scale,
        LABELLED,
    ),
    Claim(
        "imagen-threshold",
        "at a high scale of guidance dynamic thresholding keeps pictures from saturating, and better than static "
        "thresholding does",
        IMAGEN,
        f"{_CHAIN}. Dynamic thresholding takes the percentile 99.5 of each sample, as published, which on 64 pixels "
        "is nearly the largest. Placebo: dynamic against itself from other noise.",
        _threshold,
        LABELLED,
    ),
)
