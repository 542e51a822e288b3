"""Claims of ADM (Dhariwal & Nichol 2021, arXiv:2105.05233): classifier guidance and adaptive group normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.checkpoints.guidance_classifier import GuidanceClassifier
from unveil.core.guidance import gradient, log_probability
from unveil.core.process import Process
from unveil.data.digits import digits
from unveil.evaluate import features
from unveil.evaluate.verdict import PublishedResult
from unveil.io.images import to_unit
from unveil.nn.classifier import NoisyClassifier, NoisyClassifierConfig
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
    ScoredSamples,
    class_labels,
    first_of_each_class,
    plot_metrics,
    score_ancestral,
    unguided,
)
from unveil.reproduce.variant import CLASSES, Variant

PAPER = "Diffusion Models Beat GANs on Image Synthesis, Dhariwal & Nichol 2021 (arXiv:2105.05233)"

NONE, STRONG, EXTREME = 0.0, 4.0, 8.0
ADAPTIVE = Variant("cosine", modulation="scale-shift", drop=0.0)
ADDED = Variant("cosine", modulation="add", drop=0.0)


# ---------------------------------------------------------------------- classifier guidance

GUIDE = NoisyClassifierConfig(
    1, CLASSES, 8, model_channels=16, channel_mult=(1, 2), num_res_blocks=1, attention=(2,), head_channels=16, groups=8
)
GUIDE_BATCH, GUIDE_RATE = 128, 2e-3


def train_guidance_classifier(
    process: Process, seed: int, epochs: int, on_step: Callable[[], object] = lambda: None
) -> GuidanceClassifier:
    """Train a small encoder with attention pooling on digits with noise of uniformly drawn times.

    Source: Dhariwal & Nichol 2021, section 4.1 and appendix H (arXiv:2105.05233).
    """
    from unveil.train.classifier import ClassifierConfig, train_classifier  # imports Lightning

    config = ClassifierConfig(GUIDE, epochs, GUIDE_BATCH, GUIDE_RATE, seed=seed, process=process)
    training = train_classifier(config, digits("train"), digits("held-out"), lambda _: on_step())
    assert isinstance(training.network, NoisyClassifier)
    return GuidanceClassifier(training.network, process)


class _GuidedSamples(NamedTuple):
    """Samples of one guidance scale, and the mean probabilities of their classes by both classifiers."""

    samples: ScoredSamples
    guide: float
    judge: float

    @property
    def gap(self) -> float:
        return self.guide - self.judge


def _mean_probability(logits: Tensor, labels: Tensor) -> float:
    return float(torch.softmax(logits.double(), 1).gather(1, labels[:, None]).mean())


def _probabilities(guide: GuidanceClassifier, pixels: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the mean probability of the labels of uint8 images by the guidance classifier and by the judge.

    The guidance classifier reads the images at its lowest noise level.
    """
    lowest = guide.process.at(float(guide.process.within(torch.zeros(1, dtype=torch.float64))))
    logits = guide(to_unit(pixels), lowest)
    return _mean_probability(logits, labels), _mean_probability(features.load("digits").logits(pixels), labels)


