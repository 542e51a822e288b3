"""The U-Net of DDPM, Improved DDPM, ADM and latent diffusion: one network whose configuration expresses all of them.

    x -> enter -> [blocks (+ attention), downsample] per level -> middle -> [blocks (+ attention), upsample] -> leave

Every block of the way down leaves its result on a stack; every block of the way up takes one from it. The time
embedding (plus `condition.vector`) enters each residual block; spatial transformers, where there are any, read
`condition.tokens`.

Sources: Ho et al. 2020, appendix B (arXiv:2006.11239); Nichol & Dhariwal 2021, section 3 (arXiv:2102.09672);
Dhariwal & Nichol 2021, section 3 (arXiv:2105.05233); Rombach et al. 2022, section 3.3 (arXiv:2112.10752).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.errors import RecipeError, ShapeError
from unveil.nn.attention import KVCache
from unveil.nn.embeddings import EmbeddingOrder, TimeEmbedding
from unveil.nn.layers import (
    AttentionOrder,
    ContextSize,
    Memo,
    SelfAttention,
    check_multiple,
    concat_condition,
    condition_tokens,
    condition_vector,
    group_norm,
    zeroed,
)
from unveil.nn.spatial_transformer import Projection, SpatialTransformer, TextContext, precompute_context
from unveil.nn.transformer import EncoderStates
from unveil.types import Condition, Ge, Lt, checked

Modulation = Literal["add", "scale-shift"]
Resampling = Literal["conv", "conv-asymmetric", "pool", "residual"]


@dataclass(frozen=True)
class UNetConfig:
    """Configuration of a U-Net. A level is a resolution; level i has rate 2**i, counted after `patch`.

    Args:
        in_channels: Channels of x.
        out_channels: Channels of the result, twice those of x with learned variance.
        model_channels: Width of the sinusoid; levels have int(multiplier * model_channels).
        channel_mult: One per level, finest first; fractions allowed.
        num_res_blocks: Residual blocks per level on the way down (one more on the way up).
        attention: Rates of the levels with self-attention after each block; the middle always has it.
        heads, heads_up, head_channels: Heads on the way down and in the middle, on the way up (None: the same), and a
            width per head that overrides both counts.
        attention_order: `heads-first` in Improved DDPM and most of ADM ("legacy"), `qkv-first` in ADM's 64 px network.
        time_scale_shift: Input of the time embedding: added before the second normalisation (DDPM),
            or as scale and shift after it (Improved DDPM's default).
        resample: `conv` strided convolution, nearest + convolution; `conv-asymmetric` the same, padded at the end
            only (DDPM); `pool` average and nearest without weights; `residual` inside residual blocks (ADM).
        embedding: `sin-cos` for DDPM, `cos-sin` for the others.
        norm_eps: 1e-6 for DDPM, 1e-5 for the others.
        groups: Number of groups of every normalisation; channels in groups of one lose what was added per channel
            before.
        stem_channels: Width of the first convolution; None: that of the first level.
        concat_channels: Channels of `condition.concat`, concatenated to x.
        context_size: `same` as x's, or `smaller`: enlarged bilinearly to x's size (super-resolution).
        transformer_depth: Blocks of the spatial transformer that takes the place of self-attention, for each level, the
            last level's also in the middle; one number stands for all levels; 0, or none: plain self-attention.
        cross_attention_dim: Cross attention dim of `condition.tokens`, which the spatial transformers read; None: they
            read nothing.
        projection: `conv` or `linear`, the layers around a spatial transformer's blocks: SD 1 has convolutions of one
            pixel, SD 2 linear layers.
        patch: Side of the squares of pixels that become channels on entry (1: none) and pixels again at the end.

    Raises:
        RecipeError: Settings that do not fit together.
    """

    in_channels: Annotated[int, Ge(1)]
    out_channels: Annotated[int, Ge(1)]
    model_channels: Annotated[int, Ge(1)]
    channel_mult: tuple[float, ...]
    num_res_blocks: Annotated[int, Ge(1)]
    attention: tuple[int, ...] = ()
    heads: Annotated[int, Ge(1)] = 1
    heads_up: int | None = None
    head_channels: int | None = None
    attention_order: AttentionOrder = "qkv-first"
    time_scale_shift: Modulation = "add"
    resample: Resampling = "conv"
    embedding: EmbeddingOrder = "cos-sin"
    norm_eps: float = 1e-5
    groups: Annotated[int, Ge(1)] = 32
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    stem_channels: int | None = None
    concat_channels: int = 0
    context_size: ContextSize = "same"
    patch: Annotated[int, Ge(1)] = 1
    transformer_depth: tuple[int, ...] = ()
    cross_attention_dim: int | None = None
    projection: Projection = "conv"

    def __post_init__(self) -> None:
        for name in ("channel_mult", "attention", "transformer_depth"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        checked(self)
        if not self.channel_mult:
            raise RecipeError("channel_mult: none given; a U-Net needs one per level, for example [1, 2, 2]")
        for rate in self.attention:
            if rate not in self.rates:
                allowed = ", ".join(map(str, self.rates))
                raise RecipeError(f"attention {rate}: must be a rate of downsampling that a level has: {allowed}")
        self._check_transformers()

    def _check_transformers(self) -> None:
        depths, levels = self.transformer_depth, len(self.channel_mult)
        if len(depths) not in (0, 1, levels) or any(depth < 0 for depth in depths):
            raise RecipeError(
                f"transformer_depth {list(depths)}: must be one number, or one for each of {levels} levels"
            )
        if self.cross_attention_dim is not None and (self.cross_attention_dim < 1 or not any(depths)):
            raise RecipeError(
                f"cross_attention_dim = {self.cross_attention_dim}: the width of the tokens that spatial transformers "
                "read; set transformer_depth, for example [1]"
            )

    @property
    def rates(self) -> tuple[int, ...]:
        """Downsampling rate of each level."""
        return tuple(2**level for level in range(len(self.channel_mult)))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(int(multiplier * self.model_channels) for multiplier in self.channel_mult)

    @property
    def vector_dim(self) -> int:
        """Width of the time embedding, and of a condition's vector."""
        return 4 * self.model_channels

    def depth_of(self, level: int) -> int:
        """Blocks of a level's spatial transformers, 0 for plain self-attention; -1 is the middle."""
        depths = self.transformer_depth
        return 0 if not depths else depths[0] if len(depths) == 1 else depths[level]

    def heads_of(self, width: int, heads: int) -> int:
        """Attention heads at a width, given the count that `head_channels` overrides."""
        if self.head_channels is None:
            return heads
        if width % self.head_channels:
            raise RecipeError(f"head_channels = {self.head_channels}: must divide the {width} channels of a level")
        return width // self.head_channels


class ResBlock(nn.Module):
    """Residual block of two convolutions, conditioned on the time in between; `resample` changes the size first."""

    def __init__(self, width: int, out: int, config: UNetConfig, resample: nn.Module | None = None) -> None:
        super().__init__()
        self.modulation, self.dropout = config.time_scale_shift, config.dropout
        self.norm_1 = group_norm(width, config.groups, config.norm_eps)
        self.resample = resample or nn.Identity()
        self.conv_1 = nn.Conv2d(width, out, 3, padding=1)
        self.time = nn.Linear(config.vector_dim, out if config.time_scale_shift == "add" else 2 * out)
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


class AvgPoolDown(nn.Module):
    """Half the size by averaging."""

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2)."""
        return F.avg_pool2d(x, 2)


class NearestUp(nn.Module):
    """Twice the size by repeating pixels."""

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W)."""
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Downsample(nn.Module):
    """Half the size by a strided convolution; DDPM pads only below and on the right."""

    def __init__(self, width: int, *, asymmetric: bool) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Twice the size by repeating pixels, then a 3x3 convolution; computed as one transposed convolution.

    Of the repeated pixels under a 3x3 kernel several are the same one, so that it meets the sum of their weights:
    a 4x4 kernel with stride 2 gives the same at 16/36 of the multiplications.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.memo: Memo[Tensor] | None = None  # the kernel, in a run

    def kernel(self) -> Tensor:
        """Kernel of the transposed convolution, (C, C, 4, 4), in memory with the channels last."""
        weight, kind = self.conv.weight, self.conv.weight.device.type
        if torch.is_autocast_enabled(kind):  # first, so that weights lowered for good give the same
            weight = weight.to(torch.get_autocast_dtype(kind))
        kernel = _summed(_summed(weight, 2), 3).transpose(0, 1)
        return kernel.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W)."""
        if self.conv._forward_hooks:  # they act on the layer's own call
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        kernel = self.kernel() if self.memo is None else self.memo.get(self.conv.weight, self.kernel)
        if kernel.dtype == torch.float32 or not x.is_contiguous():
            return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)
        # In bf16 a CPU takes half the time with the channels last.
        last = x.contiguous(memory_format=torch.channels_last)
        return F.conv_transpose2d(last, kernel, self.conv.bias, stride=2, padding=1).contiguous()


def _summed(weight: Tensor, dim: int) -> Tensor:
    """The sums of three weights of an axis that meet a repeated pixel, for each of the four places around it."""
    first, middle, last = weight.unbind(dim)
    return torch.stack((last, middle + last, first + middle, first), dim)


def _downsample(width: int, config: UNetConfig) -> nn.Module:
    if config.resample == "residual":
        return ResBlock(width, width, config, resample=AvgPoolDown())
    return (
        AvgPoolDown()
        if config.resample == "pool"
        else Downsample(width, asymmetric=config.resample == "conv-asymmetric")
    )


def _upsample(width: int, config: UNetConfig) -> nn.Module:
    if config.resample == "residual":
        return ResBlock(width, width, config, resample=NearestUp())
    return NearestUp() if config.resample == "pool" else Upsample(width)


def _attention(level: int, width: int, heads: int, config: UNetConfig) -> nn.Module:
    """After a block of a level; level -1 is the middle."""
    heads, depth = config.heads_of(width, heads), config.depth_of(level)
    if depth:
        return SpatialTransformer(
            width,
            heads,
            depth=depth,
            context_width=config.cross_attention_dim,
            projection=config.projection,
            groups=config.groups,
        )
    norm = group_norm(width, config.groups, config.norm_eps)
    return SelfAttention(width, heads, norm=norm, order=config.attention_order)


def _attention_at(level: int, width: int, heads: int, config: UNetConfig) -> nn.Module:
    return _attention(level, width, heads, config) if config.rates[level] in config.attention else nn.Identity()


class UNetLevel(nn.Module):
    """The blocks of one resolution, each with attention or nothing after it, and the way to the next resolution."""

    def __init__(
        self, blocks: list[ResBlock], attention: list[nn.Module] | None = None, resample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = nn.ModuleList(attention or [nn.Identity() for _ in blocks])
        self.resample = resample

    def block(self, place: int, h: Tensor, time: Tensor, text: TextContext | None) -> Tensor:
        """One block and its attention."""
        h, attention = self.blocks[place](h, time), self.attention[place]
        return attention(h, text) if isinstance(attention, SpatialTransformer) else attention(h)


class UNetMiddle(UNetLevel):
    """The smallest resolution, between the two ways."""

    def forward(self, h: Tensor, time: Tensor, text: TextContext | None = None) -> Tensor:
        """All blocks in turn."""
        for place in range(len(self.blocks)):
            h = self.block(place, h, time, text)
        return h


class UNetDown(UNetLevel):
    """A level of the way down: leaves every result on the stack."""

    def forward(self, h: Tensor, time: Tensor, stack: list[Tensor], text: TextContext | None = None) -> Tensor:
        """The smaller result, last on the stack."""
        for place in range(len(self.blocks)):
            h = self.block(place, h, time, text)
            stack.append(h)
        if self.resample is not None:
            h = self.resample(h, time)
            stack.append(h)
        return h


class UNetUp(UNetLevel):
    """A level of the way up: every block takes one result from the stack."""

    def forward(self, h: Tensor, time: Tensor, stack: list[Tensor], text: TextContext | None = None) -> Tensor:
        """The larger result."""
        for place in range(len(self.blocks)):
            h = self.block(place, torch.cat([h, stack.pop()], dim=1), time, text)
        return h if self.resample is None else self.resample(h, time)


def down_blocks(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """The levels of the way down, and the widths of all that is then on the stack, the first convolution's included."""
    width = config.stem_channels or config.widths[0]
    stack, levels = [width], nn.ModuleList()
    for level, out in enumerate(config.widths):
        blocks, attention = [], []
        for _ in range(config.num_res_blocks):
            blocks.append(ResBlock(width, out, config))
            attention.append(_attention_at(level, out, config.heads, config))
            width = out
            stack.append(width)
        resample = None if level == len(config.widths) - 1 else _downsample(width, config)
        if resample is not None:
            stack.append(width)
        levels.append(UNetDown(blocks, attention, resample))
    return levels, stack


