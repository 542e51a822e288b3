"""Clips of any length: made window by window, each going on from the frames that the one before it ends with.

The rule: windows have one length; neighbours share at least so many frames, and are spread evenly, so that the last one
ends where the clip ends. The frames that a window shares with the one before it are known for sure. No more than a
window is kept, so memory does not grow with the clip.

Source: Zheng et al. 2024 (arXiv:2412.20404), section 3, who go on from the last frames of what is there.
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
    FREE,
    ConditioningFrames,
    conditioned_generation,
    keyframes,
    merge_conditioning,
)
from unveil.generation.generate import PROMPT, UNNAMED, OnStep, Request, Source, generate, part_of
from unveil.generation.position_scaling import scale_positions
from unveil.generation.prompt_schedule import Scene, prompt_schedule, prompt_weights
from unveil.generation.task_spec import SourceFile, identity
from unveil.model import Model, RunTransform
from unveil.model.shapes import round_up_frames, temporal_compression

OVERLAP = 0.25  # of a window, with its neighbour, where nothing else is said
Direction = Literal["forward", "backward"]
# (start, stop) of a window -> what is known in it; None: nothing
Knowing = Callable[[int, int], ConditioningFrames | None]


class Window(NamedTuple):
    """Frames start to stop of a clip."""

    start: int
    stop: int


class VideoChunk(NamedTuple):
    """Frames of clips that follow those of the part before, and how they were made.

    pixels: uint8 (B, C, t, H, W). facts: the record of each clip; it is that of the first window.
    """

    pixels: Tensor
    facts: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class VideoSpec:
    """What is asked of a clip besides a request.

    Attributes:
        frames: of the clip.
        size: height and width; None: the model's own.
        scenes: which text is to be seen when; none: that of the request all the time.
        fade: frames over which one text goes over into the next.
        known: what is known of it.
        window: frames of a window; None: the model's own.
        overlap: frames that neighbouring windows share at least; None: a quarter of the window.
        spacing: of tokens in space, see `position_scaling.scale_positions`.
        seen: height and width that the network is given at once, where that is a tile; see `Model.resized`.
        change: (start, stop) of a window -> what else changes its course, such as where it begins; None: nothing.
        direction: where the windows begin; backward makes the end first.
        fresh: the frames that are not known already, from one to the one before another; None: all.
        verb, settings, inputs: of the task, for the record.
    """

    frames: int
    size: tuple[int, int] | None = None
    scenes: tuple[Scene, ...] = ()
    fade: int = 0
    known: Knowing | None = None
    window: int | None = None
    overlap: int | None = None
    spacing: float = 1.0
    seen: tuple[int, int] | None = None
    change: Callable[[int, int], RunTransform] | None = None
    direction: Direction = "forward"
    fresh: tuple[int, int] | None = None
    verb: str = "video"
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Sequence[SourceFile]] = field(default_factory=dict)


def windows(model: Model, shot: VideoSpec) -> list[Window]:
    """The windows of a shot, from the beginning of the clip to its end; the last one may reach beyond it.

    Raises:
        RecipeError: lengths that cannot be.
    """
    (alone, step, *_), own = temporal_compression(model), shot.window or model.shape[1]
    if shot.frames < 1:
        raise RecipeError(f"frames {shot.frames}: at least 1, which is a picture")
    total = round_up_frames(model, shot.frames)
    length = min(round_up_frames(model, own), total)
    if length == total:
        return [Window(0, total)]
    overlap = max(1, round(length * OVERLAP)) if shot.overlap is None else shot.overlap
    if shot.direction == "backward" and alone and shot.overlap is None:
        overlap = max(overlap, alone + step)  # what stands alone at a clip's beginning does not inside of it
    if not 1 <= overlap < length:
        raise RecipeError(f"overlap {overlap}: neighbouring windows of {length} frames share 1 to {length - 1} of them")
    stride = (length - overlap) // step * step
    if stride < 1:
        most = length - step
        raise RecipeError(f"overlap {overlap}: windows of {length} frames go on by {step} at least; at most {most}")
    return [Window(start, start + length) for start in tile_starts(total, length, stride, step)]


def generate_long_video(
    model: Model, request: Request, shot: VideoSpec, source: Source = UNNAMED, on_step: OnStep | None = None
) -> Iterator[VideoChunk]:
    """The frames of clips, part by part, forwards in time.

    Noise depends on the seed, the clip's number and the window alone. A shot that is made backwards is kept until its
    beginning is there.

    Args:
        request: of clips; its size is not looked at.
        shot: what they are.
        source: which model it is, for the record.
        on_step: as in `generate`, over all windows.

    Raises:
        RecipeError: a setting that cannot work.
    """
    every = windows(model, shot)
    order = every if shot.direction == "forward" else every[::-1]
    size = shot.size or (model.shape[-2], model.shape[-1])
    settings = {**shot.settings, "frames": shot.frames, "windows": [list(one) for one in every]}
    kept: list[VideoChunk] = []
    last: tuple[Window, Tensor] | None = None
    for number, window in enumerate(order):
        known, new = _known(model, shot, window, size, last)
        text, before = _text(request, shot, window)
        length = window.stop - window.start
        wanted = replace(request, given=text, seed=_seeds(request, number), size=(length, *size))
        made = conditioned_generation(
            model, known or _nothing(model, length, size), shot.verb, settings, _changing(shot, window, before)
        )
        steps = on_step and part_of(on_step, number, len(order))
        made = replace(made, seen=shot.seen, inputs=shot.inputs)
        pictures = list(generate(model, wanted, source, made, on_step=steps))
        pixels = torch.stack([one.pixels for one in pictures])
        last = window, pixels
        cut = pixels[:, :, new.start - window.start : min(new.stop, shot.frames) - window.start]
        part = VideoChunk(cut, tuple(one.facts for one in pictures))
        if shot.direction == "forward":
            yield part
        else:
            kept.append(part)
    yield from reversed(kept)


def concat_chunks(parts: Iterable[VideoChunk]) -> Tensor:
    """The clips of a film, uint8 (B, C, T, H, W)."""
    return torch.cat([part.pixels for part in parts], dim=2)


def new_frames_only(parts: Iterable[VideoChunk], shot: VideoSpec) -> Iterator[VideoChunk]:
    """The parts of a film without the frames that were known before it was made."""
    first, stop = shot.fresh or (0, shot.frames)
    place = 0
    for pixels, facts in parts:
        count = pixels.shape[2]
        here = pixels[:, :, max(first - place, 0) : max(stop - place, 0)]
        place += count
        if here.shape[2]:
            yield VideoChunk(here, facts)


def exact_frames(frames: Mapping[int, Tensor]) -> Knowing:
    """Frames that are known for sure, by their places in the clip: uint8 or in [-1, 1], (N, C, H, W) each."""

    def knowing(start: int, stop: int) -> ConditioningFrames | None:
        here = {place: frame for place, frame in frames.items() if start <= place < stop}
        if not here:
            return None
        return keyframes(torch.stack(list(here.values()), dim=2), [place - start for place in here], stop - start)

    return knowing


def _known(
    model: Model, shot: VideoSpec, window: Window, size: tuple[int, int], last: tuple[Window, Tensor] | None
) -> tuple[ConditioningFrames | None, Window]:
    """What is known in a window, of the task and of the window made before it; and the frames that are new."""
    own = None if shot.known is None else shot.known(*window)
    if last is None:
        return own, window
    there, pixels = last
    shared = Window(max(window.start, there.start), min(window.stop, there.stop))
    ahead = there.start < window.start
    new = Window(shared.stop, window.stop) if ahead else Window(window.start, shared.start)
    first = shared.start if ahead else shared.start + temporal_compression(model).alone
    frames = pixels[:, :, first - there.start : shared.stop - there.start]
    before = keyframes(
        frames, [place - window.start for place in range(first, shared.stop)], window.stop - window.start
    )
    return before if own is None else merge_conditioning(before, own), new


def _changing(shot: VideoSpec, window: Window, text: RunTransform) -> RunTransform:
    """What changes the course of a window but for what is known: places, text, and what the shot says."""
    own = identity if shot.change is None else shot.change(*window)
    return lambda course, rows: own(text(scale_positions(course, shot.spacing), rows), rows)


def _nothing(model: Model, length: int, size: tuple[int, int]) -> ConditioningFrames:
    until = torch.full((1, 1, length, 1, 1), FREE, dtype=torch.float64)
    return ConditioningFrames(torch.zeros(1, model.shape[0], length, *size, dtype=torch.uint8), until)


def _text(request: Request, shot: VideoSpec, window: Window) -> tuple[Mapping[str, Sequence[Any]], RunTransform]:
    """The condition of a window, and what changes its course where several texts are in it."""
    if not shot.scenes:
        return request.given, identity
    weights = prompt_weights(shot.scenes, *window, fade=shot.fade)
    seen = [number for number in range(len(weights)) if float(weights[number].max()) > 0]
    texts = [{**request.given, PROMPT: [shot.scenes[number].prompt]} for number in seen]
    return texts[0], identity if len(seen) == 1 else prompt_schedule(texts, weights[seen])


def _seeds(request: Request, window: int) -> int | tuple[int, ...]:
    """The seeds of a window: those of the request for the first, others for each that follows."""
    if window == 0:
        return request.seed
    other = lambda seed: key(seed, window) >> 1  # noqa: E731 - within the whole numbers of 63 bits
    return other(request.seed) if isinstance(request.seed, int) else tuple(map(other, request.seed))
