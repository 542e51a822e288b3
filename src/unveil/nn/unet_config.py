"""The configuration of the U-Net: what its networks of different papers differ in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from unveil.errors import RecipeError
from unveil.nn.embeddings import EmbeddingOrder
from unveil.nn.layers import AttentionOrder, ContextSize
from unveil.nn.spatial_transformer import Projection
from unveil.types import Ge, Lt, checked

Modulation = Literal["add", "scale-shift"]
Resampling = Literal["conv", "conv-asymmetric", "pool", "residual"]


@dataclass(frozen=True)
class UNetConfig:
    """Configuration of a U-Net. A level is a resolution; level i has rate 2**i, counted after `patch`.

    Args:
        in_channels: channels of x.
        out_channels: channels of the result, twice those of x with learned variance.
        model_channels: width of the sinusoid; levels have int(multiplier * model_channels).
        channel_mult: one per level, finest first; fractions allowed.
        num_res_blocks: residual blocks per level on the way down (one more on the way up).
        attention: rates of the levels with self-attention after each block; the middle always has it.
        heads, heads_up, head_channels: heads on the way down and in the middle, on the way up (None: the same), and
            a width per head that overrides both counts.
        attention_order: `heads-first` in Improved DDPM and most of ADM ("legacy"), `qkv-first` in ADM's 64 px network.
        time_scale_shift: how the time embedding enters: added before the second normalisation (DDPM), or as scale and
            shift after it (Improved DDPM's default).
        resample: `conv` strided convolution, nearest + convolution; `conv-asymmetric` the same, padded at the end
            only (DDPM); `pool` average and nearest without weights; `residual` inside residual blocks (ADM).
        embedding: `sin-cos` for DDPM, `cos-sin` for the others.
        norm_eps: 1e-6 for DDPM, 1e-5 for the others.
        groups: of every normalisation; channels in groups of one lose what was added per channel before.
        stem_channels: width of the first convolution; None: that of the first level.
        concat_channels: channels of `condition.channels`, concatenated to x.
        context_size: `same` as x's, or `smaller`: enlarged bilinearly to x's size (super-resolution).
        transformer_depth: blocks of the spatial transformer that takes the place of self-attention, for each level,
            the last level's also in the middle; one number stands for all levels; 0, or none: plain self-attention.
        cross_attention_dim: of `condition.tokens`, which the spatial transformers read; None: they read nothing.
        projection: `conv` or `linear`, the layers around a spatial transformer's blocks: SD 1 has convolutions of one
            pixel, SD 2 linear layers.
        patch: side of the squares of pixels that become channels on entry (1: none) and pixels again at the end.

    Raises:
        RecipeError: settings that do not fit together.
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
