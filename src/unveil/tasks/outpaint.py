"""Outpainting: an image that is continued beyond its edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from unveil.tasks.fields import ImageFiles, info
from unveil.tasks.image_task import EditFields, ImageTask
from unveil.tasks.inpaint import InpaintFields
from unveil.tasks.task import Workload
from unveil.types import format_size

if TYPE_CHECKING:
    from torch import Tensor

    from unveil.generation.generate import TaskSpec
    from unveil.model import Model

Margin = Annotated[int, Field(ge=0, le=4096)]


class Outpaint(InpaintFields, EditFields, ImageTask):
    """Extend an image beyond its edges.

    The canvas is rounded up to a size that the network takes.

    Example: unveil outpaint ddpm-digits three.png --left 4 --right 4 -o wide.png
    """

    name: ClassVar[str] = "outpaint"
    group: ClassVar[str] = "Margins"
    gives: ClassVar[tuple[str, ...]] = ("mask", "masked")

    image: Annotated[ImageFiles, info("Input image, or a folder of images.")]
    left: Annotated[Margin, info("Number of pixels that are added at the left edge.", unit="px")] = 0
    right: Annotated[Margin, info("Number of pixels that are added at the right edge.", unit="px")] = 0
    top: Annotated[Margin, info("Number of pixels that are added at the top edge.", unit="px")] = 0
    bottom: Annotated[Margin, info("Number of pixels that are added at the bottom edge.", unit="px")] = 0

    def spec(self, model: Model, inputs: Mapping[str, Tensor]) -> TaskSpec:
        """Generation of the margins, on a canvas that the network takes."""
        from unveil.generation.inpaint import Padding, fit_padding, outpaint

        height, width = inputs["image"].shape[2:]
        wanted = Padding(self.left, self.right, self.top, self.bottom)
        margins = fit_padding(model, (height, width), wanted)
        spec = outpaint(model, inputs["image"], margins, feather=self.feather, method=self.method, jumps=self.jumps)
        if margins == wanted:
            return spec
        size = format_size((height + margins.top + margins.bottom, width + margins.left + margins.right))
        note = f"the canvas is rounded up to {size}, which the network takes: {margins._asdict()}"
        return replace(spec, notes=(note,))

    def cost(self, load: Workload) -> float:
        """Images x network evaluations x megapixels of the canvas."""
        height, width = load.inputs["image"][-2:]
        canvas = (height + self.top + self.bottom) * (width + self.left + self.right)
        return self.results * load.nfe(*self.resampling) * canvas / 1e6
