"""`unveil video`: clips from words, pictures and clips, as files with their records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.cli.generation_options import PROMPT
from unveil.cli.storyboard import scenes_of
from unveil.cli.video_output import Stage, VideoRequest, check_prompt, opening, run, shoot
from unveil.errors import RecipeError, did_you_mean
from unveil.generation import hires, video, video_inputs
from unveil.generation.conditioning_frames import check_place
from unveil.generation.long_video import Direction, VideoSpec, exact_frames
from unveil.generation.prompt_expansion import USUAL, ExpansionOptions, PromptExpander
from unveil.generation.size import check_size
from unveil.generation.task_spec import SourceFile

__all__ = ["ConditioningImages", "ExpansionOptions", "JoinSettings", "Length", "VideoEdit", "VideoRequest"]
WHITE = 128  # from here on a mask's pixel is white
WAYS = {"connect": ("bridge", "blend"), "edit": ("noise", "difference")}


class ConditioningImages(NamedTuple):
    """Pictures that are frames of a clip, and which."""

    images: tuple[Path, ...] = ()
    at: tuple[int, ...] = ()


class Length(NamedTuple):
    """Frames of a clip, of a window, and that windows share."""

    frames: int | None
    window: int | None = None
    overlap: int | None = None


class JoinSettings(NamedTuple):
    """How two clips are connected."""

    way: str
    frames: int | None
    context: int | None
    strength: float


class VideoEdit(NamedTuple):
    """How a clip is edited."""

    strength: str
    way: str
    source: str | None
    mask: Path | None
    keep: Path | None


def make(
    ask: VideoRequest, prompt: str, stills: ConditioningImages, length: Length, expanding: ExpansionOptions = USUAL
) -> None:
    """A clip from words, and from pictures that are frames of it."""
    stage = opening(ask, ask.rate(video_inputs.RATE), prompt)
    model = stage.model
    frames = model.shape[1] if length.frames is None else length.frames
    size = ask.sized() or (model.shape[-2], model.shape[-1])
    check_size(model, size)
    shot = VideoSpec(frames, size, window=length.window, overlap=length.overlap, verb="make")
    places = stills.at or tuple(range(len(stills.images)))[:1]
    if len(places) != len(stills.images):
        raise RecipeError(
            f"--image: {len(stills.images)} images but {len(places)} frame indices; give one "
            "--image-frame for each, such as --image-frame 0"
        )
    if stills.images:
        shown = [video_inputs.read(path, model, size, None) for path in stills.images]
        known = [check_place(place, frames) for place in places]
        if len(set(known)) < len(known):
            raise RecipeError(f"--image-frame {' '.join(map(str, places))}: two images at one frame; give each its own")
        pairs = zip(known, shown, strict=True)
        shot = replace(
            shot,
            known=exact_frames({place: one.pixels[:, :, 0] for place, one in pairs}),
            settings={"at": list(places)},
            inputs={"picture": [one.input for one in shown]},
        )
    if hires.needs_hires(model, size):
        stage.console.say(hires.describe_passes(model, size))
    expander = PromptExpander(expanding, model, stage.console, frames=frames, shown=bool(stills.images))
    shoot(stage, expander(stage.request(prompt)), shot, ask.rate(video_inputs.RATE))


def extend(ask: VideoRequest, path: Path, frames: int | None, direction: Direction, context: int | None) -> None:
    """A clip that goes on, or that is led up to."""
    stage = opening(ask, ask.rate(video_inputs.RATE))
    given = stage.read(path)
    shot = video.extend(stage.model, given.pixels, frames, direction=direction, context=context)
    ends = (given.pixels[0], None) if direction == "forward" else (None, given.pixels[0])
    shoot(stage, stage.request(_text(ask, given)), _of(shot, given.input), given.rate, ends)


def bridge(ask: VideoRequest, verb: str, paths: tuple[Path, Path], frames: int | None, context: int | None) -> None:
    """The way between two pictures or clips, or from a clip's end to its beginning."""
    stage = opening(ask, ask.rate(video_inputs.RATE))
    first, last = (stage.read(path) for path in paths)
    rate = video_inputs.check_rates((first, last), paths)
    shot = replace(
        video.interpolate_between(stage.model, first.pixels, last.pixels, frames, context=context), verb=verb
    )
    ends = (first.pixels[0], None if verb == "loop" else last.pixels[0])
    shoot(stage, stage.request(_text(ask, first)), _of(shot, first.input, last.input), rate, ends)


def connect(ask: VideoRequest, paths: tuple[Path, Path], prompts: tuple[str, ...], joint: JoinSettings) -> None:
    """Two clips as one: by frames between them, or by turning the one into the other."""
    _check_way("connect", joint.way)
    if len(prompts) > 2:
        raise RecipeError(f"--prompt: {len(prompts)} given; one for each of the two videos")
    stage = opening(ask, ask.rate(video_inputs.RATE))
    first, last = (stage.read(path) for path in paths)
    rate = video_inputs.check_rates((first, last), paths)
    texts = [prompts[min(n, len(prompts) - 1)] if prompts else one.prompt for n, one in enumerate((first, last))]
    request = stage.request(texts[0])
    if joint.way == "bridge":
        shot = video.interpolate_between(stage.model, first.pixels, last.pixels, joint.frames, context=joint.context)
        middle = shot.frames // 2
        if None not in texts and texts[0] != texts[1]:
            told = (video.Scene(0, middle, str(texts[0])), video.Scene(middle, shot.frames, str(texts[1])))
            shot = replace(shot, scenes=told, fade=shot.settings["added"])
        shot = replace(shot, verb="connect")
        shoot(stage, request, _of(shot, first.input, last.input), rate, (first.pixels[0], last.pixels[0]))
        return
    both = [{PROMPT: [text]} for text in texts] if None not in texts else ()
    made = video.crossfade(stage.model, first.pixels, last.pixels, strength=joint.strength, texts=both)
    run(stage, request, replace(made, inputs={"clip": [first.input], "other": [last.input]}), rate)


