"""A small convolutional classifier: what reads pictures, and whose features compare sets of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unveil.errors import RecipeError, ShapeError


@dataclass(frozen=True)
class CnnConfig:
    """A classifier of square pictures: per width two 3x3 convolutions, halving the picture in between.

    Attributes:
        size: height and width of a picture.
        widths: channels of each stage; the picture must survive halving between them.
        features: values of the layer before the logits.
    """

    channels: int
    size: int
    num_classes: int
    widths: tuple[int, ...]
    features: int = 64

    def __post_init__(self) -> None:
        """Raises RecipeError where the stages would shrink the picture to nothing."""
        if not self.widths or self.size >> (len(self.widths) - 1) < 2:
            raise RecipeError(
                f"widths {list(self.widths)} at size {self.size}: at least one stage, and at most as many as leave "
                "2 pixels a side after halving between them"
            )


class ClassifierOutput(NamedTuple):
    """What a classifier makes of pictures."""

    features: Tensor  # (B, features)
    logits: Tensor  # (B, classes)


class Cnn(nn.Module):
    """Reads pictures (B, channels, size, size) in [-1, 1]."""

    def __init__(self, config: CnnConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        given = config.channels
        for i, width in enumerate(config.widths):
            if i:
                layers.append(nn.MaxPool2d(2))
            layers += [*_convolution(given, width), *_convolution(width, width)]
            given = width
        self.body = nn.Sequential(*layers)
        # A 2 x 2 summary keeps some of where things are: a shoe's heel is at one end.
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.neck = nn.Linear(4 * given, config.features)
        self.head = nn.Linear(config.features, config.num_classes)

    def forward(self, x: Tensor) -> ClassifierOutput:
        """Features and logits.

        Raises:
            ShapeError: pictures of another size than the network's.
        """
        wanted = (self.config.channels, self.config.size, self.config.size)
        if tuple(x.shape[1:]) != wanted:
            raise ShapeError(f"pictures {tuple(x.shape)}: this classifier reads (B, {', '.join(map(str, wanted))})")
        x = self.pool(self.body(x)).flatten(1)  # (B, 4 * widths[-1])
        features = torch.relu(self.neck(x))  # (B, features)
        return ClassifierOutput(features, self.head(features))

    @torch.no_grad()
    def scale_features(self, spread: float) -> None:
        """Divides the features by `spread` and makes up for it in the logits."""
        self.neck.weight.div_(spread)
        self.neck.bias.div_(spread)
        self.head.weight.mul_(spread)


def _convolution(given: int, made: int) -> list[nn.Module]:
    return [nn.Conv2d(given, made, 3, padding=1, bias=False), nn.BatchNorm2d(made), nn.ReLU(inplace=True)]
