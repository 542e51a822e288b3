"""Image-to-image generation by SDEdit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from unveil.tasks.fields import Fraction, ImageFiles, info
from unveil.tasks.image_task import EditFields, ImageTask

if TYPE_CHECKING:
    from torch import Tensor

    from unveil.generation.generate import TaskSpec
    from unveil.model import Model


class Img2Img(EditFields, ImageTask):
    """Generate variants of images from a noised state (SDEdit).

    The last steps * strength steps of the schedule are run.

    Example: unveil img2img ddpm-digits three.png --label 8 --strength 0.5 -o eight.png
    """

    name: ClassVar[str] = "img2img"

    image: Annotated[ImageFiles, info("Input image, or a folder of images.")]
    strength: Annotated[
        Fraction, info("Strength of the edit, from 0 (keeps the image) to 1 (keeps nothing of it).")
    ] = 0.6

    def spec(self, model: Model, inputs: Mapping[str, Tensor]) -> TaskSpec:
        """Generation that begins at the noised images."""
        from unveil.generation.img2img import img2img

        return img2img(model, inputs["image"], strength=self.strength)
