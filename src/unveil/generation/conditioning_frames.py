"""What is known of a clip before it is made: frames or parts of them, each until a time of the run.

Everything that is done with clips is a choice of these: a picture that begins to move, a clip that goes on, a way from
one clip to another, an edit of unlike strength from frame to frame. They are held as in
`core.inverse.replacement`, or put back after each step where the network takes one level for a whole clip, and come out
exactly where they are known for sure.

Source: Zheng et al. 2024 (arXiv:2412.20404), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.core import inverse
from unveil.core.process import DiscreteVP
from unveil.core.rng import START
from unveil.core.samplers import CoefficientTable
from unveil.core.sampling_run import SamplingRun
from unveil.core.schedule import Schedule
from unveil.errors import RecipeError, ShapeError
from unveil.generation.task_spec import TaskSpec, identity, input_to_unit, latents_of, select_rows
from unveil.io.images import to_pixels
from unveil.model import Model, RunTransform
from unveil.model.shapes import TemporalCompression, temporal_compression

FREE = 2.0  # a time that no run comes to: nothing is known


class ConditioningFrames(NamedTuple):
    """Parts of clips that are known.

    pixels: (N, C, T, H, W), uint8 or in [-1, 1]; where nothing is known it may be anything.
    until: float64 (N or 1, 1, T, H or 1, W or 1), the time at which a part is let go: 0 where it is known for sure, 1
        and above where nothing is.
    """

    pixels: Tensor
    until: Tensor

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width."""
        return self.pixels.shape[2], self.pixels.shape[3], self.pixels.shape[4]


def keyframes(frames: Tensor, at: Sequence[int], length: int) -> ConditioningFrames:
    """Clips of `length` frames of which those at some places are known for sure.

    Args:
        frames: (N, C, K, H, W), uint8 or in [-1, 1].
        at: place of each of the K, from 0; below 0 counted from the end.

    Raises:
        RecipeError: a place outside the clip, twice the same, or not one for each frame.
    """
    if len(at) != frames.shape[2]:
        raise RecipeError(f"{frames.shape[2]} frames at {len(at)} places {list(at)}: give one place for each")
    places = [check_place(place, length) for place in at]
    if len(set(places)) < len(places):
        raise RecipeError(f"frames {list(at)} of a clip of {length}: two at one place; give each a place of its own")
    order = sorted(range(len(places)), key=places.__getitem__)
    there = torch.tensor([places[k] for k in order])
    # between known frames stands the nearest of them, which is all that a codec with a memory sees before them
    nearest = (torch.arange(length)[:, None] - there).abs().argmin(1) if len(there) else torch.zeros(length).long()
    until = torch.full((length,), FREE, dtype=torch.float64)
    until[there] = 0.0
    return ConditioningFrames(frames[:, :, [order[k] for k in nearest.tolist()]], until.view(1, 1, -1, 1, 1))


def check_place(place: int, length: int) -> int:
    """A place in a clip, counted from 0.

    Raises:
        RecipeError: it lies outside.
    """
    if not -length <= place < length:
        raise RecipeError(
            f"frame {place} of a clip of {length}: must be 0 to {length - 1}, or -1 to -{length} from the end"
        )
    return place % length


def merge_conditioning(known: ConditioningFrames, other: ConditioningFrames) -> ConditioningFrames:
    """Both at once; where both know something, that which holds longer.

    Raises:
        ShapeError: clips of unlike sizes.
    """
    if known.size != other.size:
        raise ShapeError(f"clips of {known.size} and {other.size} (frames, height, width): must be alike")
    first, second = (input_to_unit(one.pixels, one.pixels.shape[1], "T, H, W") for one in (known, other))
    return ConditioningFrames(
        torch.where(known.until <= other.until, first, second), torch.minimum(known.until, other.until)
    )


