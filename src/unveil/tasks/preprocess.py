"""Control images for ControlNets, made from images: one task for each preprocessor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from unveil.tasks.fields import ImageFiles, Name, info
from unveil.tasks.task import Task, TaskContext, TaskResult, field_mark

_INPUT = "Input PNG, JPEG or WebP image, or a folder of them."
_LOW, _HIGH = "Gradient above which an edge continues, 0 to 255.", "Gradient above which an edge starts, 0 to 255."
_SIGMA = "Standard deviation of the smoothing before, in pixels."
_WIDTH, _HEIGHT = (
    "Width of the control image, in pixels; --size WxH works too.",
    "Height of the control image, in pixels.",
)


class Preprocess(Task):
    """Preprocessor whose input is a file or a folder, and whose output is of the same kind."""

    section: ClassVar[str] = "Edit images"
    arguments: ClassVar[tuple[str, ...]] = ("image",)
    out: ClassVar[str] = "control.png"
    out_required: ClassVar[bool] = True
    out_help: ClassVar[str] = "Output .png file; for a folder of images, a folder."
    common: ClassVar[tuple[str, ...]] = ("force",)
    makes: ClassVar[str] = "control images"

    image: Annotated[ImageFiles, info(_INPUT)]

    def source(self, context: TaskContext) -> Path:
        """Return the path of the input."""
        mark = field_mark(type(self).model_fields["image"])
        assert mark is not None
        return context.path(self.image, mark)


class Detector(Preprocess):
    """A preprocessor of `unveil.data.preprocessors`, whose settings are the fields of the task."""

    def settings(self) -> dict[str, Any]:
        """Return the settings of the preprocessor."""
        return self.model_dump(exclude={"image"})

    def check(self) -> None:
        """Check the settings."""
        from unveil.data.preprocessors.registry import PREPROCESSORS

        PREPROCESSORS[self.name.removeprefix("preprocess-")](**self.settings())

    def run(self, context: TaskContext) -> TaskResult:
        """Write the control images."""
        from unveil.tasks.preprocess_run import preprocess_images

        kind = self.name.removeprefix("preprocess-")
        return preprocess_images(self.source(context), kind, self.settings(), context)


class Canny(Detector):
    """Detect the edges of images, one pixel thick, white on black.

    Example: unveil preprocess canny photo.png -o edges.png --low 50 --high 150
    """

    name: ClassVar[str] = "preprocess-canny"

    low: Annotated[float, info(_LOW)] = 100.0
    high: Annotated[float, info(_HIGH)] = 200.0
    sigma: Annotated[float, info(_SIGMA, unit="px")] = 1.0


class Lines(Detector):
    """Detect the straight lines of images.

    Example: unveil preprocess lines room.jpg -o lines.png --length 30
    """

    name: ClassVar[str] = "preprocess-lines"

    low: Annotated[float, info(_LOW)] = 50.0
    high: Annotated[float, info(_HIGH)] = 100.0
    length: Annotated[int, info("Length of the shortest line, in pixels.", unit="px")] = 10


class Scribble(Detector):
    """Draw the outlines of large shapes in images, as with a thick pen.

    Example: unveil preprocess scribble photos -o scribbles
    """

    name: ClassVar[str] = "preprocess-scribble"

    sigma: Annotated[float, info(_SIGMA, unit="px")] = 3.0
    width: Annotated[int, info("Width of the pen, in pixels.", unit="px")] = 4


class Segments(Detector):
    """Segment images into regions, each in its own colour.

    Example: unveil preprocess segments photo.png -o regions.png --scale 300
    """

    name: ClassVar[str] = "preprocess-segments"

    scale: Annotated[float, info("Scale of the segments; larger makes larger segments.")] = 100.0
    min_size: Annotated[int, info("Size of the smallest segment, in pixels.", title="Minimum size", unit="px")] = 50

    def settings(self) -> dict[str, Any]:
        """Return the settings of the preprocessor."""
        return {"scale": self.scale, "least": self.min_size}


class ColorMask(Preprocess):
    """Colour class maps, images whose pixels are class numbers, in fixed colours.

    Example: unveil preprocess mask classes.png -o colours.png
    """

    name: ClassVar[str] = "preprocess-mask"

    def run(self, context: TaskContext) -> TaskResult:
        """Write the coloured maps."""
        from unveil.tasks.preprocess_run import color_class_maps

        return color_class_maps(self.source(context), context)


class Boxes(Preprocess):
    """Draw boxes in the colours of their classes.

    A file holds {"boxes": [[0.5, 0.5, 0.2, 0.4], ...], "labels": [0, ...]}: centre x, centre y, width and height,
    all in [0, 1], and optionally a class for each box.

    Example: unveil preprocess boxes layout.json -o layout.png --width 768
    """

    name: ClassVar[str] = "preprocess-boxes"
    served: ClassVar[str] = "the input is a JSON file, and uploads are images and videos"

    image: Annotated[Name, info("Input .json file, or a folder of them.", metavar="FILE")]
    width: Annotated[int, info(_WIDTH, unit="px")] = 512
    height: Annotated[int, info(_HEIGHT, unit="px")] = 512
    style: Annotated[Literal["filled", "outlined"], info("Style of the boxes: filled or outlined.")] = "filled"

    def run(self, context: TaskContext) -> TaskResult:
        """Write the drawn boxes."""
        from unveil.tasks.preprocess_run import draw_boxes

        return draw_boxes(Path(self.image), self.width, self.height, self.style, context)


class Resize(Preprocess):
    """Bring existing control images, such as depth maps or poses, to a size without stretching them.

    Example: unveil preprocess resize depth.png -o control.png --width 768 --height 512
    """

    name: ClassVar[str] = "preprocess-resize"

    width: Annotated[int, info(_WIDTH, unit="px")] = 512
    height: Annotated[int, info(_HEIGHT, unit="px")] = 512

    def run(self, context: TaskContext) -> TaskResult:
        """Write the resized control images."""
        from unveil.tasks.preprocess_run import resize_control_images

        return resize_control_images(self.source(context), self.width, self.height, context)
