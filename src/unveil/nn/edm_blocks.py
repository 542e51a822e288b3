"""Blocks of score SDE's and ADM's U-Nets as EDM writes them, and the pyramids of images beside the features.

Sources: Song et al. 2021, appendix H (arXiv:2011.13456); Karras et al. 2022, appendix F.1 (arXiv:2206.00364).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.errors import RecipeError, ShapeError
from unveil.nn.layers import Fir, FirConv, SelfAttention, group_norm, zeroed

Way = Literal["down", "up"]
Combination = Literal["sum", "cat"]


class EDMBlockStyle(NamedTuple):
    """Settings that all blocks of a network share."""

    vector: int  # width of their conditioning vector
    modulation: Literal["add", "scale-shift"]
    norm_eps: float
    branch_weight: float  # of a sum of two branches
    head_channels: int | None  # None: one head
    project: bool  # a convolution on the way around wherever the size changes
    dropout: float
    filter: tuple[float, ...] | None  # None: (1, 1), and no filter where a convolution halves

    def resample(self, way: Way) -> Fir:
        """Half or twice the size, without weights."""
        return Fir(self.filter or (1, 1), way)

    def halved(self, width: int, out: int) -> nn.Module:
        """Half the size, with a 3x3 convolution."""
        if self.filter is not None:
            return FirConv(width, out, self.filter)
        return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(width, out, 3, stride=2))

    def norm(self, width: int) -> nn.GroupNorm:
        """Groups of at least four channels, at most 32 of them."""
        return group_norm(width, max(min(32, width // 4), 1), self.norm_eps)

    def attention(self, width: int) -> SelfAttention:
        """Self-attention of the network's heads."""
        if self.head_channels is not None and width % self.head_channels:
            raise RecipeError(f"head_channels = {self.head_channels}: must divide the {width} channels of a level")
        heads = 1 if self.head_channels is None else width // self.head_channels
        return SelfAttention(width, heads, norm=self.norm(width))


class EDMBlock(nn.Module):
    """Two convolutions around what the level says, with a way around them, and self-attention where it is wanted."""

    def __init__(
        self, width: int, out: int, style: EDMBlockStyle, *, way: Way | None = None, attention: bool = False
    ) -> None:
        super().__init__()
        self.style = style
        self.norm_1 = style.norm(width)
        self.resample = nn.Identity() if way is None else style.resample(way)
        self.conv_1 = nn.Conv2d(width, out, 3, padding=1)
        self.time = nn.Linear(style.vector, out if style.modulation == "add" else 2 * out)
        self.norm_2 = style.norm(out)
        self.conv_2 = zeroed(nn.Conv2d(out, out, 3, padding=1))
        projected = width != out or (way is not None and style.project)
        self.skip = nn.Conv2d(width, out, 1) if projected else nn.Identity()
        self.attention = style.attention(out) if attention else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """X (B, C, H, W) and the activated embedding (B, D) to (B, out, H', W')."""
        weight = self.style.branch_weight
        h = self.conv_1(self.resample(F.silu(self.norm_1(x))))  # (B, out, H', W')
        time = self.time(time)[:, :, None, None]
        if self.style.modulation == "add":
            h = self.norm_2(h + time)
        else:
            scale, shift = time.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm_2(h), 1 + scale)
        h = self.conv_2(F.dropout(F.silu(h), self.style.dropout, self.training, inplace=True))
        h = (h + self.skip(self.resample(x))) * weight
        return h if self.attention is None else self.attention(h) * weight


# ---------------------------------------------------------------------- pyramids of images


class InputSkip(nn.Module):
    """The input, smaller by one level, joins the features."""

    def __init__(self, channels: int, width: int, style: EDMBlockStyle, combine: Combination) -> None:
        super().__init__()
        self.resample = style.resample("down")
        self.conv = nn.Conv2d(channels, width, 1)
        self.combine: Combination = combine

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        """The features and the pyramid's next image."""
        pyramid = self.resample(pyramid)
        seen = self.conv(pyramid)
        return (seen + h if self.combine == "sum" else torch.cat([seen, h], dim=1)), pyramid


class InputResidual(nn.Module):
    """The pyramid becomes features itself, and what is handed on holds both."""

    def __init__(self, channels: int, width: int, style: EDMBlockStyle) -> None:
        super().__init__()
        self.resample = style.halved(channels, width)
        self.weight = style.branch_weight

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        """The features, which are the pyramid too."""
        pyramid = (self.resample(pyramid) + h) * self.weight
        return pyramid, pyramid


class OutputSkip(nn.Module):
    """Each level's part of the output, added to the enlarged sum of the levels below."""

    def __init__(self, width: int, channels: int, style: EDMBlockStyle) -> None:
        super().__init__()
        self.norm = style.norm(width)
        self.conv = zeroed(nn.Conv2d(width, channels, 3, padding=1))
        self.resample = style.resample("up")

    def forward(self, h: Tensor, pyramid: Tensor | None) -> tuple[Tensor, Tensor]:
        """The features as they were, and the output so far."""
        part = self.conv(F.silu(self.norm(h)))
        return h, part if pyramid is None else part + self.resample(pyramid)


# ---------------------------------------------------------------------- levels


class EDMDown(nn.Module):
    """A level of the way down: from the level above, the pyramid's part, then the blocks."""

    def __init__(
        self, blocks: list[EDMBlock], resample: nn.Module | None, side: InputSkip | InputResidual | None = None
    ) -> None:
        super().__init__()
        self.resample = resample
        self.side = side
        self.blocks = nn.ModuleList(blocks)

    def forward(self, h: Tensor, time: Tensor, stack: list[Tensor], pyramid: Tensor) -> tuple[Tensor, Tensor]:
        """The smaller features and pyramid; every result is left on the stack."""
        if self.resample is not None:
            h = _resampled(self.resample, h, time)
            if self.side is not None:
                h, pyramid = self.side(h, pyramid)
            stack.append(h)
        for block in self.blocks:
            h = block(h, time)
            stack.append(h)
        return h, pyramid


class EDMUp(nn.Module):
    """A level of the way up: from the level below, then blocks that each take a result from the stack; the pyramid."""

    def __init__(
        self,
        blocks: list[EDMBlock],
        resample: nn.Module | None,
        side: OutputSkip | None = None,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.blocks = nn.ModuleList(blocks)
        self.side = side

    def forward(
        self, h: Tensor, time: Tensor, stack: list[Tensor], pyramid: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The larger features and pyramid."""
        if self.resample is not None:
            h = _resampled(self.resample, h, time)
        for block in self.blocks:
            h = block(torch.cat([h, stack.pop()], dim=1), time)
        return (h, pyramid) if self.side is None else self.side(h, pyramid)


def _resampled(resample: nn.Module, h: Tensor, time: Tensor) -> Tensor:
    return resample(h, time) if isinstance(resample, EDMBlock) else resample(h)


def embedded(waves: Tensor, layer: nn.Linear | None, augment: Tensor | None) -> Tensor:
    """The waves, plus what the layer makes of the augmentation."""
    if augment is None:
        return waves
    width = 0 if layer is None else layer.in_features
    if layer is None or augment.shape != (len(waves), width):
        raise ShapeError(f"augment {tuple(augment.shape)}: this network takes ({len(waves)}, {width})")
    return waves + layer(augment.to(waves))
