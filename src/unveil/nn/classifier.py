"""ADM's noisy classifier: the encoder half of the U-Net, pooled to logits and conditioned on the noise level.

    x -> enter -> [blocks (+ attention), downsample] per level -> middle -> pool -> logits

Source: Dhariwal & Nichol 2021, section 4 and appendix I (arXiv:2105.05233); attention pooling: Radford et al. 2021,
section 2.4 (arXiv:2103.00020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.errors import RecipeError, ShapeError
from unveil.nn.embeddings import TimeEmbedding
from unveil.nn.layers import AttentionOrder, check_multiple, group_norm, scaled_dot_product_attention, zeroed
from unveil.nn.unet import Modulation, Resampling, UNetConfig, down_blocks, mid_block
from unveil.types import Ge, checked

Pool = Literal["attention", "adaptive", "spatial", "spatial_v2"]


@dataclass(frozen=True)
class NoisyClassifierConfig:
    """Configuration of a noisy classifier; settings with the names of `UNetConfig` have the same meaning.

    Args:
        in_channels: Number of channels of x.
        num_classes: Number of logits.
        size: Side of x in pixels; attention pooling has a learned vector for each position.
        model_channels, channel_mult, num_res_blocks, attention: Settings of the encoder.
        heads, head_channels: Number and width of the attention heads of the encoder; attention pooling uses the same
            width per head.
        attention_order: Attention order of the encoder; that of the pooling is always `qkv-first`.
        time_scale_shift, resample: Modulation and resampling of the encoder's blocks.
        pool: Pooling. `attention`: attention of the mean of the smallest features to all of them. `adaptive`: their
            mean. `spatial` and `spatial_v2`: the means of every block's features, through a hidden layer (the second
            with normalisation).
        hidden: Width of the hidden layer of `spatial` and `spatial_v2`.
        groups: Number of groups of every normalisation.
        dropout: Dropout probability in residual blocks, in training.

    Raises:
        RecipeError: The settings are inconsistent.
    """

    in_channels: int
    num_classes: Annotated[int, Ge(1)]
    size: Annotated[int, Ge(1)]
    model_channels: int = 128
    channel_mult: tuple[float, ...] = (1, 2, 3, 4)
    num_res_blocks: int = 2
    attention: tuple[int, ...] = (2, 4, 8)
    heads: int = 1
    head_channels: int | None = 64
    attention_order: AttentionOrder = "heads-first"
    time_scale_shift: Modulation = "scale-shift"
    resample: Resampling = "residual"
    pool: Pool = "attention"
    hidden: Annotated[int, Ge(1)] = 2048
    groups: int = 32
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_mult", tuple(self.channel_mult))
        object.__setattr__(self, "attention", tuple(self.attention))
        checked(self)
        rate = self.encoder.rates[-1]
        if self.size % rate:
            raise RecipeError(f"size {self.size} px: must be a multiple of {rate}, to be halved between all levels")

    @property
    def encoder(self) -> UNetConfig:
        """Configuration of the U-Net whose first half is the encoder."""
        return UNetConfig(
            in_channels=self.in_channels,
            out_channels=self.in_channels,
            model_channels=self.model_channels,
            channel_mult=self.channel_mult,
            num_res_blocks=self.num_res_blocks,
            attention=self.attention,
            heads=self.heads,
            head_channels=self.head_channels,
            attention_order=self.attention_order,
            time_scale_shift=self.time_scale_shift,
            resample=self.resample,
            groups=self.groups,
            dropout=self.dropout,
        )


class AttentionPool(nn.Module):
    """Attention pooling: the mean of all positions attends to itself and to each of them, (B, C, H, W) to (B, out)."""

    def __init__(self, width: int, side: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.places = nn.Parameter(torch.randn(width, side * side + 1) / width**0.5)  # that of the mean first
        self.qkv = nn.Linear(width, 3 * width)
        self.out = zeroed(nn.Linear(width, out))

    def forward(self, x: Tensor) -> Tensor:
        """Pooled output (B, out) of features (B, C, H, W)."""
        tokens = x.flatten(2)  # (B, C, N)
        tokens = torch.cat([tokens.mean(2, keepdim=True), tokens], dim=2) + self.places.to(x)
        qkv = self.qkv(tokens.transpose(1, 2)).unflatten(2, (3, self.heads, -1))  # (B, 1 + N, 3, heads, D)
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))  # each (B, heads, 1 + N, D)
        return self.out(scaled_dot_product_attention(query[:, :, :1], key, value).flatten(1))


class NoisyClassifier(nn.Module):
    """Classifier of noisy images: (x, t) to logits (B, classes)."""

    def __init__(self, config: NoisyClassifierConfig) -> None:
        super().__init__()
        self.config = config
        encoder = config.encoder
        self.time = TimeEmbedding(encoder.model_channels, encoder.vector_dim, encoder.embedding)
        self.enter = nn.Conv2d(encoder.in_channels, encoder.widths[0], 3, padding=1)
        self.down, stack = down_blocks(encoder)
        self.middle = mid_block(encoder)
        width, classes = encoder.widths[-1], config.num_classes
        if config.pool in ("attention", "adaptive"):
            self.norm = group_norm(width, config.groups, encoder.norm_eps)
            if config.pool == "attention":
                side, heads = config.size // encoder.rates[-1], encoder.heads_of(width, config.heads)
                self.pool = AttentionPool(width, side, heads, classes)
            else:
                self.pool = zeroed(nn.Linear(width, classes))
        else:
            second = (
                [group_norm(config.hidden, config.groups), nn.SiLU()] if config.pool == "spatial_v2" else [nn.ReLU()]
            )
            seen = sum(stack) + width
            self.pool = nn.Sequential(
                nn.Linear(seen, config.hidden), *second, zeroed(nn.Linear(config.hidden, classes))
            )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits (B, classes) of noisy images.

        Args:
            x: Noisy images (B, in_channels, size, size).
            t: Time input (B,) of the noise level, the same as the U-Net of the process receives.

        Raises:
            ShapeError: The images have another shape.
        """
        config = self.config
        self._check(x)
        time = F.silu(self.time(t))  # (B, D)
        h = self.enter(x)
        stack = [h]
        for down in self.down:
            h = down(h, time, stack)
        h = self.middle(h, time)
        if config.pool in ("spatial", "spatial_v2"):
            return self.pool(torch.cat([seen.mean((2, 3)) for seen in [*stack, h]], dim=1))
        h = F.silu(self.norm(h))
        return self.pool(h if config.pool == "attention" else h.mean((2, 3)))

    def _check(self, x: Tensor) -> None:
        config = self.config
        fixed = config.pool == "attention"
        if x.ndim != 4 or x.shape[1] != config.in_channels or (fixed and x.shape[2:] != (config.size, config.size)):
            sides = f"{config.size}, {config.size}" if fixed else "H, W"
            raise ShapeError(f"x {tuple(x.shape)}: this classifier reads (B, {config.in_channels}, {sides})")
        check_multiple(x, config.encoder.rates[-1])
