"""Editing along the difference of two estimates, without inversion of the source to noise.

The source is noised again at every level. The sample moves by the difference between the estimates for the new and for
the old condition. What both estimates have in common does not change.

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
    """Return the step of a run whose state is the edited sample minus the source; the run begins at zeros.

    The paper moves the data by the difference of two velocities. Here the state is the difference of the noised
    results, for which the difference of the estimates of x0 is the same under every process. The source is not a part
    of the state. What both estimates have in common is therefore kept to the bit, independent of the sampler's errors.
    The sampler must be deterministic.

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
