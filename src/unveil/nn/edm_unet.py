"""Score SDE's U-Net (DDPM++ and NCSN++) and ADM's, in the forms in which EDM trained them.

    x -> enter -> [resample, blocks] per level -> middle -> [resample, blocks] per level -> norm -> leave

Score SDE's U-Net resamples inside residual blocks through a small filter, and weights sums of two branches by
1 / sqrt(2). It may process images beside the features: an input pyramid that is added at every level of the encoder,
and an output pyramid that is built up over the levels of the decoder. ADM's U-Net is conditioned on the level by scale
and shift, and its attention has 64 channels a head; it differs from `unet.UNet` only in its normalisation groups.

Sources: Song et al. 2021, appendix H (arXiv:2011.13456); Karras et al. 2022, appendix F.1 and table 7
(arXiv:2206.00364); Dhariwal & Nichol 2021, section 3 (arXiv:2105.05233).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.errors import RecipeError, ShapeError
from unveil.nn.embeddings import sinusoid
from unveil.nn.layers import (
    Fir,
    FirConv,
    SelfAttention,
    check_multiple,
    concat_condition,
    condition_vector,
    group_norm,
    zeroed,
)
from unveil.types import Condition, checked

ResampleDirection = Literal["down", "up"]
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

    def resample(self, way: ResampleDirection) -> Fir:
        """Layer that halves or doubles the size, without weights."""
        return Fir(self.filter or (1, 1), way)

    def halved(self, width: int, out: int) -> nn.Module:
        """Layer that halves the size, with a 3x3 convolution."""
        if self.filter is not None:
            return FirConv(width, out, self.filter)
        return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(width, out, 3, stride=2))

    def norm(self, width: int) -> nn.GroupNorm:
        """Group normalisation with at most 32 groups of at least four channels."""
        return group_norm(width, max(min(32, width // 4), 1), self.norm_eps)

    def attention(self, width: int) -> SelfAttention:
        """Self-attention with the network's number of heads."""
        if self.head_channels is not None and width % self.head_channels:
            raise RecipeError(f"head_channels = {self.head_channels}: must divide the {width} channels of a level")
        heads = 1 if self.head_channels is None else width // self.head_channels
        return SelfAttention(width, heads, norm=self.norm(width))


