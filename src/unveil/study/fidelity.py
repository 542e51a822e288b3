"""Fidelity and diversity of class-conditional samples, judged by a classifier that had no part in making them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.core import grids
from unveil.core.denoiser import Denoiser, Step
from unveil.core.guidance import clip_static
from unveil.core.samplers import ancestral
from unveil.core.samplers.ancestral import Shift
from unveil.evaluate import FeatureNetwork, features, fid, precision_recall
from unveil.pictures import to_pixels
from unveil.study.arm import CLASSES, Arm, told
from unveil.study.experiment import Bench, Curve
from unveil.study.measure import sample

# Class-conditional networks that all claims on guidance share; a tenth of the labels is dropped in training
GUIDED = Arm("cosine", drop=0.1)

MISREAD = "share of samples that the judge does not read as their class"
IMPRECISION = "share of samples outside of the held-out pictures' neighbourhoods (1 - precision)"
RECALL = "share of held-out pictures that samples reach (recall), claimed to fall"
FID = "FID of samples on features of the judge"
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
    judge = features.load("digits")
    pixels = to_pixels(samples)
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
    plan = ancestral(grids.respaced(network.process, str(steps)), GUIDED.rule, shift=shift)
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
