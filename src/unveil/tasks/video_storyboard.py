"""Videos of several scenes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from unveil.tasks.fields import Fields, Text, info
from unveil.tasks.task import Workload
from unveil.tasks.video_task import MAX_LENGTH, VideoTask, Windows

if TYPE_CHECKING:
    from unveil.tasks.video_run import VideoShot, VideoStage

Place = Annotated[int, Field(ge=0, le=MAX_LENGTH)]


class Scene(Fields):
    """A scene of a storyboard: its first and its last frame, and its prompt."""

    first: Annotated[Place, info("Index of the first frame.")]
    last: Annotated[Place, info("Index of the last frame.")]
    prompt: Annotated[Text, info("Prompt of the scene.", widget="text")]


class VideoStoryboard(Windows, VideoTask):
    """Generate one video of several scenes, each a span of frames with its own prompt.

    Example: unveil video storyboard --scene "0-15 a red circle moves left" --scene "16-31 a red circle moves up"
    """

    name: ClassVar[str] = "video-storyboard"
    arguments: ClassVar[tuple[str, ...]] = ("scenes",)

    scenes: Annotated[
        tuple[Scene, ...],
        info(
            "Scenes, each with frames and a prompt; on a command line, a YAML or JSON file of them.",
            metavar="[FILE]",
            min_length=1,
        ),
    ]
    prompt_crossfade: Annotated[
        int, info("Number of frames over which one prompt fades into the next.", ge=0, le=MAX_LENGTH)
    ] = 0

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompt of each scene."""
        return tuple(scene.prompt for scene in self.scenes)

    def frames_of(self, load: Workload) -> int:
        """Number of frames of a result."""
        return max(scene.last + 1 for scene in self.scenes)

    def shot(self, stage: VideoStage) -> VideoShot:
        """The video of all scenes."""
        from dataclasses import replace

        from unveil.generation import video
        from unveil.generation.prompt_schedule import ScheduledPrompt as Span
        from unveil.generation.video_inputs import rate_of
        from unveil.tasks.video_run import VideoShot

        scenes = tuple(scene.model_copy(update={"prompt": stage.read_prompt(scene.prompt)}) for scene in self.scenes)
        spans = [Span(scene.first, scene.last + 1, scene.prompt) for scene in scenes]
        spec = video.storyboard(spans, spans[-1].stop, fade=self.prompt_crossfade, window=self.window)
        spec = replace(spec, size=self.size, overlap=self.overlap)
        task = self.model_copy(update={"scenes": scenes})
        return VideoShot(task, spec, stage.request(spans[0].prompt), rate_of(stage.model))
