"""The original U-Net (Ronneberger et al. 2015) as a denoiser of states with one value per pixel, such as masks.

Deviations from the paper: convolutions are padded, so that the size is kept; each is followed by group normalisation,
which makes training stable; the time embedding is added at every stage.

Source: Ronneberger et al. 2015, figure 1 (arXiv:1505.04597).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.errors import RecipeError, ShapeError
from unveil.nn.embeddings import TimeEmbedding
from unveil.nn.layers import check_multiple, concat_condition, condition_vector, group_norm, zeroed
from unveil.types import Condition


@dataclass(frozen=True)
class UNet2015Config:
    """Configuration of the network.

    Args:
        in_channels, out_channels: Numbers of channels of x and of the result.
        concat_channels: Number of channels of the image in `condition.concat`, concatenated to x.
        widths: Channels of the stages, finest first; the size halves between them.
        groups: Number of groups of every normalisation, a divisor of every width.

    Raises:
        RecipeError: `widths` is empty, or `groups` does not divide a width.
    """

    in_channels: int
    out_channels: int
    concat_channels: int = 0
    widths: tuple[int, ...] = (32, 64, 128)
    groups: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if not self.widths or any(width < 1 or width % self.groups for width in self.widths):
            raise RecipeError(f"widths {self.widths}: at least one, each a multiple of the {self.groups} groups")

    @property
    def vector_dim(self) -> int:
        """Width of the time embedding, and of a condition's vector."""
        return 4 * self.widths[0]


class UNet2015Stage(nn.Module):
    """Two convolutions at one resolution, conditioned on the time in between."""

    def __init__(self, width: int, out: int, config: UNet2015Config) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(width, out, 3, padding=1)
        self.norm_1 = group_norm(out, config.groups)
        self.time = nn.Linear(config.vector_dim, out)
        self.conv_2 = nn.Conv2d(out, out, 3, padding=1)
        self.norm_2 = group_norm(out, config.groups)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Map x (B, width, H, W) to (B, out, H, W)."""
        h = F.relu(self.norm_1(self.conv_1(x)) + self.time(time)[:, :, None, None])
        return F.relu(self.norm_2(self.conv_2(h)))


class UNet2015(nn.Module):
    """Denoising network from (x, t, condition) to a tensor of x's size with `out_channels`."""

    def __init__(self, config: UNet2015Config) -> None:
        super().__init__()
        self.config = config
        self.vector_dim = config.vector_dim
        self.multiple = 2 ** (len(config.widths) - 1)  # of both sides of x
        widths = config.widths
        self.time = TimeEmbedding(widths[0], config.vector_dim, "cos-sin")
        inputs = [config.in_channels + config.concat_channels, *widths]
        self.down = nn.ModuleList(UNet2015Stage(a, b, config) for a, b in zip(inputs, widths, strict=False))
        coarse_to_fine = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in coarse_to_fine)
        self.up = nn.ModuleList(UNet2015Stage(2 * b, b, config) for _, b in coarse_to_fine)
        self.leave = zeroed(nn.Conv2d(widths[0], config.out_channels, 1))

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Network output, in the size of x.

        Args:
            x: Noisy samples (B, in_channels, H, W), height and width multiples of 2**(stages - 1).
            t: Time input (B,) of the network for the noise level.
            condition: Condition of B rows. Its vector (B, vector_dim) is added to the time embedding, its `concat` is
                concatenated to x.

        Raises:
            ShapeError: The size cannot be halved at every stage, or the condition does not fit.
        """
        if x.ndim != 4 or x.shape[1] != self.config.in_channels:
            raise ShapeError(f"x {tuple(x.shape)}: must be (B, {self.config.in_channels}, H, W)")
        check_multiple(x, self.multiple)
        condition = condition or Condition()
        time = self.time(t)
        if (vector := condition_vector(condition, len(x), self.vector_dim)) is not None:
            time = time + vector.to(time)
        time = F.silu(time)  # (B, D)
        h = concat_condition(x, condition, self.config.concat_channels)
        stack: list[Tensor] = []
        for stage in self.down:
            h = stage(F.max_pool2d(h, 2) if stack else h, time)
            stack.append(h)
        stack.pop()
        for enlarge, stage in zip(self.enlarge, self.up, strict=True):
            h = stage(torch.cat([stack.pop(), enlarge(h)], dim=1), time)
        return self.leave(h)
