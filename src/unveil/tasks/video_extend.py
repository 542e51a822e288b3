"""Extension of videos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from unveil.tasks.fields import VideoOrFrames, info
from unveil.tasks.video_task import FramesAdded, InputPrompt, VideoTask

if TYPE_CHECKING:
    from unveil.tasks.video_run import VideoShot, VideoStage


class VideoExtend(FramesAdded, InputPrompt, VideoTask):
    """Extend a video forward or backward; its own frames stay as they are.

    Example: unveil video extend clip.mp4 --frames 16 -o longer.mp4
    """

    name: ClassVar[str] = "video-extend"
    arguments: ClassVar[tuple[str, ...]] = ("video",)

    video: Annotated[
        VideoOrFrames,
        info("Input video: MP4, MOV, WebM, MKV, GIF, or a folder of PNG frames.", metavar="VIDEO"),
    ]
    backward: Annotated[bool, info("Generate frames before the video.")] = False

    def shot(self, stage: VideoStage) -> VideoShot:
        """The frames after the video, or before it."""
        from unveil.generation import video
        from unveil.tasks.video_run import VideoShot

        clip = stage.read_continued("video")
        direction = "backward" if self.backward else "forward"
        spec = video.extend(stage.model, clip.pixels, self.frames, direction=direction, context=self.context_frames)
        ends = (None, clip.pixels[0]) if self.backward else (clip.pixels[0], None)
        return VideoShot(self, spec, stage.request(stage.prompt_of(clip)), clip.rate, ends)
