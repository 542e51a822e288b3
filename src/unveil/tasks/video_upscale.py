"""Upscaling of videos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from unveil.tasks.fields import Fraction, VideoOrFrames, info
from unveil.tasks.task import Workload
from unveil.tasks.video_task import InputPrompt, VideoTask

if TYPE_CHECKING:
    from unveil.tasks.video_run import VideoShot, VideoStage


class VideoUpscale(InputPrompt, VideoTask):
    """Upscale a video: bicubic upsampling, whose details are regenerated in overlapping windows.

    Example: unveil video upscale clip.mp4 --factor 2 -o large.mp4
    """

    name: ClassVar[str] = "video-upscale"
    arguments: ClassVar[tuple[str, ...]] = ("video",)

    video: Annotated[
        VideoOrFrames,
        info("Input video: MP4, MOV, WebM, MKV, GIF, or a folder of PNG frames.", metavar="VIDEO"),
    ]
    factor: Annotated[int, info("Upscaling factor of each side; or give the size.", ge=1, le=64)] = 2
    strength: Annotated[Fraction, info("Strength with which details are regenerated, from 0 to 1.")] = 0.3

    def frames_of(self, load: Workload) -> int:
        """Number of frames of a result: those of the video."""
        return load.inputs["video"][0]

    def cost(self, load: Workload) -> float:
        """Videos x network evaluations x frames x megapixels of the result."""
        return super().cost(load) * (1 if self.size else self.factor**2)

    def shot(self, stage: VideoStage) -> VideoShot:
        """The larger video."""
        from unveil.generation import hires
        from unveil.tasks.video_run import VideoShot

        clip = stage.read("video", at_task_size=False)
        height, width = clip.pixels.shape[3:]
        size = self.size or (height * self.factor, width * self.factor)
        spec = hires.upscale_pass(stage.model, clip.pixels, size, self.strength)
        return VideoShot(self, spec, stage.request(stage.prompt_of(clip)), clip.rate)
