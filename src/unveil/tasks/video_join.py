"""Two videos as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from unveil.tasks.fields import Fraction, Texts, VideoOrFrames, info
from unveil.tasks.video_task import FramesAdded, VideoTask

if TYPE_CHECKING:
    from unveil.tasks.video_run import VideoShot, VideoStage


class VideoJoin(FramesAdded, VideoTask):
    """Join two videos of one size: the result starts as the first and ends as the last.

    Example: unveil video join first.mp4 last.mp4 --frames 8 -o both.mp4

    Example: unveil video join first.mp4 last.mp4 --method blend -o both.mp4
    """

    name: ClassVar[str] = "video-join"
    arguments: ClassVar[tuple[str, ...]] = ("first", "last")

    first: Annotated[VideoOrFrames, info("Video that the result starts with.", metavar="VIDEO")]
    last: Annotated[VideoOrFrames, info("Video that the result ends with.", metavar="VIDEO")]
    prompt: Annotated[
        Annotated[Texts, Field(max_length=2)],
        info("Prompt of the first video, then of the last; by default those of their metadata.", widget="text"),
    ] = ()
    method: Annotated[
        Literal["bridge", "blend"],
        info("Method: bridge generates frames between the two; blend turns one into the other.", metavar="METHOD"),
    ] = "bridge"
    strength: Annotated[Fraction, info("Strength of a blend, at its middle; 0 is a plain cross-fade.")] = 0.7

    def shot(self, stage: VideoStage) -> VideoShot:
        """The frames between the two videos, or the blend of both."""
        from unveil.tasks.video_run import joining_shot

        return joining_shot(self, stage)
