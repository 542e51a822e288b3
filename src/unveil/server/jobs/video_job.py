"""Jobs that make clips, from words, pictures and other clips: what may be asked for, and how it is done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from unveil.cli import video
from unveil.cli import video_inputs as reading
from unveil.cli.prompt_expansion import USUAL, ExpansionOptions
from unveil.cli.video_output import VideoRequest
from unveil.io.images import png, sheet
from unveil.model.config.base import Section
from unveil.server.jobs.catalog import Catalog
from unveil.server.jobs.job_console import heard
from unveil.server.jobs.model_cache import Models
from unveil.server.jobs.request import Asked, Sent, Text, read
from unveil.server.jobs.uploads import Inputs
from unveil.server.jobs.worker import Report
from unveil.types import RecipeError

CLIPS = "clips"
FRAMES = 4096
STRIP = 8  # frames on the strip of a clip
COVER, SHOWN = "cover.png", "strip.png"
Count = Annotated[int, Field(ge=1, le=FRAMES)]
Verb = Literal["make", "extend", "between", "connect", "loop", "ring", "edit", "storyboard", "upscale"]
NEEDS: Mapping[str, tuple[str, ...]] = {
    "make": ("prompt",),
    "extend": ("clip",),
    "between": ("clip", "other"),
    "connect": ("clip", "other"),
    "loop": ("clip",),
    "ring": ("prompt",),
    "edit": ("clip", "prompt"),
    "storyboard": ("scenes",),
    "upscale": ("clip",),
}
TAKES: Mapping[str, tuple[str, ...]] = {
    "make": ("frames", "known", "window"),
    "extend": ("frames", "direction", "context"),
    "between": ("frames", "context"),
    "connect": ("frames", "context", "way", "strength", "prompts"),
    "loop": ("frames", "context"),
    "ring": ("frames",),
    "edit": ("strength", "way", "source", "mask", "keep"),
    "storyboard": ("fade", "window"),
    "upscale": ("factor", "strength"),
}
ALWAYS = ("model", "prompt", "negative", "seed", "width", "height", "sampling", "expand", "verb", "form", "fps")


class KnownFrame(Section):
    """A picture that is a frame of the clip; `at` counts from 0, or from the end when below."""

    picture: Sent
    at: Annotated[int, Field(ge=-FRAMES, le=FRAMES)] = 0


class Scene(Section):
    """A part of a storyboard: its first and last frame, and what is to be seen."""

    first: Annotated[int, Field(ge=0, le=FRAMES)]
    last: Annotated[int, Field(ge=0, le=FRAMES)]
    prompt: Text


class ClipRequest(Asked):
    """What a job of a clip is asked for.

    Attributes:
        verb: make one from words and known frames; extend one; frames between two, or connect them; loop one, or make
            a ring from words; edit one; a storyboard; upscale one.
        form: of the file.
        fps: frames in a second; none: those of the clip, or 8.
        frames: how long, or how many are added. window: frames that are made together, of long clips.
        known: pictures that are frames of it.
        clip, other: names of clips or pictures that were sent.
        direction, context: of extend and what lies between; context counts the frames that are looked at.
        way: of connect bridge or blend, of edit noise or difference. prompts: of connect, one for each clip.
        strength: of edit, blend and upscale. source: of a difference, words for the clip as it is.
        mask, keep: of edit, white where it is made anew, or where it stays.
        scenes, fade: of a storyboard. factor: of upscale.
    """

    verb: Verb = "make"
    form: Literal["mp4", "webm", "gif"] = "mp4"
    fps: Annotated[float, Field(gt=0, le=120)] | None = None
    frames: Count | None = None
    window: Count | None = None
    known: Annotated[tuple[KnownFrame, ...], Field(max_length=64)] = ()
    clip: Sent | None = None
    other: Sent | None = None
    direction: Literal["forward", "backward"] = "forward"
    context: Count | None = None
    way: Literal["bridge", "blend", "noise", "difference"] | None = None
    prompts: Annotated[tuple[Text, ...], Field(max_length=2)] = ()
    strength: Annotated[float, Field(ge=0, le=1)] | None = None
    source: Text | None = None
    mask: Sent | None = None
    keep: Sent | None = None
    scenes: Annotated[tuple[Scene, ...], Field(max_length=64)] = ()
    fade: Annotated[int, Field(ge=0, le=FRAMES)] = 0
    factor: Annotated[int, Field(ge=1, le=8)] = 2

    @property
    def length(self) -> int | None:
        """Frames of the clip, where that is said."""
        return max((scene.last + 1 for scene in self.scenes), default=self.frames)


def read_request(given: Mapping[str, Any]) -> ClipRequest:
    """A request, checked as far as it can be without its model and its clips.

    Raises:
        RecipeError: each fault with its key, its value and what is allowed.
    """
    request = read(ClipRequest, given, ("steps", "scale", "sampler"))
    for name in NEEDS[request.verb]:
        if not getattr(request, name):
            raise RecipeError(f"request: {request.verb} needs {' and '.join(NEEDS[request.verb])}; {name} is missing")
    allowed = {*ALWAYS, *NEEDS[request.verb], *TAKES[request.verb]}
    for name in given:
        if name not in allowed:
            takes = ", ".join([*NEEDS[request.verb], *TAKES[request.verb]])
            raise RecipeError(f"request: {name}: {request.verb} does not take it; it takes: {takes}")
    return request


def files_of(asked: ClipRequest, catalog: Catalog, inputs: Inputs) -> list[Path]:
    """The files that a request speaks of.

    Raises:
        WeightsError: there is no model of its name.
        MediaError: a file that was not sent.
    """
    catalog.model(asked.model)
    names = [asked.clip, asked.other, asked.mask, asked.keep, *(one.picture for one in asked.known)]
    return [inputs.path(name) for name in names if name is not None]


class Clips:
    """The work on such a job.

    Args:
        models: that are in memory.
        catalog: the names that requests may say.
        inputs: the files that were sent.
        device: that they compute on.
    """

    def __init__(self, models: Models, catalog: Catalog, inputs: Inputs, device: str) -> None:
        self._models, self._catalog, self._inputs, self._device = models, catalog, inputs, device

    def __call__(self, given: Mapping[str, Any], folder: Path, report: Report) -> None:
        """Makes a clip: the file with its record, its first frame, and a strip of its frames.

        Raises:
            RecipeError, WeightsError, MediaError: it cannot be done.
            Cancelled: it was told to stop.
        """
        asked = read_request(given)
        out = folder / f"clip.{asked.form}"
        with heard(report) as desk:
            ask = VideoRequest(
                str(self._catalog.model(asked.model).path),
                out,
                prompt=asked.prompt,
                size=asked.size_typed,
                fps=asked.fps,
                steps=asked.sampling.get("steps"),
                guidance=asked.sampling.get("scale"),
                sampler=asked.sampling.get("sampler"),
                seed=asked.seed,
                negative=asked.negative,
                device=self._device,
                console=desk,
                opener=self._models.opener,
            )
            self._shoot(asked, ask)
        report.check()
        _pictured(out, folder)

    def _shoot(self, asked: ClipRequest, ask: VideoRequest) -> None:
        """Calls the verb."""
        # what `NEEDS` names is there
        own, second = (ask.out if one is None else self._inputs.path(one) for one in (asked.clip, asked.other))
        frames, context, prompt = asked.frames, asked.context, asked.prompt or ""
        given = {} if asked.strength is None else {"strength": asked.strength}
        match asked.verb:
            case "make":
                pictures = tuple(self._inputs.path(one.picture) for one in asked.known)
                stills = video.ConditioningImages(pictures, tuple(one.at for one in asked.known))
                expanding = USUAL if asked.expand else ExpansionOptions(no_expand=True)
                video.make(ask, prompt, stills, video.Length(frames, asked.window), expanding)
            case "ring":
                video.ring(ask, frames)
            case "storyboard":
                typed = [f"{one.first}-{one.last} {one.prompt}" for one in asked.scenes]
                video.storyboard(ask, None, typed, asked.fade, video.Length(None, asked.window))
            case "extend":
                video.extend(ask, own, frames, asked.direction, context)
            case "loop":
                video.bridge(ask, "loop", (own, own), frames, context)
            case "between":
                video.bridge(ask, "between", (own, second), frames, context)
            case "connect":
                joint = video.JoinSettings(asked.way or "bridge", frames, context, given.get("strength", 0.7))
                video.connect(ask, (own, second), asked.prompts, joint)
            case "edit":
                masks = (None if one is None else self._inputs.path(one) for one in (asked.mask, asked.keep))
                change = video.VideoEdit(f"{given.get('strength', 0.7)}", asked.way or "noise", asked.source, *masks)
                video.edit(ask, own, change)
            case "upscale":
                video.upscale(ask, own, asked.factor, given.get("strength", 0.3))


def _pictured(clip: Path, folder: Path) -> None:
    """The first frame of a clip, and a strip of frames evenly spread over it."""
    pixels, _ = reading.decoded(clip, None)
    count = pixels.shape[1]
    places = [round(place * (count - 1) / max(min(STRIP, count) - 1, 1)) for place in range(min(STRIP, count))]
    (folder / COVER).write_bytes(png(pixels[:, 0]))
    (folder / SHOWN).write_bytes(png(sheet(pixels[:, places].transpose(0, 1), columns=len(places))))
