"""Denoising of sets of boxes, conditioned on an image through the features inside each box.

The design follows DiffusionDet: the features of the current noisy boxes are cropped from a feature map, and a small
transformer over the set updates the boxes. Deviation: the boxes also attend to the whole image in coarse cells, so
that a box on the background receives the positions of objects.

Source: Chen et al. 2022, section 3 (arXiv:2211.09788); regions by bilinear sampling: He et al. 2017 (RoIAlign,
arXiv:1703.06870).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.errors import RecipeError, ShapeError
from unveil.nn.attention import scaled_dot_product_attention
from unveil.nn.embeddings import TimeEmbedding
from unveil.nn.layers import check_multiple, condition_vector, group_norm, zeroed
from unveil.types import Condition

COLUMNS = 5  # centre x, centre y, width, height, presence
STRIDE = 8  # of the coarse map; the fine one has half of it


@dataclass(frozen=True)
class BoxesConfig:
    """Configuration of the network.

    Args:
        slots: Number of boxes in a set; each slot has its own learned vector.
        concat_channels: Number of channels of the image in `condition.concat`.
        hidden_size: Width of the features and of the transformer.
        depth: Number of transformer blocks.
        heads: Number of heads of its attention.
        samples: Side of the grid of points that is sampled inside each box.

    Raises:
        RecipeError: `hidden_size` is not a multiple of `heads`, or a number is below 1.
    """

    slots: int
    concat_channels: int
    hidden_size: int = 64
    depth: int = 3
    heads: int = 4
    samples: int = 3

    def __post_init__(self) -> None:
        for name in ("slots", "concat_channels", "hidden_size", "depth", "heads", "samples"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.hidden_size % self.heads or self.hidden_size % 8:
            raise RecipeError(f"hidden_size = {self.hidden_size}: must be a multiple of heads = {self.heads} and of 8")

    @property
    def vector_dim(self) -> int:
        """Width of the time embedding, and of a condition's vector."""
        return self.hidden_size


class BoxBackbone(nn.Module):
    """Backbone from an image (B, C, H, W) to a fine map (B, F, H/4, W/4) and coarse cells (B, N, F)."""

    def __init__(self, config: BoxesConfig) -> None:
        super().__init__()
        width = config.hidden_size
        widths = [config.concat_channels, width // 2, width, width]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(group_norm(b, 4) for b in widths[1:])
        self.place = nn.Linear(2, width)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the fine map and the coarse cells."""
        maps = [image]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            maps.append(F.silu(norm(conv(maps[-1]))))
        fine, coarse = maps[-2], maps[-1]
        fine = fine + F.interpolate(coarse, fine.shape[-2:], mode="nearest")
        cells = coarse.flatten(2).transpose(1, 2) + self.place(_centres(coarse))
        return fine, cells


class BoxDecoderBlock(nn.Module):
    """Transformer block in which boxes (B, N, D) attend to each other and to the image's cells."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.own, self.own_out = nn.Linear(width, 3 * width), zeroed(nn.Linear(width, width))
        self.query, self.cells = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.cells_out = zeroed(nn.Linear(width, width))
        self.wide, self.narrow = nn.Linear(width, 4 * width), zeroed(nn.Linear(4 * width, width))

    def forward(self, h: Tensor, cells: Tensor) -> Tensor:
        """New features of the boxes, (B, N, D)."""
        h = h + self.own_out(self._attend(*self.own(self.norms[0](h)).chunk(3, dim=-1)))
        h = h + self.cells_out(self._attend(self.query(self.norms[1](h)), *self.cells(cells).chunk(2, dim=-1)))
        return h + self.narrow(F.gelu(self.wide(self.norms[2](h))))

    def _attend(self, *parts: Tensor) -> Tensor:
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class BoxDenoiser(nn.Module):
    """Denoising network from boxes (B, slots, 5) in [-1, 1], t and an image to a tensor of the boxes' shape."""

    def __init__(self, config: BoxesConfig) -> None:
        super().__init__()
        self.config = config
        self.vector_dim = config.vector_dim
        width = config.hidden_size
        self.features = BoxBackbone(config)
        self.time = TimeEmbedding(width, width, "cos-sin")
        self.coordinates = nn.Linear(COLUMNS, width)
        self.region = nn.Linear(config.samples**2 * width, width)
        self.rows = nn.Parameter(0.02 * torch.randn(config.slots, width))
        self.blocks = nn.ModuleList(BoxDecoderBlock(width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.leave = zeroed(nn.Linear(width, COLUMNS))

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Network output, of the shape of x.

        Args:
            x: Noisy boxes (B, slots, 5): centre x, centre y, width, height, presence, each scaled to [-1, 1].
            t: Time input of the network for the noise level, (B,).
            condition: Condition of B rows. Its `concat` is the image (B, C, H, W) with sides that are multiples of 8;
                its vector is added to the time embedding.

        Raises:
            ShapeError: The boxes or the image have another shape, or there is no image.
        """
        config, condition = self.config, condition or Condition()
        if x.shape[1:] != (config.slots, COLUMNS):
            raise ShapeError(f"boxes {tuple(x.shape)}: must be (B, {config.slots}, {COLUMNS})")
        image = condition.concat
        if image is None or image.ndim != 4 or image.shape[1] != config.concat_channels:
            shape = None if image is None else tuple(image.shape)
            raise ShapeError(f"condition.concat {shape}: must be an image (B, {config.concat_channels}, H, W)")
        check_multiple(image, STRIDE)
        time = self.time(t)
        if (vector := condition_vector(condition, len(x), self.vector_dim)) is not None:
            time = time + vector.to(time)
        return self.move(x, time, self.features(image.to(x)))

    def move(self, x: Tensor, time: Tensor, features: tuple[Tensor, Tensor]) -> Tensor:
        """Network output, given the time embedding (B, D) and the image's features, which are the same in all steps."""
        fine, cells = features
        regions = regions_of(x, fine, self.config.samples)  # (B, N, samples**2 * D)
        h = self.region(regions) + self.coordinates(x) + self.rows + time[:, None]  # (B, N, D)
        for block in self.blocks:
            h = block(h, cells)
        return self.leave(self.norm(h))


def regions_of(x: Tensor, features: Tensor, samples: int) -> Tensor:
    """Values of a map (B, F, H, W) at samples x samples points inside each box, (B, N, samples**2 * F).

    Boxes (B, N, 5) are clamped to [-1, 1] first; no box is narrower than 1/50 of the image.
    """
    x = x.clamp(-1, 1)
    # In coordinates from -1 to 1 a box's half width is its width as a part of the image.
    centre, half = x[..., :2], ((x[..., 2:4] + 1) / 2).clamp(min=0.02)
    ticks = (2 * torch.arange(samples, device=x.device) + 1) / samples - 1
    offsets = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), dim=-1).view(-1, 2).to(x)  # (S*S, 2)
    points = centre[:, :, None] + half[:, :, None] * offsets  # (B, N, S*S, 2)
    sampled = F.grid_sample(features, points.to(features), padding_mode="border", align_corners=False)
    return sampled.permute(0, 2, 3, 1).flatten(2)  # (B, F, N, S*S) -> (B, N, S*S*F)


def _centres(features: Tensor) -> Tensor:
    """Centres of the cells of a map, (H*W, 2), with x and y in [-1, 1]."""
    sides = [(2 * torch.arange(side, device=features.device) + 1) / side - 1 for side in features.shape[-2:]]
    y, x = torch.meshgrid(*sides, indexing="ij")
    return torch.stack([x, y], dim=-1).view(-1, 2).to(features)
