"""The U-Net of DDPM, Improved DDPM and ADM: one network whose configuration expresses all published ones.

    x -> enter -> [blocks (+ attention), downsample] per level -> middle -> [blocks (+ attention), upsample] -> leave

Every block of the way down leaves its result on a stack; every block of the way up takes one from it. The time
embedding (plus `condition.vector`) enters each residual block.

Sources: Ho et al. 2020, appendix B (arXiv:2006.11239); Nichol & Dhariwal 2021, section 3 (arXiv:2102.09672);
Dhariwal & Nichol 2021, section 3 (arXiv:2105.05233).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.nn.embed import EmbeddingOrder, TimeEmbedding
from unveil.nn.layers import (
    AttentionOrder,
    ContextSize,
    SelfAttention,
    check_multiple,
    group_norm,
    vector_of,
    with_context,
    zeroed,
)
from unveil.types import Condition, RecipeError, ShapeError, nearest

Modulation = Literal["add", "scale-shift"]
Resampling = Literal["conv", "conv-asymmetric", "pool", "residual"]
CHOICES = {
    "attention_order": AttentionOrder,
    "modulation": Modulation,
    "resample": Resampling,
    "embedding": EmbeddingOrder,
    "context_size": ContextSize,
}


@dataclass(frozen=True)
class UNetConfig:
    """What defines a U-Net. A level is a resolution; level i has rate 2**i, counted after `patch`.

    Args:
        in_channels: channels of x.
        out_channels: channels of the result, twice those of x with learned variance.
        channels: width of the sinusoid; levels have int(multiplier * channels).
        multipliers: one per level, finest first; fractions allowed.
        blocks: residual blocks per level on the way down (one more on the way up).
        attention: rates of the levels with self-attention after each block; the middle always has it.
        heads, heads_up, head_channels: heads on the way down and in the middle, on the way up (None: the same), and
            a width per head that overrides both counts.
        attention_order: `heads-first` in Improved DDPM and most of ADM ("legacy"), `qkv-first` in ADM's 64 px network.
        modulation: how the time embedding enters: added before the second normalisation (DDPM), or as scale and
            shift after it (Improved DDPM's default).
        resample: `conv` strided convolution, nearest + convolution; `conv-asymmetric` the same, padded at the end
            only (DDPM); `pool` average and nearest without weights; `residual` inside residual blocks (ADM).
        embedding: `sin-cos` for DDPM, `cos-sin` for the others.
        norm_eps: 1e-6 for DDPM, 1e-5 for the others.
        groups: of every normalisation; channels in groups of one lose what was added per channel before.
        stem_channels: width of the first convolution; None: that of the first level.
        context_channels: channels of `condition.channels`, concatenated to x.
        context_size: `same` as x's, or `smaller`: enlarged bilinearly to x's size (super-resolution).
        patch: side of the squares of pixels that become channels on entry (1: none) and pixels again at the end.

    Raises:
        RecipeError: settings that do not fit together.
    """

    in_channels: int
    out_channels: int
    channels: int
    multipliers: tuple[float, ...]
    blocks: int
    attention: tuple[int, ...] = ()
    heads: int = 1
    heads_up: int | None = None
    head_channels: int | None = None
    attention_order: AttentionOrder = "qkv-first"
    modulation: Modulation = "add"
    resample: Resampling = "conv"
    embedding: EmbeddingOrder = "cos-sin"
    norm_eps: float = 1e-5
    groups: int = 32
    dropout: float = 0.0
    stem_channels: int | None = None
    context_channels: int = 0
    context_size: ContextSize = "same"
    patch: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", tuple(self.multipliers))
        object.__setattr__(self, "attention", tuple(self.attention))
        for name in ("in_channels", "out_channels", "channels", "blocks", "heads", "groups", "patch"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} = {getattr(self, name)}: must be at least 1")
        for name, kinds in CHOICES.items():
            if (given := getattr(self, name)) not in get_args(kinds):
                allowed = ", ".join(get_args(kinds))
                raise RecipeError(f"{name} = {given!r}: must be one of {allowed}{nearest(given, get_args(kinds))}")
        if not 0 <= self.dropout < 1:
            raise RecipeError(f"dropout = {self.dropout}: must lie in [0, 1)")
        if not self.multipliers:
            raise RecipeError("multipliers: none given; a U-Net needs one per level, for example [1, 2, 2]")
        for rate in self.attention:
            if rate not in self.rates:
                allowed = ", ".join(map(str, self.rates))
                raise RecipeError(f"attention {rate}: must be a rate of downsampling that a level has: {allowed}")

    @property
    def rates(self) -> tuple[int, ...]:
        """How much smaller each level is than the first."""
        return tuple(2**level for level in range(len(self.multipliers)))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(int(multiplier * self.channels) for multiplier in self.multipliers)

    @property
    def vector_dim(self) -> int:
        """Width of the time embedding, and of a condition's vector."""
        return 4 * self.channels

    def heads_of(self, width: int, heads: int) -> int:
        """Attention heads at a width, given the count that `head_channels` overrides."""
        if self.head_channels is None:
            return heads
        if width % self.head_channels:
            raise RecipeError(f"head_channels = {self.head_channels}: must divide the {width} channels of a level")
        return width // self.head_channels


class ResBlock(nn.Module):
    """Two convolutions with a residual connection, told the time in between; `resample` changes the size first."""

    def __init__(self, width: int, out: int, config: UNetConfig, resample: nn.Module | None = None) -> None:
        super().__init__()
        self.modulation, self.dropout = config.modulation, config.dropout
        self.norm_1 = group_norm(width, config.groups, config.norm_eps)
        self.resample = resample or nn.Identity()
        self.conv_1 = nn.Conv2d(width, out, 3, padding=1)
        self.time = nn.Linear(config.vector_dim, out if config.modulation == "add" else 2 * out)
        self.norm_2 = group_norm(out, config.groups, config.norm_eps)
        self.conv_2 = zeroed(nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """X (B, C, H, W) and the activated time embedding (B, D) to (B, out, H', W')."""
        h = self.conv_1(self.resample(F.silu(self.norm_1(x))))  # (B, out, H', W')
        time = self.time(time)[:, :, None, None]
        if self.modulation == "add":
            h = self.norm_2(h + time)
        else:  # Nichol & Dhariwal 2021, section 3: GroupNorm(h) (1 + w) + b
            scale, shift = time.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm_2(h), 1 + scale)
        h = F.dropout(F.silu(h), self.dropout, self.training, inplace=True)
        return self.conv_2(h) + self.skip(self.resample(x))


class Half(nn.Module):
    """Half the size by averaging."""

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2)."""
        return F.avg_pool2d(x, 2)


class Double(nn.Module):
    """Twice the size by repeating pixels."""

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W)."""
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class ConvDown(nn.Module):
    """Half the size by a strided convolution; DDPM pads only below and on the right."""

    def __init__(self, width: int, *, asymmetric: bool) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class ConvUp(nn.Module):
    """Twice the size by repeating pixels, then a 3x3 convolution; computed as one transposed convolution.

    Of the repeated pixels under a 3x3 kernel several are the same one, so that it meets the sum of their weights:
    a 4x4 kernel with stride 2 gives the same at 16/36 of the multiplications.
    """

    # Which of an axis' three weights meet a pixel, for each of the four places around it in the result
    SUMS = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W)."""
        if self.conv._forward_hooks:  # they act on the layer's own call
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        sums = self.conv.weight.new_tensor(self.SUMS)
        kernel = torch.einsum("oikl,ak,bl->ioab", self.conv.weight, sums, sums)
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)


def _downsample(width: int, config: UNetConfig) -> nn.Module:
    if config.resample == "residual":
        return ResBlock(width, width, config, resample=Half())
    return Half() if config.resample == "pool" else ConvDown(width, asymmetric=config.resample == "conv-asymmetric")


def _upsample(width: int, config: UNetConfig) -> nn.Module:
    if config.resample == "residual":
        return ResBlock(width, width, config, resample=Double())
    return Double() if config.resample == "pool" else ConvUp(width)


def _attention(width: int, heads: int, config: UNetConfig) -> SelfAttention:
    norm = group_norm(width, config.groups, config.norm_eps)
    return SelfAttention(width, config.heads_of(width, heads), norm=norm, order=config.attention_order)


def _attention_at(level: int, width: int, heads: int, config: UNetConfig) -> nn.Module:
    return _attention(width, heads, config) if config.rates[level] in config.attention else nn.Identity()


class Level(nn.Module):
    """The blocks of one resolution, each with attention or nothing after it, and the way to the next resolution."""

    def __init__(
        self, blocks: list[ResBlock], attention: list[nn.Module] | None = None, resample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = nn.ModuleList(attention or [nn.Identity() for _ in blocks])
        self.resample = resample


class Middle(Level):
    """The smallest resolution, between the two ways."""

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        """All blocks in turn."""
        for block, attention in zip(self.blocks, self.attention, strict=True):
            h = attention(block(h, time))
        return h


class Down(Level):
    """A level of the way down: leaves every result on the stack."""

    def forward(self, h: Tensor, time: Tensor, stack: list[Tensor]) -> Tensor:
        """The smaller result, last on the stack."""
        for block, attention in zip(self.blocks, self.attention, strict=True):
            h = attention(block(h, time))
            stack.append(h)
        if self.resample is not None:
            h = self.resample(h, time)
            stack.append(h)
        return h


class Up(Level):
    """A level of the way up: every block takes one result from the stack."""

    def forward(self, h: Tensor, time: Tensor, stack: list[Tensor]) -> Tensor:
        """The larger result."""
        for block, attention in zip(self.blocks, self.attention, strict=True):
            h = attention(block(torch.cat([h, stack.pop()], dim=1), time))
        return h if self.resample is None else self.resample(h, time)


def way_down(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """The levels of the way down, and the widths of all that is then on the stack, the first convolution's included."""
    width = config.stem_channels or config.widths[0]
    stack, levels = [width], nn.ModuleList()
    for level, out in enumerate(config.widths):
        blocks, attention = [], []
        for _ in range(config.blocks):
            blocks.append(ResBlock(width, out, config))
            attention.append(_attention_at(level, out, config.heads, config))
            width = out
            stack.append(width)
        resample = None if level == len(config.widths) - 1 else _downsample(width, config)
        if resample is not None:
            stack.append(width)
        levels.append(Down(blocks, attention, resample))
    return levels, stack


