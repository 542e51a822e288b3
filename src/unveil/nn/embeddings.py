"""Embeddings of the time and of token positions: sinusoids, learned tables, rotations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.errors import RecipeError, ShapeError, did_you_mean

EmbeddingOrder = Literal["sin-cos", "cos-sin"]
# sin and cos of a wave side by side (Vaswani 2017), or all sines of an axis before its cosines (MAE, DiT)
PositionOrder = Literal["interleaved", "sin-cos"]
# Which two numbers of a head a rotation turns: 2i and 2i + 1, or i and i + D/2
Pairs = Literal["neighbours", "halves"]


def sinusoid(t: Tensor, dim: int, order: EmbeddingOrder) -> Tensor:
    """Sinusoids (B, dim) of time inputs t (B,), with wavelengths 2 pi to 10000 * 2 pi, in float32.

    Fractions are allowed.

    `sin-cos` divides the exponent by dim/2 - 1 and reaches the longest wavelength, as DDPM does; `cos-sin` divides
    by dim/2 and stops one short of it, as Improved DDPM, ADM and DiT do. An odd `dim` ends in a zero column.

    Source: Vaswani et al. 2017, section 3.5 (arXiv:1706.03762); Ho et al. 2020, appendix B (arXiv:2006.11239).
    """
    half = dim // 2
    divisor = half - 1 if order == "sin-cos" else half
    # in float64: the last digit of a float32 exp is another on every kind of CPU, and t is up to 1000 times that
    steps = torch.arange(half, dtype=torch.float64)
    frequencies = torch.exp(-math.log(10000) / max(divisor, 1) * steps).float().to(t.device)
    angles = t.float()[:, None] * frequencies  # (B, dim/2)
    waves = [angles.sin(), angles.cos()] if order == "sin-cos" else [angles.cos(), angles.sin()]
    return F.pad(torch.cat(waves, dim=1), (0, dim % 2))


class TimeEmbedding(nn.Module):
    """Sinusoid of t through two linear layers: (B,) to (B, width)."""

    def __init__(self, dim: int, width: int, order: EmbeddingOrder) -> None:
        super().__init__()
        self.dim = dim
        self.order: EmbeddingOrder = order
        self.linear_1 = nn.Linear(dim, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """Embedding of t, in the type of the weights."""
        waves = sinusoid(t, self.dim, self.order).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(waves)))


def sin_cos_positions(
    coordinates: Tensor, dim: int, order: PositionOrder, *, split: Sequence[int] | None = None
) -> Tensor:
    """Sinusoids (N, dim) of real coordinates (N, axes), with wavelengths 2 pi to 10000 * 2 pi, in float32.

    Each axis has its own part, in the order of the axes; MAE and DiT give the column before the row.

    Args:
        split: Number of output values per axis; None: equal parts, and the rest is added to that of the first axis.

    Raises:
        ShapeError: The coordinates have another shape.
        RecipeError: The order is unknown, a part is odd, or the parts do not sum to `dim`.

    Source: Vaswani et al. 2017, section 3.5 (arXiv:1706.03762); He et al. 2021 (arXiv:2111.06377).
    """
    axes = check_axes(coordinates, (2,))
    parts = even_split(dim, axes) if split is None else tuple(split)
    if len(parts) != axes or any(part % 2 or part < 0 for part in parts) or sum(parts) != dim:
        raise RecipeError(f"dim {dim} in parts {list(parts)}: must be even parts, one for each of the {axes} axes")
    if order not in get_args(PositionOrder):
        orders = get_args(PositionOrder)
        raise RecipeError(f"order {order!r}: must be one of {', '.join(orders)}{did_you_mean(order, orders)}")
    exact = coordinates.double() if coordinates.device.type == "cpu" else coordinates.float()
    waves: list[Tensor] = []
    for axis, part in enumerate(parts):
        angles = _angles(exact[:, axis], part, 10000.0)  # (N, part/2)
        both = [angles.sin(), angles.cos()]
        waves.append(torch.stack(both, dim=2).flatten(1) if order == "interleaved" else torch.cat(both, dim=1))
    return torch.cat(waves, dim=1).float()


class LearnedPositions(nn.Module):
    """Learned vectors of the positions of a grid of 1 to 3 axes, interpolated for grids of other sizes.

    Attributes:
        table: Learned vectors (first + places, width), the positions row by row.

    Args:
        first: Number of rows before those of the grid, for tokens without a position, such as [class].

    Source: Dosovitskiy et al. 2020, section 3.2 (arXiv:2010.11929).
    """

    def __init__(self, size: Sequence[int], width: int, *, first: int = 0) -> None:
        super().__init__()
        self.size = tuple(size)
        self.first = first
        self.table = nn.Parameter(torch.empty(first + math.prod(self.size), width))
        nn.init.normal_(self.table, std=0.02)

    def forward(self, size: Sequence[int] | None = None) -> Tensor:
        """Vectors (first + places, width) of a grid of the given size; None: the trained size."""
        if size is None or tuple(size) == self.size:
            return self.table
        grid = interpolate_positions(self.table[self.first :], self.size, size)
        return torch.cat([self.table[: self.first], grid])


def interpolate_positions(table: Tensor, size: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Interpolate the vectors (places, width) of a grid to another size: bicubic, or linear on 1 or 3 axes.

    Raises:
        ShapeError: The table does not fit the grid, or the grids have different axes or no position.
    """
    if len(size) != len(wanted) or not 1 <= len(size) <= 3 or min(wanted) < 1 or len(table) != math.prod(size):
        raise ShapeError(
            f"positions ({len(table)}, ...) of a grid {list(size)} for one of {list(wanted)}: "
            "as many axes, 1 to 3, and at least one place"
        )
    mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(size)]
    grid = table.T.reshape(1, table.shape[1], *size)
    return F.interpolate(grid, tuple(wanted), mode=mode, align_corners=False)[0].flatten(1).T


