"""ViT: a transformer encoder over the patches of an image.

    x -> patches -> [class] + tokens + positions -> blocks -> norm -> pooled -> head

Source: Dosovitskiy et al. 2021 (arXiv:2010.11929).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.errors import RecipeError, ShapeError, did_you_mean
from unveil.nn.cnn import ClassifierOutput
from unveil.nn.embeddings import LearnedPositions, grid_coordinates, sin_cos_positions
from unveil.nn.layers import check_multiple, zeroed
from unveil.nn.transformer import BlockConfig, TransformerStack
from unveil.types import Ge, checked

Pool = Literal["class", "mean"]
Head = Literal["linear", "hidden"]
Stem = Literal["patches", "convolutions"]
Begin = Literal["small", "sin-cos"]

# Dosovitskiy et al. 2021, table 1: depth, width, heads
SIZES = {"b": (12, 768, 12), "l": (24, 1024, 16), "h": (32, 1280, 16)}
PATCHES = (32, 16, 14)


@dataclass(frozen=True)
class ViTConfig:
    """Configuration of a ViT.

    Args:
        channels: Number of channels of an image.
        size: Side of the images that the positions are learned for.
        num_classes: Number of logits; 0: the network returns only features.
        patch: Side of the squares that become tokens.
        depth, hidden_size, heads: Number of blocks, width of a token, number of attention heads.
        mlp_ratio: Width of the MLPs, in multiples of `hidden_size`.
        pool: Pooling: `class` uses the class token, `mean` averages the tokens of the image.
        head: Head: `hidden` has a tanh layer before the logits, as in pre-training; `linear` has none, as in
            fine-tuning.
        stem: Conversion of a square to a token. `patches`: by one linear map. `convolutions`: by normalised 3 x 3
            convolutions, one for each halving of its side and one before, which trains faster (Xiao et al. 2021,
            arXiv:2106.14881).
        begin: Initial values of the learned positions: `small` random ones as published, or the sinusoids of `sin-cos`.
        norm_eps: Epsilon of the normalisations; 1e-6 as published, 1e-12 in transformers' files.
        dropout: Dropout probability after the positions and in blocks, in training.

    Raises:
        RecipeError: The settings are inconsistent.
    """

    channels: Annotated[int, Ge(1)]
    size: Annotated[int, Ge(1)]
    num_classes: int = 0
    patch: Annotated[int, Ge(1)] = 16
    depth: Annotated[int, Ge(1)] = 12
    hidden_size: Annotated[int, Ge(1)] = 768
    heads: Annotated[int, Ge(1)] = 12
    mlp_ratio: float = 4.0
    pool: Pool = "class"
    head: Head = "linear"
    stem: Stem = "patches"
    begin: Begin = "small"
    norm_eps: float = 1e-6
    dropout: float = 0.0

    def __post_init__(self) -> None:
        checked(self)
        if self.num_classes < 0 or not 0 <= self.dropout < 1:
            raise RecipeError(
                f"num_classes = {self.num_classes}, dropout = {self.dropout}: must be >= 0, and in [0, 1)"
            )
        if self.size % self.patch:
            below = self.size // self.patch * self.patch
            near = f"{below} or {below + self.patch}" if below else f"{self.patch}"
            raise RecipeError(f"size {self.size} px: must be a multiple of the patch, {self.patch}; nearest {near}")
        check_stem(self)

    @property
    def side(self) -> int:
        """Number of patches along a side of the images that the positions are learned for."""
        return self.size // self.patch


def get_preset(name: str, *, size: int = 224, channels: int = 3, classes: int = 0, head: Head = "linear") -> ViTConfig:
    """Published configuration of names such as `vit-b-16` and `vit-h-14`; any whole number may be the patch.

    Raises:
        RecipeError: The name is unknown; the message names the nearest.
    """
    names = [f"vit-{letter}-{patch}" for letter in SIZES for patch in PATCHES]
    kind, _, rest = name.partition("-")
    letter, _, patch = rest.partition("-")
    if kind != "vit" or letter not in SIZES or not patch.isdigit() or not int(patch):
        raise RecipeError(f"network {name!r}: known are {', '.join(names)}{did_you_mean(name, names)}")
    depth, width, heads = SIZES[letter]
    return ViTConfig(channels, size, classes, int(patch), depth, width, heads, head=head)


class ViT(nn.Module):
    """Vision transformer from images (B, channels, H, W) to features and logits."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        width, hidden = config.hidden_size, int(config.mlp_ratio * config.hidden_size)
        block = BlockConfig(width, config.heads, hidden, dropout=config.dropout, eps=config.norm_eps)
        self.patches = stem(config)
        self.first = nn.Parameter(torch.zeros(1, width)) if config.pool == "class" else None
        self.positions = LearnedPositions((config.side, config.side), width, first=int(config.pool == "class"))
        self.encoder = TransformerStack(config.depth, block)
        self.pooled = nn.Linear(width, width) if config.head == "hidden" else None
        self.head = nn.Linear(width, config.num_classes) if config.num_classes else None
        self._initialise()

    def forward(self, x: Tensor) -> ClassifierOutput:
        """Return the features (B, width), which are the input of the head, and the logits (B, classes).

        Raises:
            ShapeError: The number of channels is wrong, or a side is not a multiple of the patch.
        """
        tokens = self.tokens(x)  # (B, N, width)
        features = tokens[:, 0] if self.first is not None else tokens.mean(1)  # (B, width)
        if self.pooled is not None:
            features = torch.tanh(self.pooled(features))
        logits = self.head(features) if self.head is not None else features.new_empty(len(x), 0)
        return ClassifierOutput(features, logits)

    def tokens(self, x: Tensor) -> Tensor:
        """Tokens (B, N, width) after the last normalisation; the class token, if there is one, is first.

        Positions are interpolated for images of another size than they were learned for.

        Raises:
            ShapeError: The number of channels is wrong, or a side is not a multiple of the patch.
        """
        if x.ndim != 4 or x.shape[1] != self.config.channels:
            raise ShapeError(f"x {tuple(x.shape)}: this network reads (B, {self.config.channels}, H, W)")
        check_multiple(x, self.config.patch)
        h = self.patches(x)  # (B, width, H / patch, W / patch)
        positions = self.positions(h.shape[2:])  # (N, width), that of the class token first
        h = h.flatten(2).transpose(1, 2).contiguous()  # (B, N, width); else residuals keep the image's strides
        if self.first is not None:
            h = torch.cat([self.first.expand(len(h), 1, -1).to(h), h], dim=1)  # (B, 1 + N, width)
        h = F.dropout(h + positions, self.config.dropout, self.training)
        return self.encoder(h)

    @torch.no_grad()
    def scale_features(self, spread: float) -> None:
        """Divide the features by `spread`, and scale the head so that the logits stay the same.

        With a hidden layer nothing is done, because the features are in the range of its tanh.
        """
        if self.pooled is None and self.head is not None:
            norm = cast(nn.LayerNorm, self.encoder.norm)
            norm.weight.div_(spread)
            norm.bias.div_(spread)
            self.head.weight.mul_(spread)

    def _initialise(self) -> None:
        """Initialise as published: Xavier's uniform weights, no biases, small positions, and zeros for the head."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                nn.init.zeros_(cast(Tensor, module.bias))
        if self.config.begin == "sin-cos":
            places = grid_coordinates((self.config.side, self.config.side)).flip(1)  # the column's part first
            with torch.no_grad():
                grid = self.positions.table[self.positions.first :]
                grid.copy_(sin_cos_positions(places, self.config.hidden_size, "sin-cos"))
        if self.head is not None:
            zeroed(self.head)


class StemConfig(Protocol):
    """Configuration of a stem; see `ViTConfig`."""

    @property
    def channels(self) -> int:
        """Channels of an image."""
        ...

    @property
    def patch(self) -> int:
        """Side of a square that becomes a token."""
        ...

    @property
    def hidden_size(self) -> int:
        """Width of a token."""
        ...

    @property
    def stem(self) -> Stem:
        """Kind of the stem, which converts squares to tokens."""
        ...


def check_stem(config: StemConfig) -> None:
    """Raise RecipeError for a stem that cannot be built."""
    if config.stem == "convolutions" and (config.patch == 1 or config.patch & (config.patch - 1)):
        raise RecipeError(f"patch {config.patch}: convolutions halve the image; a power of 2 such as 4, or patches")
    if config.stem == "convolutions" and config.hidden_size < config.patch:
        raise RecipeError(
            f"hidden_size {config.hidden_size}: convolutions begin with 1/{config.patch} of it; at least {config.patch}"
        )


def stem(config: StemConfig) -> nn.Module:
    """Create the module that maps images (B, channels, H, W) to tokens (B, width, H / patch, W / patch)."""
    if config.stem == "patches":
        return nn.Conv2d(config.channels, config.hidden_size, config.patch, stride=config.patch)
    halvings = config.patch.bit_length() - 1
    widths = [config.channels, *(config.hidden_size // 2**left for left in reversed(range(halvings + 1)))]
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(widths)):
        layers += [nn.Conv2d(before, after, 3, 2 if number else 1, 1), nn.BatchNorm2d(after), nn.GELU()]
    return nn.Sequential(*layers, nn.Conv2d(config.hidden_size, config.hidden_size, 1))
