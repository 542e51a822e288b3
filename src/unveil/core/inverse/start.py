"""Where editing starts: a picture noised to a level between data and noise."""

from __future__ import annotations

import math

from torch import Tensor

from unveil.core.grid import Grid
from unveil.core.process import DiscreteVP
from unveil.types import RecipeError, ShapeError, like


def sdedit(grid: Grid, pixels: Tensor, noise: Tensor, start: float) -> tuple[Grid, Tensor]:
    """The rest of a grid from t = start on, and the picture noised to where it begins: `run(ddim(rest), step, x)`.

    The rest begins at `start` itself (a process with indices: at the next one), so that the strength of an edit does
    not depend on the number of steps.

    Args:
        grid: from noise to data.
        pixels: what to edit, (B, ...).
        noise: standard normal, of the same shape.
        start: t in (0, 1]; near 0 keeps the picture, 1 is the whole grid.

    Raises:
        RecipeError: start outside (0, 1].
        ShapeError: noise of another shape.

    Source: Meng et al. 2021, algorithm 1 (arXiv:2108.01073).
    """
    if not 0 < start <= 1:
        raise RecipeError(f"start = {start}: must lie in (0, 1]; near 0 keeps the picture, 1 is noise alone")
    if noise.shape != pixels.shape:
        raise ShapeError(f"noise {tuple(noise.shape)} for a picture {tuple(pixels.shape)}: must be equal")
    process = grid.process
    if isinstance(process, DiscreteVP):
        start = math.ceil(start * process.steps - 1e-9) / process.steps
    rest = list(grid)
    if start < float(rest[0].t) - 1e-9:
        rest = [process.at(start), *(level for level in rest if float(level.t) < start - 1e-9)]
    first = rest[0]
    return Grid(process, rest), like(first.alpha, pixels) * pixels + like(first.sigma, pixels) * noise
