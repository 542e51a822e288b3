"""Long videos: sliding-window generation, in which each window continues the last frames of the window before it.

All windows have one length. Neighbours share at least `overlap` frames and are spread evenly, so that the last one ends
where the video ends. The frames that a window shares with the one before it are conditioning frames. Memory does not
grow with the length of the video.

Source: Zheng et al. 2024 (arXiv:2412.20404), section 3, who continue the last frames of a video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from unveil.conditioning.tiled_denoising import tile_starts
from unveil.core.rng import key
from unveil.errors import RecipeError
from unveil.generation.conditioning_frames import (
    UNCONDITIONED_T,
    ConditioningFrames,
    conditioned_generation,
    keyframes,
    merge_conditioning,
)
from unveil.generation.generate import (
    PROMPT,
    UNNAMED,
    ModelSource,
    OnStep,
    Request,
    SourceFile,
    generate,
    identity,
    partial_progress,
)
from unveil.generation.position_scaling import scale_positions
from unveil.generation.prompt_schedule import ScheduledPrompt, prompt_schedule, prompt_weights
from unveil.model import Model, RunTransform
from unveil.model.shapes import round_up_frames, temporal_compression

OVERLAP = 0.25  # default overlap of neighbouring windows, as a share of their length
Direction = Literal["forward", "backward"]
# (start, stop) of a window -> its conditioning frames; None: it has none
ConditioningOfWindow = Callable[[int, int], ConditioningFrames | None]


class Window(NamedTuple):
    """Frames `start` to `stop` - 1 of a video."""

    start: int
    stop: int


class VideoChunk(NamedTuple):
    """The next frames of videos, and their metadata.

    Attributes:
        pixels: uint8 (B, C, t, H, W).
        facts: Metadata of each video, those of its first window.
    """

    pixels: Tensor
    facts: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class VideoSpec:
    """A video to generate, besides the request.

    Attributes:
        frames: Number of frames.
        size: Height and width; None: the model's.
        scenes: Prompt schedule; empty: the prompt of the request for all frames.
        fade: Number of frames over which one prompt fades into the next.
        conditioning: Conditioning frames of each window; None: there are none.
        window: Number of frames of a window; None: the model's.
        overlap: Minimum number of frames that neighbouring windows share; None: a quarter of the window.
        spacing: Distance of tokens in space, see `position_scaling.scale_positions`.
        tile_size: Height and width that the network takes in one call, if it works in tiles; see `Model.resized`.
        change: (start, stop) of a window -> a further change of its run, such as its start; None: there is none.
        direction: Order of the windows; backward generates the end first.
        new_frames: Range (start, stop) of the frames that are not conditioning frames; None: all.
        name, settings, inputs: Task, for the metadata.
    """

    frames: int
    size: tuple[int, int] | None = None
    scenes: tuple[ScheduledPrompt, ...] = ()
    fade: int = 0
    conditioning: ConditioningOfWindow | None = None
    window: int | None = None
    overlap: int | None = None
    spacing: float = 1.0
    tile_size: tuple[int, int] | None = None
    window_transform: Callable[[int, int], RunTransform] | None = None
    direction: Direction = "forward"
    new_frames: tuple[int, int] | None = None
    name: str = "video"
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Sequence[SourceFile]] = field(default_factory=dict)


def windows(model: Model, spec: VideoSpec) -> list[Window]:
    """Return the windows of a video, from its beginning to its end; the last one may reach beyond the end.

    Raises:
        RecipeError: Invalid lengths.
    """
    alone, step, *_ = temporal_compression(model)
    if spec.frames < 1:
        raise RecipeError(f"frames {spec.frames}: at least 1, which is an image")
    total = round_up_frames(model, spec.frames)
    length = min(round_up_frames(model, spec.window or model.shape[1]), total)
    if length == total:
        return [Window(0, total)]
    overlap = max(1, round(length * OVERLAP)) if spec.overlap is None else spec.overlap
    if spec.direction == "backward" and alone and spec.overlap is None:
        overlap = max(overlap, alone + step)  # the first frames have latents of their own only at a video's beginning
    if not 1 <= overlap < length:
        raise RecipeError(f"overlap {overlap}: neighbouring windows of {length} frames share 1 to {length - 1} of them")
    stride = (length - overlap) // step * step
    if stride < 1:
        raise RecipeError(
            f"overlap {overlap}: windows of {length} frames advance by {step} at least; at most {length - step}"
        )
    return [Window(start, start + length) for start in tile_starts(total, length, stride, step)]


def generate_long_video(
    model: Model, request: Request, spec: VideoSpec, source: ModelSource = UNNAMED, on_step: OnStep | None = None
) -> Iterator[VideoChunk]:
    """Yield the frames of videos, chunk by chunk, forwards in time.

    Noise depends only on the seed, the index of the video and the window. A video that is generated backwards is held
    in memory until its beginning is done.

    Args:
        model: Video model.
        request: Conditions, seeds and settings; its size has no effect.
        spec: Frames, size, windows and conditioning.
        source: Name and hash of the model, for the metadata.
        on_step: As in `generate`, over all windows.

    Raises:
        RecipeError: A setting that cannot work.
    """
    every = windows(model, spec)
    order = every if spec.direction == "forward" else every[::-1]
    size = spec.size or (model.shape[-2], model.shape[-1])
    settings = {**spec.settings, "frames": spec.frames, "windows": [list(window) for window in every]}
    backward: list[VideoChunk] = []
    last: tuple[Window, Tensor] | None = None
    for number, window in enumerate(order):
        conditioning, new = _window_conditioning(model, spec, window, size, last)
        cond, change = _window_prompt(request, spec, window)
        length = window.stop - window.start
        part = replace(request, cond=cond, seed=_seeds(request, number), size=(length, *size))
        edit = conditioned_generation(
            model,
            conditioning or _unconditioned(model, length, size),
            spec.name,
            settings,
            _run_change(spec, window, change),
        )
        steps = on_step and partial_progress(on_step, number, len(order))
        edit = replace(edit, tile_size=spec.tile_size, inputs=spec.inputs)
        samples = list(generate(model, part, source, edit, on_step=steps))
        pixels = torch.stack([sample.pixels for sample in samples])
        last = window, pixels
        cut = pixels[:, :, new.start - window.start : min(new.stop, spec.frames) - window.start]
        chunk = VideoChunk(cut, tuple(sample.facts for sample in samples))
        if spec.direction == "forward":
            yield chunk
        else:
            backward.append(chunk)
    yield from reversed(backward)


def concat_chunks(chunks: Iterable[VideoChunk]) -> Tensor:
    """Return the whole videos, uint8 (B, C, T, H, W)."""
    return torch.cat([chunk.pixels for chunk in chunks], dim=2)


def new_frames_only(chunks: Iterable[VideoChunk], spec: VideoSpec) -> Iterator[VideoChunk]:
    """Yield the chunks of a video without its conditioning frames."""
    first, stop = spec.new_frames or (0, spec.frames)
    place = 0
    for pixels, facts in chunks:
        count = pixels.shape[2]
        here = pixels[:, :, max(first - place, 0) : max(stop - place, 0)]
        place += count
        if here.shape[2]:
            yield VideoChunk(here, facts)


def exact_frames(frames: Mapping[int, Tensor]) -> ConditioningOfWindow:
    """Return exact conditioning frames, by their indices in the video: uint8 or in [-1, 1], (N, C, H, W) each."""

    def conditioning(start: int, stop: int) -> ConditioningFrames | None:
        here = {place: frame for place, frame in frames.items() if start <= place < stop}
        if not here:
            return None
        return keyframes(torch.stack(list(here.values()), dim=2), [place - start for place in here], stop - start)

    return conditioning


def _window_conditioning(
    model: Model, spec: VideoSpec, window: Window, size: tuple[int, int], last: tuple[Window, Tensor] | None
) -> tuple[ConditioningFrames | None, Window]:
    """Return the conditioning frames of a window, of the task and of the window before it; and the new frames."""
    of_task = None if spec.conditioning is None else spec.conditioning(*window)
    if last is None:
        return of_task, window
    other, pixels = last
    shared = Window(max(window.start, other.start), min(window.stop, other.stop))
    ahead = other.start < window.start
    new = Window(shared.stop, window.stop) if ahead else Window(window.start, shared.start)
    first = shared.start if ahead else shared.start + temporal_compression(model).leading_frames
    frames = pixels[:, :, first - other.start : shared.stop - other.start]
    places = [place - window.start for place in range(first, shared.stop)]
    before = keyframes(frames, places, window.stop - window.start)
    return before if of_task is None else merge_conditioning(before, of_task), new


def _run_change(spec: VideoSpec, window: Window, prompt_change: RunTransform) -> RunTransform:
    """Return the change of a window's run except its conditioning frames: positions, prompts and that of the task."""
    of_task = identity if spec.window_transform is None else spec.window_transform(*window)
    return lambda run, rows: of_task(prompt_change(scale_positions(run, spec.spacing), rows), rows)


