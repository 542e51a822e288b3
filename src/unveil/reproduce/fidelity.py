"""Fidelity and diversity of class-conditional samples, measured with a classifier that sampling does not use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.analysis.metrics import sample
from unveil.core import schedules
from unveil.core.denoiser import DenoiseFn, Denoiser, Estimate
from unveil.core.guidance import clip_static
from unveil.core.samplers import ancestral
from unveil.core.samplers.ancestral import Shift
from unveil.evaluate import FeatureNetwork, features, fid, precision_recall
from unveil.io.images import to_pixels
from unveil.reproduce.experiment import Curve, ExperimentContext
from unveil.reproduce.training_history import RecipeVariant
from unveil.reproduce.variant import CLASSES, Variant, bind_labels
from unveil.types import NoiseLevel

# Class-conditional networks of all claims about guidance, trained with a label dropout of 0.1
GUIDED = Variant("cosine", drop=0.1)

ERROR_RATE = "share of samples that the classifier does not predict as their class"
IMPRECISION = "share of samples outside of the held-out images' neighbourhoods (1 - precision)"
RECALL = "share of held-out images in the samples' neighbourhoods (recall), claimed to fall"
FID = "FID of samples on features of the classifier"
LOSS = "loss on held-out images, mean over noise levels"
METRICS = {"error_rate": ERROR_RATE, "imprecision": IMPRECISION, "recall": RECALL, "fid": FID}


class Fidelity(NamedTuple):
    """Metrics of samples with the labels that they were generated for; lower is better, except for recall."""

    error_rate: float
    imprecision: float
    recall: float
    fid: float


def fidelity(classifier: FeatureNetwork, pixels: Tensor, labels: Tensor, reference: Tensor) -> Fidelity:
    """Return the metrics of uint8 samples (N, C, H, W) with labels (N,).

    Args:
        classifier: Classifier that predicts labels and gives the features of FID and precision.
        pixels: Samples.
        labels: Labels that the samples were generated for.
        reference: Features of held-out images.
    """
    output = classifier.extract(pixels)
    assert output.logits is not None
    error_rate = float((output.logits.argmax(1) != labels).double().mean())
    scores = precision_recall(output.features, reference)
    return Fidelity(error_rate, 1 - scores.precision, scores.recall, fid(output.features, reference))


def class_labels(count: int) -> Tensor:
    """Return `count` labels, whose classes take turns."""
    return torch.arange(count) % CLASSES


class ScoredSamples(NamedTuple):
    """Samples of one setting, uint8, and their metrics."""

    pixels: Tensor
    metrics: Fidelity


def score(context: ExperimentContext, samples: Tensor) -> ScoredSamples:
    """Return samples in [-1, 1] for the labels of `class_labels` with their metrics by the digits classifier."""
    return score_pixels(context, to_pixels(samples))


def score_pixels(context: ExperimentContext, pixels: Tensor) -> ScoredSamples:
    """Return uint8 samples for the labels of `class_labels` with their metrics by the digits classifier."""
    classifier = features.load("digits")
    reference = classifier.features(context.held_out())
    return ScoredSamples(pixels, fidelity(classifier, pixels, class_labels(len(pixels)), reference))


def score_ancestral(
    context: ExperimentContext,
    network: Denoiser,
    guidance: Callable[[DenoiseFn, DenoiseFn], DenoiseFn],
    seed: int,
    *,
    shift: Shift | None = None,
) -> ScoredSamples:
    """Return samples of a class-conditional network from 50 ancestral steps with their metrics.

    Args:
        context: Context of the experiment.
        network: Class-conditional network.
        guidance: Function of the conditional and the unconditional denoise function; returns the guided one, which
            also thresholds x0 if that is wanted.
        seed: Seed of the noise.
        shift: Shift of the mean by algorithm 1 of ADM.
    """
    steps, count = context.scale.pick(50, 5), context.scale.samples

    def uncond(x: Tensor, level: NoiseLevel) -> Estimate:  # networks without label dropout have none
        return bind_labels(network, None)(x, level)

    plan = ancestral(schedules.respaced(network.process, str(steps)), GUIDED.rule, shift=shift)
    denoise = guidance(bind_labels(network, class_labels(count)), uncond)
    return score(context, sample(plan, denoise, count, seed, batch=count))


def unguided(cond: DenoiseFn, uncond: DenoiseFn) -> DenoiseFn:
    """Return the conditional denoise function with x0 thresholded."""
    del uncond
    return clip_static(cond)


def plot_metrics(x_label: str, x: Sequence[float], lines: dict[str, list[list[Fidelity]]], log_x: bool) -> list[Curve]:
    """Return a panel per metric.

    Args:
        x_label: Name of the setting.
        x: Values of the setting.
        lines: Metrics at every x for each seed, by variant.
        log_x: Logarithmic x axis.
    """
    return [
        Curve(
            x_label,
            title,
            x,
            {name: [[getattr(at, field) for at in seed] for seed in seeds] for name, seeds in lines.items()},
            log_x,
        )
        for field, title in METRICS.items()
    ]


def first_of_each_class(settings: Iterable[ScoredSamples]) -> Tensor:
    """Return the first sample of every class, one row per setting."""
    return torch.cat([samples.pixels[:CLASSES] for samples in settings])


# ---------------------------------------------------------------------- metrics during training


class TrainingCurve(NamedTuple):
    """Metrics of a variant at each evaluation of its training, and the samples of the last one."""

    steps: list[int]
    fid: list[float]
    loss: list[float]
    samples: ScoredSamples


def training_curve(context: ExperimentContext, variant: RecipeVariant, seed: int) -> TrainingCurve:
    """Return the metrics of the training with this seed."""
    history = context.training_history(variant, seed)
    scored = [score_pixels(context, pixels) for pixels in history.pixels]
    return TrainingCurve(history.steps, [samples.metrics.fid for samples in scored], history.losses, scored[-1])


def training_curves(
    context: ExperimentContext, variants: Mapping[str, RecipeVariant]
) -> dict[str, list[TrainingCurve]]:
    """Return the training curves of every seed, by variant."""
    return {
        name: context.each_seed(name, lambda seed, variant=variant: training_curve(context, variant, seed))
        for name, variant in variants.items()
    }


def plot_training(curves: Mapping[str, Sequence[TrainingCurve]], fields: Mapping[str, str]) -> list[Curve]:
    """Return a panel per field of a training curve, with its title, against the training steps."""
    steps = next(iter(curves.values()))[0].steps
    lines = {
        field: {name: [getattr(curve, field) for curve in by_seed] for name, by_seed in curves.items()}
        for field in fields
    }
    return [Curve("training steps", title, steps, lines[field], log_y=True) for field, title in fields.items()]
