"""Fidelity and diversity of class-conditional samples, judged by a classifier that had no part in making them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.analysis.metrics import sample
from unveil.core import schedules
from unveil.core.denoiser import Denoiser, Step
from unveil.core.guidance import clip_static
from unveil.core.samplers import ancestral
from unveil.core.samplers.ancestral import Shift
from unveil.evaluate import FeatureNetwork, features, fid, precision_recall
from unveil.io.images import to_pixels
from unveil.reproduce.experiment import Bench, Curve
from unveil.reproduce.training_history import RecipeArm
from unveil.reproduce.variant import CLASSES, Arm, told

# Class-conditional networks that all claims on guidance share; a tenth of the labels is dropped in training
GUIDED = Arm("cosine", drop=0.1)

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
    read = judge.read(pixels)
    assert read.logits is not None
    misread = float((read.logits.argmax(1) != labels).double().mean())
    reached = precision_recall(read.features, reference)
    return Fidelity(misread, 1 - reached.precision, reached.recall, fid(read.features, reference))


def wanted(count: int) -> Tensor:
    """Labels of so many samples, every class in turn."""
    return torch.arange(count) % CLASSES


class Drawn(NamedTuple):
    """Samples of one setting, uint8, and what they are worth."""

    pixels: Tensor
    worth: Fidelity


def judged(bench: Bench, samples: Tensor) -> Drawn:
    """Samples in [-1, 1], made for the labels of `wanted`, as the digits classifier judges them."""
    return judged_pixels(bench, to_pixels(samples))


def judged_pixels(bench: Bench, pixels: Tensor) -> Drawn:
    """The same of uint8 samples."""
    judge = features.load("digits")
    return Drawn(pixels, fidelity(judge, pixels, wanted(len(pixels)), judge.features(bench.held_out())))


def chain(
    bench: Bench, network: Denoiser, guide: Callable[[Step, Step], Step], seed: int, *, shift: Shift | None = None
) -> Drawn:
    """Samples of a class-conditional network from 50 steps of the ancestral chain.

    Args:
        guide: (conditional, null) -> the guided step, with x0 clipped if it should be.
        shift: of the mean, by ADM's algorithm 1.
    """
    steps, count = bench.scale.pick(50, 5), bench.scale.pictures
    step = guide(told(network, wanted(count)), _null(network))
    plan = ancestral(schedules.respaced(network.process, str(steps)), GUIDED.rule, shift=shift)
    return judged(bench, sample(plan, step, count, seed, batch=count))


def unguided(step: Step, null: Step) -> Step:
    """The conditional step alone, x0 clipped."""
    del null
    return clip_static(step)


def _null(network: Denoiser) -> Step:
    """Asked only where the guidance asks for it, since not every network has one."""
    return lambda x, level: told(network, None)(x, level)


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


def first_of_each(drawn: Iterable[Drawn]) -> Tensor:
    """Rows of the first sample of every class, one row per setting."""
    return torch.cat([one.pixels[:CLASSES] for one in drawn])


# ---------------------------------------------------------------------- along a training


class Walk(NamedTuple):
    """The training of a recipe's arm at its points; drawn is what the last of them drew."""

    steps: list[int]
    fid: list[float]
    loss: list[float]
    drawn: Drawn


def walk(bench: Bench, arm: RecipeArm, seed: int) -> Walk:
    """The training of this seed, its samples judged."""
    course = bench.course(arm, seed)
    drawn = [judged_pixels(bench, pixels) for pixels in course.pixels]
    return Walk(course.steps, [one.worth.fid for one in drawn], course.losses, drawn[-1])


def walks_of(bench: Bench, arms: Mapping[str, RecipeArm]) -> dict[str, list[Walk]]:
    """Those of every seed, by arm."""
    return {name: bench.each_seed(name, lambda seed, arm=arm: walk(bench, arm, seed)) for name, arm in arms.items()}


def along(walks: Mapping[str, Sequence[Walk]], fields: Mapping[str, str]) -> list[Curve]:
    """A panel per field of a walk, with its title, against the steps of training."""
    steps = next(iter(walks.values()))[0].steps
    lines = {field: {name: [getattr(one, field) for one in found] for name, found in walks.items()} for field in fields}
    return [Curve("training steps", title, steps, lines[field], log_y=True) for field, title in fields.items()]
