"""Conditioning frames: parts of a video that are held fixed during sampling, each until a time of the run.

Image-to-video, extension, interpolation between videos and edits with a strength for each frame differ only in their
conditioning frames. These are held as in `core.inverse.replacement`, or put back after each step if the network takes
one noise level for a whole video. Exact conditioning frames come out exactly.

Source: Zheng et al. 2024 (arXiv:2412.20404), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.conditioning.image import FIRST_FRAME
from unveil.core import inverse
from unveil.core.process import DiscreteVP
from unveil.core.rng import START
from unveil.core.samplers import CoefficientTable
from unveil.core.samplers.loop import SamplingRun
from unveil.core.schedules import Schedule
from unveil.errors import RecipeError, ShapeError
from unveil.generation.generate import TaskSpec, encode_latents, identity, input_to_unit, select_rows
from unveil.io.images import to_pixels
from unveil.model import Model, RunTransform
from unveil.model.shapes import TemporalCompression, temporal_compression

UNCONDITIONED_T = 2.0  # a time beyond that of noise: not conditioned


class ConditioningFrames(NamedTuple):
    """Conditioning parts of videos.

    Attributes:
        pixels: (N, C, T, H, W), uint8 or in [-1, 1]; values that are not conditioned on have no effect.
        until: float64 (N or 1, 1, T, H or 1, W or 1), time at which a part is released: 0 for exact parts, 1 and above
            for parts that are not conditioned.
    """

    pixels: Tensor
    release_t: Tensor

    @property
    def size(self) -> tuple[int, int, int]:
        """Number of frames, height and width."""
        return self.pixels.shape[2], self.pixels.shape[3], self.pixels.shape[4]


def keyframes(frames: Tensor, at: Sequence[int], length: int) -> ConditioningFrames:
    """Return exact conditioning frames at some indices of videos of `length` frames.

    Args:
        frames: (N, C, K, H, W), uint8 or in [-1, 1].
        at: Index of each of the K frames, from 0; below 0 counted from the end.
        length: Number of frames of the videos.

    Raises:
        RecipeError: An index outside the video, a repeated one, or not one for each frame.
    """
    if len(at) != frames.shape[2]:
        raise RecipeError(f"{frames.shape[2]} frames at {len(at)} places {list(at)}: give one place for each")
    places = [check_frame_index(place, length) for place in at]
    if len(set(places)) < len(places):
        raise RecipeError(f"frames {list(at)} of a video of {length}: two at one place; give each another place")
    order = sorted(range(len(places)), key=places.__getitem__)
    indices = torch.tensor([places[k] for k in order])
    # other frames are copies of the nearest keyframe, which a causal autoencoder encodes before the keyframes
    nearest = (torch.arange(length)[:, None] - indices).abs().argmin(1) if len(indices) else torch.zeros(length).long()
    until = torch.full((length,), UNCONDITIONED_T, dtype=torch.float64)
    until[indices] = 0.0
    return ConditioningFrames(frames[:, :, [order[k] for k in nearest.tolist()]], until.view(1, 1, -1, 1, 1))


def check_frame_index(place: int, length: int) -> int:
    """Return the index of a frame in a video, counted from 0.

    Raises:
        RecipeError: It is outside the video.
    """
    if not -length <= place < length:
        raise RecipeError(
            f"frame {place} of a video of {length}: must be 0 to {length - 1}, or -1 to -{length} from the end"
        )
    return place % length


def merge_conditioning(first: ConditioningFrames, second: ConditioningFrames) -> ConditioningFrames:
    """Combine conditioning frames; where both condition a part, the one that holds longer counts.

    Raises:
        ShapeError: Videos of different sizes.
    """
    if first.size != second.size:
        raise ShapeError(f"videos of {first.size} and {second.size} (frames, height, width): must be alike")
    pixels = [input_to_unit(frames.pixels, frames.pixels.shape[1], "T, H, W") for frames in (first, second)]
    return ConditioningFrames(
        torch.where(first.release_t <= second.release_t, *pixels), torch.minimum(first.release_t, second.release_t)
    )


def conditioned_generation(
    model: Model,
    frames: ConditioningFrames,
    name: str,
    settings: dict[str, Any] | None = None,
    before: RunTransform = identity,
) -> TaskSpec:
    """Generate videos with conditioning frames.

    If every part is conditioned, the run begins at the latest release time. Exact parts come out equal to the bit.

    Args:
        model: Video model.
        frames: Conditioning frames of one video for all results, or one each.
        name, settings: Task, for the metadata.
        before: A further change of the run, before the conditioning.

    Raises:
        ShapeError: Videos with another number of channels than the model's, or a time below 0.
        RecipeError: Exact frames that share their latents with others; raised by the run. A network that continues an
            image, and a first frame that is not exact.
    """
    unit = input_to_unit(frames.pixels, model.shape[0], "T, H, W")
    if bool((frames.release_t < 0).any()):
        raise ShapeError(f"until {float(frames.release_t.min()):g}: times are at least 0, the time of data")
    continues = FIRST_FRAME in model.conditioners  # the network itself takes the first frame
    if continues and bool((frames.release_t[:, :, 0] > 0).any()):
        raise RecipeError(f"{FIRST_FRAME}: missing; this model continues an image: give it for frame 0")
    alone = continues and bool((frames.release_t[:, :, 1:] >= 1).all())

    def change(run: SamplingRun, rows: slice) -> SamplingRun:
        if alone:
            return before(run, rows)
        latents = encode_latents(model, select_rows(unit, rows))
        until = to_latent_resolution(select_rows(frames.release_t, rows), run.shape, temporal_compression(model))
        return hold_conditioning(before(run, rows), model, latents, until)

    def finish(pixels: Tensor, rows: slice) -> Tensor:
        exact = select_rows(frames.release_t, rows) == 0
        return torch.where(exact, to_pixels(select_rows(unit, rows)), pixels)

    edit = TaskSpec(name, settings or {}, change, postprocess=finish, size=frames.size)
    if not continues:
        return edit
    return replace(edit, image_conditions=lambda rows: {FIRST_FRAME: select_rows(unit, rows)[:, :, 0]})


def hold_conditioning(run: SamplingRun, model: Model, latents: Tensor, until: Tensor) -> SamplingRun:
    """Return a run that holds parts of latents (B, ...) until their times, broadcastable to them."""
    latest = float(until.max())
    if latest == 0:
        return replace(run, plan=CoefficientTable([]), x=latents)
    noise, schedule = run.noise(START), run.schedule
    if latest < 1:
        schedule, x = inverse.sdedit(schedule, latents, noise, latest)
    else:
        held = (until < 1).to(latents.device)  # not every device has float64
        x = torch.where(held, inverse.add_noise(schedule[0], latents, noise), run.start())
    run = replace(run, schedule=schedule_with_release_times(schedule, until), x=x)
    if getattr(model.denoiser.network, "takes_token_levels", False):
        process = run.schedule.process  # of this size: the model's own is of the size that it was trained for
        return run.wrap_denoiser(lambda step: inverse.per_token_conditioning(step, process, latents, until))
    return run.wrap_denoiser(lambda step: inverse.replace_known(step, latents, until))


def schedule_with_release_times(schedule: Schedule, until: Tensor) -> Schedule:
    """Return the schedule with noise levels at the release times, so that strengths do not depend on the steps.

    The schedule of a discrete process is returned as it is.
    """
    if isinstance(schedule.process, DiscreteVP):
        return schedule
    times = [float(level.t) for level in schedule]
    new = lambda t: times[-1] < t < times[0] and min(abs(t - time) for time in times) > 1e-6  # noqa: E731
    levels = [*schedule, *(schedule.process.at(t) for t in until.unique().tolist() if new(t))]
    return Schedule(schedule.process, sorted(levels, key=lambda level: float(level.t), reverse=True))


def to_latent_resolution(until: Tensor, shape: Sequence[int], step: TemporalCompression) -> Tensor:
    """Return release times for latents of `shape` (Z, F, h, w): for each the latest of its pixels.

    Args:
        until: Release times of pixels, (B, 1, T, H or 1, W or 1).
        shape: Shape of the latents.
        step: Temporal compression, by which frames share latents.

    Raises:
        RecipeError: An exact frame shares its latents with one that is not exact.
    """
    times = until
    if shape[1] != until.shape[2]:
        head, rest = until[:, :, : step.leading_frames], until[:, :, step.leading_frames :]
        groups = rest.unflatten(2, (-1, step.stride)) if rest.shape[2] else rest.unsqueeze(3)
        _check_groups(groups, step.leading_frames)
        counts = torch.tensor(
            [step.latents_per_leading_frame] * step.leading_frames + [step.latents_per_stride] * groups.shape[2]
        )
        times = torch.cat([head, groups.amax(3)], dim=2).repeat_interleave(counts, dim=2)
    for axis in (3, 4):
        if times.shape[axis] > shape[axis - 1]:
            times = times.unflatten(axis, (shape[axis - 1], -1)).amax(axis + 1)
    return times


def _check_groups(groups: Tensor, first: int) -> None:
    """Raise RecipeError if only some of the frames (B, 1, F, k, ...) that share latents are exact."""
    exact = (groups == 0).flatten(4).all(4) if groups.ndim > 4 else groups == 0
    mixed = (exact.any(3) & ~exact.all(3)).any(0).flatten()
    if bool(mixed.any()):
        group, size = int(mixed.nonzero()[0]), groups.shape[3]
        start = first + group * size
        raise RecipeError(
            f"frames {start} to {start + size - 1} share their latents in this model, and only some of them are given; "
            f"give all {size} of them, or frame 0, which shares no latents"
        )
