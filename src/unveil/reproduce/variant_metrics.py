"""The two numbers that a trained arm is judged by: bits per dimension of held-out pictures and FID of its samples."""

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

BITS = "bits per dimension of held-out pictures, full chain"
FID = "FID of samples on features of the digits classifier"


class Quality(NamedTuple):
    """Of one arm with one seed; pixels are its first twelve samples, uint8."""

    bits: float
    fid: float
    pixels: Tensor


def quality(bench: ExperimentContext, arm: Variant, seed: int) -> Quality:
    """Both numbers; the samples are drawn from the noise of this seed by the arm's own variance."""
    network = bench.network(arm, seed)
    steps = bench.scale.pick(50, 5)
    plan = ancestral(schedules.respaced(network.process, str(steps)), arm.rule)
    samples = sample(plan, clip_static(network), bench.scale.pictures, seed)
    nll = bits(network, arm.rule, bench.held_out_unit())
    return Quality(nll, frechet(samples, bench.held_out())["digits"], to_pixels(samples[:12]))


def rows_of(arms: Iterable[Sequence[Quality]]) -> Tensor:
    """The first samples of the first seed, one row per arm."""
    return torch.cat([found[0].pixels for found in arms])