class EDMBlock(nn.Module):
    """Two convolutions with the level's modulation between them, a skip connection, and optional self-attention."""

    def __init__(
        self,
        width: int,
        out: int,
        style: EDMBlockStyle,
        *,
        way: ResampleDirection | None = None,
        attention: bool = False,
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
        """Map x (B, C, H, W) and the activated embedding (B, D) to (B, out, H', W')."""
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
    """Input pyramid: the input, smaller by one level, is added or concatenated to the features."""

    def __init__(self, channels: int, width: int, style: EDMBlockStyle, combine: Combination) -> None:
        super().__init__()
        self.resample = style.resample("down")
        self.conv = nn.Conv2d(channels, width, 1)
        self.combine: Combination = combine

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features and the pyramid's next image."""
        pyramid = self.resample(pyramid)
        seen = self.conv(pyramid)
        return (seen + h if self.combine == "sum" else torch.cat([seen, h], dim=1)), pyramid


class InputResidual(nn.Module):
    """Residual input pyramid: the pyramid is added to the features, and the sum is also the next pyramid."""

    def __init__(self, channels: int, width: int, style: EDMBlockStyle) -> None:
        super().__init__()
        self.resample = style.halved(channels, width)
        self.weight = style.branch_weight

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features, and the same tensor as the next pyramid."""
        pyramid = (self.resample(pyramid) + h) * self.weight
        return pyramid, pyramid


class OutputSkip(nn.Module):
    """Output pyramid: the level's part of the output, added to the upsampled sum of the coarser levels."""

    def __init__(self, width: int, channels: int, style: EDMBlockStyle) -> None:
        super().__init__()
        self.norm = style.norm(width)
        self.conv = zeroed(nn.Conv2d(width, channels, 3, padding=1))
        self.resample = style.resample("up")

    def forward(self, h: Tensor, pyramid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the unchanged features and the sum of the output so far."""
        part = self.conv(F.silu(self.norm(h)))
        return h, part if pyramid is None else part + self.resample(pyramid)


# ---------------------------------------------------------------------- levels


class EDMDown(nn.Module):
    """Encoder level: downsampling, the pyramid's part, then the blocks."""

    def __init__(
        self, blocks: list[EDMBlock], resample: nn.Module | None, side: InputSkip | InputResidual | None = None
    ) -> None:
        super().__init__()
        self.resample = resample
        self.side = side
        self.blocks = nn.ModuleList(blocks)

    def forward(self, h: Tensor, time: Tensor, stack: list[Tensor], pyramid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smaller features and pyramid; every result is pushed on the stack."""
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
    """Decoder level: upsampling, blocks that each take a result from the stack, then the pyramid's part."""

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
        """Return the larger features and the output pyramid."""
        if self.resample is not None:
            h = _resampled(self.resample, h, time)
        for block in self.blocks:
            h = block(torch.cat([h, stack.pop()], dim=1), time)
        return (h, pyramid) if self.side is None else self.side(h, pyramid)


def _resampled(resample: nn.Module, h: Tensor, time: Tensor) -> Tensor:
    return resample(h, time) if isinstance(resample, EDMBlock) else resample(h)


def embedded(waves: Tensor, layer: nn.Linear | None, augment: Tensor | None) -> Tensor:
    """Sum of the time embedding and the augmentation's linear embedding, if there is one."""
    if augment is None:
        return waves
    width = 0 if layer is None else layer.in_features
    if layer is None or augment.shape != (len(waves), width):
        raise ShapeError(f"augment {tuple(augment.shape)}: this network takes ({len(waves)}, {width})")
    return waves + layer(augment.to(waves))


Embedding = Literal["positional", "fourier"]
Encoder = Literal["standard", "skip", "residual"]
Decoder = Literal["standard", "skip"]
Resampling = Literal["residual", "pool"]
FOURIER_SCALE = 16.0  # deviation of the random frequencies


@dataclass(frozen=True)
class SongUNetConfig:
    """Configuration of Score SDE's U-Net; the defaults are DDPM++. A level is a resolution; level i has rate 2**i.

    Args:
        in_channels, out_channels: Numbers of channels of x and of the result.
        model_channels: Width of the first convolution; a level has its multiplier times this number.
        channel_mult: Multiplier of each level, finest first.
        num_res_blocks: Residual blocks per level of the encoder (one more in the decoder).
        attention: Rates of the levels with self-attention: after each block of the encoder, after the last of the
            decoder.
        embedding: Embedding of the time input: `positional` sinusoids, or random `fourier` frequencies (NCSN++, for log
            sigma).
        noise_multiplier: Width of that embedding, and of a condition's vector, in `model_channels`.
        embedding_multiplier: Width of the blocks' conditioning vector, in `model_channels`.
        encoder: Input pyramid. `standard`: none. `skip`: each level receives the smaller input. `residual`: each level
            also passes the sum on to the next (NCSN++).
        decoder: Output pyramid. `standard`: none. `skip`: each level adds its part to the output.
        combine: Combination of input and features in a `skip` encoder: their `sum`, or `cat` for concatenation.
        filter: Taps of the filter that resamples features and images: (1, 1) or NCSN++'s (1, 3, 3, 1). None is (1, 1),
            with a strided convolution in a `residual` encoder.
        resample: Resampling of the features: in `residual` blocks, or without weights (`pool`).
        branch_weight: Factor of a sum of two branches.
        dropout: Dropout probability in residual blocks, in training.
        augment_dim: Number of values that describe how x was augmented in training; 0: none.
        concat_channels: Channels of `condition.concat`, concatenated to x.

    Raises:
        RecipeError: The settings are inconsistent.
    """

    in_channels: int
    out_channels: int
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)
    num_res_blocks: int = 4
    attention: tuple[int, ...] = (2,)
    embedding: Embedding = "positional"
    noise_multiplier: int = 1
    embedding_multiplier: int = 4
    encoder: Encoder = "standard"
    decoder: Decoder = "standard"
    combine: Combination = "sum"
    filter: tuple[float, ...] | None = (1, 1)
    resample: Resampling = "residual"
    branch_weight: float = math.sqrt(0.5)
    dropout: float = 0.0
    augment_dim: int = 0
    concat_channels: int = 0

    def __post_init__(self) -> None:
        _settle(self)
        checked(self)
        if self.noise_multiplier < 1 or self.vector_dim % 2:
            raise RecipeError(f"noise_multiplier = {self.noise_multiplier}: at least 1, and even times channels")
        self.style.resample("down")  # refuses a filter that cannot be

    @property
    def rates(self) -> tuple[int, ...]:
        """Downsampling rate of each level."""
        return tuple(2**level for level in range(len(self.channel_mult)))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(multiplier * self.model_channels for multiplier in self.channel_mult)

    @property
    def vector_dim(self) -> int:
        """Width of the index's embedding, and of a condition's vector."""
        return self.noise_multiplier * self.model_channels

    @property
    def style(self) -> EDMBlockStyle:
        """Settings that the blocks share."""
        return EDMBlockStyle(
            self.embedding_multiplier * self.model_channels, "add", 1e-6, self.branch_weight, None, True, self.dropout,
            self.filter,
        )  # fmt: skip


@dataclass(frozen=True)
class DhariwalUNetConfig:
    """Configuration of ADM's U-Net as EDM trained it; the defaults are its ImageNet-64 network.

    Args:
        in_channels, out_channels: Numbers of channels of x and of the result.
        model_channels: Number of channels of the U-Net; a level has its multiplier times this number.
        channel_mult: Multiplier of each level, finest first.
        num_res_blocks: Residual blocks per level of the encoder (one more in the decoder).
        attention: Rates of the levels with self-attention after each block; the middle always has it.
        head_channels: Number of channels of an attention head.
        embedding_multiplier: Width of the time embedding, and of a condition's vector, in `model_channels`.
        dropout: Dropout probability in residual blocks, in training.
        augment_dim: Number of values that describe how x was augmented in training; 0: none.
        concat_channels: Channels of `condition.concat`, concatenated to x.

    Raises:
        RecipeError: The settings are inconsistent.
    """

    in_channels: int
    out_channels: int
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attention: tuple[int, ...] = (2, 4, 8)
    head_channels: int = 64
    embedding_multiplier: int = 4
    dropout: float = 0.0
    augment_dim: int = 0
    concat_channels: int = 0

    def __post_init__(self) -> None:
        _settle(self)
        if self.head_channels < 1:
            raise RecipeError(f"head_channels = {self.head_channels}: must be at least 1")

    @property
    def rates(self) -> tuple[int, ...]:
        """Downsampling rate of each level."""
        return tuple(2**level for level in range(len(self.channel_mult)))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(multiplier * self.model_channels for multiplier in self.channel_mult)

    @property
    def vector_dim(self) -> int:
        """Width of the time embedding, and of a condition's vector."""
        return self.embedding_multiplier * self.model_channels

    @property
    def style(self) -> EDMBlockStyle:
        """Settings that the blocks share."""
        return EDMBlockStyle(self.vector_dim, "scale-shift", 1e-5, 1.0, self.head_channels, False, self.dropout, (1, 1))


def _settle(config: SongUNetConfig | DhariwalUNetConfig) -> None:
    """Convert lists to tuples, and check the settings that both networks share."""
    for name in ("channel_mult", "attention", *(("filter",) if getattr(config, "filter", None) else ())):
        object.__setattr__(config, name, tuple(getattr(config, name)))
    for name in ("in_channels", "out_channels", "model_channels", "num_res_blocks", "embedding_multiplier"):
        if getattr(config, name) < 1:
            raise RecipeError(f"{name} = {getattr(config, name)}: must be at least 1")
    if not config.channel_mult or min(config.channel_mult) < 1:
        raise RecipeError(
            f"channel_mult = {config.channel_mult}: one per level is needed, each at least 1, such as (1, 2)"
        )
    if not 0 <= config.dropout < 1:
        raise RecipeError(f"dropout = {config.dropout}: must lie in [0, 1)")
    for rate in config.attention:
        if rate not in config.rates:
            allowed = ", ".join(map(str, config.rates))
            raise RecipeError(f"attention {rate}: must be a rate of downsampling that a level has: {allowed}")


class SongUNet(nn.Module):
    """Score SDE's network from (x, t, condition) to a tensor of x's size with `out_channels`."""

    def __init__(self, config: SongUNetConfig) -> None:
        super().__init__()
        self.config = config
        self.vector_dim = config.vector_dim
        self.multiple = config.rates[-1]  # of both sides of x
        style, channels = config.style, config.in_channels + config.concat_channels
        if config.embedding == "fourier":
            self.register_buffer("frequencies", FOURIER_SCALE * torch.randn(config.vector_dim // 2))
        self.map_1 = nn.Linear(config.vector_dim, style.vector)
        self.map_2 = nn.Linear(style.vector, style.vector)
        self.augment = nn.Linear(config.augment_dim, config.vector_dim, bias=False) if config.augment_dim else None
        self.enter = nn.Conv2d(channels, config.model_channels, 3, padding=1)
        stack = [config.model_channels]
        self.down = self._way_down(channels, stack)
        width = stack[-1]
        self.middle = nn.ModuleList([EDMBlock(width, width, style, attention=True), EDMBlock(width, width, style)])
        self.up = self._way_up(stack)
        if config.decoder != "skip":
            width = config.widths[0]
            self.norm = style.norm(width)
            self.leave = zeroed(nn.Conv2d(width, config.out_channels, 3, padding=1))

    def forward(
        self, x: Tensor, t: Tensor, condition: Condition | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """Network output, in the size of x.

        Args:
            x: Noisy samples (B, in_channels, H, W) with height and width that are multiples of 2**(levels - 1).
            t: Time input (B,) of the network for the noise level.
            condition: Condition of B rows. Its vector (B, vector_dim) is added to the time embedding, its `concat` is
                concatenated to x.
            augment: Augmentation labels (B, augment_dim); None: x is not augmented.

        Raises:
            ShapeError: The size cannot be halved at every level, or the condition does not fit.
        """
        condition = condition or Condition()
        x = _joined(x, condition, self.config)
        seen = embedded(self._waves(t).to(self.map_1.weight.dtype), self.augment, augment)
        if (vector := condition_vector(condition, len(x), self.vector_dim)) is not None:
            seen = seen + vector.to(seen)
        time = F.silu(self.map_2(F.silu(self.map_1(seen))))  # (B, D)

        h, pyramid = self.enter(x), x
        stack = [h]
        for down in self.down:
            h, pyramid = down(h, time, stack, pyramid)
        for block in self.middle:
            h = block(h, time)
        pyramid = None
        for up in self.up:
            h, pyramid = up(h, time, stack, pyramid)
        return self.leave(F.silu(self.norm(h))) if pyramid is None else pyramid

    def _waves(self, t: Tensor) -> Tensor:
        """Embedding of t, (B, vector_dim) float32."""
        if self.config.embedding == "positional":
            return sinusoid(t, self.vector_dim, "sin-cos")
        angles = t.float()[:, None] * (2 * math.pi * self.get_buffer("frequencies").float())
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    def _way_down(self, channels: int, stack: list[int]) -> nn.ModuleList:
        """Encoder levels; the widths of all that they push are appended to the stack."""
        config, style, levels = self.config, self.config.style, nn.ModuleList()
        for level, out in enumerate(config.widths):
            resample, side, width = None, None, stack[-1]
            if level:
                resample = self._resample(width, "down")
                if config.encoder == "skip":
                    side = InputSkip(channels, width, style, config.combine)
                    width = 2 * width if config.combine == "cat" else width
                elif config.encoder == "residual":
                    side, channels = InputResidual(channels, width, style), width
                stack.append(width)
            blocks: list[EDMBlock] = []
            for _ in range(config.num_res_blocks):
                blocks.append(EDMBlock(stack[-1], out, style, attention=config.rates[level] in config.attention))
                stack.append(out)
            levels.append(EDMDown(blocks, resample, side))
        return levels

    def _way_up(self, stack: list[int]) -> nn.ModuleList:
        """Decoder levels; they take all widths from the stack."""
        config, style, levels = self.config, self.config.style, nn.ModuleList()
        width, last = stack[-1], len(config.widths) - 1
        for level in range(last, -1, -1):
            out = config.widths[level]
            resample = None if level == last else self._resample(width, "up")
            blocks: list[EDMBlock] = []
            for i in range(config.num_res_blocks + 1):
                attention = i == config.num_res_blocks and config.rates[level] in config.attention
                blocks.append(EDMBlock(width + stack.pop(), out, style, attention=attention))
                width = out
            side = OutputSkip(out, config.out_channels, style) if config.decoder == "skip" else None
            levels.append(EDMUp(blocks, resample, side))
        return levels

    def _resample(self, width: int, way: ResampleDirection) -> nn.Module:
        style = self.config.style
        return EDMBlock(width, width, style, way=way) if self.config.resample == "residual" else style.resample(way)


class DhariwalUNet(nn.Module):
    """ADM's network as EDM trained it, from (x, t, condition) to a tensor of x's size with `out_channels`."""

    def __init__(self, config: DhariwalUNetConfig) -> None:
        super().__init__()
        self.config = config
        self.vector_dim = config.vector_dim
        self.multiple = config.rates[-1]  # of both sides of x
        style, last = config.style, len(config.widths) - 1
        attends = [rate in config.attention for rate in config.rates]
        self.map_1 = nn.Linear(config.model_channels, config.vector_dim)
        self.map_2 = nn.Linear(config.vector_dim, config.vector_dim)
        self.augment = nn.Linear(config.augment_dim, config.model_channels, bias=False) if config.augment_dim else None
        stack = [config.widths[0]]
        self.enter = nn.Conv2d(config.in_channels + config.concat_channels, stack[0], 3, padding=1)
        self.down = nn.ModuleList()
        for level, out in enumerate(config.widths):
            resample = EDMBlock(stack[-1], stack[-1], style, way="down") if level else None
            stack += [stack[-1]] if level else []
            blocks: list[EDMBlock] = []
            for _ in range(config.num_res_blocks):
                blocks.append(EDMBlock(stack[-1], out, style, attention=attends[level]))
                stack.append(out)
            self.down.append(EDMDown(blocks, resample))
        width = stack[-1]
        self.middle = nn.ModuleList([EDMBlock(width, width, style, attention=True), EDMBlock(width, width, style)])
        self.up = nn.ModuleList()
        for level in range(last, -1, -1):
            resample = None if level == last else EDMBlock(width, width, style, way="up")
            blocks = []
            for _ in range(config.num_res_blocks + 1):
                blocks.append(EDMBlock(width + stack.pop(), config.widths[level], style, attention=attends[level]))
                width = config.widths[level]
            self.up.append(EDMUp(blocks, resample))
        self.norm = style.norm(width)
        self.leave = zeroed(nn.Conv2d(width, config.out_channels, 3, padding=1))

    def forward(
        self, x: Tensor, t: Tensor, condition: Condition | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """Network output, in the size of x.

        Args:
            x: Noisy samples (B, in_channels, H, W) with height and width that are multiples of 2**(levels - 1).
            t: Time input (B,) of the network for the noise level.
            condition: Condition of B rows. Its vector (B, vector_dim) is added to the time embedding, its `concat` is
                concatenated to x.
            augment: Augmentation labels (B, augment_dim); None: x is not augmented.

        Raises:
            ShapeError: The size cannot be halved at every level, or the condition does not fit.
        """
        condition = condition or Condition()
        x = _joined(x, condition, self.config)
        waves = sinusoid(t, self.config.model_channels, "cos-sin").to(self.map_1.weight.dtype)
        time = self.map_2(F.silu(self.map_1(embedded(waves, self.augment, augment))))
        if (vector := condition_vector(condition, len(x), self.vector_dim)) is not None:
            time = time + vector.to(time)
        time = F.silu(time)  # (B, D)

        h = self.enter(x)
        stack = [h]
        for down in self.down:
            h, _ = down(h, time, stack, x)
        for block in self.middle:
            h = block(h, time)
        for up in self.up:
            h, _ = up(h, time, stack, None)
        return self.leave(F.silu(self.norm(h)))


def _joined(x: Tensor, condition: Condition, config: SongUNetConfig | DhariwalUNetConfig) -> Tensor:
    """Check x and the condition, and return x with the condition's channels concatenated."""
    if x.ndim != 4 or x.shape[1] != config.in_channels:
        raise ShapeError(f"x {tuple(x.shape)}: must be (B, {config.in_channels}, H, W)")
    check_multiple(x, config.rates[-1])
    if condition.tokens is not None:
        raise ShapeError("condition.tokens: this network has no cross-attention; pass a vector or channels")
    return concat_condition(x, condition, config.concat_channels)