def _guidance(context: ExperimentContext) -> ExperimentResults:
    scales = context.scale.pick((NONE, 1.0, 2.0, STRONG, EXTREME), (NONE, STRONG, EXTREME))
    epochs, labels = context.scale.pick(40, 1), class_labels(context.scale.samples)
    held_out = digits("held-out")

    def measure(seed: int) -> tuple[dict[float, _GuidedSamples], dict[float, _GuidedSamples], tuple[float, float]]:
        network = context.network(GUIDED, seed)
        name = f"training the guidance classifier, seed {seed}: step"
        with context.console.progress(name, epochs * (len(digits("train")) // GUIDE_BATCH)) as counter:
            guide = train_guidance_classifier(network.process, seed + 1000, epochs, counter.advance)

        def sample_at(scale: float, seed_offset: int = 0) -> _GuidedSamples:
            shift = gradient(log_probability(guide, labels), scale) if scale else None
            samples = score_ancestral(context, network, unguided, seed + seed_offset, shift=shift)
            return _GuidedSamples(samples, *_probabilities(guide, samples.pixels, labels))

        by_scale = {scale: sample_at(scale) for scale in scales}
        assert held_out.labels is not None
        placebo = {NONE: sample_at(NONE, PLACEBO), STRONG: sample_at(STRONG, PLACEBO)}
        return by_scale, placebo, _probabilities(guide, held_out.pixels, held_out.labels)

    by_seed = context.each_seed("samples by scale of classifier guidance", measure)

    guided, placebos, real = zip(*by_seed, strict=True)

    def values(field: str, scale: float, runs: Sequence[dict[float, _GuidedSamples]] = guided) -> list[float]:
        results = [by_scale[scale] for by_scale in runs]
        return [result.gap if field == "gap" else getattr(result.samples.metrics, field) for result in results]

    gap = "mean probability of the class, the guide's less the judge's"
    rows = (
        (f"scale {STRONG:g} has fewer classification errors than none", "error_rate", ERROR_RATE, STRONG, NONE),
        (f"scale {STRONG:g} has more precision than none", "imprecision", IMPRECISION, STRONG, NONE),
        (f"scale {STRONG:g} has less recall than none", "recall", RECALL, STRONG, NONE),
        (f"the guide's score exceeds the judge's by more at scale {EXTREME:g} than at none", "gap", gap, NONE, EXTREME),
    )
    comparisons = [
        compare(
            name,
            title,
            (f"scale {better:g}", values(field, better)),
            (f"scale {worse:g}", values(field, worse)),
            (values(field, better, placebos), values(field, better)),
            primary=field != "gap",
        )
        for name, field, title, better, worse in rows
    ]
    metrics = [[by_scale[scale].samples.metrics for scale in scales] for by_scale in guided]
    panels = plot_metrics("scale", scales, {"digits": metrics}, log_x=False)
    probabilities = {
        name: [[getattr(by_scale[scale], name) for scale in scales] for by_scale in guided]
        for name in ("guide", "judge")
    }
    panels.append(Curve("scale", "mean probability of the class", scales, probabilities))
    caption = f"Seed 0, one row per scale, every class once: {', '.join(f'{scale:g}' for scale in scales)}."
    pixels = first_of_each_class(result.samples for result in guided[0].values())
    sheet = ImageSheet("samples", caption, pixels, CLASSES)
    return ExperimentResults(comparisons, panels, [sheet], [_held_out_note(real)])


def _held_out_note(probabilities: Sequence[tuple[float, float]]) -> str:
    guides, judges = zip(*probabilities, strict=True)
    return (
        f"Mean probability of the class of held-out images: {sum(guides) / len(guides):.3f} by the guides, "
        f"{sum(judges) / len(judges):.3f} by the judge."
    )


# ---------------------------------------------------------------------- adaptive group normalisation


def _norm(context: ExperimentContext) -> ExperimentResults:
    def measure(variant: Variant, seed: int) -> ScoredSamples:
        return score_ancestral(context, context.network(variant, seed), unguided, seed)

    variants = {"AdaGN": ADAPTIVE, "addition": ADDED}
    scored = {
        name: context.each_seed(name, lambda seed, variant=variant: measure(variant, seed))
        for name, variant in variants.items()
    }
    placebo = context.each_placebo("AdaGN", lambda seed: measure(ADAPTIVE, seed))
    first, second = variants

    def values(by_seed: list[ScoredSamples], field: str) -> list[float]:
        return [getattr(samples.metrics, field) for samples in by_seed]

    rows = (
        ("has better samples", "fid", FID, PublishedResult(13.06, 15.08, "table 3, ImageNet 128 FID"), True),
        ("has fewer classification errors", "error_rate", ERROR_RATE, None, False),
    )
    comparisons = [
        compare(
            f"{first} {words} than {second}",
            title,
            (first, values(scored[first], field)),
            (second, values(scored[second], field)),
            (values(placebo, field), values(scored[first], field)),
            paper=published,
            primary=primary,
        )
        for words, field, title, published, primary in rows
    ]
    pixels = first_of_each_class(by_seed[0] for by_seed in scored.values())
    return ExperimentResults(
        comparisons, sheets=[ImageSheet("samples", "Seed 0, every class once: AdaGN, addition.", pixels, CLASSES)]
    )


CLAIMS = (
    Claim(
        "adm-guidance",
        "a higher scale of classifier guidance raises the precision of samples and the share of the requested class, "
        "and lowers recall",
        PAPER,
        "Class-conditional networks (cosine betas, a tenth of the labels dropped) generate 450 samples, every class in "
        "turn, by 50 steps of the ancestral chain. The mean of each step is shifted by the scale times the variance "
        "times the gradient of the guide's log-probability. x0 is clipped. The guide is ADM's encoder with attention "
        "pooling, trained on noisy digits, with another seed for each seed of the claim. The judge is the bundled "
        "digits classifier, which has another architecture, seed and training. Placebo: the same scale from other "
        "noise.",
        _guidance,
        LABELLED,
    ),
    Claim(
        "adm-norm",
        "conditioning a residual block on time and class by scale and shift after its normalisation (AdaGN) gives "
        "better samples than by addition before it",
        PAPER,
        "Class-conditional networks with cosine betas, eps and L_simple in both arms. Scale and shift have a few more "
        "weights than addition. Samples: every class in turn, 50 steps of the ancestral chain, x0 clipped. Placebo: "
        "AdaGN against itself with other seeds.",
        _norm,
        LABELLED,
    ),
)
