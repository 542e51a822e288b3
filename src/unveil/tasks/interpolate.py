"""Interpolation between two generated images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from unveil.errors import RecipeError
from unveil.tasks.fields import IMAGE_SUFFIXES, SamplingFields, info
from unveil.tasks.image_task import GeneratesImages, ModelTask, StartFields
from unveil.tasks.task import TaskResult, Workload

if TYPE_CHECKING:
    from torch import Tensor

    from unveil.generation.generate import TaskSpec
    from unveil.model import Model
    from unveil.tasks.task import TaskContext


class Interpolate(StartFields, SamplingFields, ModelTask, GeneratesImages):
    """Interpolate between two generated images, frame by frame.

    Noise is interpolated on the sphere, conditions linearly. Two seeds, prompts, labels or other conditions are those
    of the first and of the last image; one is that of both.

    Example: unveil interpolate ddpm-digits --seed 3 --seed 9 --label 3 --label 8 --frames 24 -o way
    """

    name: ClassVar[str] = "interpolate"
    section: ClassVar[str] = "Generate"
    group: ClassVar[str] = "Animation"
    arguments: ClassVar[tuple[str, ...]] = ("model", "...")
    out: ClassVar[str] = "way"

    frames: Annotated[int, info("Number of frames, both ends included.", ge=2, le=4096)] = 16
    format: Annotated[
        Literal["gif", "webp", "apng", "mp4", "webm"], info("Format of the animation: gif, webp, apng, mp4 or webm.")
    ] = "gif"
    fps: Annotated[
        float, info("Frame rate of the animation, in frames per second.", title="Frame rate", unit="fps", gt=0, le=120)
    ] = 12.0

    def check(self) -> None:
        """At most two values of each condition, and a model instead of an image."""
        if PurePath(self.model).suffix.lower() in IMAGE_SUFFIXES:
            raise RecipeError(
                f"{self.model}: is an image; interpolate generates both ends itself and needs a model; for frames "
                f"between two images use `unveil video interpolate {self.model} LAST`"
            )
        ends: dict[str, tuple[Any, ...]] = {"seed": self.seed, "prompt": self.prompt, "label": self.label, **self.cond}
        for key, values in ends.items():
            if len(values) > 2:
                raise RecipeError(f"{key}: more than 2; give one for both ends, or one for each")

    def spec(self, model: Model, inputs: Mapping[str, Tensor]) -> TaskSpec:
        """Generation from noise and conditions between those of both ends."""
        del inputs
        from unveil.generation.variations import interpolate
        from unveil.tasks.image_run import conditions

        first, last = ((seed, self.start_index) for seed in (self.seed[0], self.seed[-1]))
        to = {key: values[-1:] for key, values in conditions(self, model).items()}
        return interpolate(model, (first, last), frames=self.frames, to=to)

    def run(self, context: TaskContext) -> TaskResult:
        """Generate the frames and the animation."""
        from unveil.tasks.noise_run import run_interpolation

        return run_interpolation(self, context)

    def cost(self, load: Workload) -> float:
        """Frames x network evaluations x megapixels."""
        height, width = self.size or load.shape[-2:]
        return self.frames * load.nfe(0, 1) * height * width / 1e6
