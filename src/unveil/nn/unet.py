"""The U-Net of DDPM, Improved DDPM, ADM and latent diffusion: one network whose configuration covers all of them.

    x -> enter -> [blocks (+ attention), downsample] per level -> middle -> [blocks (+ attention), upsample] -> leave

Every block of the encoder pushes its result on a stack; every block of the decoder takes one from it. The time
embedding (plus `condition.vector`) enters each residual block; spatial transformers, if there are any, attend to
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
    autocast_dtype,
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
        in_channels: Number of channels of x.
        out_channels: Number of channels of the output; twice those of x with learned variance.
        model_channels: Width of the sinusoid of t; a level has int(multiplier * model_channels) channels.
        channel_mult: Multiplier of each level, finest first; fractions are allowed.
        num_res_blocks: Residual blocks per level of the encoder (one more in the decoder).
        attention: Rates of the levels with self-attention after each block; the middle always has it.
        heads, heads_up, head_channels: Number of heads in the encoder and the middle, in the decoder (None: the same),
            and a width per head that overrides both numbers.
        attention_order: Order of the rows of the qkv projection: `heads-first` in Improved DDPM and most of ADM
            ("legacy"), `qkv-first` in ADM's 64 px network.
        time_scale_shift: Conditioning on the time embedding: `add` adds it before the second normalisation (DDPM),
            `scale-shift` applies scale and shift after it (Improved DDPM's default).
        resample: Resampling. `conv`: strided convolution, and nearest neighbour + convolution. `conv-asymmetric`: the
            same, padded only at the end (DDPM). `pool`: average and nearest neighbour without weights. `residual`:
            inside residual blocks (ADM).
        embedding: Order of the sinusoid of t: `sin-cos` for DDPM, `cos-sin` for the others.
        norm_eps: Epsilon of the normalisations: 1e-6 for DDPM, 1e-5 for the others.
        groups: Number of groups of every normalisation. In groups of one channel, the normalisation removes what was
            added per channel before it.
        stem_channels: Width of the first convolution; None: that of the first level.
        concat_channels: Channels of `condition.concat`, concatenated to x.
        context_size: Size of the context: `same` as x's, or `smaller`, which is upsampled bilinearly
            (super-resolution).
        transformer_depth: Number of blocks of the spatial transformer that replaces self-attention, for each level;
            that of the last level is also used in the middle. One number is used for all levels. 0 or none:
            self-attention.
        cross_attention_dim: Width of `condition.tokens`, to which the spatial transformers attend; None: no
            cross-attention.
        projection: Layers around the blocks of a spatial transformer: `conv` for convolutions of one pixel (SD 1),
            `linear` for linear layers (SD 2).
        patch: Side of the squares of pixels that become channels at the input and pixels again at the output; 1: none.

    Raises:
        RecipeError: The settings are inconsistent.
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

    @property
    def takes_any_size(self) -> bool:
        """True for latent diffusion's networks, where a level rounds half of an odd side up, as in diffusers."""
        return self.resample == "conv" and any(self.transformer_depth)

    def depth_of(self, level: int) -> int:
        """Number of blocks of a level's spatial transformers; 0: self-attention. Level -1 is the middle."""
        depths = self.transformer_depth
        return 0 if not depths else depths[0] if len(depths) == 1 else depths[level]

    def heads_of(self, width: int, heads: int) -> int:
        """Number of attention heads at a width, given the number that `head_channels` overrides."""
        if self.head_channels is None:
            return heads
        if width % self.head_channels:
            raise RecipeError(f"head_channels = {self.head_channels}: must divide the {width} channels of a level")
        return width // self.head_channels


class ResBlock(nn.Module):
    """Residual block of two convolutions, conditioned on the time in between, with optional resampling before them."""

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
        """Map x (B, C, H, W) and the activated time embedding (B, D) to (B, out, H', W')."""
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
    """Downsampling by averaging 2 x 2 pixels."""

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """Map x (B, C, H, W) to (B, C, H/2, W/2)."""
        return F.avg_pool2d(x, 2)


class NearestUp(nn.Module):
    """Upsampling by repeating each pixel in 2 x 2."""

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """Map x (B, C, H, W) to (B, C, 2H, 2W)."""
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Downsample(nn.Module):
    """Downsampling by a strided convolution; DDPM pads only below and on the right."""

    def __init__(self, width: int, *, asymmetric: bool) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """Map x (B, C, H, W) to (B, C, H/2, W/2); without asymmetric padding, halves are rounded up."""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Upsampling by repeating pixels, then a 3x3 convolution; computed as one transposed convolution.

    Several of the repeated pixels under a 3x3 kernel are the same, and are multiplied by the sum of their weights. A
    4x4 kernel with stride 2 gives the same result with 16/36 of the multiplications.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.memo: Memo[Tensor] | None = None  # the kernel, in a run

    def kernel(self) -> Tensor:
        """Kernel of the transposed convolution, (C, C, 4, 4), in memory with the channels last."""
        weight, lowered = self.conv.weight, autocast_dtype(self.conv.weight.device)
        if lowered is not None:  # first, so that weights lowered for good give the same
            weight = weight.to(lowered)
        kernel = _summed(_summed(weight, 2), 3).transpose(0, 1)
        return kernel.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor, time: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """Map x (B, C, H, W) to (B, C, 2H, 2W), or to a size whose sides may be one less."""
        twice = (2 * x.shape[-2], 2 * x.shape[-1])
        if self.conv._forward_hooks or (size or twice) != twice:  # hooks act on the layer's own call
            return self.conv(F.interpolate(x, size or twice, mode="nearest"))
        kernel = self.kernel() if self.memo is None else self.memo.get(self.conv.weight, self.kernel)
        if kernel.dtype == torch.float32 or not x.is_contiguous():
            return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)
        # In bf16 a CPU takes half the time with the channels last.
        last = x.contiguous(memory_format=torch.channels_last)
        return F.conv_transpose2d(last, kernel, self.conv.bias, stride=2, padding=1).contiguous()


