"""Fidelity and diversity of class-conditional samples, judged by a classifier that had no part in making them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.analysis.metrics import sample
from unveil.core import schedules
from unveil.core.denoiser import DenoiseFn, Denoiser
from unveil.core.guidance import clip_static
from unveil.core.samplers import ancestral
from unveil.core.samplers.ancestral import Shift
from unveil.evaluate import FeatureNetwork, features, fid, precision_recall
from unveil.io.images import to_pixels
from unveil.reproduce.experiment import Curve, ExperimentContext
from unveil.reproduce.training_history import RecipeVariant
from unveil.reproduce.variant import CLASSES, Variant, bind_labels

# Class-conditional networks that all claims on guidance share; a tenth of the labels is dropped in training
GUIDED = Variant("cosine", drop=0.1)

MISREAD = "share of samples that the judge does not read as their class"
IMPRECISION = "share of samples outside of the held-out pictures' neighbourhoods (1 - precision)"
RECALL = "share of held-out pictures that samples reach (recall), claimed to fall"
FID = "FID of samples on features of the judge"
LOSS = "loss on held-out pictures, mean over levels"
MEASURES = {"misread": MISREAD, "imprecision": IMPRECISION, "recall": RECALL, "fid": FID}


class Fidelity(NamedTuple):
    """Of samples with the labels that they were made for; less is better, but of recall."""

    misread: float
    imprecision: float
    recall: float
    fid: float


def fidelity(judge: FeatureNetwork, pixels: Tensor, labels: Tensor, reference: Tensor) -> Fidelity:
    """Of uint8 samples (N, C, H, W) and their labels (N,), against the judge's features of held-out pictures."""
    read = judge.extract(pixels)
    assert read.logits is not None
    misread = float((read.logits.argmax(1) != labels).double().mean())
    reached = precision_recall(read.features, reference)
    return Fidelity(misread, 1 - reached.precision, reached.recall, fid(read.features, reference))


def wanted_labels(count: int) -> Tensor:
    """Labels of so many samples, every class in turn."""
    return torch.arange(count) % CLASSES


class ScoredSamples(NamedTuple):
    """Samples of one setting, uint8, and what they are worth."""

    pixels: Tensor
    worth: Fidelity


def score(bench: ExperimentContext, samples: Tensor) -> ScoredSamples:
    """Samples in [-1, 1], made for the labels of `wanted`, as the digits classifier judges them."""
    return score_pixels(bench, to_pixels(samples))


def score_pixels(bench: ExperimentContext, pixels: Tensor) -> ScoredSamples:
    """The same of uint8 samples."""
    judge = features.load("digits")
    return ScoredSamples(pixels, fidelity(judge, pixels, wanted_labels(len(pixels)), judge.features(bench.held_out())))


def chain(
    bench: ExperimentContext,
    network: Denoiser,
    guide: Callable[[DenoiseFn, DenoiseFn], DenoiseFn],
    seed: int,
    *,
    shift: Shift | None = None,
) -> ScoredSamples:
    """Samples of a class-conditional network from 50 steps of the ancestral chain.

    Args:
        guide: (conditional, null) -> the guided step, with x0 clipped if it should be.
        shift: of the mean, by ADM's algorithm 1.
    """
    steps, count = bench.scale.pick(50, 5), bench.scale.pictures
    step = guide(bind_labels(network, wanted_labels(count)), _null(network))
    plan = ancestral(schedules.respaced(network.process, str(steps)), GUIDED.rule, shift=shift)
    return score(bench, sample(plan, step, count, seed, batch=count))


def unguided(step: DenoiseFn, null: DenoiseFn) -> DenoiseFn:
    """The conditional step alone, x0 clipped."""
    del null
    return clip_static(step)


def _null(network: Denoiser) -> DenoiseFn:
    """Asked only where the guidance asks for it, since not every network has one."""
    return lambda x, level: bind_labels(network, None)(x, level)


def curves(x_label: str, x: Sequence[float], lines: dict[str, list[list[Fidelity]]], log_x: bool) -> list[Curve]:
    """A panel per measure: lines hold, by arm, for each seed the worth at every x."""
    return [
        Curve(
            x_label,
            title,
            x,
            {name: [[getattr(at, field) for at in seed] for seed in seeds] for name, seeds in lines.items()},
            log_x,
        )
        for field, title in MEASURES.items()
    ]


def first_of_each(drawn: Iterable[ScoredSamples]) -> Tensor:
    """Rows of the first sample of every class, one row per setting."""
    return torch.cat([one.pixels[:CLASSES] for one in drawn])


# ---------------------------------------------------------------------- along a training


class TrainingCurve(NamedTuple):
    """The training of a recipe's arm at its points; drawn is what the last of them drew."""

    steps: list[int]
    fid: list[float]
    loss: list[float]
    drawn: ScoredSamples


def training_curve(bench: ExperimentContext, arm: RecipeVariant, seed: int) -> TrainingCurve:
    """The training of this seed, its samples judged."""
    course = bench.course(arm, seed)
    drawn = [score_pixels(bench, pixels) for pixels in course.pixels]
    return TrainingCurve(course.steps, [one.worth.fid for one in drawn], course.losses, drawn[-1])


def walks_of(bench: ExperimentContext, arms: Mapping[str, RecipeVariant]) -> dict[str, list[TrainingCurve]]:
    """Those of every seed, by arm."""
    return {
        name: bench.each_seed(name, lambda seed, arm=arm: training_curve(bench, arm, seed))
        for name, arm in arms.items()
    }


def curve_of(walks: Mapping[str, Sequence[TrainingCurve]], fields: Mapping[str, str]) -> list[Curve]:
    """A panel per field of a walk, with its title, against the steps of training."""
    steps = next(iter(walks.values()))[0].steps
    lines = {field: {name: [getattr(one, field) for one in found] for name, found in walks.items()} for field in fields}
    return [Curve("training steps", title, steps, lines[field], log_y=True) for field, title in fields.items()]
