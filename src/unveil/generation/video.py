"""What is done with clips: each task is what is known of a clip, until when, where and under which text.

Tasks that end in one run are edits, as those of images are, for `generate`; those that make longer videos are for
`long_video.generate_long_video`, part by part. Clips are (N, C, T, H, W), uint8 or in [-1, 1]: one for all results, or
one each.

Sources: Brooks et al. 2024, "Video generation models as world simulators", the section on prompting with images and
videos; the mechanism: Zheng et al. 2024 (arXiv:2412.20404), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unveil.autoencoders.looping import LoopingAutoencoder
from unveil.conditioning.batching import build_conditions, expand_per_sample
from unveil.conditioning.circular_shift import circular_shift
from unveil.core import guidance, inverse
from unveil.core.denoiser import DenoiseFn
from unveil.core.rng import START, key
from unveil.core.sampling_run import SamplingRun
from unveil.errors import RecipeError, ShapeError
from unveil.generation.conditioning_frames import FREE, ConditioningFrames, conditioned_generation, keyframes
from unveil.generation.long_video import Direction, VideoSpec, exact_frames
from unveil.generation.prompt_schedule import Scene, check_scenes, prompt_schedule
from unveil.generation.task_spec import TaskSpec, identity, input_to_unit, latents_of, select_list, select_rows
from unveil.io.images import to_pixels
from unveil.model import Model
from unveil.model.shapes import TemporalCompression, temporal_compression
from unveil.types import NoiseLevel

_FORM = "T, H, W"
_DIFFERENCE = 1 << 20  # numbers of the draws of an edit by difference begin here, apart from those of samplers


def inpaint_frames(model: Model, frames: Tensor, at: Sequence[int], length: int | None = None) -> TaskSpec:
    """Clips around frames that are given: a picture that begins to move, a clip that goes on or is led up to.

    Args:
        frames: (N, C, K, H, W), which come out exactly.
        at: the place of each of the K in the clip, from 0; below 0 counted from the end.
        length: frames of the clip; None: the model's own.

    Raises:
        RecipeError: a place outside the clip.
    """
    return conditioned_generation(model, keyframes(frames, at, length or model.shape[1]), "fill", {"at": list(at)})


def extend(
    model: Model,
    clips: Tensor,
    frames: int | None = None,
    *,
    direction: Direction = "forward",
    context: int | None = None,
    window: int | None = None,
) -> VideoSpec:
    """A film that goes on with clips, or leads up to them, by `frames` more.

    The film begins (backwards: ends) with frames of the clip; `long_video.new_frames_only` gives the others.

    Args:
        clips: (N, C, T, H, W).
        frames: how many are added; None: as many as the model makes at once, with those that are known.
        direction: which end.
        context: frames of the clip that are known; at least two show how fast things move. None: half a window, if
            there are so many. What the model's latents do not hold is left out.
        window: frames of a window; None: the model's own.

    Raises:
        RecipeError: fewer frames than are to be known, or nothing to add.
    """
    count, step = clips.shape[2], temporal_compression(model)
    wanted = min(count, max(1, (window or model.shape[1]) // 2)) if context is None else context
    _check_context(wanted, count, "the clip", 1 if frames is None else frames)
    ahead = direction == "forward"
    known = _whole_context(wanted, step, step.alone if ahead else 0)
    frames = max(1, (window or model.shape[1]) - known) if frames is None else frames
    total = known + frames if ahead else step.up(known + frames)
    kept = clips[:, :, -known:] if ahead else clips[:, :, :known]
    first = 0 if ahead else total - known
    added = (known, total) if ahead else (first - frames, first)
    return VideoSpec(
        total,
        (clips.shape[3], clips.shape[4]),
        known=exact_frames({first + k: kept[:, :, k] for k in range(known)}),
        window=window,
        direction=direction,
        fresh=added,
        verb="extend",
        settings={"direction": direction, "context": known, "added": frames},
    )


def interpolate_between(
    model: Model, first: Tensor, last: Tensor, frames: int | None = None, *, context: int | None = None
) -> VideoSpec:
    """A film, of one window, from the end of one clip to the beginning of another, by `frames` between them.

    It begins and ends with frames of the clips; `long_video.new_frames_only` gives the others. With one clip as both,
    they close a loop: the clip, then these frames, then the clip again.

    Args:
        first, last: (N, C, T, H, W) of one size.
        frames: between the two; None: as many as the model makes at once, with those that are known.
        context: frames of each that are known; None: a quarter of the model's own frames, if there are so many. What
            the model's latents do not hold is left out.

    Raises:
        RecipeError: clips of unlike sizes, says how to match them; or numbers that cannot be.
    """
    check_alike(first, last)
    least, step = min(first.shape[2], last.shape[2]), temporal_compression(model)
    wanted = min(least, max(1, model.shape[1] // 4)) if context is None else context
    _check_context(wanted, least, "the shorter clip", 1 if frames is None else frames)
    before, after = (_whole_context(wanted, step, alone) for alone in (step.alone, 0))
    frames = max(step.step, model.shape[1] - before - after) if frames is None else frames
    total = before + frames + after
    if step.up(total) != total:
        near = frames + step.up(total) - total
        raise RecipeError(f"frames {frames}: this model makes {step.step} frames together; nearest {near}")
    ends = {place: first[:, :, first.shape[2] - before + place] for place in range(before)}
    ends |= {before + frames + place: last[:, :, place] for place in range(after)}
    return VideoSpec(
        total,
        (first.shape[3], first.shape[4]),
        known=exact_frames(ends),
        window=total,
        fresh=(before, before + frames),
        verb="bridge",
        settings={"context": wanted, "added": frames},
    )


def _check_context(context: int, count: int, clip: str, frames: int) -> None:
    if not 1 <= context <= count:
        raise RecipeError(f"context {context}: {clip} has {count} frames; give 1 to {count}")
    if frames < 1:
        raise RecipeError(f"frames {frames}: at least 1 is added")


def _whole_context(wanted: int, step: TemporalCompression, alone: int) -> int:
    """The largest number of frames, at most so many, that latents hold by themselves."""
    found = alone + (wanted - alone) // step.step * step.step
    if found < 1:
        raise RecipeError(f"context {wanted}: this model's latents hold {step.step} frames together; give so many")
    return found


def check_alike(first: Tensor, last: Tensor) -> None:
    """Raises RecipeError where two clips differ in their height or width; says how to match them."""
    (height, width), other = first.shape[3:], tuple(last.shape[3:])
    if (height, width) != other:
        raise RecipeError(
            f"clips of {width}x{height} and {other[1]}x{other[0]} px (width x height): both must have one size; "
            f"bring both to it with --size {width}x{height} or --size {other[1]}x{other[0]}"
        )


def storyboard(scenes: Sequence[Scene], frames: int, *, fade: int = 0, window: int | None = None) -> VideoSpec:
    """A film with a prompt for each span of time.

    Args:
        scenes: that cover the frames, in order.
        frames: of the film.
        fade: frames over which one prompt goes over into the next.
        window: frames of a window; None: the model's own.

    Raises:
        RecipeError: scenes that leave a gap or lie over each other, or an empty prompt.
    """
    told = check_scenes(scenes, frames)
    settings = {"scenes": [list(one) for one in told], "fade": fade}
    return VideoSpec(frames, scenes=told, fade=fade, window=window, verb="storyboard", settings=settings)


def loop(model: Model, frames: int | None = None, size: tuple[int, int] | None = None) -> TaskSpec:
    """Clips without a beginning: after the last frame comes the first. For models of pixels, and for `cyclic` ones.

    Args:
        frames: of the ring; None: the model's own.
        size: height and width; None: the model's own.
    """
    count = frames or model.shape[1]

    def change(course: SamplingRun, rows: slice) -> SamplingRun:
        del rows
        return course.around(lambda step: circular_shift(step, 2))

    return TaskSpec("ring", {"frames": count}, change, size=(count, *(size or model.shape[-2:])))


def with_looping_vae(model: Model) -> Model:
    """The model for rings: latents stand for frames all around, none for the first alone; it shares the weights."""
    step = temporal_compression(model)
    if not step.alone:
        return model
    other = model.resized(model.shape[-2:])
    other.autoencoder = LoopingAutoencoder(model.autoencoder, step.step, step.latents, step.first)
    frames = max(step.step, model.shape[1] // step.step * step.step)
    other.shape = (model.shape[0], frames, *model.shape[2:])
    return other


def sdedit_video(
    model: Model, clips: Tensor, strength: float | Sequence[float], mask: Tensor | None = None
) -> TaskSpec:
    """Clips noised and made again under another text (SDEdit), frame by frame and place by place as strongly as said.

    Args:
        clips: (N, C, T, H, W).
        strength: the time in [0, 1] down to which a frame is noised: of all, or of each of the T; 0 keeps it exactly.
        mask: boolean (N or 1, 1, T or 1, H, W), True where the clip is made again; elsewhere it stays exactly.

    Raises:
        RecipeError: a strength outside [0, 1], or not one for each frame.
        ShapeError: a mask of another size.

    Source: Meng et al. 2021, algorithm 1 (arXiv:2108.01073); a strength for each frame: Zheng et al. 2024
        (arXiv:2412.20404), section 3.
    """
    count = clips.shape[2]
    each = [strength] * count if isinstance(strength, float | int) else [float(one) for one in strength]
    if len(each) != count:
        raise RecipeError(f"{len(each)} strengths for {count} frames: give one, or one for each frame")
    for one in each:
        if not 0 <= one <= 1:
            raise RecipeError(f"strength {one:g}: must lie in [0, 1]; 0 keeps the frame, 1 is generation")
    until = torch.tensor(each, dtype=torch.float64).view(1, 1, -1, 1, 1)
    if mask is not None:
        if mask.ndim != 5 or mask.shape[3:] != clips.shape[3:] or mask.shape[2] not in (1, count):
            raise ShapeError(f"mask {tuple(mask.shape)} for clips {tuple(clips.shape)}: must be (N, 1, T, H, W)")
        until = torch.where(mask, until, 0.0)
    until = torch.where(until >= 1, FREE, until)
    return conditioned_generation(
        model, ConditioningFrames(clips, until), "edit", {"strength": each[0] if len(set(each)) == 1 else each}
    )


def flow_edit_video(
    model: Model,
    clips: Tensor,
    source: Mapping[str, Sequence[Any]],
    *,
    strength: float = 0.7,
    source_scale: float = 1.5,
    mask: Tensor | None = None,
) -> TaskSpec:
    """Clips edited by the difference of what the model says under two texts; nothing is inverted (FlowEdit).

    The request holds the new text. Its guidance acts on the new text alone.

    Args:
        clips: (N, C, T, H, W).
        source: the condition that describes the clips as they are, by key.
        strength: the time in (0, 1] from which on they are moved.
        source_scale: of guidance towards the source; 1 is none.
        mask: as in `restyle`, without a codec; elsewhere the clip stays exactly.

    Raises:
        RecipeError: a strength outside (0, 1].

    Source: Kulikov et al. 2024, algorithm 1 (arXiv:2412.08629).
    """
    if not 0 < strength <= 1:
        raise RecipeError(f"strength {strength:g}: must lie in (0, 1]; near 0 keeps the clip")
    unit = input_to_unit(clips, model.shape[0], _FORM)

    def change(course: SamplingRun, rows: slice) -> SamplingRun:
        latents = latents_of(model, select_rows(unit, rows))
        rest = inverse.sdedit(course.grid, latents, course.noise(START), strength)[0]
        given = {key: expand_per_sample(key, select_list(values, rows), len(course)) for key, values in source.items()}
        old = guided_by(course, given, source_scale)
        step = inverse.flow_edit(course.estimating(), old, latents, lambda level: course.noise(noise_index(level)))
        return replace(course, grid=rest, step=step, x=torch.zeros_like(latents), onto=latents)

    def finish(pixels: Tensor, rows: slice) -> Tensor:
        return (
            pixels if mask is None else torch.where(select_rows(mask, rows), pixels, to_pixels(select_rows(unit, rows)))
        )

    settings = {"strength": strength, "source": {k: list(v) for k, v in source.items()}, "source_scale": source_scale}
    return TaskSpec("move", settings, change, finish=finish, size=tuple(clips.shape[2:]))


def crossfade(
    model: Model,
    first: Tensor,
    last: Tensor,
    *,
    strength: float = 0.7,
    texts: Sequence[Mapping[str, Sequence[Any]]] = (),
) -> TaskSpec:
    """Clips that begin as one clip and end as another, each frame a little more the other: both seen at once.

    Frame by frame the two are mixed and noised, most in the middle and not at the ends, and made again under both
    texts, the one fading into the other.

    Args:
        first, last: (N, C, T, H, W) of one size and length.
        strength: the time in [0, 1] down to which the frame in the middle is noised.
        texts: none, or the condition of each of the two, by key.

    Raises:
        RecipeError: clips of unlike sizes or lengths, or a strength outside [0, 1].
    """
    check_alike(first, last)
    count = first.shape[2]
    if last.shape[2] != count or count < 2:
        raise RecipeError(
            f"clips of {count} and {last.shape[2]} frames: a gradual blend needs two of one length, at least 2; "
            f"cut both to {min(count, last.shape[2])}, or bridge them"
        )
    if not 0 <= strength <= 1:
        raise RecipeError(f"strength {strength:g}: must lie in [0, 1]; 0 is a cross-fade")
    if len(texts) not in (0, 2):
        raise RecipeError(f"{len(texts)} texts for two clips: give none, or one for each")
    along = torch.linspace(0, 1, count, dtype=torch.float64)
    one, other = (input_to_unit(clip, model.shape[0], _FORM) for clip in (first, last))
    mixed = torch.lerp(one, other, along.to(one).view(1, 1, -1, 1, 1))
    until = (strength * torch.sin(math.pi * along)).clamp(min=0).view(1, 1, -1, 1, 1)
    until[:, :, [0, -1]] = 0.0
    until = torch.where(until >= 1, FREE, until)
    before = prompt_schedule(texts, torch.stack([1 - along, along])) if texts else identity
    return conditioned_generation(model, ConditioningFrames(mixed, until), "blend", {"strength": strength}, before)


def guided_by(course: SamplingRun, given: Mapping[str, Any], scale: float) -> DenoiseFn:
    """The model's step for a condition under plain guidance, whatever the request's own guidance is."""
    condition, null = build_conditions(course.conditioners, given, len(course))
    if scale == 1 or null is None:
        return course.plain(condition)
    return guidance.cfg(course.plain(condition), course.plain(null), scale)


def noise_index(level: NoiseLevel) -> int:
    """The number of the step whose noise an edit by difference takes at a level: by its time, always the same."""
    return _DIFFERENCE + key(round(float(level.t) * (1 << 32))) % _DIFFERENCE
