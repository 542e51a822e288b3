"""Known parts of a sample, each held at its own noise level until the run reaches that level.

`per_token_conditioning` requires a denoiser that takes a level for each part, such as one that was trained on videos
with conditioning frames. `replace_known` works with any other denoiser. A part held at the level of data does not
change. A part held at a higher level is known only roughly, and changes once the run has reached that level. This
covers image-to-video, extension, interpolation between frames, and editing with a strength for each frame.

Source: Zheng et al. 2024 (arXiv:2412.20404), section 3; a level for each part: Chen et al. 2024 (arXiv:2407.01392).
"""

from __future__ import annotations

import torch
from torch import Tensor

from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.process import Process
from unveil.errors import ShapeError
from unveil.types import NoiseLevel, like


def per_token_conditioning(step: DenoiseFn, process: Process, frames: Tensor, until: Tensor) -> DenoiseFn:
    """Return the step with the known parts held.

    With a schedule that ends at the data, samplers of one call per step return exactly known parts bit by bit; `paste`
    does so for all samplers. In the held parts a run begins at the known values, noised to the first level
    (`add_noise`).

    Args:
        step: Denoiser that takes levels that differ between the parts of x.
        process: Process that the denoiser was trained under.
        frames: Known values, of x's shape (B, ...) or broadcastable to it. The values where nothing is held are
            ignored.
        until: Time in [0, 1] at which each part is released, broadcastable to x. It is 0 where the values are exact,
            and 1 or more where nothing is known.

    Raises:
        ShapeError: A time is below 0.
    """
    until = _times(until)

    def estimate(x: Tensor, level: NoiseLevel) -> Estimate:
        time = _time(level, x)
        holds = until < time
        if not bool(holds.any()):
            return step(x, level)
        part_level = process.at(torch.where(holds, until, time))
        here = process.at(time)
        keep = holds.to(x.device)
        # What noise a part has, it keeps: the sampler brought it here from what the run began with.
        noise = (x - like(here.alpha, x) * frames) / like(here.sigma, x)
        waiting = like(part_level.alpha, x) * frames + like(part_level.sigma, x) * noise
        predicted = step(torch.where(keep, waiting, x), part_level)
        return Estimate.of_x0(torch.where(keep, frames.to(x), predicted.x0), x, level, predicted.extra)

    return estimate


def replace_known(step: DenoiseFn, frames: Tensor, until: Tensor) -> DenoiseFn:
    """Return the step with the known parts held, for a denoiser with one level for all of x: each step restores them.

    All of x is at the level of the run. The held parts enter the network like the rest, so that the network needs no
    training on known parts. The result agrees with them less than that of `per_token_conditioning`.

    Args:
        step: Denoiser to guide.
        frames, until: Known values and times, as in `per_token_conditioning`.

    Raises:
        ShapeError: A time is below 0.

    Source: Song et al. 2021, appendix I.2 (arXiv:2011.13456), with a time until which each part is restored.
    """
    until = _times(until)

    def estimate(x: Tensor, level: NoiseLevel) -> Estimate:
        holds = until < _time(level, x)
        if not bool(holds.any()):
            return step(x, level)
        predicted = step(x, level)
        return Estimate.of_x0(torch.where(holds.to(x.device), frames.to(x), predicted.x0), x, level, predicted.extra)

    return estimate


def _times(until: Tensor) -> Tensor:
    if bool((until < 0).any()):
        raise ShapeError(f"until {float(until.min()):g}: times are at least 0, the time of data")
    return until.to(torch.float64).cpu()


def _time(level: NoiseLevel, x: Tensor) -> Tensor:
    return level.t.reshape(-1, *(1,) * (x.ndim - 1)).cpu()