def mid_block(config: UNetConfig) -> UNetMiddle:
    """The smallest resolution: block, attention, block."""
    width = config.widths[-1]
    blocks = [ResBlock(width, width, config) for _ in range(2)]
    return UNetMiddle(blocks, [_attention(-1, width, config.heads, config), nn.Identity()])


def up_blocks(config: UNetConfig, stack: Sequence[int]) -> nn.ModuleList:
    """The levels of the way up, the smallest first, given the widths of all that is on the stack."""
    heads = config.heads if config.heads_up is None else config.heads_up
    left, levels, width = list(stack), nn.ModuleList(), stack[-1]
    for level in range(len(config.channel_mult) - 1, -1, -1):
        out, blocks, attention = config.widths[level], [], []
        for _ in range(config.num_res_blocks + 1):
            blocks.append(ResBlock(width + left.pop(), out, config))
            attention.append(_attention_at(level, out, heads, config))
            width = out
        levels.append(UNetUp(blocks, attention, None if level == 0 else _upsample(width, config)))
    return levels


class UNetFeatures(NamedTuple):
    """Output of the first half of a U-Net: the middle's result, the stack, and the second half's conditioning."""

    h: Tensor
    stack: list[Tensor]
    time: Tensor
    text: TextContext | None


class UNetEncoder(nn.Module):
    """The first half of a U-Net, the way down and the middle: (x, t, condition) to `UNetFeatures`."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.vector_dim = config.vector_dim
        self.multiple = config.patch * config.rates[-1]  # of both sides of x
        self.time = TimeEmbedding(config.model_channels, config.vector_dim, config.embedding)
        inputs = (config.in_channels + config.concat_channels) * config.patch**2
        self.enter = nn.Conv2d(inputs, config.stem_channels or config.widths[0], 3, padding=1)
        self.down, self.stack_widths = down_blocks(config)
        self.middle = mid_block(config)
        self._read: Callable[[EncoderStates], TextContext] = TextContext

    def encode(self, x: Tensor, t: Tensor, condition: Condition, hint: Tensor | None = None) -> UNetFeatures:
        """The first half's results.

        Args:
            x, t, condition: Inputs of the U-Net.
            hint: Added to what the first convolution makes of x, and of its shape.

        Raises:
            ShapeError: As in the U-Net.
        """
        config = self.config
        if x.ndim != 4 or x.shape[1] != config.in_channels:
            raise ShapeError(f"x {tuple(x.shape)}: must be (B, {config.in_channels}, H, W)")
        check_multiple(x, self.multiple)
        context = condition_tokens(condition, config.cross_attention_dim, len(x))
        text = None if context is None else self._read(context)
        time = self.time(t)  # (B, D)
        if (vector := condition_vector(condition, len(x), config.vector_dim)) is not None:
            time = time + vector.to(time)
        time = F.silu(time)  # every block takes it activated
        x = concat_condition(x, condition, config.concat_channels, config.context_size)
        h = self.enter(F.pixel_unshuffle(x, config.patch))
        stack = [h if hint is None else h + hint]
        h = stack[0]
        for down in self.down:
            h = down(h, time, stack, text)
        return UNetFeatures(self.middle(h, time, text), stack, time, text)

    @contextmanager
    def precompute(self, indices: Sequence[float] | Tensor) -> Iterator[None]:
        """Inside, what follows from weights and texts alone is computed once, and looked up in later steps.

        That is the keys and values of a text, when it is first seen, and the kernels of convolutions that enlarge, at
        their first call.

        It is for sampling: results are the same, no weight and no token gets a gradient through them, and weights must
        not change inside. What follows from the levels, `indices`, is computed at each step.
        """
        before, texts = self._read, Memo[dict[nn.Module, KVCache]]()
        # a compiler would make a variant of the network for each text, and does a kernel's sums at little cost
        compiled = bool(getattr(self, "_compiled_call_impl", None))
        enlarging = [] if compiled else [upsample for upsample in self.modules() if isinstance(upsample, Upsample)]
        kernels = [upsample.memo for upsample in enlarging]

        def read(context: EncoderStates) -> TextContext:
            return TextContext(context, texts.get(context.tokens, lambda: precompute_context(self, context)))

        self._read = cast(Any, torch.compiler.disable(read)) if compiled else read
        for upsample in enlarging:
            upsample.memo = Memo()
        try:
            yield
        finally:
            self._read = before
            for upsample, kernel in zip(enlarging, kernels, strict=True):
                upsample.memo = kernel


class UNet(UNetEncoder):
    """The denoising network: (x, t, condition) to a tensor of x's size with `out_channels`."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        self.up = up_blocks(config, self.stack_widths)
        self.norm = group_norm(config.widths[0], config.groups, config.norm_eps)
        self.leave = zeroed(nn.Conv2d(config.widths[0], config.out_channels * config.patch**2, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The raw result, in x's size.

        Args:
            x: (B, in_channels, H, W), height and width multiples of patch * 2**(levels - 1).
            t: (B,) the number that stands for the level, fractions allowed.
            condition: Its vector (B, vector_dim) joins the time embedding, its channels join x, its tokens (B, L,
                context_width) are read where the mask allows it, its residuals are added to the stack and to the
                middle's result.

        Raises:
            ShapeError: A size that cannot be halved often enough, or a condition that does not fit.
        """
        condition = condition or Condition()
        if condition.control_image is not None:
            raise ShapeError(
                "condition.control_image: is read by ControlNets, and none is at work; attach one, or leave it out"
            )
        h, stack, time, text = self.encode(x, t, condition)
        if condition.residuals is not None:
            stack, h = _added(stack, h, condition.residuals)
        for up in self.up:
            h = up(h, time, stack, text)
        return F.pixel_shuffle(self.leave(F.silu(self.norm(h))), self.config.patch)


def _added(stack: list[Tensor], h: Tensor, residuals: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The stack and the middle's result with their residuals; a single one is the middle's."""
    if len(residuals) not in (1, len(stack) + 1):
        raise ShapeError(
            f"condition.residuals: {len(residuals)} tensors; this U-Net takes {len(stack) + 1}, or that of its middle"
        )
    for place, (mine, added) in enumerate(zip([h, *reversed(stack)], reversed(residuals), strict=False)):
        if mine.shape != added.shape:
            name = "the middle" if not place else f"place {len(stack) - place} of the stack"
            raise ShapeError(f"condition.residuals: {tuple(added.shape)} for {name}, which is {tuple(mine.shape)}")
    *below, last = residuals
    return [a + b for a, b in zip(stack, below, strict=True)] if below else stack, h + last
