"""A small convolutional classifier, whose features are also used to compare sets of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unveil.errors import RecipeError, ShapeError


@dataclass(frozen=True)
class CnnConfig:
    """Configuration of a classifier of square images: two 3x3 convolutions per width, with halving between widths.

    Attributes:
        size: Height and width of an image.
        widths: Channels of each stage; the image is halved between stages and must keep at least one pixel.
        features: Width of the layer before the logits.
    """

    channels: int
    size: int
    num_classes: int
    widths: tuple[int, ...]
    features: int = 64

    def __post_init__(self) -> None:
        """Raise RecipeError if the stages would shrink the image to nothing."""
        if not self.widths or self.size >> (len(self.widths) - 1) < 2:
            raise RecipeError(
                f"widths {list(self.widths)} at size {self.size}: at least one stage, and at most as many as leave "
                "2 pixels a side after halving between them"
            )


class ClassifierOutput(NamedTuple):
    """Output of a classifier of images."""

    features: Tensor  # (B, features)
    logits: Tensor  # (B, classes)


class Cnn(nn.Module):
    """Classifier of images (B, channels, size, size) in [-1, 1]."""

    def __init__(self, config: CnnConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        channels = config.channels
        for i, width in enumerate(config.widths):
            if i:
                layers.append(nn.MaxPool2d(2))
            layers += [*_convolution(channels, width), *_convolution(width, width)]
            channels = width
        self.body = nn.Sequential(*layers)
        # A 2 x 2 summary keeps some of where things are: a shoe's heel is at one end.
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.neck = nn.Linear(4 * channels, config.features)
        self.head = nn.Linear(config.features, config.num_classes)

    def forward(self, x: Tensor) -> ClassifierOutput:
        """Return features and logits.

        Raises:
            ShapeError: The images have another shape than the network's.
        """
        wanted = (self.config.channels, self.config.size, self.config.size)
        if tuple(x.shape[1:]) != wanted:
            raise ShapeError(f"images {tuple(x.shape)}: this classifier reads (B, {', '.join(map(str, wanted))})")
        x = self.pool(self.body(x)).flatten(1)  # (B, 4 * widths[-1])
        features = torch.relu(self.neck(x))  # (B, features)
        return ClassifierOutput(features, self.head(features))

    @torch.no_grad()
    def scale_features(self, spread: float) -> None:
        """Divide the features by `spread`, and scale the head so that the logits stay the same."""
        self.neck.weight.div_(spread)
        self.neck.bias.div_(spread)
        self.head.weight.mul_(spread)


def _convolution(channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
