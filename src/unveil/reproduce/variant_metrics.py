"""Metrics of a trained variant: bits per dimension of held-out images, and FID of its samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.analysis.metrics import bits, frechet, sample
from unveil.core import schedules
from unveil.core.guidance import clip_static
from unveil.core.samplers import ancestral
from unveil.io.images import to_pixels
from unveil.reproduce.experiment import ExperimentContext
from unveil.reproduce.variant import Variant

BITS = "bits per dimension of held-out images, full chain"
FID = "FID of samples on features of the digits classifier"


class Quality(NamedTuple):
    """Metrics of one variant with one seed, and its first twelve samples, uint8."""

    bits: float
    fid: float
    pixels: Tensor


def quality(context: ExperimentContext, variant: Variant, seed: int) -> Quality:
    """Return both metrics; samples start from the noise of this seed and use the variant's own variance."""
    network = context.network(variant, seed)
    steps = context.scale.pick(50, 5)
    plan = ancestral(schedules.respaced(network.process, str(steps)), variant.rule)
    samples = sample(plan, clip_static(network), context.scale.samples, seed)
    nll = bits(network, variant.rule, context.held_out_unit())
    return Quality(nll, frechet(samples, context.held_out())["digits"], to_pixels(samples[:12]))


def first_samples(variants: Iterable[Sequence[Quality]]) -> Tensor:
    """Return the first samples of the first seed, one row per variant."""
    return torch.cat([by_seed[0].pixels for by_seed in variants])
