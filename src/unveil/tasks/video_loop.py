"""Looping videos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from unveil.errors import RecipeError
from unveil.tasks.fields import VideoOrFrames, info
from unveil.tasks.task import Workload
from unveil.tasks.video_task import FramesAdded, InputPrompt, VideoTask

if TYPE_CHECKING:
    from unveil.tasks.video_run import VideoShot, VideoStage


class VideoLoop(FramesAdded, InputPrompt, VideoTask):
    """Close a video to a loop, or generate a looping video from a prompt.

    Example: unveil video loop clip.mp4 --frames 8 -o loop.gif

    Example: unveil video loop --prompt "a small red circle moves in a circle" -o loop.gif
    """

    name: ClassVar[str] = "video-loop"
    arguments: ClassVar[tuple[str, ...]] = ("video",)

    video: Annotated[
        VideoOrFrames | None,
        info("Input video that new frames close to a loop; without one, give a prompt.", metavar="[VIDEO]"),
    ] = None

    def check(self) -> None:
        """A video or a prompt is there."""
        super().check()
        if self.video is None and self.prompt is None:
            raise RecipeError('loop needs a video, or --prompt "a small red circle moves in a circle"')

    def frames_of(self, load: Workload) -> int:
        """Number of frames of a result."""
        length = self.frames or (load.shape[1] if len(load.shape) > 3 else 1)
        return length if self.video is None else super().frames_of(load)

    def shot(self, stage: VideoStage) -> VideoShot:
        """The frames from the end of the video to its beginning; without a video, a cyclic one."""
        from unveil.generation import video
        from unveil.generation.video_inputs import rate_of
        from unveil.tasks.video_run import VideoShot

        if self.video is None:
            cyclic = video.with_looping_vae(stage.model)
            spec = video.loop(cyclic, self.frames, self.size)
            return VideoShot(self, spec, stage.request(self.prompt), rate_of(stage.model), model=cyclic)
        clip = stage.read_continued("video")
        pixels = clip.pixels
        between = video.interpolate_between(stage.model, pixels, pixels, self.frames, context=self.context_frames)
        return VideoShot(self, between, stage.request(stage.prompt_of(clip)), clip.rate, (pixels[0], None))
