"""Inpainting: new content inside a mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from unveil.tasks.fields import Fraction, ImageFiles, MaskFiles, info
from unveil.tasks.image_task import EditFields, ImageTask
from unveil.tasks.task import Task, Workload

if TYPE_CHECKING:
    from torch import Tensor

    from unveil.generation.generate import TaskSpec
    from unveil.generation.inpaint import RePaintConfig
    from unveil.model import Model

WHITE = 128  # pixels of a mask from this value on belong to the generated region


class InpaintFields(Task):
    """Settings that fit the generated region to the rest of the image."""

    group: ClassVar[str] = "Inpainting"

    feather: Annotated[
        int,
        info(
            "Width in pixels of the blend between old and new; 0 keeps every unmasked pixel.",
            unit="px",
            widget="slider",
            ge=0,
            le=512,
        ),
    ] = 0
    method: Annotated[
        Literal["auto", "network", "replace", "repaint"],
        info("Method: auto, network (models trained with masks), replace or repaint (any model).", advanced=True),
    ] = "auto"
    repaint_jump_length: Annotated[
        int, info("Number of steps that repaint jumps back.", advanced=True, ge=1, le=1000)
    ] = 10
    repaint_resamples: Annotated[
        int, info("Number of times that repaint samples each stretch.", advanced=True, ge=1, le=100)
    ] = 10

    @property
    def jumps(self) -> RePaintConfig:
        """Jump length and number of resamples."""
        from unveil.generation.inpaint import RePaintConfig

        return RePaintConfig(self.repaint_jump_length, self.repaint_resamples)

    @property
    def resampling(self) -> tuple[int, int]:
        """Jump length and number of resamples of RePaint; (0, 1) for other methods."""
        return (self.repaint_jump_length, self.repaint_resamples) if self.method == "repaint" else (0, 1)


class Inpaint(InpaintFields, EditFields, ImageTask):
    """Generate new content inside a mask.

    What is outside the mask stays as it is.

    Example: unveil inpaint ddpm-digits three.png --mask mask.png -n 4 -o mended
    """

    name: ClassVar[str] = "inpaint"
    gives: ClassVar[tuple[str, ...]] = ("mask", "masked")

    image: Annotated[ImageFiles, info("Input image, or a folder of images.")]
    mask: Annotated[MaskFiles, info("Mask image, white where new content is generated; or a folder of masks.")]
    strength: Annotated[
        Fraction, info("Strength of the edit inside the mask; below 1 the old content shows through.")
    ] = 1.0

    def spec(self, model: Model, inputs: Mapping[str, Tensor]) -> TaskSpec:
        """Generation inside the mask."""
        from unveil.generation.inpaint import inpaint

        return inpaint(
            model,
            inputs["image"],
            inputs["mask"] >= WHITE,
            strength=self.strength,
            feather=self.feather,
            method=self.method,
            jumps=self.jumps,
        )

    def cost(self, load: Workload) -> float:
        """Images x network evaluations x megapixels."""
        height, width = self.size or load.inputs["image"][-2:]
        return self.results * load.nfe(*self.resampling) * height * width / 1e6
