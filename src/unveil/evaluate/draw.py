"""Pictures and plots as PNG bytes, drawn without a display."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from unveil.types import ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIDE = 56  # pixels of the short side of a drawn picture, at least: an 8 x 8 digit cannot be seen at its own size
_GAP = 6
_INK, _PALE = "#1f5fa8", "#9aa5b1"


def sheet(pixels: Tensor, columns: int | None = None, *, gap: int = _GAP) -> bytes:
    """Pictures uint8 (N, C, H, W) in rows on white; small ones enlarged by a whole factor, every pixel a square.

    Args:
        columns: pictures per row; by default the sheet is about square.
        gap: pixels between pictures.

    Raises:
        ShapeError: not uint8 pictures of 1 or 3 channels.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or not len(pixels):
        raise ShapeError(f"pictures {tuple(pixels.shape)} {pixels.dtype}: uint8 (N, 1 or 3, H, W) is needed, N > 0")
    columns = min(columns or math.ceil(math.sqrt(len(pixels))), len(pixels))
    factor = max(1, math.ceil(_SIDE / min(pixels.shape[2:])))
    tiles = pixels.cpu().expand(-1, 3, -1, -1).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    height, width = (side + gap for side in tiles.shape[2:])
    page = torch.full(
        (3, math.ceil(len(tiles) / columns) * height + gap, columns * width + gap), 255, dtype=torch.uint8
    )
    for i, tile in enumerate(tiles):
        top, left = gap + i // columns * height, gap + i % columns * width
        page[:, top : top + tile.shape[1], left : left + tile.shape[2]] = tile
    return _png(page)


def pairs(left: Tensor, right: Tensor, columns: int = 8) -> bytes:
    """A sheet of pictures of `left`, each with its partner of `right` beside it; both uint8 (N, C, H, W)."""
    divider = torch.full((*left.shape[:3], max(1, left.shape[3] // 16)), 255, dtype=torch.uint8)
    return sheet(torch.cat([left, divider, right], 3), columns, gap=3 * _GAP)


def floor_chart(floor: Sequence[float], value: float) -> bytes:
    """The Frechet distances of real pictures from real pictures, and that of the samples among them."""

    def draw(axes: Axes) -> None:
        axes.hist(floor, bins=min(20, len(floor)), color=_PALE, label=f"real from real, {len(floor)} splits")
        axes.axvline(value, color=_INK, linewidth=2, label="samples from held-out")
        axes.set(xlabel="FID", ylabel="splits", xlim=(0, None))
        axes.legend(fontsize="small")

    return _figure(draw)


def nearest_chart(histogram: Mapping[str, Sequence[float]]) -> bytes:
    """How far samples, and held-out pictures, are from their nearest training picture.

    Args:
        histogram: "edges" (n + 1), and the shares "samples" and "held_out" (n) between them.
    """

    def draw(axes: Axes) -> None:
        axes.stairs(histogram["held_out"], histogram["edges"], color=_PALE, fill=True, label="held-out pictures")
        axes.stairs(histogram["samples"], histogram["edges"], color=_INK, linewidth=2, label="samples")
        axes.set(xlabel="distance to the nearest training picture (share of the full range)", ylabel="share")
        axes.legend(fontsize="small")

    return _figure(draw)


def class_chart(classes: Sequence[Mapping[str, Any]]) -> bytes:
    """Share read as their class, by class, with intervals; rows of "name", "value", "low", "high"."""

    def draw(axes: Axes) -> None:
        values = [row["value"] for row in classes]
        reach = [[row["value"] - row["low"] for row in classes], [row["high"] - row["value"] for row in classes]]
        axes.errorbar(range(len(values)), values, yerr=reach, fmt="o", color=_INK, ecolor=_PALE, capsize=3)
        names = [str(row["name"]) for row in classes]
        axes.set_xticks(range(len(values)), names, rotation=30 if max(map(len, names)) > 3 else 0)
        axes.set(ylabel="share read as this class")
        axes.grid(axis="y", alpha=0.3)

    return _figure(draw)


def _figure(draw: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # costs half a second, and only reports pay it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})  # the same bytes for the same numbers
    return content.getvalue()


def _png(page: Tensor) -> bytes:
    content = io.BytesIO()
    Image.fromarray(page.permute(1, 2, 0).contiguous().numpy()).save(content, format="PNG", optimize=True)
    return content.getvalue()
