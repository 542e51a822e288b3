"""Editing of videos by a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from unveil.errors import RecipeError
from unveil.tasks.fields import FrameValues, MediaOrFrames, Text, VideoOrFrames, info
from unveil.tasks.task import Workload
from unveil.tasks.video_task import VideoTask

if TYPE_CHECKING:
    from unveil.tasks.video_run import VideoShot, VideoStage


class VideoEdit(VideoTask):
    """Edit a video by a prompt: the whole frame, a region, or everything except a region.

    Example: unveil video edit clip.mp4 --prompt "a small blue circle moves left" --strength 0.7 -o blue.mp4
    """

    name: ClassVar[str] = "video-edit"
    arguments: ClassVar[tuple[str, ...]] = ("video",)

    video: Annotated[
        VideoOrFrames,
        info("Input video: MP4, MOV, WebM, MKV, GIF, or a folder of PNG frames.", metavar="VIDEO"),
    ]
    prompt: Annotated[Text, info("Prompt of the result.", widget="text")]
    strength: Annotated[
        FrameValues,
        info(
            "Strength of the edit, from 0 (keeps a frame) to 1 (keeps nothing of it); several change from the first "
            "frame to the last."
        ),
    ] = (0.7,)
    method: Annotated[
        Literal["noise", "difference"],
        info(
            "Method: noise (SDEdit) regenerates from a noised state; difference (FlowEdit) moves the video by the "
            "difference of two prompts.",
            metavar="METHOD",
        ),
    ] = "noise"
    source_prompt: Annotated[
        Text | None,
        info("Prompt of the input video, for the method difference; that of its metadata when left out."),
    ] = None
    mask: Annotated[
        MediaOrFrames | None, info("Mask image or video, white where new content is generated.", metavar="FILE")
    ] = None
    keep_mask: Annotated[
        MediaOrFrames | None, info("Mask image or video, white where the content is kept.", metavar="FILE")
    ] = None

    def check(self) -> None:
        """One mask at most."""
        super().check()
        if self.mask is not None and self.keep_mask is not None:
            raise RecipeError("--mask and --keep-mask: give one of them; each is the inverse of the other")

    def frames_of(self, load: Workload) -> int:
        """Number of frames of a result: those of the video."""
        return load.inputs["video"][0]

    def shot(self, stage: VideoStage) -> VideoShot:
        """The edited video."""
        from unveil.tasks.video_run import edit_shot

        return edit_shot(self, stage)
