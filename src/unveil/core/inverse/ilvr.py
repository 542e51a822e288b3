"""Generation with given low frequencies: the image at a lower resolution is fixed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.errors import ShapeError
from unveil.types import NoiseLevel


def low_frequency(step: DenoiseFn, reference: Tensor, low: Sequence[int]) -> DenoiseFn:
    """Return the step whose x0 has the low frequencies of `reference` and its own high frequencies.

    With P the mean over the pixels of a lower resolution, enlarged again, x0 becomes x0 + P(reference) - P(x0).

    Args:
        step: Denoiser to guide.
        reference: Reference of x's shape, (B, C, H, W) or (B, C, T, H, W). Detail finer than `low` is ignored.
        low: Height and width of the lower resolution, at most those of x.

    Raises:
        ShapeError: The resolution is above that of `reference`, or x in a call has another shape.

    Source: Choi et al. 2021, algorithm 1 (arXiv:2108.02938), with estimates of x0 instead of noised samples.
    """
    size = reference.shape[-2:]
    if any(below > side for below, side in zip(low, size, strict=True)):
        raise ShapeError(f"large forms of {tuple(low)} for x of {tuple(size)}: must not have more pixels")

    def forms(x: Tensor) -> Tensor:
        frames = x.movedim(1, -3).flatten(0, -4)
        coarse = functional.interpolate(functional.interpolate(frames, tuple(low), mode="area"), size, mode="bicubic")
        return coarse.reshape(x.movedim(1, -3).shape).movedim(-3, 1)

    wanted = forms(reference)

    def guided(x: Tensor, level: NoiseLevel) -> Estimate:
        if x.shape != reference.shape:
            raise ShapeError(f"x {tuple(x.shape)}: its large forms are known for {tuple(reference.shape)}")
        estimate = step(x, level)
        return Estimate.of_x0(estimate.x0 + wanted - forms(estimate.x0), x, level, estimate.extra)

    return guided
