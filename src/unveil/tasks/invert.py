"""DDIM inversion: the initial noise of an image."""

from __future__ import annotations

from typing import Annotated, ClassVar

from unveil.tasks.fields import GuidedFields, ImageFiles, info
from unveil.tasks.image_task import ModelTask
from unveil.tasks.task import TaskContext, TaskResult, Workload


class Invert(GuidedFields, ModelTask):
    """Find the initial noise of an image by DDIM inversion.

    `unveil sample --latents` starts from it.

    Example: unveil invert ddpm-digits three.png --label 3 -o three.safetensors
    """

    name: ClassVar[str] = "invert"
    section: ClassVar[str] = "Edit images"
    arguments: ClassVar[tuple[str, ...]] = ("model", "image", "...")
    out: ClassVar[str] = "noise.safetensors"
    makes: ClassVar[str] = "noise"

    image: Annotated[ImageFiles, info("Input image, or a folder of images.")]
    steps: Annotated[int | None, info("Number of sampling steps.", ge=1, le=10_000)] = 50

    def run(self, context: TaskContext) -> TaskResult:
        """Find the noise, and write it with the settings that lead back to the image."""
        from unveil.tasks.noise_run import run_inversion

        return run_inversion(self, context)

    def cost(self, load: Workload) -> float:
        """Network evaluations x megapixels."""
        height, width = self.size or load.inputs["image"][-2:]
        return load.nfe(0, 1) * height * width / 1e6
