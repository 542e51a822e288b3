"""ControlNet preprocessors by name: each holds its settings and makes the control image of an item.

A control image is an image uint8 (3, H, W) derived from another of the same size: its edges, what lies
where. `PREPROCESSORS` lists the kinds for recipes and for the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from unveil.data.preprocessors import edges, segmentation
from unveil.errors import RecipeError, did_you_mean
from unveil.types import Item


class Preprocessor(Protocol):
    """Draws the hint of an item, which holds "pixels" uint8 (C, H, W)."""

    def __call__(self, item: Item, /) -> Tensor:
        """The hint, uint8 (3, H, W), of the item's own size."""
        ...


@dataclass(frozen=True)
class CannyPreprocessor:
    """Edges: `edges.canny`.

    low, high: thresholds of the gradient in [0, 255]. sigma: of the smoothing before, in pixels.
    """

    low: float = 100.0
    high: float = 200.0
    sigma: float = 1.0

    def __post_init__(self) -> None:
        """Raises RecipeError for a setting out of range."""
        edges.check_thresholds(self.low, self.high, self.sigma)

    def __call__(self, item: Item) -> Tensor:
        """The edges of the pixels."""
        return edges.canny(item["pixels"], low=self.low, high=self.high, sigma=self.sigma)


@dataclass(frozen=True)
class LinePreprocessor:
    """Straight lines: `edges.lines`.

    low, high: thresholds of the edges. votes: pixels that must lie on a line. length: of the shortest, in pixels.
    gap: the widest within one line, in pixels. seed: of the order in which pixels vote.
    """

    low: float = 50.0
    high: float = 100.0
    votes: int = 10
    length: int = 10
    gap: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises RecipeError for a setting out of range."""
        edges.check_thresholds(self.low, self.high)
        edges.check_lines(self.votes, self.length, self.gap, self.seed)

    def __call__(self, item: Item) -> Tensor:
        """The lines of the pixels."""
        return edges.lines(
            item["pixels"],
            low=self.low,
            high=self.high,
            votes=self.votes,
            length=self.length,
            gap=self.gap,
            seed=self.seed,
        )


@dataclass(frozen=True)
class ScribblePreprocessor:
    """Outlines as drawn with a thick pen: `edges.scribble`.

    low, high, sigma: settings of the edges. width: stroke width in pixels.
    """

    low: float = 25.0
    high: float = 60.0
    sigma: float = 3.0
    width: int = 4

    def __post_init__(self) -> None:
        """Raises RecipeError for a setting out of range."""
        edges.check_thresholds(self.low, self.high, self.sigma)
        edges.check_stroke_width(self.width)

    def __call__(self, item: Item) -> Tensor:
        """The scribble of the pixels."""
        return edges.scribble(item["pixels"], low=self.low, high=self.high, sigma=self.sigma, width=self.width)


@dataclass(frozen=True)
class SegmentPreprocessor:
    """Regions found in the image itself: `segmentation.segments`.

    scale: larger makes larger regions. sigma: of the smoothing before, in pixels. least: pixels of the smallest.
    """

    scale: float = 100.0
    sigma: float = 0.8
    least: int = 50

    def __post_init__(self) -> None:
        """Raises RecipeError for a setting out of range."""
        segmentation.check_regions(self.scale, self.sigma, self.least)

    def __call__(self, item: Item) -> Tensor:
        """The regions of the pixels."""
        return segmentation.segments(item["pixels"], scale=self.scale, sigma=self.sigma, least=self.least)


@dataclass(frozen=True)
class MaskPreprocessor:
    """A given map of classes in colours: `segmentation.colours`.

    key: key of the item that holds the map (H, W).
    """

    key: str = "mask"

    def __call__(self, item: Item) -> Tensor:
        """The colours of the map."""
        return segmentation.colours(torch.as_tensor(_value(item, self.key)))


@dataclass(frozen=True)
class BoxPreprocessor:
    """Given boxes as rectangles: `segmentation.layout`.

    key, labels: keys of the item that hold the boxes (N, 4) and their classes (N,); labels None: all are one class.
    style: filled or outlined. thickness: of an outline, in pixels.
    """

    key: str = "boxes"
    labels: str | None = None
    style: segmentation.Style = "filled"
    thickness: int = 2

    def __post_init__(self) -> None:
        """Raises RecipeError for an unknown style, or a thickness below 1."""
        segmentation.check_style(self.style, self.thickness)

    def __call__(self, item: Item) -> Tensor:
        """The layout of the item's boxes, of the size of its pixels."""
        height, width = item["pixels"].shape[-2:]
        boxes = torch.as_tensor(_value(item, self.key))
        labels = None if self.labels is None else torch.as_tensor(_value(item, self.labels))
        return segmentation.layout(boxes, labels, height, width, style=self.style, thickness=self.thickness)


@dataclass(frozen=True)
class ResizePreprocessor:
    """An image that comes with the item, such as depth, a pose or normals: `segmentation.resize_control_image`.

    key: key of the item that holds the image uint8 (1 or 3, H, W). tolerance: how far the aspect ratios may be apart.
    """

    key: str = "given"
    tolerance: float = segmentation.TOLERANCE

    def __post_init__(self) -> None:
        """Raises RecipeError for a negative tolerance."""
        if not 0 <= self.tolerance < float("inf"):
            raise RecipeError(f"tolerance {self.tolerance:g}: a share, at least 0; {segmentation.TOLERANCE:g} is usual")

    def __call__(self, item: Item) -> Tensor:
        """The image, of the size of the item's pixels."""
        height, width = item["pixels"].shape[-2:]
        return segmentation.resize_control_image(_value(item, self.key), height, width, tolerance=self.tolerance)


PREPROCESSORS: dict[str, type[Any]] = {
    "canny": CannyPreprocessor,
    "lines": LinePreprocessor,
    "scribble": ScribblePreprocessor,
    "segments": SegmentPreprocessor,
    "mask": MaskPreprocessor,
    "boxes": BoxPreprocessor,
    "given": ResizePreprocessor,
}


def _value(item: Item, key: str) -> Any:
    if key not in item:
        raise RecipeError(f"hint: an item has no {key!r}{did_you_mean(key, list(item))}; it has {', '.join(item)}")
    return item[key]