def middle(config: UNetConfig) -> Middle:
    """The smallest resolution: block, attention, block."""
    width = config.widths[-1]
    blocks = [ResBlock(width, width, config) for _ in range(2)]
    return Middle(blocks, [_attention(width, config.heads, config), nn.Identity()])


class UNet(nn.Module):
    """The denoising network: (x, t, condition) to a tensor of x's size with `out_channels`."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.vector_dim = config.vector_dim
        squares = config.patch**2
        widths, last = config.widths, len(config.multipliers) - 1
        heads_up = config.heads if config.heads_up is None else config.heads_up

        self.time = TimeEmbedding(config.channels, config.vector_dim, config.embedding)
        inputs = (config.in_channels + config.context_channels) * squares
        self.enter = nn.Conv2d(inputs, config.stem_channels or widths[0], 3, padding=1)
        self.down, stack = way_down(config)
        self.middle = middle(config)
        width = stack[-1]

        self.up = nn.ModuleList()
        for level in range(last, -1, -1):
            out, blocks, attention = widths[level], [], []
            for _ in range(config.blocks + 1):
                blocks.append(ResBlock(width + stack.pop(), out, config))
                attention.append(_attention_at(level, out, heads_up, config))
                width = out
            self.up.append(Up(blocks, attention, None if level == 0 else _upsample(width, config)))

        self.norm = group_norm(width, config.groups, config.norm_eps)
        self.leave = zeroed(nn.Conv2d(width, config.out_channels * squares, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The raw result, in x's size.

        Args:
            x: (B, in_channels, H, W), height and width multiples of patch * 2**(levels - 1).
            t: (B,) the number that stands for the level, fractions allowed.
            condition: its vector (B, vector_dim) joins the time embedding, its channels join x.

        Raises:
            ShapeError: a size that cannot be halved often enough, or a condition that does not fit.
        """
        config, condition = self.config, condition or Condition()
        if x.ndim != 4 or x.shape[1] != config.in_channels:
            raise ShapeError(f"x {tuple(x.shape)}: must be (B, {config.in_channels}, H, W)")
        check_multiple(x, config.patch * config.rates[-1])
        if condition.tokens is not None:
            raise ShapeError("condition.tokens: this network has no cross-attention; pass a vector or channels")
        time = self.time(t)  # (B, D)
        if (vector := vector_of(condition, len(x), config.vector_dim)) is not None:
            time = time + vector.to(time)
        time = F.silu(time)  # every block takes it activated
        x = with_context(x, condition, config.context_channels, config.context_size)
        h = self.enter(F.pixel_unshuffle(x, config.patch))

        stack = [h]
        for down in self.down:
            h = down(h, time, stack)
        h = self.middle(h, time)
        for up in self.up:
            h = up(h, time, stack)
        return F.pixel_shuffle(self.leave(F.silu(self.norm(h))), config.patch)