def _unconditioned(model: Model, length: int, size: tuple[int, int]) -> ConditioningFrames:
    until = torch.full((1, 1, length, 1, 1), UNCONDITIONED_T, dtype=torch.float64)
    return ConditioningFrames(torch.zeros(1, model.shape[0], length, *size, dtype=torch.uint8), until)


def _window_prompt(
    request: Request, spec: VideoSpec, window: Window
) -> tuple[Mapping[str, Sequence[Any]], RunTransform]:
    """Return the condition of a window, and the change of its run if it has several prompts."""
    if not spec.scenes:
        return request.cond, identity
    weights = prompt_weights(spec.scenes, *window, fade=spec.fade)
    used = [number for number in range(len(weights)) if float(weights[number].max()) > 0]
    texts = [{**request.cond, PROMPT: [spec.scenes[number].prompt]} for number in used]
    return texts[0], identity if len(used) == 1 else prompt_schedule(texts, weights[used])


def _seeds(request: Request, window: int) -> int | tuple[int, ...]:
    """Return the seeds of a window: those of the request for the first, others for each that follows."""
    if window == 0:
        return request.seed
    other = lambda seed: key(seed, window) >> 1  # noqa: E731 - 63 bits
    return other(request.seed) if isinstance(request.seed, int) else tuple(map(other, request.seed))