def conditioned_generation(
    model: Model,
    known: ConditioningFrames,
    verb: str,
    settings: dict[str, Any] | None = None,
    before: RunTransform = identity,
) -> TaskSpec:
    """Generation around what is known of clips.

    Where every part is known in some way, the run begins at the latest time until which one is held. Parts known for
    sure come out bit by bit.

    Args:
        known: of one clip for all results, or one each.
        verb, settings: of the task, for the record.
        before: what else changes the course, before it holds.

    Raises:
        ShapeError: no clips of this model's channels, or a time below 0.
        RecipeError: when run, frames known for sure that the model's latents only hold together with others.
    """
    unit = input_to_unit(known.pixels, model.shape[0], "T, H, W")
    if bool((known.until < 0).any()):
        raise ShapeError(f"until {float(known.until.min()):g}: times are at least 0, the time of data")

    def change(course: SamplingRun, rows: slice) -> SamplingRun:
        latents = latents_of(model, select_rows(unit, rows))
        until = to_latent_resolution(select_rows(known.until, rows), course.shape, temporal_compression(model))
        return hold_conditioning(before(course, rows), model, latents, until)

    def finish(pixels: Tensor, rows: slice) -> Tensor:
        sure = select_rows(known.until, rows) == 0
        return torch.where(sure, to_pixels(select_rows(unit, rows)), pixels)

    return TaskSpec(verb, settings or {}, change, finish=finish, size=known.size)


def hold_conditioning(course: SamplingRun, model: Model, latents: Tensor, until: Tensor) -> SamplingRun:
    """A course that holds parts of latents (B, ...) until their times, broadcastable to them."""
    latest = float(until.max())
    if latest == 0:
        return replace(course, plan=CoefficientTable([]), x=latents)
    noise, grid = course.noise(START), course.grid
    if latest < 1:
        grid, x = inverse.sdedit(grid, latents, noise, latest)
    else:
        known = (until < 1).to(latents.device)  # float64 is not for every device
        x = torch.where(known, inverse.add_noise(grid[0], latents, noise), course.start())
    course = replace(course, grid=schedule_with_release_times(grid, until), x=x)
    if getattr(model.denoiser.network, "tells_parts", False):
        process = course.grid.process  # of this size: the model's own is of the size that it was trained for
        return course.around(lambda step: inverse.per_token_conditioning(step, process, latents, until))
    return course.around(lambda step: inverse.replace_known(step, latents, until))


def schedule_with_release_times(grid: Schedule, until: Tensor) -> Schedule:
    """The grid with levels at the times until which parts are held, so that strengths do not depend on the steps.

    A process whose levels are counted has them only at its own, and is left as it is.
    """
    if isinstance(grid.process, DiscreteVP):
        return grid
    there = [float(level.t) for level in grid]
    new = lambda t: there[-1] < t < there[0] and min(abs(t - one) for one in there) > 1e-6  # noqa: E731
    levels = [*grid, *(grid.process.at(t) for t in until.unique().tolist() if new(t))]
    return Schedule(grid.process, sorted(levels, key=lambda level: float(level.t), reverse=True))


def to_latent_resolution(until: Tensor, shape: Sequence[int], step: TemporalCompression) -> Tensor:
    """Times (B, 1, T, H or 1, W or 1) of pixels as those of latents of `shape` (Z, F, h, w): the latest of each part.

    Args:
        until: of pixels.
        shape: of the latents.
        step: which frames share theirs.

    Raises:
        RecipeError: a frame that is known for sure shares its latents with one that is not.
    """
    found = until
    if shape[1] != until.shape[2]:
        head, rest = until[:, :, : step.alone], until[:, :, step.alone :]
        groups = rest.unflatten(2, (-1, step.step)) if rest.shape[2] else rest.unsqueeze(3)
        _check_groups(groups, step.alone)
        counts = torch.tensor([step.first] * step.alone + [step.latents] * groups.shape[2])
        found = torch.cat([head, groups.amax(3)], dim=2).repeat_interleave(counts, dim=2)
    for axis in (3, 4):
        if found.shape[axis] > shape[axis - 1]:
            found = found.unflatten(axis, (shape[axis - 1], -1)).amax(axis + 1)
    return found


def _check_groups(groups: Tensor, first: int) -> None:
    """Raises RecipeError where of frames (B, 1, F, k, ...) that share latents only some are known for sure."""
    sure = (groups == 0).flatten(4).all(4) if groups.ndim > 4 else groups == 0
    torn = (sure.any(3) & ~sure.all(3)).any(0).flatten()
    if bool(torn.any()):
        group, size = int(torn.nonzero()[0]), groups.shape[3]
        start = first + group * size
        raise RecipeError(
            f"frames {start} to {start + size - 1} share their latents in this model, and only some of them are given; "
            f"give all {size} of them, or frame 0, which stands alone"
        )
