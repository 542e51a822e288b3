"""Start of an edit: an image noised to a level between data and noise."""

from __future__ import annotations

import math

from torch import Tensor

from unveil.core.process import DiscreteVP
from unveil.core.schedules import Schedule
from unveil.errors import RecipeError, ShapeError
from unveil.types import NoiseLevel, like


def sdedit(schedule: Schedule, pixels: Tensor, noise: Tensor, start: float) -> tuple[Schedule, Tensor]:
    """Return the rest of a schedule from t = start on, and the image noised to its start: `run(ddim(rest), step, x)`.

    The rest begins at `start` itself (a process with indices: at the next one), so that the strength of an edit does
    not depend on the number of steps.

    Args:
        schedule: Schedule from noise to data.
        pixels: Images to edit, (B, ...).
        noise: Standard normal noise of the same shape.
        start: Time t of the start, in (0, 1]; a value near 0 keeps the image, 1 is the whole schedule.

    Raises:
        RecipeError: start is outside (0, 1].
        ShapeError: The noise has another shape.

    Source: Meng et al. 2021, algorithm 1 (arXiv:2108.01073).
    """
    if not 0 < start <= 1:
        raise RecipeError(f"start = {start}: must lie in (0, 1]; near 0 keeps the image, 1 is noise alone")
    process = schedule.process
    if isinstance(process, DiscreteVP):
        start = math.ceil(start * process.steps - 1e-9) / process.steps
    rest = list(schedule)
    if start < float(rest[0].t) - 1e-9:
        rest = [process.at(start), *(level for level in rest if float(level.t) < start - 1e-9)]
    return Schedule(process, rest), add_noise(rest[0], pixels, noise)


def share_of(schedule: Schedule, strength: float) -> Schedule | None:
    """Return the last steps of a schedule, which an edit of this strength runs: the whole part of steps * strength.

    Their number is that of Stable Diffusion's programs. The levels are the schedule's own, so that the strength moves
    from step to step. None: no step remains.

    Raises:
        RecipeError: The strength is outside [0, 1].
    """
    if not 0 <= strength <= 1:
        raise RecipeError(f"strength = {strength}: must lie in [0, 1]; 0 keeps the image, 1 is generation")
    steps = len(schedule) - 1
    remaining = math.floor(steps * strength + 1e-9)  # 50 * 0.58 is 28.999999999999996 in floats
    return Schedule(schedule.process, schedule[steps - remaining :]) if remaining else None


def add_noise(level: NoiseLevel, pixels: Tensor, noise: Tensor) -> Tensor:
    """The image (B, ...) at a level, with standard normal noise of its shape.

    Raises:
        ShapeError: The noise has another shape.
    """
    if noise.shape != pixels.shape:
        raise ShapeError(f"noise {tuple(noise.shape)} for an image {tuple(pixels.shape)}: must be equal")
    return like(level.alpha, pixels) * pixels + like(level.sigma, pixels) * noise
