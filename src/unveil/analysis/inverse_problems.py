"""What pictures are restored from: measurements of them, and what one would make of those without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from unveil.core import inverse
from unveil.core.rng import START, SampleRNG

FACTOR = 4  # of super-resolution
DEVIATION = 1.5  # pixels of the blur
_MASK, _NOISE = 1, 2  # draws of the noise that a run starts from, whose draw 0 is that start


class ProblemType(NamedTuple):
    """A problem: what is measured, what a restoration is compared with, and how far it must be beyond (dB)."""

    measured: str
    baseline: str
    bar: float


KINDS = {
    "mask": ProblemType("half of the pixels, chosen at random", "the mean of the known pixels in the gaps", 5.0),
    "super-resolution": ProblemType(f"means over blocks of {FACTOR} x {FACTOR} pixels", "bicubic enlargement", 1.0),
    "deblurring": ProblemType(f"a Gaussian blur of {DEVIATION} pixels", "the blurred picture itself", 2.0),
    "colourisation": ProblemType("the mean of the colours of each pixel", "the grey picture itself", 2.0),
}


@dataclass(frozen=True)
class InverseProblem:
    """A measurement of all pictures.

    Attributes:
        y: what was measured, with noise of deviation `noise`.
        baseline: pictures made from y without the model.
        shown: y as pictures.
        keep: where pixels are known, None for other measurements.
    """

    name: str
    operator: inverse.Operator
    y: Tensor
    baseline: Tensor
    shown: Tensor
    noise: float = 0.0
    keep: Tensor | None = None

    @property
    def key(self) -> tuple[str, float]:
        """What it is told apart by."""
        return self.name, self.noise


def problems(x: Tensor, noises: Sequence[float], streams: SampleRNG) -> tuple[list[InverseProblem], dict[str, str]]:
    """The problems that fit the pictures, and why the others do not.

    Args:
        x: pictures (B, C, H, W) in [-1, 1].
        noises: deviations of the noise of further measurements by blurring, in pixels of [-1, 1].
        streams: where masks and noise come from, one for each picture.
    """
    size, skipped = x.shape[2:], dict[str, str]()
    found = [_mask(x, streams)]
    if size[0] % FACTOR or size[1] % FACTOR:
        whole = f"whole blocks of {FACTOR} x {FACTOR}"
        skipped["super-resolution"] = f"pictures of {size[1]} x {size[0]} are not made of {whole}"
    else:
        found.append(_small(x))
    blurred = inverse.blur(size, inverse.gaussian(DEVIATION))
    y = blurred(x)
    found.append(InverseProblem("deblurring", blurred, y, y, y))
    if x.shape[1] == 1:
        skipped["colourisation"] = "the model's pictures are grey"
    else:
        grey = inverse.channel_average(x.shape[1])
        same = grey(x).expand_as(x)
        found.append(InverseProblem("colourisation", grey, grey(x), same, same))
    for number, noise in enumerate(noises):
        noisy = y + noise * streams.normal(y.shape[1:], START, _NOISE + number)
        found.append(InverseProblem("deblurring", blurred, noisy, noisy, noisy, noise))
    return found, skipped


def _mask(x: Tensor, streams: SampleRNG) -> InverseProblem:
    keep = streams.normal((1, *x.shape[2:]), START, _MASK) > 0
    operator = inverse.Mask(keep)
    y = operator(x)
    mean = y.sum((2, 3), keepdim=True) / keep.sum((2, 3), keepdim=True).clamp(min=1)
    return InverseProblem("mask", operator, y, torch.where(keep, y, mean), y, keep=keep)


def _small(x: Tensor) -> InverseProblem:
    size = x.shape[2:]
    operator = inverse.block_average(size, FACTOR)
    y = operator(x)
    bicubic = functional.interpolate(y, tuple(size), mode="bicubic", align_corners=False)
    blocks = y.repeat_interleave(FACTOR, 2).repeat_interleave(FACTOR, 3)
    return InverseProblem("super-resolution", operator, y, bicubic, blocks)
