"""Parts of the U-Net: residual blocks, changes of size, attention, and the levels that hold them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.nn.layers import SelfAttention, group_norm, zeroed
from unveil.nn.spatial_transformer import Memo, SpatialTransformer, TextContext
from unveil.nn.unet_config import UNetConfig


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
        """That of the transposed convolution, (C, C, 4, 4), in memory with the channels last."""
        weight, kind = self.conv.weight, self.conv.weight.device.type
        if torch.is_autocast_enabled(kind):  # first, so that weights lowered for good give the same
            weight = weight.to(torch.get_autocast_dtype(kind))
        kernel = _summed(_summed(weight, 2), 3).transpose(0, 1)
        return kernel.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W)."""
        if self.conv._forward_hooks:  # they act on the layer's own call
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        kernel = self.kernel() if self.memo is None else self.memo.of(self.conv.weight, self.kernel)
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
