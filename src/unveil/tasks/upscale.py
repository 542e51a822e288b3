"""Upscaling of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from unveil.tasks.fields import Fraction, ImageFiles, info
from unveil.tasks.image_task import EditFields, ImageTask
from unveil.tasks.task import Workload

if TYPE_CHECKING:
    from torch import Tensor

    from unveil.generation.generate import TaskSpec
    from unveil.model import Model

Factor = Annotated[int, Field(ge=1, le=8)]


class Upscale(EditFields, ImageTask):
    """Upscale images, in tiles where the result is larger than the model's size.

    A super-resolution model, with the condition `low`, does what it was trained for; any other model edits the bicubic
    upsampling.

    Example: unveil upscale ddpm-digits three.png --factor 2 -o large.png
    """

    name: ClassVar[str] = "upscale"
    gives: ClassVar[tuple[str, ...]] = ("low",)

    image: Annotated[ImageFiles, info("Input image, or a folder of images.")]
    factor: Annotated[Factor, info("Upscaling factor of each side.", widget="slider")] = 2
    strength: Annotated[Fraction, info("Strength of the edit, for models that were not trained for upscaling.")] = 0.3
    overlap: Annotated[float, info("Overlap of tiles, as a fraction of their side.", advanced=True, ge=0, lt=1)] = 0.25

    def spec(self, model: Model, inputs: Mapping[str, Tensor]) -> TaskSpec:
        """Generation of the larger image."""
        from unveil.generation.upscale import upscale

        return upscale(model, inputs["image"], factor=self.factor, strength=self.strength, overlap=self.overlap)

    def cost(self, load: Workload) -> float:
        """Images x network evaluations x megapixels of the result."""
        height, width = self.size or load.inputs["image"][-2:]
        return self.results * load.nfe(0, 1) * height * width * self.factor**2 / 1e6
