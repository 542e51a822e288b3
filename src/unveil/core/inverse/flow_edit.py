"""Editing along the difference of two estimates, without going back to the noise of what is edited.

What is edited is noised at every level again, and the sample moves by what the estimate for the new condition says more
than that for the old one. What both say alike stays as it is.

Source: Kulikov et al. 2024, algorithm 1 (arXiv:2412.08629).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.errors import ShapeError
from unveil.types import NoiseLevel, like


def flow_edit(
    step: DenoiseFn, source_step: DenoiseFn, source: Tensor, noise: Callable[[NoiseLevel], Tensor]
) -> DenoiseFn:
    """The step of a run of what the edited is more than the source: it begins at zeros.

    The paper moves the data by the difference of two velocities; here the state is what the noised results differ by,
    for which the difference of the estimates of x0 is the same under every process. The source is not a part of it, so
    what both conditions say alike stays to the bit, whatever errors a sampler makes. A sampler must not add noise of
    its own.

    Args:
        step: Denoiser, guided towards the new condition.
        source_step: Denoiser under the old condition.
        source: Samples to edit, (B, ...).
        noise: Function of the level that returns standard normal noise of this shape, different at each level.

    Raises:
        ShapeError: x has another shape. Raised by the returned function.
    """

    def estimate(x: Tensor, level: NoiseLevel) -> Estimate:
        if x.shape != source.shape:
            raise ShapeError(f"x {tuple(x.shape)} for a source {tuple(source.shape)}: must be of the same shape")
        scattered = like(level.alpha, x) * source.to(x) + like(level.sigma, x) * noise(level).to(x)
        return Estimate.of_x0(step(x + scattered, level).x0 - source_step(scattered, level).x0, x, level)

    return estimate
