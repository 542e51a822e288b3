"""Base class of the tasks that generate videos: their fields, their cost and regeneration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from unveil.errors import RecipeError
from unveil.tasks.fields import (
    AdapterFields,
    Fields,
    ModelFields,
    SamplingFields,
    SizeFields,
    StrictFields,
    Text,
    info,
)
from unveil.tasks.task import Task, TaskContext, TaskResult, Workload

if TYPE_CHECKING:
    from unveil.tasks.regenerate import Regenerate
    from unveil.tasks.video_run import VideoShot, VideoStage

MAX_LENGTH = 1_000_000  # frames
Length = Annotated[int, Field(ge=1, le=MAX_LENGTH)]
VideoFormat = Literal["mp4", "webm", "gif", "webp", "apng"]


class VideoTask(StrictFields, AdapterFields, SizeFields, SamplingFields, ModelFields, Task):
    """A task that generates videos. A subclass states its own fields, and what is generated in `shot`."""

    section: ClassVar[str] = "Videos"
    group: ClassVar[str] = "Videos"
    out: ClassVar[str] = "clip.mp4"
    makes: ClassVar[str] = "videos"

    negative_prompt: Annotated[
        Text | None, info("Prompt to guide away from; needs a guidance scale above 1.", widget="text")
    ] = None
    count: Annotated[
        int | None,
        info(
            "Number of videos, each from its own initial noise; one per seed when left out.",
            title="Number of videos",
            flags=["--num-videos", "-n"],
            ge=1,
        ),
    ] = None
    fps: Annotated[
        float | None,
        info(
            "Frame rate in frames per second; that of the model's training when left out, or that of an edited video.",
            title="Frame rate",
            unit="fps",
            gt=0,
            le=1000,
        ),
    ] = None
    format: Annotated[VideoFormat, info("File format of the video: mp4, webm, gif, webp or apng.", option=False)] = (
        "mp4"
    )

    @property
    def file_name(self) -> str:
        """Name of the file on a server."""
        return f"clip.{self.format}"

    @property
    def texts(self) -> tuple[str, ...]:
        """Every prompt that the task states."""
        prompt = getattr(self, "prompt", None)
        return () if prompt is None else (prompt,) if isinstance(prompt, str) else tuple(prompt)

    @property
    def results(self) -> int:
        """Number of videos."""
        return self.count or len(self.seed)

    def check(self) -> None:
        """No prompt is empty."""
        if not all(text.strip() for text in self.texts):
            raise RecipeError('the prompt is empty; write one such as "a small red circle moves left"')

    def shot(self, stage: VideoStage) -> VideoShot:
        """The specification of the video, made of the model and the input files.

        Raises:
            RecipeError: The task is not possible with this model, or with these files.
            DataError: A file that is missing or damaged.
        """
        raise NotImplementedError

    def run(self, context: TaskContext) -> TaskResult:
        """Generate the videos: a file with metadata each."""
        from unveil.tasks.video_run import run_video

        return run_video(self, context)

    def regenerate(self, context: TaskContext, facts: Mapping[str, Any], regeneration: Regenerate) -> TaskResult:
        """Generate one video again."""
        from unveil.tasks.video_run import regenerate_video

        return regenerate_video(self, context, facts, regeneration)

    def frames_of(self, load: Workload) -> int:
        """Number of frames of a result: those that are generated, and those of the input videos."""
        of_inputs = sum(frames for frames, _, _ in _videos(load))
        generated = getattr(self, "frames", None) or (load.shape[1] if len(load.shape) > 3 else 1)
        return of_inputs + generated

    def cost(self, load: Workload) -> float:
        """Videos x network evaluations x frames x megapixels."""
        sides = [(height, width) for _, height, width in _videos(load)] or [load.shape[-2:]]
        height, width = self.size or (max(side[0] for side in sides), max(side[1] for side in sides))
        return self.results * load.nfe(0, 1) * self.frames_of(load) * height * width / 1e6


def _videos(load: Workload) -> list[tuple[int, int, int]]:
    """(frames, height, width) of the input videos, without keyframes and masks."""
    return [load.inputs[name] for name in ("video", "first", "last") if name in load.inputs]


class FramesAdded(Fields):
    """Number of frames that are added to videos, and of the context frames that condition them."""

    group: ClassVar[str] = "Length"

    frames: Annotated[
        Length | None,
        info("Number of frames that are added; when left out, one window of the model is filled."),
    ] = None
    context_frames: Annotated[
        Length | None, info("Number of frames of each video that new frames continue.", advanced=True)
    ] = None


class Windows(Fields):
    """The windows in which long videos are generated."""

    group: ClassVar[str] = "Length"

    window: Annotated[
        Length | None,
        info("Number of frames that are generated at once; the model's default when left out.", advanced=True),
    ] = None
    overlap: Annotated[
        int | None,
        info(
            "Number of frames that windows share; a quarter of a window when left out.",
            advanced=True,
            ge=0,
            le=MAX_LENGTH,
        ),
    ] = None


class InputPrompt(Fields):
    """The prompt of a video that is generated from another one."""

    group: ClassVar[str] = "Conditions"

    prompt: Annotated[Text | None, info("Prompt; that of the input video's metadata when left out.", widget="text")] = (
        None
    )
