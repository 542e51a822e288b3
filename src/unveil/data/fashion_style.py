"""Fashion-MNIST in one style: a few images to learn it from, and others to judge by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from unveil.data.fashion_mnist import CLASSES, FashionConfig, fashion
from unveil.data.registry import data_kind
from unveil.data.tensor_dataset import ImageTensorDataset, Part
from unveil.errors import RecipeError, did_you_mean

Style = Literal["inverted", "outlined", "striped"]
STRIPES, DARK = 4, 0.3  # rows of a pair of stripes, and what is left of the lower one's brightness


@dataclass(frozen=True)
class StyleConfig:
    """The first images of each class of Fashion-MNIST, drawn in a style.

    style: `inverted` light and dark change places, `outlined` only edges are left, `striped` every second pair of
        rows is darkened.
    count: training images, of the classes in turn.
    judged: held-out images, of the official held-out part, likewise.
    folder, download: where the files come from, as for kind fashion.
    """

    style: Style = "striped"
    count: int = 10
    judged: int = 500
    folder: str | None = None
    download: bool = False
    kind: Literal["fashion-style"] = "fashion-style"

    def __post_init__(self) -> None:
        """Raises RecipeError for a style that is not known, or fewer than one image."""
        if self.style not in get_args(Style):
            choices = get_args(Style)
            raise RecipeError(
                f"style {self.style!r}: must be one of {', '.join(choices)}{did_you_mean(self.style, choices)}"
            )
        if min(self.count, self.judged) < 1:
            raise RecipeError(f"count = {self.count}, judged = {self.judged}: at least 1 image")


@data_kind("fashion-style", StyleConfig)
def fashion_in_style(config: StyleConfig, part: Part = "train") -> ImageTensorDataset:
    """The chosen images uint8 (N, 1, 28, 28) with their labels, in the style.

    Raises:
        DataError: Fashion-MNIST is nowhere, or damaged.
        RecipeError: more images than the part has of some class.
    """
    everything = fashion(FashionConfig(config.folder, config.download), part)
    assert everything.labels is not None
    wanted = config.count if part == "train" else config.judged
    rows = [(everything.labels == label).nonzero()[:, 0].tolist() for label in range(len(CLASSES))]
    chosen: list[int] = []
    for number in range(wanted):
        place, label = divmod(number, len(CLASSES))
        of_class = rows[label]
        if place >= len(of_class):
            raise RecipeError(f"{wanted} images: the {part} part has {len(of_class)} of {CLASSES[label]}; take fewer")
        chosen.append(of_class[place])
    return ImageTensorDataset(
        apply_style(everything.pixels[chosen], config.style), everything.labels[chosen], everything.classes
    )


def apply_style(pixels: Tensor, style: Style) -> Tensor:
    """Images uint8 (N, C, H, W) drawn in a style."""
    if style == "inverted":
        return 255 - pixels
    light = pixels.float()
    if style == "outlined":  # the brightest beside each pixel less the darkest
        return (F.max_pool2d(light, 3, 1, 1) + F.max_pool2d(-light, 3, 1, 1)).to(torch.uint8)
    return (light * _stripes(pixels.shape[2])).to(torch.uint8)


def remove_style(pixels: Tensor, style: Style) -> Tensor:
    """Images uint8 (N, C, H, W) of a style as they were without it, except for rounding.

    So a classifier of the images becomes one of the style.

    Raises:
        RecipeError: a style that cannot be undone.
    """
    if style == "inverted":
        return 255 - pixels
    if style != "striped":
        raise RecipeError(f"style {style!r}: what it leaves away is lost; inverted and striped can be undone")
    return (pixels.float() / _stripes(pixels.shape[2])).round().clamp(max=255).to(torch.uint8)


def _stripes(height: int) -> Tensor:
    """Return the brightness factor of each row, (H, 1)."""
    return torch.where(torch.arange(height) % STRIPES < STRIPES // 2, 1.0, DARK)[:, None]
