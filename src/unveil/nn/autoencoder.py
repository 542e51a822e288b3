"""The autoencoder of latent diffusion: encoder and decoder between pixels and latents, with one configuration.

    encoder: pixels -> enter -> [blocks (+ attention), downsample] per level -> middle -> leave -> z
    decoder: z -> enter -> middle -> [blocks (+ attention), upsample] per level -> leave -> pixels

There are two kinds of normalisation: over groups of channels and the whole image, as published, or over the channels of
each position. With the latter and without attention, an output depends only on the receptive field of the
convolutions, so that tiled decoding gives the result of the whole image.

Sources: Rombach et al. 2022, appendix E.1 and G (arXiv:2112.10752); Esser et al. 2021, table 7 (arXiv:2012.09841).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.errors import RecipeError, ShapeError
from unveil.nn.layers import PixelNorm, PixelRMS, SelfAttention, check_multiple, group_norm
from unveil.nn.unet import Downsample, Upsample
from unveil.types import Ge, Lt, checked

Norm = Literal["group", "pixel", "rms"]
Middle = Literal["attention", "blocks"]


@dataclass(frozen=True)
class AutoencoderConfig:
    """Configuration of encoder and decoder. A level is a resolution; level i has rate 2**i, counted after `patch`.

    Args:
        in_channels: Number of channels of the images.
        out_channels: Number of channels of the result of the decoder.
        model_channels: Channels of the first convolution; each level has multiplier * model_channels.
        channel_mult: Multiplier of each level, finest first; each further level halves the size of the latents.
        num_res_blocks: Residual blocks per level of the encoder (the decoder has one more).
        z_channels: Number of channels of the decoder's input; the encoder outputs `moments` times as many.
        attention: Rates of the levels with self-attention after each block.
        middle: Layers at the smallest resolution: two blocks with attention between them, or the two blocks only.
        moments: Outputs of the encoder per channel of z: 2 for a mean and a log-variance, 1 for a code.
        dropout: Dropout probability in each residual block.
        norm: Kind of normalisation: over groups of channels and the whole image (group), or over the channels of each
            position, by mean and variance (pixel) or by the mean square only (rms).
        groups: Number of channel groups of the group normalisations.
        norm_eps: Epsilon of the normalisations; 1e-6 as published.
        patch: Side of the squares of pixels that become channels at the input and pixels again at the output; 1: none.

    Raises:
        RecipeError: The settings are inconsistent.
    """

    in_channels: Annotated[int, Ge(1)]
    out_channels: Annotated[int, Ge(1)]
    model_channels: Annotated[int, Ge(1)]
    channel_mult: tuple[float, ...]
    num_res_blocks: Annotated[int, Ge(1)]
    z_channels: Annotated[int, Ge(1)]
    attention: tuple[int, ...] = ()
    middle: Middle = "attention"
    moments: Annotated[int, Ge(1)] = 1
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    norm: Norm = "group"
    groups: Annotated[int, Ge(1)] = 32
    norm_eps: float = 1e-6
    patch: Annotated[int, Ge(1)] = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_mult", tuple(self.channel_mult))
        object.__setattr__(self, "attention", tuple(self.attention))
        checked(self)
        if not self.channel_mult:
            raise RecipeError("channel_mult: none given; an autoencoder needs one per level, for example [1, 2, 4]")
        for rate in self.attention:
            if rate not in self.rates:
                allowed = ", ".join(map(str, self.rates))
                raise RecipeError(f"attention {rate}: must be a rate of downsampling that a level has: {allowed}")
        if self.norm == "group" and (
            odd := [width for width in (self.model_channels, *self.widths) if width % self.groups]
        ):
            raise RecipeError(f"{odd[0]} channels: must be a multiple of the {self.groups} groups of the normalisation")

    @property
    def rates(self) -> tuple[int, ...]:
        """Downsampling rate of each level."""
        return tuple(2**level for level in range(len(self.channel_mult)))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(round(multiplier * self.model_channels) for multiplier in self.channel_mult)

    @property
    def factor(self) -> int:
        """Side in pixels of the square that one latent covers."""
        return self.patch * self.rates[-1]

    @property
    def local(self) -> bool:
        """Return True if an output depends only on the receptive field of the convolutions."""
        return self.norm != "group" and self.middle == "blocks" and not self.attention

    @property
    def split(self) -> int:
        """Number of the finest levels, before any attention, which run in tiles for large images."""
        return next((level for level, rate in enumerate(self.rates) if rate in self.attention), len(self.rates))

    def latent_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the latents of images of the given height and width.

        Raises:
            ShapeError: Height or width is not a multiple of `factor`; the message names the nearest.
        """
        check_multiple(size, self.factor)
        return size[0] // self.factor, size[1] // self.factor


def activated(x: Tensor) -> Tensor:
    """SiLU of x, computed in place if no gradient needs x."""
    return F.silu(x, inplace=not (torch.is_grad_enabled() and x.requires_grad))


def _norm(channels: int, config: AutoencoderConfig) -> nn.Module:
    if config.norm != "group":
        return (PixelNorm if config.norm == "pixel" else PixelRMS)(channels, config.norm_eps)
    return group_norm(channels, config.groups, config.norm_eps)


def _attention(channels: int, config: AutoencoderConfig) -> SelfAttention:
    return SelfAttention(channels, 1, norm=_norm(channels, config))


