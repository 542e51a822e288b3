"""Claims about classifier-free guidance: fidelity against diversity by scale, and thresholding at a high scale."""

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


def _static(scale: float, cond: DenoiseFn, uncond: DenoiseFn) -> DenoiseFn:
    return clip_static(cfg(cond, uncond, scale))


def _dynamic(scale: float, cond: DenoiseFn, uncond: DenoiseFn) -> DenoiseFn:
    return clip_dynamic(cfg(cond, uncond, scale))


def _without_threshold(scale: float, cond: DenoiseFn, uncond: DenoiseFn) -> DenoiseFn:
    return cfg(cond, uncond, scale)


# ---------------------------------------------------------------------- the scale


def _scale(context: ExperimentContext) -> ExperimentResults:
    scales = context.scale.pick((1.0, LOW, 2.0, MODERATE, 5.0, HIGH), (1.0, LOW, MODERATE, HIGH))

    def measure(seed: int) -> tuple[dict[float, ScoredSamples], dict[float, Fidelity]]:
        network = context.network(GUIDED, seed)
        by_scale = {scale: score_ancestral(context, network, partial(_static, scale), seed) for scale in scales}
        placebo = {
            scale: score_ancestral(context, network, partial(_static, scale), seed + PLACEBO).metrics
            for scale in (1.0, LOW, MODERATE)
        }
        return by_scale, placebo

    by_seed = context.each_seed("samples by guidance scale", measure)

    def values(field: str, scale: float) -> list[float]:
        return [getattr(by_scale[scale].metrics, field) for by_scale, _ in by_seed]

    def placebo(field: str, scale: float) -> tuple[list[float], list[float]]:
        return [getattr(metrics[scale], field) for _, metrics in by_seed], values(field, scale)

    rows = (
        (
            f"scale {MODERATE:g} is classified correctly more often than scale 1",
            "error_rate",
            ERROR_RATE,
            MODERATE,
            1.0,
        ),
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
    lines = {"digits": [[by_scale[scale].metrics for scale in scales] for by_scale, _ in by_seed]}
    caption = f"Seed 0, one row per scale, every class once: {', '.join(f'{scale:g}' for scale in scales)}."
    sheet = ImageSheet("samples", caption, first_of_each_class(by_seed[0][0].values()), CLASSES)
    return ExperimentResults(comparisons, plot_metrics("scale", scales, lines, log_x=True), [sheet])


# ---------------------------------------------------------------------- thresholding


class _ThresholdedSamples(NamedTuple):
    """Samples of one thresholding method and scale, and the share of pixels at the maximum value."""

    samples: ScoredSamples
    saturated: float


def _saturated_share(pixels: Tensor) -> float:
    return float((pixels == 255).double().mean())


def _threshold(context: ExperimentContext) -> ExperimentResults:
    methods = {"dynamic": _dynamic, "static": _static, "none": _without_threshold}
    scales = context.scale.pick((1.0, MODERATE, HIGH), (1.0, HIGH))

    def measure(seed: int) -> dict[tuple[str, float], _ThresholdedSamples]:
        network, results = context.network(GUIDED, seed), {}
        settings = [(name, scale, 0) for name in methods for scale in scales] + [("dynamic", HIGH, PLACEBO)]
        for name, scale, seed_offset in settings:
            samples = score_ancestral(context, network, partial(methods[name], scale), seed + seed_offset)
            key = f"{name}, other noise" if seed_offset else name
            results[key, scale] = _ThresholdedSamples(samples, _saturated_share(samples.pixels))
        return results

    by_seed = context.each_seed("three methods of thresholding", measure)

    def values(field: str, name: str, scale: float = HIGH) -> list[float]:
        results = [by_setting[name, scale] for by_setting in by_seed]
        return [
            result.saturated if field == "saturated" else getattr(result.samples.metrics, field) for result in results
        ]

    saturated = "share of pixels at the maximum value"
    rows = (
        ("dynamic thresholding has better samples than static", "fid", FID, "static", True),
        ("dynamic thresholding saturates fewer pixels than static", "saturated", saturated, "static", True),
        (
            "dynamic thresholding is classified correctly more often than static",
            "error_rate",
            ERROR_RATE,
            "static",
            False,
        ),
        ("dynamic thresholding has better samples than none", "fid", FID, "none", False),
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
    real = _saturated_share(context.held_out())
    lines = {
        name: [[by_setting[name, scale].saturated for scale in scales] for by_setting in by_seed] for name in methods
    }
    lines["held-out images"] = [[real] * len(scales)]
    fidelity = {
        name: [[by_setting[name, scale].samples.metrics for scale in scales] for by_setting in by_seed]
        for name in methods
    }
    panels = [Curve("scale", saturated, scales, lines, True), *plot_metrics("scale", scales, fidelity, log_x=True)]
    caption = f"Seed 0 at scale {HIGH:g}, every class once: {', '.join(methods)}."
    pixels = first_of_each_class(by_seed[0][name, HIGH].samples for name in methods)
    note = f"{real:.1%} of the pixels of held-out images have the maximum value."
    return ExperimentResults(comparisons, panels, [ImageSheet("samples", caption, pixels, CLASSES)], [note])


_CHAIN = (
    "Class-conditional networks (cosine betas, a tenth of the labels dropped) generate 450 samples, every class in "
    "turn, by 50 steps of the ancestral chain. The judge is the bundled digits classifier, which sampling does not use"
)

CLAIMS = (
    Claim(
        "cfg-scale",
        "raising the scale of classifier-free guidance trades diversity for fidelity, and FID is best at a small scale",
        FREE,
        f"{_CHAIN}. It predicts the class, and its features give precision, recall and FID. x0 is clipped. The scale "
        "is the paper's w + 1, so 1 means no guidance. Placebo: the same scale from other noise.",
        _scale,
        LABELLED,
    ),
    Claim(
        "imagen-threshold",
        "at a high guidance scale dynamic thresholding prevents saturated images better than static thresholding",
        IMAGEN,
        f"{_CHAIN}. Dynamic thresholding uses the 99.5th percentile of each sample, as published. For 64 pixels it is "
        "close to the maximum. Placebo: dynamic thresholding against itself from other noise.",
        _threshold,
        LABELLED,
    ),
)
