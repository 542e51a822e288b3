"""Sizes far beyond a model's own: made at a size that it knows, enlarged, and made again in overlapping windows.

The rule: four times the pixels of the model's own pictures, or more, go this way. The first pass has the aspect of what
is asked for and about as many pixels as the model's own. Each that follows has sides at most twice as long: it begins
at the enlargement of the one before, a little noised, and estimates windows of the model's own size, which share a
quarter of their side with their neighbours and fade into each other at every step. What it shows at the size of the one
before stays, since a window that lies within a thing cannot know what it is a part of. Memory is that of one window and
a few copies of the whole.

Sources: Bar-Tal et al. 2023, eq. 5 (arXiv:2302.08113); Meng et al. 2021, algorithm 1 (arXiv:2108.01073); Choi et al.
2021 (arXiv:2108.02938).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unveil.generation.conditioning_frames import ConditioningFrames
from unveil.generation.generate import UNNAMED, OnStep, Request, Source, part_of
from unveil.generation.long_video import Knowing, VideoChunk, VideoSpec, concat_chunks, generate_long_video
from unveil.generation.single_frame import SingleFrameNetwork
from unveil.generation.task_spec import TaskSpec, input_to_unit
from unveil.generation.upscale import STRENGTH, resized, upscale
from unveil.model import Model, RunTransform
from unveil.model.shapes import check_size, size_multiple
from unveil.types import format_size

LARGE = 4.0  # times the pixels of a model's own
GROWTH = 2.0  # of a side, from one pass to the next, at most
AGAIN = 0.15  # strength of the passes after the first: they make edges sharp, and see too little for more


def needs_hires(model: Model, size: tuple[int, int]) -> bool:
    """Whether a height and width are made in several passes."""
    return size[0] * size[1] >= LARGE * model.shape[-2] * model.shape[-1]


def goes_in_passes(model: Model, size: Sequence[int] | None) -> bool:
    """Whether pictures of a size are made in passes: those of models of clips, which have no other way to them."""
    return (
        size is not None
        and isinstance(model.denoiser.network, SingleFrameNetwork)
        and needs_hires(model, (size[-2], size[-1]))
    )


def base_size(model: Model, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the first pass: the aspect of the size, and about the pixels of the model's own.

    Of the sizes with half to one and a half times these pixels, the one whose aspect is the nearest; the largest of
    several.
    """
    unit, own = size_multiple(model), model.shape[-2] * model.shape[-1]
    wanted = math.log(size[0] / size[1])
    counts = range(1, max(2, int(1.5 * own / unit**2) + 1))
    fitting = [(high * unit, wide * unit) for high in counts for wide in counts]
    near = [one for one in fitting if 0.5 * own <= one[0] * one[1] <= 1.5 * own] or fitting
    return min(near, key=lambda one: (round(abs(math.log(one[0] / one[1]) - wanted), 6), -one[0] * one[1]))


def sizes(model: Model, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Height and width of every pass; the sides grow evenly, and are rounded up to what the network takes."""
    first, unit = base_size(model, size), size_multiple(model)
    growth = max(now / before for now, before in zip(size, first, strict=True))
    count = max(1, math.ceil(math.log(growth, GROWTH) - 1e-9))

    def side(number: int, axis: int) -> int:
        exact = first[axis] * (size[axis] / first[axis]) ** (number / count)
        return min(size[axis], math.ceil(exact / unit - 1e-9) * unit)

    return [first, *((side(number, 0), side(number, 1)) for number in range(1, count)), size]


def describe_passes(model: Model, size: tuple[int, int]) -> str:
    """What a person is told before the work."""
    own, every = format_size(model.shape), sizes(model, size)
    return (
        f"{format_size(size)} is far beyond the model's own {own}: made in {len(every)} passes, at "
        f"{', '.join(map(format_size, every))}; the first as a whole, the others in windows of {own}"
    )


def generate_hires(
    model: Model, request: Request, shot: VideoSpec, source: Source = UNNAMED, on_step: OnStep | None = None
) -> Iterator[VideoChunk]:
    """Clips of a size far beyond the model's own.

    What is known of them is known in all passes, and comes out exactly. Progress counts the passes as equal parts.

    Args:
        request: of clips.
        shot: what they are; its size is that of the results.

    Raises:
        RecipeError: a size that the network does not take.
    """
    size = shot.size or (model.shape[-2], model.shape[-1])
    check_size(model, size)
    every = sizes(model, size)
    asked, now = request, shot
    for number, here in enumerate(every):
        steps = on_step and part_of(on_step, number, len(every))
        if here == size:
            yield from generate_long_video(model, asked, now, source, steps)
            return
        known = None if shot.known is None else downsample_conditioning(shot.known, here)
        made = concat_chunks(generate_long_video(model, asked, replace(now, size=here, known=known), source, steps))
        asked, now = without_guidance(request), _after(model, shot, made, every, number + 1)


def _after(model: Model, shot: VideoSpec, made: Tensor, every: Sequence[tuple[int, int]], number: int) -> VideoSpec:
    """The shot of a pass that begins at what the one before made."""
    after = upscale_pass(model, made, every[number], AGAIN)
    settings = {**shot.settings, **after.settings, "passes": [list(one) for one in every]}
    after = replace(after, known=shot.known, window=shot.window, overlap=shot.overlap, settings=settings)
    return replace(after, verb=shot.verb, inputs=shot.inputs)


def upscale_pass(model: Model, clips: Tensor, size: tuple[int, int], strength: float = STRENGTH) -> VideoSpec:
    """A film of clips in a larger size: each window begins at their plain enlargement, noised, and keeps its forms.

    Args:
        clips: (N, C, T, H, W).
        size: height and width of the results.
        strength: of the edit after the enlargement, in [0, 1].

    Raises:
        RecipeError: a strength outside [0, 1].
    """
    frames = clips.shape[2]

    def edit(start: int, stop: int) -> TaskSpec:
        here = torch.arange(start, stop).clamp(max=frames - 1)  # a window may reach beyond the end
        return upscale(model, clips[:, :, here], size=size, strength=strength, faithful=True)

    def change(start: int, stop: int) -> RunTransform:
        return edit(start, stop).change

    settings = {"size": list(size), "strength": strength}
    return VideoSpec(frames, size, seen=edit(0, 1).seen, change=change, verb="upscale", settings=settings)


def without_guidance(request: Request) -> Request:
    """The request of a later pass: without guidance, since a window that has nothing of what is said stays so."""
    return replace(request, size=None, negative={}, sampling={**request.sampling, "guidance_scale": 1.0})


def downsample_conditioning(known: Knowing, size: tuple[int, int]) -> Knowing:
    """What is known of whole frames, at another height and width."""

    def knowing(start: int, stop: int) -> ConditioningFrames | None:
        found = known(start, stop)
        return (
            None if found is None else found._replace(pixels=resized(input_to_unit(found.pixels, 3, "T, H, W"), size))
        )

    return knowing
