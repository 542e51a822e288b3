"""Interpolation between two generated images, or between two images that are given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from unveil.errors import RecipeError
from unveil.tasks.fields import IMAGE_SUFFIXES, ImageFile, SamplingFields, info
from unveil.tasks.image_task import GeneratesImages, ModelTask, StartFields
from unveil.tasks.task import TaskResult, Workload

if TYPE_CHECKING:
    from torch import Tensor

    from unveil.generation.generate import TaskSpec
    from unveil.model import Model
    from unveil.tasks.task import TaskContext

STEPS = 50  # of an inversion, and of the frames from its noise


class Interpolate(StartFields, SamplingFields, ModelTask, GeneratesImages):
    """Interpolate between two generated images, or between two given ones, frame by frame.

    Noise is interpolated on the sphere, conditions linearly. Two seeds, prompts, labels or other conditions are those
    of the first and of the last image; one is that of both. The noise of given images is found by DDIM inversion.

    Example: unveil interpolate ddpm-digits --seed 3 --seed 9 --label 3 --label 8 --frames 24 -o way

    Example: unveil interpolate ddpm-digits three.png eight.png --label 3 --label 8 -o way
    """

    name: ClassVar[str] = "interpolate"
    section: ClassVar[str] = "Generate"
    group: ClassVar[str] = "Animation"
    arguments: ClassVar[tuple[str, ...]] = ("model", "...")
    out: ClassVar[str] = "way"

    first: Annotated[
        ImageFile | None, info("Image that the result starts with; generated from the seed when left out.")
    ] = None
    last: Annotated[
        ImageFile | None, info("Image that the result ends with; generated from the seed when left out.")
    ] = None
    frames: Annotated[int, info("Number of frames, both ends included.", ge=2, le=4096)] = 16
    format: Annotated[
        Literal["gif", "webp", "apng", "mp4", "webm"], info("Format of the animation: gif, webp, apng, mp4 or webm.")
    ] = "gif"
    fps: Annotated[
        float, info("Frame rate of the animation, in frames per second.", title="Frame rate", unit="fps", gt=0, le=120)
    ] = 12.0

    def check(self) -> None:
        """At most two values of each condition, both images or none, and a model instead of an image."""
        if PurePath(self.model).suffix.lower() in IMAGE_SUFFIXES:
            raise RecipeError(
                f"{self.model}: is an image; interpolate needs a model before it, `unveil interpolate MODEL "
                f"{self.model} LAST`; with a video model use `unveil video interpolate {self.model} LAST`"
            )
        if (self.first is None) != (self.last is None):
            raise RecipeError(f"{self.first or self.last}: is one image; give two, or none to generate both ends")
        if self.between_images and (self.sampler not in (None, "ddim") or self.eta):
            named = f"sampler {self.sampler!r}" if self.sampler not in (None, "ddim") else f"eta {self.eta}"
            raise RecipeError(f"{named}: between two images the sampler is ddim with eta 0; leave it out")
        if self.between_images and len(self.seed) > 1:
            raise RecipeError("seed: the noise of both ends is that of the two images; leave it out")
        ends: dict[str, tuple[Any, ...]] = {"seed": self.seed, "prompt": self.prompt, "label": self.label, **self.cond}
        for key, values in ends.items():
            if len(values) > 2:
                raise RecipeError(f"{key}: more than 2; give one for both ends, or one for each")

    @property
    def between_images(self) -> bool:
        """Whether both ends are given images."""
        return self.first is not None

    @property
    def sampling_changes(self) -> dict[str, Any]:
        """Changes of the model's sampling settings; those of an inversion between two images."""
        changes = super().sampling_changes
        return {"steps": STEPS} | changes | {"sampler": "ddim", "eta": 0.0} if self.between_images else changes

    def spec(self, model: Model, inputs: Mapping[str, Tensor]) -> TaskSpec:
        """Generation from noise and conditions between those of both ends."""
        from unveil.generation.generate import Request
        from unveil.generation.variations import interpolate, interpolate_images
        from unveil.tasks.image_run import conditions, negative_conditions

        first, last = ((seed, self.start_index) for seed in (self.seed[0], self.seed[-1]))
        cond = conditions(self, model)
        to = {key: values[-1:] for key, values in cond.items()}
        if self.between_images:
            of_first = {key: values[:1] for key, values in cond.items()}
            negative = negative_conditions(self, model)
            how = Request(of_first, sampling=self.sampling_changes, dtype=self.dtype, negative=negative)
            return interpolate_images(model, inputs["first"], inputs["last"], how, frames=self.frames, to=to)
        return interpolate(model, (first, last), frames=self.frames, to=to)

    def run(self, context: TaskContext) -> TaskResult:
        """Generate the frames and the animation."""
        from unveil.tasks.noise_run import run_interpolation

        return run_interpolation(self, context)

    def cost(self, load: Workload) -> float:
        """Frames x network evaluations x megapixels."""
        height, width = self.size or load.inputs.get("first", load.shape)[-2:]
        return (self.frames + 2 * self.between_images) * load.nfe(0, 1) * height * width / 1e6
