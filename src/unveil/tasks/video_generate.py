"""Text-to-video and image-to-video generation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from unveil.tasks.fields import ExpansionFields, Fields, ImageFile, Text, info
from unveil.tasks.task import Workload
from unveil.tasks.video_task import MAX_LENGTH, Length, VideoTask, Windows

if TYPE_CHECKING:
    from unveil.tasks.video_run import VideoShot, VideoStage


class Keyframe(Fields):
    """An image that is a frame of the video."""

    image: Annotated[ImageFile, info("Image that is a frame of the video.")]
    frame: Annotated[
        Annotated[int, Field(ge=-MAX_LENGTH, le=MAX_LENGTH)],
        info("Frame index of the image, from 0, or below 0 from the end."),
    ] = 0


class VideoGenerate(ExpansionFields, Windows, VideoTask):
    """Generate a video from a prompt, and from images that are frames of it.

    Videos longer than the model's own are generated window by window, sizes far beyond its own in several passes.

    Example: unveil video generate "a small red circle moves left" --image first.png --frames 32 -o out.mp4
    """

    name: ClassVar[str] = "video-generate"
    arguments: ClassVar[tuple[str, ...]] = ("prompt",)

    prompt: Annotated[Text, info("Prompt.", widget="text")]
    keyframes: Annotated[
        tuple[Keyframe, ...], info("Images that are frames of the video, each with its frame index.", max_length=64)
    ] = ()
    frames: Annotated[Length | None, info("Number of frames; the model's default when left out.")] = None

    def check(self) -> None:
        """An empty prompt is possible for models that draw anything then; others refuse it when they are open."""

    def frames_of(self, load: Workload) -> int:
        """Number of frames of a result."""
        return self.frames or (load.shape[1] if len(load.shape) > 3 else 1)

    def shot(self, stage: VideoStage) -> VideoShot:
        """A video in which the keyframes are known."""
        from unveil.tasks.video_run import generation_shot

        return generation_shot(self, stage)
