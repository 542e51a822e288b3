"""High-resolution generation (hires fix): at the model's own size first, then upscaled in passes of overlapping tiles.

It applies from four times the pixels of the model's own images. The first pass has the aspect ratio of the result and
about as many pixels as the model's own images. The sides of each further pass are at most twice as long. A pass begins
at the noised enlargement of the one before, and estimates tiles of the model's own size, which share a quarter of their
side with their neighbours and are blended at every step. It keeps the low frequencies of the pass before, since a tile
within an object does not show which object that is. Memory is that of one tile and a few copies of the whole.

Sources: Bar-Tal et al. 2023, eq. 5 (arXiv:2302.08113); Meng et al. 2021, algorithm 1 (arXiv:2108.01073); Choi et al.
2021 (arXiv:2108.02938).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unveil.conditioning.tiled_denoising import OVERLAP
from unveil.generation.conditioning_frames import ConditioningFrames
from unveil.generation.generate import UNNAMED, ModelSource, OnStep, Request, TaskSpec, input_to_unit, partial_progress
from unveil.generation.long_video import ConditioningOfWindow, VideoChunk, VideoSpec, concat_chunks, generate_long_video
from unveil.generation.single_frame import SingleFrameNetwork
from unveil.generation.upscale import STRENGTH, resized, upscale
from unveil.model import Model, RunTransform
from unveil.model.shapes import check_size, size_multiple
from unveil.types import format_size

LARGE = 4.0  # minimum number of pixels for several passes, as a multiple of the model's
GROWTH = 2.0  # maximum growth of a side from one pass to the next
PASS_STRENGTH = 0.15  # strength of the passes after the first, enough for sharp edges


def needs_hires(model: Model, size: tuple[int, int]) -> bool:
    """Return True if a height and width need several passes."""
    return size[0] * size[1] >= LARGE * model.shape[-2] * model.shape[-1]


def needs_passes(model: Model, size: Sequence[int] | None) -> bool:
    """Return True if images of a size are generated in passes: those of video models, which have no other method."""
    return (
        size is not None
        and isinstance(model.denoiser.network, SingleFrameNetwork)
        and needs_hires(model, (size[-2], size[-1]))
    )


def base_size(model: Model, size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of the first pass: the aspect ratio of the size, and about the pixels of the model's.

    Of the sizes with half to one and a half times these pixels, it is the one whose aspect ratio is nearest, and the
    largest of several.
    """
    unit, pixels = size_multiple(model), model.shape[-2] * model.shape[-1]
    aspect = math.log(size[0] / size[1])
    counts = range(1, max(2, int(1.5 * pixels / unit**2) + 1))
    fitting = [(height * unit, width * unit) for height in counts for width in counts]
    near = [(h, w) for h, w in fitting if 0.5 * pixels <= h * w <= 1.5 * pixels] or fitting
    return min(near, key=lambda sides: (round(abs(math.log(sides[0] / sides[1]) - aspect), 6), -sides[0] * sides[1]))