def _summed(weight: Tensor, dim: int) -> Tensor:
    """Sums along an axis of the weights that are applied to the same repeated pixel, one for each of four pixels."""
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
    """Attention after a block of a level; level -1 is the middle."""
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
    """Blocks of one resolution, each with optional attention, and the resampling to the next resolution."""

    def __init__(
        self, blocks: list[ResBlock], attention: list[nn.Module] | None = None, resample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = nn.ModuleList(attention or [nn.Identity() for _ in blocks])
        self.resample = resample

    def block(self, place: int, h: Tensor, time: Tensor, text: TextContext | None) -> Tensor:
        """Apply one block and its attention."""
        h, attention = self.blocks[place](h, time), self.attention[place]
        return attention(h, text) if isinstance(attention, SpatialTransformer) else attention(h)


class UNetMiddle(UNetLevel):
    """Blocks of the smallest resolution, between encoder and decoder."""

    def forward(self, h: Tensor, time: Tensor, text: TextContext | None = None) -> Tensor:
        """Apply all blocks in order."""
        for place in range(len(self.blocks)):
            h = self.block(place, h, time, text)
        return h


class UNetDown(UNetLevel):
    """Encoder level, which pushes every result on the stack."""

    def forward(self, h: Tensor, time: Tensor, stack: list[Tensor], text: TextContext | None = None) -> Tensor:
        """Return the smaller result, which is also the last on the stack."""
        for place in range(len(self.blocks)):
            h = self.block(place, h, time, text)
            stack.append(h)
        if self.resample is not None:
            h = self.resample(h, time)
            stack.append(h)
        return h


class UNetUp(UNetLevel):
    """Decoder level, in which every block takes one result from the stack."""

    def forward(self, h: Tensor, time: Tensor, stack: list[Tensor], text: TextContext | None = None) -> Tensor:
        """Return the larger result."""
        for place in range(len(self.blocks)):
            h = self.block(place, torch.cat([h, stack.pop()], dim=1), time, text)
        if isinstance(self.resample, Upsample):
            return self.resample(h, time, (stack[-1].shape[-2], stack[-1].shape[-1]))
        return h if self.resample is None else self.resample(h, time)


def down_blocks(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """Encoder levels, and the widths of all results on the stack, that of the first convolution included."""
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
    """Blocks of the smallest resolution: residual block, attention, residual block."""
    width = config.widths[-1]
    blocks = [ResBlock(width, width, config) for _ in range(2)]
    return UNetMiddle(blocks, [_attention(-1, width, config.heads, config), nn.Identity()])


def up_blocks(config: UNetConfig, stack: Sequence[int]) -> nn.ModuleList:
    """Decoder levels, coarsest first, given the widths of all results on the stack."""
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
    """First half of a U-Net, its encoder and middle, from (x, t, condition) to `UNetFeatures`."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.vector_dim = config.vector_dim
        self.multiple = config.patch * (1 if config.takes_any_size else config.rates[-1])  # of both sides of x
        self.time = TimeEmbedding(config.model_channels, config.vector_dim, config.embedding)
        inputs = (config.in_channels + config.concat_channels) * config.patch**2
        self.enter = nn.Conv2d(inputs, config.stem_channels or config.widths[0], 3, padding=1)
        self.down, self.stack_widths = down_blocks(config)
        self.middle = mid_block(config)
        self._read: Callable[[EncoderStates], TextContext] = TextContext

    def encode(self, x: Tensor, t: Tensor, condition: Condition, hint: Tensor | None = None) -> UNetFeatures:
        """Compute the first half of the network.

        Args:
            x, t, condition: Inputs of the U-Net.
            hint: Features added to the output of the first convolution, of its shape; None: none.

        Raises:
            ShapeError: An input does not fit, as in `UNet.forward`.
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
        """Context in which all that depends only on weights and texts is computed once and reused in later steps.

        These are the keys and values of a text, computed when it first occurs, and the kernels of upsampling
        convolutions, computed at their first call.

        The context is for sampling: outputs are the same, no weight and no token gets a gradient through the reused
        values, and weights must not change within it. What depends on the levels, `indices`, is computed at each step.
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
    """Denoising network from (x, t, condition) to a tensor of x's size with `out_channels`."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        self.up = up_blocks(config, self.stack_widths)
        self.norm = group_norm(config.widths[0], config.groups, config.norm_eps)
        self.leave = zeroed(nn.Conv2d(config.widths[0], config.out_channels * config.patch**2, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Network output, in the size of x.

        Args:
            x: Noisy samples (B, in_channels, H, W), height and width multiples of patch * 2**(levels - 1); of patch
                alone if the configuration `takes_any_size`.
            t: Time input (B,) of the network for the noise level; fractions are allowed.
            condition: Condition of B rows. Its vector (B, vector_dim) is added to the time embedding, and its `concat`
                is concatenated to x. Its tokens (B, L, cross_attention_dim) are attended to where the mask allows it.
                Its residuals are added to the stack and to the middle's result.

        Raises:
            ShapeError: The size cannot be halved at every level, or the condition does not fit.
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
    """Add the residuals to the stack and to the middle's result; a single residual is the middle's."""
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