def ring(ask: VideoRequest, frames: int | None) -> None:
    """A loop from words."""
    if ask.prompt is None:
        raise RecipeError('loop needs a video, or --prompt "a small red circle moves in a circle"')
    stage = opening(ask, ask.rate(video_inputs.RATE), ask.prompt)
    cyclic = stage._replace(model=video.with_looping_vae(stage.model))
    run(cyclic, stage.request(ask.prompt), video.loop(cyclic.model, frames, ask.sized()), ask.rate(video_inputs.RATE))


def edit(ask: VideoRequest, path: Path, change: VideoEdit) -> None:
    """A clip edited by words."""
    _check_way("edit", change.way)
    if change.mask is not None and change.keep is not None:
        raise RecipeError("--mask and --keep-mask: give one of them; each is the inverse of the other")
    stage = opening(ask, ask.rate(video_inputs.RATE))
    given = stage.read(path)
    prompt = ask.prompt
    if prompt is None:
        raise RecipeError('edit needs a prompt: --prompt "a small blue circle moves left"')
    mask = _mask(stage, given, change)
    count = given.pixels.shape[2]
    if change.way == "noise":
        made = video.sdedit_video(stage.model, given.pixels, strengths(change.strength, count), mask)
    else:
        before = given.prompt if change.source is None else change.source
        if before is None:
            raise RecipeError(
                'the method difference needs the prompt of the input video: --source-prompt "a small red circle"'
            )
        check_prompt(stage.model, before)
        (strength,) = set(strengths(change.strength, 1))
        made = video.flow_edit_video(stage.model, given.pixels, {PROMPT: [before]}, strength=strength, mask=mask)
    run(stage, stage.request(prompt), replace(made, inputs={"clip": [given.input]}), given.rate)


def storyboard(ask: VideoRequest, script: Path | None, typed: Sequence[str], fade: int, length: Length) -> None:
    """One clip of several scenes."""
    scenes = scenes_of(script, typed)
    stage = opening(ask, ask.rate(video_inputs.RATE), *(scene.prompt for scene in scenes))
    shot = video.storyboard(scenes, scenes[-1].stop, fade=fade, window=length.window)
    for scene in scenes:
        check_prompt(stage.model, scene.prompt)
    request = stage.request(scenes[0].prompt)
    shot = replace(shot, size=ask.sized(), overlap=length.overlap)
    shoot(stage, request, shot, ask.rate(video_inputs.RATE))


def upscale(ask: VideoRequest, path: Path, factor: int, strength: float) -> None:
    """A clip made larger."""
    stage = opening(replace(ask, size=None), ask.rate(video_inputs.RATE))
    given = stage.read(path)
    height, width = given.pixels.shape[3:]
    size = ask.sized() or (height * factor, width * factor)
    shot = hires.upscale_pass(stage.model, given.pixels, size, strength)
    shoot(stage, stage.request(_text(ask, given)), _of(shot, given.input), given.rate)


def strengths(text: str, frames: int) -> list[float]:
    """A strength for each frame: the one that is given, or on straight lines through several, evenly spread.

    Raises:
        RecipeError: not numbers.
    """
    try:
        given = [float(one) for one in text.split(",")]
    except ValueError:
        raise RecipeError(
            f"--strength {text!r}: is a number from 0 to 1, or several with commas, such as 0,0.8"
        ) from None
    if len(given) == 1 or frames == 1:
        return given[:1] * frames
    along = torch.linspace(0, len(given) - 1, frames, dtype=torch.float64)
    low = along.floor().long().clamp(max=len(given) - 2)
    points = torch.tensor(given, dtype=torch.float64)
    return torch.lerp(points[low], points[low + 1], along - low).tolist()


def _check_way(verb: str, way: str) -> None:
    if way not in WAYS[verb]:
        raise RecipeError(f"--method {way!r}: must be one of {', '.join(WAYS[verb])}{did_you_mean(way, WAYS[verb])}")


def _text(ask: VideoRequest, given: video_inputs.Read) -> str | None:
    return given.prompt if ask.prompt is None else ask.prompt


def _of(shot: VideoSpec, first: SourceFile, last: SourceFile | None = None) -> VideoSpec:
    """The shot with the names of the files that it was made of."""
    named = {"clip": [first]} | ({} if last is None else {"other": [last]})
    return replace(shot, inputs=named)


def _mask(stage: Stage, given: video_inputs.Read, change: VideoEdit) -> Tensor | None:
    """Where a clip is made anew: boolean (1, 1, 1 or T, H, W)."""
    path = change.mask or change.keep
    if path is None:
        return None
    size = given.pixels.shape[3], given.pixels.shape[4]
    found = video_inputs.read(path, stage.model, size, stage.ask.fps).pixels
    if found.shape[2] not in (1, given.pixels.shape[2]):
        raise RecipeError(
            f"{path}: {found.shape[2]} frames for a video of {given.pixels.shape[2]}; a mask is one image, or a "
            "video of the same length"
        )
    white = found.float().mean(1, keepdim=True) >= WHITE
    return white if change.keep is None else ~white
