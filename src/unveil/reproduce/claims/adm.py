"""Claims of ADM (Dhariwal & Nichol 2021, arXiv:2105.05233): classifier guidance, and how a block is told the time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.checkpoints.guidance_classifier import GuidanceClassifier
from unveil.core.guidance import gradient, log_probability
from unveil.data.digits import digits
from unveil.evaluate import features
from unveil.evaluate.verdict import PublishedResult
from unveil.io.images import to_unit
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
from unveil.reproduce.guidance_classifier import steps_of, train_guidance_classifier
from unveil.reproduce.variant import CLASSES, Variant

PAPER = "Diffusion Models Beat GANs on Image Synthesis, Dhariwal & Nichol 2021 (arXiv:2105.05233)"

NONE, STRONG, EXTREME = 0.0, 4.0, 8.0
ADAPTIVE = Variant("cosine", modulation="scale-shift", drop=0.0)
ADDED = Variant("cosine", modulation="add", drop=0.0)


# ---------------------------------------------------------------------- classifier guidance


class _Guided(NamedTuple):
    drawn: ScoredSamples
    guide: float  # the probability that the guide gives to the class asked for, mean over the samples
    judge: float  # and the judge

    @property
    def gap(self) -> float:
        return self.guide - self.judge


def _believed(logits: Tensor, labels: Tensor) -> float:
    """The mean probability of the labels."""
    return float(torch.softmax(logits.double(), 1).gather(1, labels[:, None]).mean())


def _both(guide: GuidanceClassifier, pixels: Tensor, labels: Tensor) -> tuple[float, float]:
    """What the guide and the judge believe of uint8 pictures; the guide sees them at its cleanest level."""
    cleanest = guide.process.at(float(guide.process.within(torch.zeros(1, dtype=torch.float64))))
    own = guide(to_unit(pixels), cleanest)
    return _believed(own, labels), _believed(features.load("digits").logits(pixels), labels)


def _guidance(context: ExperimentContext) -> ExperimentResults:
    scales = context.scale.pick((NONE, 1.0, 2.0, STRONG, EXTREME), (NONE, STRONG, EXTREME))
    epochs, labels = context.scale.pick(40, 1), class_labels(context.scale.samples)
    held_out = digits("held-out")

    def measure(seed: int) -> tuple[dict[float, _Guided], dict[float, _Guided], tuple[float, float]]:
        network = context.network(GUIDED, seed)
        with context.console.progress(f"training a guide, seed {seed}: step", steps_of(epochs)) as counter:
            guide = train_guidance_classifier(network.process, seed + 1000, epochs, counter.advance)

        def at(scale: float, shift: int = 0) -> _Guided:
            push = gradient(log_probability(guide, labels), scale) if scale else None
            drawn = score_ancestral(context, network, unguided, seed + shift, shift=push)
            return _Guided(drawn, *_both(guide, drawn.pixels, labels))

        own = {scale: at(scale) for scale in scales}
        assert held_out.labels is not None
        other = {NONE: at(NONE, PLACEBO), STRONG: at(STRONG, PLACEBO)}
        return own, other, _both(guide, held_out.pixels, held_out.labels)

    by_seed = context.each_seed("samples along the scale of a classifier", measure)

    own, other, real = zip(*by_seed, strict=True)

    def values(field: str, scale: float, drawn: Sequence[dict[float, _Guided]] = own) -> list[float]:
        found = [one[scale] for one in drawn]
        return [one.gap if field == "gap" else getattr(one.drawn.metrics, field) for one in found]

    gap = "mean probability of the class, the guide's less the judge's"
    rows = (
        (f"scale {STRONG:g} is read as its class more often than none", "error_rate", ERROR_RATE, STRONG, NONE),
        (f"scale {STRONG:g} has more precision than none", "imprecision", IMPRECISION, STRONG, NONE),
        (f"scale {STRONG:g} has less recall than none", "recall", RECALL, STRONG, NONE),
        (f"the guide's own score runs ahead of the judge's from none to scale {EXTREME:g}", "gap", gap, NONE, EXTREME),
    )
    comparisons = [
        compare(
            name,
            title,
            (f"scale {better:g}", values(field, better)),
            (f"scale {worse:g}", values(field, worse)),
            (values(field, better, other), values(field, better)),
            primary=field != "gap",
        )
        for name, field, title, better, worse in rows
    ]
    panels = plot_metrics(
        "scale", scales, {"digits": [[at[s].drawn.metrics for s in scales] for at in own]}, log_x=False
    )
    beliefs = {who: [[getattr(at[s], who) for s in scales] for at in own] for who in ("guide", "judge")}
    panels.append(Curve("scale", "mean probability of the class", scales, beliefs))
    shown = f"Seed 0, one row per scale, every class once: {', '.join(f'{s:g}' for s in scales)}."
    sheet = ImageSheet("samples", shown, first_of_each_class(at.drawn for at in own[0].values()), CLASSES)
    guides, judges = zip(*real, strict=True)
    note = (
        f"Of held-out pictures the guides believe {sum(guides) / len(guides):.3f} and the judge "
        f"{sum(judges) / len(judges):.3f} in the mean."
    )
    return ExperimentResults(comparisons, panels, [sheet], [note])


# ---------------------------------------------------------------------- how a block is told the time and the class


def _norm(context: ExperimentContext) -> ExperimentResults:
    def measure(variant: Variant, seed: int) -> ScoredSamples:
        return score_ancestral(context, context.network(variant, seed), unguided, seed)

    arms = {"AdaGN": ADAPTIVE, "addition": ADDED}
    found = {name: context.each_seed(name, lambda s, a=variant: measure(a, s)) for name, variant in arms.items()}
    again = context.each_placebo("AdaGN", lambda seed: measure(ADAPTIVE, seed))
    first, second = arms

    def values(drawn: list[ScoredSamples], field: str) -> list[float]:
        return [getattr(one.metrics, field) for one in drawn]

    rows = (
        ("draws better samples", "fid", FID, PublishedResult(13.06, 15.08, "table 3, ImageNet 128 FID"), True),
        ("is read as its class more often", "error_rate", ERROR_RATE, None, False),
    )
    comparisons = [
        compare(
            f"{first} {words} than {second}",
            title,
            (first, values(found[first], field)),
            (second, values(found[second], field)),
            (values(again, field), values(found[first], field)),
            paper=published,
            primary=primary,
        )
        for words, field, title, published, primary in rows
    ]
    pixels = first_of_each_class(drawn[0] for drawn in found.values())
    return ExperimentResults(
        comparisons, sheets=[ImageSheet("samples", "Seed 0, every class once: AdaGN, addition.", pixels, CLASSES)]
    )


CLAIMS = (
    Claim(
        "adm-guidance",
        "raising the scale of classifier guidance makes samples more often what was asked for and more precise, and "
        "leaves out more of the data",
        PAPER,
        "Class-conditional networks (cosine betas, a tenth of the labels dropped) draw 450 samples, every class in "
        "turn, by 50 steps of the ancestral chain whose mean is moved by the scale times the variance times the "
        "gradient of the guide's log-probability; x0 is clipped. The guide, another one for each seed, is ADM's "
        "encoder with attention pooling, trained on noisy digits. The judge is the shipped digits classifier: another "
        "architecture, seed and training. Placebo: the same scale from other noise.",
        _guidance,
        LABELLED,
    ),
    Claim(
        "adm-norm",
        "telling a residual block the time and the class by scale and shift after its normalisation (AdaGN) gives "
        "better samples than adding them before it",
        PAPER,
        "Class-conditional networks, cosine betas, eps and L_simple in both arms; scale and shift take a little more "
        "weights than an addition. Samples: every class in turn, 50 steps of the ancestral chain, x0 clipped. "
        "Placebo: AdaGN against itself with other seeds.",
        _norm,
        LABELLED,
    ),
)
