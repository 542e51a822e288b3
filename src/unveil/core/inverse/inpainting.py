"""Inpainting: replacement of the known pixels, and RePaint's jumps back to noisier levels."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.core import elementary
from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.inverse.operator import boolean, fitted
from unveil.core.rng import Noise
from unveil.core.samplers.loop import CoefficientTable, Plan, SamplerState, StepResult, draw_noise
from unveil.core.schedules import Schedule
from unveil.errors import RecipeError, ShapeError
from unveil.types import NoiseLevel, like


def inpaint(step: DenoiseFn, pixels: Tensor, keep: Tensor) -> DenoiseFn:
    """Return the step whose x0 is replaced by the known pixels where `keep` is True.

    Every sampler then moves the known pixels as if they had been noised. A deterministic sampler moves them along x_t =
    alpha x0 + sigma eps with one eps. An ancestral one moves them by q(x_s | x_t, x0), which at each level is the
    distribution of newly noised images. With a schedule that ends at the data, samplers of one call per step return the
    known pixels bit by bit; `paste` does so for all samplers.

    Args:
        step: Denoiser to guide.
        pixels: Known pixels, of x's shape. The values elsewhere are ignored.
        keep: Boolean mask, True where the pixels are known; broadcast from the last axis on, as (B, 1, H, W) is.

    Raises:
        ShapeError: The mask is not boolean or does not fit, or x in a call has another shape.

    Source: Song et al. 2021, appendix I.2 (arXiv:2011.13456); Lugmayr et al. 2022, eq. 8 (arXiv:2201.09865).
    """
    mask = fitted(boolean(keep), pixels)

    def replaced(x: Tensor, level: NoiseLevel) -> Estimate:
        _same(pixels, x)
        estimate = step(x, level)
        return Estimate.of_x0(torch.where(mask, pixels, estimate.x0), x, level, estimate.extra)

    return replaced


def paste(x: Tensor, pixels: Tensor, keep: Tensor) -> Tensor:
    """Return x with the known pixels pasted in, bit by bit.

    Raises:
        ShapeError: The mask is not boolean or does not fit, or the images have different shapes.
    """
    _same(pixels, x)
    return torch.where(fitted(boolean(keep), x), pixels, x)


def repaint(plan: Plan, schedule: Schedule, *, length: int = 10, count: int = 10) -> RePaintPlan:
    """RePaint: every `length` steps go back that many by adding noise, and repeat them, `count` times in total.

    This makes the generated and the known pixels agree. Use it with `inpaint`.

    Args:
        plan: Plan of one step per level of the schedule, such as `ancestral(schedule)` or `ddim(schedule, 1.0)`.
        schedule: Schedule of the plan.
        length: Number of steps of a jump back, at least 1.
        count: Number of passes over each stretch, at least 1; 1 is the plan itself.

    Raises:
        RecipeError: length or count is below 1, or the plan does not consist of single steps over this schedule.

    Source: Lugmayr et al. 2022, algorithm 1 and appendix B (arXiv:2201.09865).
    """
    if length < 1 or count < 1:
        raise RecipeError(f"length = {length}, count = {count}: both must be at least 1")
    single = plan.total == len(schedule) - 1
    if isinstance(plan, CoefficientTable):
        single = single and not any(len(row.gains) > 1 or row.saves_x or row.level is None for row in plan.rows)
    if not single:
        raise RecipeError(
            f"a plan of {plan.total} rows over {len(schedule) - 1} steps: going back needs one step per level and no "
            "history, such as ancestral or ddim"
        )
    return RePaintPlan(plan, schedule, _visits(len(schedule) - 1, length, count))


class _Jump(NamedTuple):
    """x <- keep x + spread z: from a level to a noisier one."""

    keep: Tensor
    spread: Tensor


class RePaintPlan:
    """Plan whose steps run in another order, with jumps back to noisier levels in between."""

    def __init__(self, plan: Plan, schedule: Schedule, visits: list[int]) -> None:
        self.plan = plan
        self.moves = [
            here if there == here + 1 else _jump(schedule[here], schedule[there]) for here, there in pairwise(visits)
        ]

    @property
    def total(self) -> int:
        """The number of steps and jumps."""
        return len(self.moves)

    def is_done(self, state: SamplerState) -> bool:
        """Return True if every step and jump was made."""
        return state.number >= len(self.moves)

    def advance(self, state: SamplerState, step: DenoiseFn, noise: Noise | None, out: Tensor) -> StepResult:
        """One step of the plan, or one jump."""
        number, move = state.number, self.moves[state.number]
        if isinstance(move, _Jump):
            x, z = state.x, draw_noise(noise, number)
            x = like(move.keep, x) * x + like(move.spread, x) * z.to(x.dtype)
            return StepResult(SamplerState(x, (), number + 1), None, None)
        # each visit draws its own noise: the number of this walk's step, not of the plan's
        visit_noise = None if noise is None else lambda row, *draw: noise(number, *draw)
        done = self.plan.advance(state._replace(number=move), step, visit_noise, out)
        return done._replace(state=done.state._replace(number=number + 1))


def _visits(steps: int, length: int, count: int) -> list[int]:
    """The levels of a schedule in the order in which they are reached, 0 the noisiest: steps + 1 levels."""
    again = dict.fromkeys(range(1, steps - length + 1, length), count - 1)  # by steps left to the data
    left = steps
    order = [0]
    while left > 0:
        left -= 1
        order.append(steps - left)
        if again.get(left, 0) > 0:
            again[left] -= 1
            left += length
            order.append(steps - left)
    return order


def _jump(here: NoiseLevel, there: NoiseLevel) -> _Jump:
    # q(x_t | x_s) of the forward process, for a cleaner s
    ratio = there.alpha / here.alpha
    return _Jump(ratio, elementary.sqrt(elementary.square(there.sigma) - elementary.square(ratio * here.sigma)))


def _same(pixels: Tensor, x: Tensor) -> None:
    if pixels.shape != x.shape:
        raise ShapeError(f"known pixels {tuple(pixels.shape)} for x {tuple(x.shape)}: must be of the same shape")