def grid_coordinates(size: Sequence[int]) -> Tensor:
    """Coordinates (places, axes) of a grid, row by row: 0, 1, ... along each axis, the last axis varies fastest."""
    axes = [torch.arange(count, dtype=torch.float64) for count in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


class Rotary:
    """Rotary positions, which rotate queries and keys so that attention depends only on distances.

    Args:
        coordinates: Real coordinates (N, axes) or (B, N, axes) of 1 to 3 axes, such as rows, seconds or parts of a
            side. Dividing them compresses more positions into the trained range.
        width: Width D of a head.
        theta: Base of the frequencies. The longest wavelength is just under 2 pi theta; a larger base mainly stretches
            the long wavelengths.
        split: Number of the D values that each axis rotates; None: equal parts, and the rest is added to that of the
            first axis. Values beyond the sum of the parts stay unchanged.

    Raises:
        ShapeError: The coordinates have another shape.
        RecipeError: A part is odd, or the parts exceed the width.

    Source: Su et al. 2021, eq. 15 (arXiv:2104.09864).
    """

    def __init__(
        self,
        coordinates: Tensor,
        width: int,
        *,
        theta: float = 10000.0,
        split: Sequence[int] | None = None,
        pairs: Pairs = "neighbours",
    ) -> None:
        axes = check_axes(coordinates, (2, 3))
        parts = even_split(width, axes) if split is None else tuple(split)
        if len(parts) != axes or any(part % 2 or part < 0 for part in parts) or sum(parts) > width:
            raise RecipeError(
                f"split {list(parts)}: one even part for each of the {axes} axes, together at most the head's {width}"
            )
        self.pairs: Pairs = pairs
        exact = coordinates.double() if coordinates.device.type == "cpu" else coordinates.float()
        angles = torch.cat([_angles(exact[..., i], part, theta) for i, part in enumerate(parts)], dim=-1)
        angles = angles.unsqueeze(-3)  # (1, N, turned/2) or (B, 1, N, turned/2): the same for each head
        self.turn = torch.complex(angles.cos().float(), angles.sin().float())

    def to(self, device: torch.device | str) -> Rotary:
        """Move the table to the device of queries and keys, in place, so that calls do not copy it; return self."""
        self.turn = self.turn.to(device)
        return self

    def apply(self, x: Tensor) -> Tensor:
        """Rotate queries or keys (B, H, N, D) to their positions."""
        turned = 2 * self.turn.shape[-1]
        exact = x[..., :turned].to(torch.promote_types(x.dtype, torch.float32))
        turn = self.turn.to(x.device)
        if self.pairs == "neighbours" and not torch.compiler.is_compiling():  # its compiler makes no complex products
            # one product of complex numbers: in training less than half the time of their four real ones
            pairs = torch.view_as_complex(exact.contiguous().unflatten(-1, (-1, 2)))
            rotated = torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)
            return rotated if turned == x.shape[-1] else torch.cat([rotated, x[..., turned:]], dim=-1)
        cos, sin = turn.real.to(exact), turn.imag.to(exact)
        if self.pairs == "halves":
            first, second = exact.chunk(2, dim=-1)
            rotated = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
        else:
            first, second = exact[..., 0::2], exact[..., 1::2]
            rotated = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)
        rotated = rotated.to(x.dtype)
        return rotated if turned == x.shape[-1] else torch.cat([rotated, x[..., turned:]], dim=-1)


def check_axes(coordinates: Tensor, ranks: Sequence[int]) -> int:
    """Number of axes that coordinates (N, axes) or (B, N, axes) have.

    Raises:
        ShapeError: The rank is not one of `ranks`, or there are not 1 to 3 axes.
    """
    if coordinates.ndim not in ranks or not 1 <= coordinates.shape[-1] <= 3:
        allowed = " or ".join("(N, axes)" if rank == 2 else "(B, N, axes)" for rank in ranks)
        raise ShapeError(f"coordinates {tuple(coordinates.shape)}: must be {allowed}, with 1 to 3 axes")
    return coordinates.shape[-1]


def even_split(width: int, axes: int) -> tuple[int, ...]:
    """Split a width into equal even parts for each axis; the first part also takes the rest."""
    share = width // (2 * axes) * 2
    return (width // 2 * 2 - share * (axes - 1), *[share] * (axes - 1))


def _angles(places: Tensor, part: int, theta: float) -> Tensor:
    """Angles (..., N, part/2) of positions (..., N), with decreasing frequency."""
    speeds = theta ** -(torch.arange(0, part, 2, dtype=places.dtype, device=places.device) / max(part, 1))
    return places[..., None] * speeds
