"""Video jobs: text-, image- and video-to-video generation; their requests and their handler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from unveil.errors import RecipeError
from unveil.generation import video_inputs as reading
from unveil.io.images import make_grid, png
from unveil.model.config.sections import Section
from unveil.server.jobs.catalog import Catalog
from unveil.server.jobs.job_console import job_console
from unveil.server.jobs.model_cache import ModelCache
from unveil.server.jobs.request import BaseRequest, Text, UploadName, validate_request
from unveil.server.jobs.uploads import UploadStore
from unveil.server.jobs.worker import JobProgress
from unveil.tasks import NAME, registry
from unveil.tasks.context import TaskContext, TaskOutput

CLIPS = "clips"
FRAMES = 4096
STRIP = 8  # frames of the frame strip
COVER, STRIP_FILE = "cover.png", "strip.png"
Count = Annotated[int, Field(ge=1, le=FRAMES)]
VideoTask = Literal["make", "extend", "between", "connect", "loop", "ring", "edit", "storyboard", "upscale"]
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
TASKS: Mapping[VideoTask, str] = {
    "make": "video-generate",
    "extend": "video-extend",
    "between": "video-interpolate",
    "connect": "video-join",
    "loop": "video-loop",
    "ring": "video-loop",
    "edit": "video-edit",
    "storyboard": "video-storyboard",
    "upscale": "video-upscale",
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


class Keyframe(Section):
    """An image as a keyframe of the video; `at` is its frame index, negative from the end."""

    picture: UploadName
    at: Annotated[int, Field(ge=-FRAMES, le=FRAMES)] = 0


class Scene(Section):
    """A scene of a storyboard: its first and last frame, and its prompt."""

    first: Annotated[int, Field(ge=0, le=FRAMES)]
    last: Annotated[int, Field(ge=0, le=FRAMES)]
    prompt: Text


class ClipRequest(BaseRequest):
    """Request of a video job.

    Attributes:
        verb: Task: make a video from a prompt and keyframes, extend one, between (interpolate) or connect (join) two,
            loop one, ring (a new loop from a prompt), edit, storyboard or upscale.
        form: File format.
        fps: Frames per second; none: those of the input video, or 8.
        frames: Length in frames, or number of added frames.
        window: Frames generated at a time, for long videos.
        known: Keyframes.
        clip, other: Upload names of input videos or images.
        direction: Side at which extend adds frames.
        context: Number of context frames taken from the input video.
        way: Method: bridge or blend for connect, noise or difference for edit.
        prompts: Prompts of connect, one for each input video.
        strength: Denoising strength of edit, blend and upscale.
        source: Prompt that describes the input video, for the edit method difference.
        mask, keep: Upload names of masks for edit, white where the video is regenerated or kept.
        scenes: Scenes of a storyboard.
        fade: Frames of crossfade between the prompts of two scenes.
        factor: Upscale factor.
    """

    verb: VideoTask = "make"
    form: Literal["mp4", "webm", "gif"] = "mp4"
    fps: Annotated[float, Field(gt=0, le=120)] | None = None
    frames: Count | None = None
    window: Count | None = None
    known: Annotated[tuple[Keyframe, ...], Field(max_length=64)] = ()
    clip: UploadName | None = None
    other: UploadName | None = None
    direction: Literal["forward", "backward"] = "forward"
    context: Count | None = None
    way: Literal["bridge", "blend", "noise", "difference"] | None = None
    prompts: Annotated[tuple[Text, ...], Field(max_length=2)] = ()
    strength: Annotated[float, Field(ge=0, le=1)] | None = None
    source: Text | None = None
    mask: UploadName | None = None
    keep: UploadName | None = None
    scenes: Annotated[tuple[Scene, ...], Field(max_length=64)] = ()
    fade: Annotated[int, Field(ge=0, le=FRAMES)] = 0
    factor: Annotated[int, Field(ge=1, le=8)] = 2

    @property
    def length(self) -> int | None:
        """Length in frames, if the request states it."""
        return max((scene.last + 1 for scene in self.scenes), default=self.frames)


def read_request(fields: Mapping[str, Any]) -> ClipRequest:
    """Validate a request as far as possible without its model and its input videos.

    Raises:
        RecipeError: Names each invalid key, its value and the allowed values.
    """
    request = validate_request(ClipRequest, fields, ("steps", "guidance_scale", "sampler"))
    for name in NEEDS[request.verb]:
        if not getattr(request, name):
            raise RecipeError(f"request: {request.verb} needs {' and '.join(NEEDS[request.verb])}; {name} is missing")
    allowed = {*ALWAYS, *NEEDS[request.verb], *TAKES[request.verb]}
    for name in fields:
        if name not in allowed:
            takes = ", ".join([*NEEDS[request.verb], *TAKES[request.verb]])
            raise RecipeError(f"request: {name}: {request.verb} does not take it; it takes: {takes}")
    return request


def files_of(request: ClipRequest, catalog: Catalog, inputs: UploadStore) -> list[Path]:
    """Return the paths of all uploads of a request.

    Raises:
        WeightsError: The model does not exist.
        DataError: A file was not uploaded.
    """
    catalog.model(request.model)
    names = [request.clip, request.other, request.mask, request.keep, *(keyframe.picture for keyframe in request.known)]
    return [inputs.path(name) for name in names if name is not None]


class VideoJob:
    """Handler of video jobs.

    Args:
        models: Cache of loaded models.
        catalog: Names that requests may use.
        inputs: Uploaded files.
        device: Device to compute on.
    """

    def __init__(self, models: ModelCache, catalog: Catalog, inputs: UploadStore, device: str) -> None:
        self._models, self._catalog, self._inputs, self._device = models, catalog, inputs, device

    def __call__(self, fields: Mapping[str, Any], folder: Path, progress: JobProgress) -> None:
        """Generate a video: the file with its metadata, its first frame as cover, and a strip of frames.

        Raises:
            RecipeError, WeightsError, DataError: The request is not possible.
            Cancelled: The job was cancelled.
        """
        request = read_request(fields)
        out = folder / f"clip.{request.form}"
        task = registry.parse(self._task_values(request), "request")
        with job_console(progress) as console:
            task.run(TaskContext(TaskOutput(out), console, self._device, opener=self._models.open))
        progress.check()
        _write_previews(out, folder)

    def _task_values(self, request: ClipRequest) -> dict[str, Any]:
        """The values of the task of a request, with the paths of its model and of its uploads."""
        common = {
            NAME: TASKS[request.verb],
            "model": str(self._catalog.model(request.model).path),
            "negative_prompt": request.negative,
            "seed": request.seed,
            "fps": request.fps,
            "format": request.form,
            **request.sampling,
        }
        if request.size is not None:
            common |= {"height": request.size[0], "width": request.size[1]}
        values = common | self._own_values(request)
        return {name: value for name, value in values.items() if value is not None}

    def _own_values(self, request: ClipRequest) -> dict[str, Any]:
        """The values of the task besides those that all tasks have."""
        clip, other, mask, keep_mask = (
            None if name is None else str(self._inputs.path(name))
            for name in (request.clip, request.other, request.mask, request.keep)
        )
        added = {"frames": request.frames, "context_frames": request.context}
        match request.verb:
            case "make":
                keyframes = [{"image": str(self._inputs.path(one.picture)), "frame": one.at} for one in request.known]
                expand = None if request.expand else "none"
                values = {"prompt": request.prompt, "keyframes": keyframes, "expand_prompt": expand}
                return values | {"frames": request.frames, "window": request.window}
            case "ring":
                return {"prompt": request.prompt, "frames": request.frames}
            case "storyboard":
                scenes = [scene.model_dump() for scene in request.scenes]
                return {"scenes": scenes, "prompt_crossfade": request.fade, "window": request.window}
            case "extend":
                backward = request.direction == "backward"
                return {"video": clip, "prompt": request.prompt, "backward": backward, **added}
            case "loop":
                return {"video": clip, "prompt": request.prompt, **added}
            case "between":
                return {"first": clip, "last": other, "prompt": request.prompt, **added}
            case "connect":
                values = {"first": clip, "last": other, "prompt": request.prompts, **added}
                return values | {"method": request.way, "strength": request.strength}
            case "edit":
                values = {"video": clip, "prompt": request.prompt, "method": request.way, "strength": request.strength}
                return values | {"source_prompt": request.source, "mask": mask, "keep_mask": keep_mask}
            case "upscale":
                values = {"video": clip, "prompt": request.prompt, "factor": request.factor}
                return values | {"strength": request.strength}


def _write_previews(clip: Path, folder: Path) -> None:
    """Write the first frame of a video, and a strip of evenly spaced frames."""
    pixels, _ = reading.decoded(clip, None)
    count = pixels.shape[1]
    places = [round(place * (count - 1) / max(min(STRIP, count) - 1, 1)) for place in range(min(STRIP, count))]
    (folder / COVER).write_bytes(png(pixels[:, 0]))
    (folder / STRIP_FILE).write_bytes(png(make_grid(pixels[:, places].transpose(0, 1), columns=len(places))))
