"""The frames between two images or videos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from unveil.tasks.fields import MediaOrFrames, info
from unveil.tasks.video_task import FramesAdded, InputPrompt, VideoTask

if TYPE_CHECKING:
    from unveil.tasks.video_run import VideoShot, VideoStage


class VideoInterpolate(FramesAdded, InputPrompt, VideoTask):
    """Generate the frames between two images, or between the end of a video and the start of another.

    Example: unveil video interpolate first.png last.png --frames 14 -o between.mp4
    """

    name: ClassVar[str] = "video-interpolate"
    arguments: ClassVar[tuple[str, ...]] = ("first", "last")

    first: Annotated[MediaOrFrames, info("Video or image that the result starts with.", metavar="VIDEO")]
    last: Annotated[MediaOrFrames, info("Video or image that the result ends with.", metavar="VIDEO")]

    def shot(self, stage: VideoStage) -> VideoShot:
        """The frames from the end of the first to the beginning of the last."""
        from unveil.generation import video
        from unveil.tasks.video_run import VideoShot

        first, last, rate = stage.read_two("first", "last")
        spec = video.interpolate_between(
            stage.model, first.pixels, last.pixels, self.frames, context=self.context_frames
        )
        request = stage.request(stage.prompt_of(first))
        return VideoShot(self, spec, request, rate, (first.pixels[0], last.pixels[0]))