def pass_sizes(model: Model, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return height and width of every pass; the sides grow evenly, and are rounded up to what the network takes."""
    first, unit = base_size(model, size), size_multiple(model)
    growth = max(now / before for now, before in zip(size, first, strict=True))
    count = max(1, math.ceil(math.log(growth, GROWTH) - 1e-9))

    def side(number: int, axis: int) -> int:
        exact = first[axis] * (size[axis] / first[axis]) ** (number / count)
        return min(size[axis], math.ceil(exact / unit - 1e-9) * unit)

    return [first, *((side(number, 0), side(number, 1)) for number in range(1, count)), size]


def share_of_calls(model: Model, size: Sequence[int], in_passes: bool, factor: int = 1) -> float | None:
    """Return the network calls of a result in tiles, as a multiple of those at once; None: it has no tiles.

    Args:
        model: Model.
        size: Size of the result, which ends with height and width.
        in_passes: It is generated in passes, which have a part of the steps.
        factor: Factor of an upscaling, which has tiles and a part of the steps, too.
    """
    if not in_passes and (factor == 1 or not needs_hires(model, (size[-2], size[-1]))):
        return None
    overlapping = 1 / (1 - OVERLAP) ** 2
    return overlapping * (PASS_STRENGTH / (1 - 1 / GROWTH**2) if in_passes else STRENGTH)


def describe_passes(model: Model, size: tuple[int, int]) -> str:
    """Return a description of the passes for the user."""
    tile, every = format_size(model.shape), pass_sizes(model, size)
    return (
        f"{format_size(size)} is far beyond the model's own {tile}: made in {len(every)} passes, at "
        f"{', '.join(map(format_size, every))}; the first as a whole, the others in windows of {tile}"
    )


def generate_hires(
    model: Model, request: Request, spec: VideoSpec, source: ModelSource = UNNAMED, on_step: OnStep | None = None
) -> Iterator[VideoChunk]:
    """Yield videos of a size far beyond the model's own.

    Conditioning frames apply in all passes, and come out exactly. Progress counts the passes as equal parts.

    Args:
        model: Video model.
        request: Conditions, seeds and settings.
        spec: Frames, windows and conditioning; its size is that of the results.
        source: Name and hash of the model, for the metadata.
        on_step: As in `generate`, over all passes.

    Raises:
        RecipeError: A size that the network does not take.
    """
    size = spec.size or (model.shape[-2], model.shape[-1])
    check_size(model, size)
    every = pass_sizes(model, size)
    pass_request, pass_spec = request, spec
    for number, pass_size in enumerate(every):
        steps = on_step and partial_progress(on_step, number, len(every))
        if pass_size == size:
            yield from generate_long_video(model, pass_request, pass_spec, source, steps)
            return
        conditioning = None if spec.conditioning is None else downsample_conditioning(spec.conditioning, pass_size)
        pass_spec = replace(pass_spec, size=pass_size, conditioning=conditioning)
        videos = concat_chunks(generate_long_video(model, pass_request, pass_spec, source, steps))
        pass_request, pass_spec = without_guidance(request), _next_pass(model, spec, videos, every, number + 1)


def _next_pass(
    model: Model, spec: VideoSpec, videos: Tensor, every: Sequence[tuple[int, int]], number: int
) -> VideoSpec:
    """Return the spec of a pass that begins at the videos of the one before."""
    following = upscale_pass(model, videos, every[number], PASS_STRENGTH)
    settings = {**spec.settings, **following.settings, "passes": [list(size) for size in every]}
    following = replace(following, conditioning=spec.conditioning, window=spec.window, overlap=spec.overlap)
    return replace(following, settings=settings, name=spec.name, inputs=spec.inputs)


def upscale_pass(model: Model, videos: Tensor, size: tuple[int, int], strength: float = STRENGTH) -> VideoSpec:
    """Upscale videos: each window begins at their noised bicubic enlargement, and keeps its low frequencies.

    Args:
        model: Video model.
        videos: (N, C, T, H, W).
        size: Height and width of the results.
        strength: Strength after the enlargement, in [0, 1].

    Raises:
        RecipeError: A strength outside [0, 1].
    """
    frames = videos.shape[2]

    def edit(start: int, stop: int) -> TaskSpec:
        here = torch.arange(start, stop).clamp(max=frames - 1)  # a window may reach beyond the end
        return upscale(model, videos[:, :, here], size=size, strength=strength, faithful=True)

    def change(start: int, stop: int) -> RunTransform:
        return edit(start, stop).transform

    settings = {"size": list(size), "strength": strength}
    return VideoSpec(
        frames, size, tile_size=edit(0, 1).tile_size, window_transform=change, name="upscale", settings=settings
    )


def without_guidance(request: Request) -> Request:
    """Return the request of a later pass, without guidance: it would add the prompt's objects to every tile."""
    return replace(request, size=None, negative={}, sampling={**request.sampling, "guidance_scale": 1.0})


def downsample_conditioning(conditioning: ConditioningOfWindow, size: tuple[int, int]) -> ConditioningOfWindow:
    """Return conditioning frames at another height and width."""

    def downsampled(start: int, stop: int) -> ConditioningFrames | None:
        frames = conditioning(start, stop)
        if frames is None:
            return None
        return frames._replace(pixels=resized(input_to_unit(frames.pixels, 3, "T, H, W"), size))

    return downsampled