class AutoencoderBlock(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, width: int, out: int, config: AutoencoderConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.norm_1 = _norm(width, config)
        self.conv_1 = nn.Conv2d(width, out, 3, padding=1)
        self.norm_2 = _norm(out, config)
        self.conv_2 = nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H, W) to (B, out, H, W)."""
        h = self.conv_1(activated(self.norm_1(x)))
        h = self.conv_2(F.dropout(activated(self.norm_2(h)), self.dropout, self.training))
        return h.add_(self.skip(x))


class AutoencoderLevel(nn.Module):
    """Blocks of one resolution, each with optional attention, and the resampling to the next resolution."""

    def __init__(
        self, blocks: list[AutoencoderBlock], attention: list[nn.Module], resample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = nn.ModuleList(attention)
        self.resample = resample

    def forward(self, h: Tensor) -> Tensor:
        """Apply the blocks, their attention and the resampling in order."""
        for block, attention in zip(self.blocks, self.attention, strict=True):
            h = attention(block(h))
        return h if self.resample is None else self.resample(h)


def _level(
    width: int, level: int, blocks: int, config: AutoencoderConfig, resample: nn.Module | None
) -> AutoencoderLevel:
    """Level whose input has `width` channels."""
    out, attended = config.widths[level], config.rates[level] in config.attention
    return AutoencoderLevel(
        [AutoencoderBlock(width if i == 0 else out, out, config) for i in range(blocks)],
        [_attention(out, config) if attended else nn.Identity() for _ in range(blocks)],
        resample,
    )


def _middle(config: AutoencoderConfig) -> AutoencoderLevel:
    width = config.widths[-1]
    attention = _attention(width, config) if config.middle == "attention" else nn.Identity()
    return AutoencoderLevel([AutoencoderBlock(width, width, config) for _ in range(2)], [attention, nn.Identity()])


class ImageEncoder(nn.Module):
    """Encoder from pixels to z, in two parts: the large tiled layers, and the small layers on the whole image."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        last, widths = len(config.widths) - 1, config.widths
        self.enter = nn.Conv2d(config.in_channels * config.patch**2, config.model_channels, 3, padding=1)
        self.down = nn.ModuleList()
        for level, out in enumerate(widths):
            resample = None if level == last else Downsample(out, asymmetric=True)
            width = config.model_channels if level == 0 else widths[level - 1]
            self.down.append(_level(width, level, config.num_res_blocks, config, resample))
        self.middle = _middle(config)
        self.norm = _norm(widths[-1], config)
        self.leave = nn.Conv2d(widths[-1], config.moments * config.z_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, in_channels, H, W) to (B, moments * z_channels, H / factor, W / factor).

        Raises:
            ShapeError: The number of channels is wrong, or the size is not a multiple of `factor`; the message names
                the nearest.
        """
        return self.global_layers(self.tiled_layers(pixels))

    def tiled_layers(self, pixels: Tensor) -> Tensor:
        """Apply the levels before any attention: (B, in_channels, H, W) to (B, C, H', W')."""
        config = self.config
        if pixels.ndim != 4 or pixels.shape[1] != config.in_channels:
            raise ShapeError(f"pixels {tuple(pixels.shape)}: must be (B, {config.in_channels}, H, W)")
        check_multiple(pixels, config.factor)
        h = self.enter(F.pixel_unshuffle(pixels, config.patch))
        for level in self.down[: config.split]:
            h = level(h)
        return h

    def tiled_module_names(self) -> tuple[str, ...]:
        """Prefixes of the names of the modules in `tiled_layers`."""
        return tuple(f"down.{level}." for level in range(self.config.split))

    def global_layers(self, h: Tensor) -> Tensor:
        """Apply the remaining small layers to the whole image."""
        for level in self.down[self.config.split :]:
            h = level(h)
        return self.leave(activated(self.norm(self.middle(h))))


class ImageDecoder(nn.Module):
    """Decoder from z to pixels, in two parts: the small layers on the whole image, and the large tiled layers."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        last, widths = len(config.widths) - 1, config.widths
        self.enter = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.middle = _middle(config)
        self.up = nn.ModuleList()
        for level in range(last, -1, -1):
            resample = None if level == 0 else Upsample(widths[level])
            self.up.append(_level(widths[min(level + 1, last)], level, config.num_res_blocks + 1, config, resample))
        self.norm = _norm(widths[0], config)
        self.leave = nn.Conv2d(widths[0], config.out_channels * config.patch**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Map z (B, z_channels, h, w) to pixels (B, out_channels, factor h, factor w).

        Raises:
            ShapeError: The number of channels is wrong.
        """
        return self.tiled_layers(self.global_layers(z))

    def global_layers(self, z: Tensor) -> Tensor:
        """Apply the small layers that depend on the whole image: (B, z_channels, h, w) to (B, C, h', w')."""
        if z.ndim != 4 or z.shape[1] != self.config.z_channels:
            raise ShapeError(f"latents {tuple(z.shape)}: must be (B, {self.config.z_channels}, H, W)")
        h = self.middle(self.enter(z))
        for level in self.up[: len(self.up) - self.config.split]:
            h = level(h)
        return h

    def tiled_layers(self, h: Tensor) -> Tensor:
        """Apply the levels after any attention, up to pixels (B, out_channels, factor h, factor w)."""
        for level in self.up[len(self.up) - self.config.split :]:
            h = level(h)
        return F.pixel_shuffle(self.leave(activated(self.norm(h))), self.config.patch)

    def tiled_module_names(self) -> tuple[str, ...]:
        """Prefixes of the names of the modules in `tiled_layers`."""
        levels = len(self.up)
        return (*(f"up.{place}." for place in range(levels - self.config.split, levels)), "norm")
