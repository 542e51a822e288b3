"""Variations of a generated image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from unveil.tasks.fields import (
    AdapterFields,
    BatchFields,
    CatalogName,
    Fraction,
    ImageFile,
    Name,
    SeedFields,
    info,
)
from unveil.tasks.image_task import ClassifierFields, CountFields, GeneratesImages
from unveil.tasks.task import TaskResult, Workload

if TYPE_CHECKING:
    from torch import Tensor

    from unveil.generation.generate import TaskSpec
    from unveil.model import Model
    from unveil.tasks.task import TaskContext


class Variations(ClassifierFields, AdapterFields, CountFields, BatchFields, SeedFields, GeneratesImages):
    """Generate variations of an image from noise near its own.

    The initial noise is moved towards that of other seeds. Without --seed the next seed is used. The LoRAs and
    ControlNets of the image are used again, found as `unveil regenerate` finds them.

    Example: unveil variations samples/seed0_00000.png --variation-strength 0.2 -n 8 -o near
    """

    name: ClassVar[str] = "variations"
    section: ClassVar[str] = "Generate"
    arguments: ClassVar[tuple[str, ...]] = ("image",)
    out: ClassVar[str] = "varied"

    image: Annotated[ImageFile, info("Image that `unveil sample` generated.")]
    model: Annotated[
        Annotated[Name, CatalogName("model")] | None,
        info("Model that generated it, where the metadata are not enough to find it.", flags=["--model", "-m"]),
    ] = None
    variation_strength: Annotated[
        Fraction, info("Strength from 0 (the same image) to 1 (an unrelated image).", widget="slider")
    ] = 0.3
    source_sample: Annotated[
        tuple[int, int] | None,
        info("Seed and index of the image; those of its metadata when left out.", advanced=True, option=False),
    ] = None

    def spec(self, model: Model, inputs: Mapping[str, Tensor]) -> TaskSpec:
        """Generation from noise between that of the image and that of the seeds."""
        del model, inputs
        from unveil.generation.variations import seed_variations

        assert self.source_sample is not None  # `run` reads it from the metadata
        return seed_variations(self.source_sample, amount=self.variation_strength)

    def run(self, context: TaskContext) -> TaskResult:
        """Generate the variations with the model, conditions and settings of the image's metadata."""
        from unveil.tasks.noise_run import run_variations
        from unveil.tasks.regenerate import Regenerate

        regeneration = Regenerate(
            source=self.image,
            model=self.model,
            lora=self.lora,
            controlnet=self.controlnet,
            classifier=self.classifier,
            classifier_scale=self.classifier_scale,
            classifier_file=self.classifier_file,
        )
        return run_variations(self, context, regeneration)

    def cost(self, load: Workload) -> float:
        """Images x network evaluations x megapixels."""
        height, width = load.inputs["image"][-2:]
        return (self.count or len(self.seed)) * load.nfe(0, 1) * height * width / 1e6
