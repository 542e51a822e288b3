"""Video tasks: image-to-video, extension, interpolation, storyboards, loops, and edits (SDEdit, FlowEdit, cross-fade).

Tasks that need one sampling run return a `TaskSpec` for `generate`; those of longer videos return a `VideoSpec` for
`long_video.generate_long_video`. Videos are (N, C, T, H, W), uint8 or in [-1, 1]: one for all results, or one each.

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

from unveil.autoencoders.video_kl import LoopingAutoencoder
from unveil.conditioning.batching import build_conditions, expand_per_sample
from unveil.conditioning.tiled_denoising import circular_shift
from unveil.core import guidance, inverse
from unveil.core.denoiser import DenoiseFn
from unveil.core.rng import START, key
from unveil.core.samplers.loop import SamplingRun
from unveil.errors import RecipeError, ShapeError
from unveil.generation.conditioning_frames import UNCONDITIONED_T, ConditioningFrames, conditioned_generation, keyframes
from unveil.generation.generate import TaskSpec, encode_latents, identity, input_to_unit, select_list, select_rows
from unveil.generation.long_video import Direction, VideoSpec, exact_frames
from unveil.generation.prompt_schedule import ScheduledPrompt, check_scenes, prompt_schedule
from unveil.io.images import to_pixels
from unveil.model import Model
from unveil.model.shapes import TemporalCompression, temporal_compression
from unveil.types import NoiseLevel

_FORM = "T, H, W"
_FIRST_INDEX = 1 << 20  # indices of FlowEdit's noise begin here, apart from those of samplers


def inpaint_frames(model: Model, frames: Tensor, at: Sequence[int], length: int | None = None) -> TaskSpec:
    """Generate videos around exact keyframes, such as image-to-video.

    Args:
        model: Video model.
        frames: Keyframes (N, C, K, H, W).
        at: Index of each of the K frames in the video, from 0; below 0 counted from the end.
        length: Number of frames of the video; None: the model's.

    Raises:
        RecipeError: An index outside the video.
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
    """Continue videos by `frames` frames, at their end or at their beginning.

    The result begins (backwards: ends) with frames of the video; `long_video.new_frames_only` yields the others.

    Args:
        model: Video model.
        clips: (N, C, T, H, W).
        frames: Number of added frames; None: as many as the model generates at once, with the conditioning frames.
        direction: Forward: at the end; backward: at the beginning.
        context: Number of conditioning frames; at least two show motion. None: half a window, or the whole video. It is
            rounded down to whole latents.
        window: Number of frames of a window; None: the model's.

    Raises:
        RecipeError: A video with fewer frames than `context`, or no frames to add.
    """
    count, step = clips.shape[2], temporal_compression(model)
    requested = min(count, max(1, (window or model.shape[1]) // 2)) if context is None else context
    _check_context(requested, count, "the video", 1 if frames is None else frames)
    ahead = direction == "forward"
    context = _whole_context(requested, step, step.leading_frames if ahead else 0)
    frames = max(1, (window or model.shape[1]) - context) if frames is None else frames
    total = context + frames if ahead else step.round_up(context + frames)
    end = clips[:, :, -context:] if ahead else clips[:, :, :context]
    first = 0 if ahead else total - context
    return VideoSpec(
        total,
        (clips.shape[3], clips.shape[4]),
        conditioning=exact_frames({first + k: end[:, :, k] for k in range(context)}),
        window=window,
        direction=direction,
        new_frames=(context, total) if ahead else (first - frames, first),
        name="extend",
        settings={"direction": direction, "context": context, "added": frames},
    )


def interpolate_between(
    model: Model, first: Tensor, last: Tensor, frames: int | None = None, *, context: int | None = None
) -> VideoSpec:
    """Generate `frames` frames from the end of one video to the beginning of another, in one window.

    The result begins and ends with frames of the videos; `long_video.new_frames_only` yields the others. With one video
    as both, they close a loop: the video, then these frames, then the video again.

    Args:
        model: Video model.
        first, last: (N, C, T, H, W) of one size.
        frames: Number of frames between the two; None: as many as the model generates at once, with the conditioning
            frames.
        context: Number of conditioning frames of each video; None: a quarter of the model's frames, or the whole
            shorter video. It is rounded down to whole latents.

    Raises:
        RecipeError: Videos of different sizes (the message says how to match them), or invalid numbers.
    """
    check_alike(first, last)
    shorter, step = min(first.shape[2], last.shape[2]), temporal_compression(model)
    requested = min(shorter, max(1, model.shape[1] // 4)) if context is None else context
    _check_context(requested, shorter, "the shorter video", 1 if frames is None else frames)
    before, after = (_whole_context(requested, step, alone) for alone in (step.leading_frames, 0))
    frames = max(step.stride, model.shape[1] - before - after) if frames is None else frames
    total = before + frames + after
    if step.round_up(total) != total:
        near = frames + step.round_up(total) - total
        raise RecipeError(f"frames {frames}: this model makes {step.stride} frames together; nearest {near}")
    ends = {place: first[:, :, first.shape[2] - before + place] for place in range(before)}
    ends |= {before + frames + place: last[:, :, place] for place in range(after)}
    return VideoSpec(
        total,
        (first.shape[3], first.shape[4]),
        conditioning=exact_frames(ends),
        window=total,
        new_frames=(before, before + frames),
        name="bridge",
        settings={"context": requested, "added": frames},
    )


def _check_context(context: int, count: int, video: str, frames: int) -> None:
    if not 1 <= context <= count:
        raise RecipeError(f"context {context}: {video} has {count} frames; give 1 to {count}")
    if frames < 1:
        raise RecipeError(f"frames {frames}: at least 1 is added")


def _whole_context(requested: int, step: TemporalCompression, alone: int) -> int:
    """Return the largest number of frames, at most `requested`, that fills whole latents."""
    whole = alone + (requested - alone) // step.stride * step.stride
    if whole < 1:
        raise RecipeError(
            f"context {requested}: this model's latents encode {step.stride} frames together; "
            f"give at least {step.stride}"
        )
    return whole


def check_alike(first: Tensor, last: Tensor) -> None:
    """Raise RecipeError if two videos differ in height or width; the message says how to match them."""
    (height, width), other = first.shape[3:], tuple(last.shape[3:])
    if (height, width) != other:
        raise RecipeError(
            f"videos of {width}x{height} and {other[1]}x{other[0]} px (width x height): both must have one size; "
            f"bring both to it with --size {width}x{height} or --size {other[1]}x{other[0]}"
        )


def storyboard(
    scenes: Sequence[ScheduledPrompt], frames: int, *, fade: int = 0, window: int | None = None
) -> VideoSpec:
    """Return a video with a prompt for each span of frames.

    Args:
        scenes: Scenes that cover the frames, in order.
        frames: Number of frames.
        fade: Number of frames over which one prompt fades into the next.
        window: Number of frames of a window; None: the model's.

    Raises:
        RecipeError: Scenes that leave a gap or overlap, or an empty prompt.
    """
    checked = check_scenes(scenes, frames)
    settings = {"scenes": [list(scene) for scene in checked], "fade": fade}
    return VideoSpec(frames, scenes=checked, fade=fade, window=window, name="storyboard", settings=settings)


def loop(model: Model, frames: int | None = None, size: tuple[int, int] | None = None) -> TaskSpec:
    """Generate looping videos: after the last frame comes the first.

    For models of pixels; latent models need `with_looping_vae`.

    Args:
        model: Video model.
        frames: Number of frames; None: the model's.
        size: Height and width; None: the model's.
    """
    count = frames or model.shape[1]

    def change(run: SamplingRun, rows: slice) -> SamplingRun:
        del rows
        return run.wrap_denoiser(lambda step: circular_shift(step, 2))

    return TaskSpec("ring", {"frames": count}, change, size=(count, *(size or model.shape[-2:])))


def with_looping_vae(model: Model) -> Model:
    """Return the model for loops, whose autoencoder has no latents of the first frame only; it shares the weights."""
    step = temporal_compression(model)
    if not step.leading_frames:
        return model
    other = model.resized(model.shape[-2:])
    other.autoencoder = LoopingAutoencoder(
        model.autoencoder, step.stride, step.latents_per_stride, step.latents_per_leading_frame
    )
    frames = max(step.stride, model.shape[1] // step.stride * step.stride)
    other.shape = (model.shape[0], frames, *model.shape[2:])
    return other


def sdedit_video(
    model: Model, clips: Tensor, strength: float | Sequence[float], mask: Tensor | None = None
) -> TaskSpec:
    """Noise videos and denoise them under another prompt (SDEdit), with a strength for each frame and place.

    Args:
        model: Video model.
        clips: (N, C, T, H, W).
        strength: Time in [0, 1] to which a frame is noised: one for all, or one for each of the T; 0 keeps it exactly.
        mask: Boolean (N or 1, 1, T or 1, H, W), True where the video is edited; the rest stays exactly.

    Raises:
        RecipeError: A strength outside [0, 1], or not one for each frame.
        ShapeError: A mask of another size.

    Source: Meng et al. 2021, algorithm 1 (arXiv:2108.01073); a strength for each frame: Zheng et al. 2024
        (arXiv:2412.20404), section 3.
    """
    count = clips.shape[2]
    each = [strength] * count if isinstance(strength, float | int) else [float(value) for value in strength]
    if len(each) != count:
        raise RecipeError(f"{len(each)} strengths for {count} frames: give one, or one for each frame")
    for value in each:
        if not 0 <= value <= 1:
            raise RecipeError(f"strength {value:g}: must lie in [0, 1]; 0 keeps the frame, 1 is generation")
    until = torch.tensor(each, dtype=torch.float64).view(1, 1, -1, 1, 1)
    if mask is not None:
        if mask.ndim != 5 or mask.shape[3:] != clips.shape[3:] or mask.shape[2] not in (1, count):
            raise ShapeError(f"mask {tuple(mask.shape)} for videos {tuple(clips.shape)}: must be (N, 1, T, H, W)")
        until = torch.where(mask, until, 0.0)
    until = torch.where(until >= 1, UNCONDITIONED_T, until)
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
    """Edit videos by the difference of the model's estimates under two prompts, without inversion (FlowEdit).

    The request has the new prompt. Its guidance applies only to the new prompt.

    Args:
        model: Video model.
        clips: (N, C, T, H, W).
        source: Condition that describes the videos as they are, by key.
        strength: Time in (0, 1] at which the edit begins.
        source_scale: Guidance scale of the source condition; 1: no guidance.
        mask: As in `sdedit_video`, in pixels; the rest of the video stays exactly.

    Raises:
        RecipeError: A strength outside (0, 1].

    Source: Kulikov et al. 2024, algorithm 1 (arXiv:2412.08629).
    """
    if not 0 < strength <= 1:
        raise RecipeError(f"strength {strength:g}: must lie in (0, 1]; near 0 keeps the video")
    unit = input_to_unit(clips, model.shape[0], _FORM)

    def change(run: SamplingRun, rows: slice) -> SamplingRun:
        latents = encode_latents(model, select_rows(unit, rows))
        rest = inverse.sdedit(run.schedule, latents, run.noise(START), strength)[0]
        cond = {key: expand_per_sample(key, select_list(values, rows), len(run)) for key, values in source.items()}
        old = guided_denoiser(run, cond, source_scale)
        step = inverse.flow_edit(run.active_denoiser(), old, latents, lambda level: run.noise(noise_index(level)))
        return replace(run, schedule=rest, denoiser=step, x=torch.zeros_like(latents), base=latents)

    def finish(pixels: Tensor, rows: slice) -> Tensor:
        return (
            pixels if mask is None else torch.where(select_rows(mask, rows), pixels, to_pixels(select_rows(unit, rows)))
        )

    settings = {"strength": strength, "source": {k: list(v) for k, v in source.items()}, "source_scale": source_scale}
    return TaskSpec("move", settings, change, postprocess=finish, size=tuple(clips.shape[2:]))


def crossfade(
    model: Model,
    first: Tensor,
    last: Tensor,
    *,
    strength: float = 0.7,
    texts: Sequence[Mapping[str, Sequence[Any]]] = (),
) -> TaskSpec:
    """Fade one video into another, and denoise the mixed frames.

    Frame by frame the two are mixed and noised, most in the middle and not at the ends, and denoised under both
    prompts, the first fading into the second.

    Args:
        model: Video model.
        first, last: (N, C, T, H, W) of one size and length.
        strength: Time in [0, 1] to which the middle frame is noised.
        texts: Empty, or the condition of each of the two, by key.

    Raises:
        RecipeError: Videos of different sizes or lengths, or a strength outside [0, 1].
    """
    check_alike(first, last)
    count = first.shape[2]
    if last.shape[2] != count or count < 2:
        raise RecipeError(
            f"videos of {count} and {last.shape[2]} frames: a gradual blend needs two of one length, at least 2; "
            f"cut both to {min(count, last.shape[2])}, or bridge them"
        )
    if not 0 <= strength <= 1:
        raise RecipeError(f"strength {strength:g}: must lie in [0, 1]; 0 is a cross-fade")
    if len(texts) not in (0, 2):
        raise RecipeError(f"{len(texts)} prompts for two videos: give none, or one for each")
    along = torch.linspace(0, 1, count, dtype=torch.float64)
    start, end = (input_to_unit(video, model.shape[0], _FORM) for video in (first, last))
    mixed = torch.lerp(start, end, along.to(start).view(1, 1, -1, 1, 1))
    until = (strength * torch.sin(math.pi * along)).clamp(min=0).view(1, 1, -1, 1, 1)
    until[:, :, [0, -1]] = 0.0
    until = torch.where(until >= 1, UNCONDITIONED_T, until)
    before = prompt_schedule(texts, torch.stack([1 - along, along])) if texts else identity
    return conditioned_generation(model, ConditioningFrames(mixed, until), "blend", {"strength": strength}, before)


def guided_denoiser(run: SamplingRun, cond: Mapping[str, Any], scale: float) -> DenoiseFn:
    """Return the denoiser of a condition under classifier-free guidance, whatever the request's guidance is."""
    condition, null = build_conditions(run.conditioners, cond, len(run))
    if scale == 1 or null is None:
        return run.make_denoiser(condition)
    return guidance.cfg(run.make_denoiser(condition), run.make_denoiser(null), scale)


def noise_index(level: NoiseLevel) -> int:
    """Return the index of FlowEdit's noise at a noise level, which depends only on its time."""
    return _FIRST_INDEX + key(round(float(level.t) * (1 << 32))) % _FIRST_INDEX
