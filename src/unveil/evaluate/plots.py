"""Images and plots as PNG bytes without a display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unveil.io import images

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _PALE = "#1f5fa8", "#9aa5b1"
SMALL = 48  # pixels of a side, up to which videos are enlarged


def make_grid(pixels: Tensor, columns: int | None = None) -> bytes:
    """Return a grid of images uint8 (N, C, H, W), C of 1 or 3; small images are enlarged without smoothing.

    Args:
        columns: Number of images per row; None makes the sheet about square.
    """
    return images.png(images.make_grid(pixels, None if columns is None else min(columns, len(pixels))))


def pair_grid(left: Tensor, right: Tensor, columns: int = 6) -> bytes:
    """Return a grid of pairs of images with a larger gap between pairs than within."""
    thin, wide = (left.new_full((*left.shape[:3], max(1, left.shape[3] * part // 8)), 255) for part in (1, 3))
    return make_grid(torch.cat([left, thin, right, wide], 3), columns)


def frame_rows(clips: Tensor) -> bytes:
    """Return a grid of videos uint8 (N, C, T, H, W) with the frames of a video in one row."""
    return images.png(images.frame_rows(clips, factor=1))


def animated_sheet(clips: Tensor, rate: float, columns: int | None = None) -> bytes:
    """Return videos uint8 (N, C, T, H, W) as an animated WebP with `rate` frames per second.

    Small videos are enlarged twice. The compression is slightly lossy, at a quarter of the size of a GIF. Still frames
    are lossless.
    """
    shown = None if columns is None else min(columns, len(clips))
    factor = 2 if clips.shape[-1] <= SMALL else 1
    sheets = [images.make_grid(clips[:, :, t], shown, factor) for t in range(clips.shape[2])]
    return images.animation(sheets, "webp", rate, quality=75)


def floor_chart(floor: Sequence[float], value: float) -> bytes:
    """Plot the Frechet distances between sets of real images, and that of the samples."""

    def draw(axes: Axes) -> None:
        axes.hist(floor, bins=min(20, len(floor)), color=_PALE, label=f"real from real, {len(floor)} splits")
        axes.axvline(value, color=_INK, linewidth=2, label="samples from held-out")
        axes.set(xlabel="FID", ylabel="splits", xlim=(0, None))
        axes.legend(fontsize="small")

    return _figure(draw)


def nearest_chart(histogram: Mapping[str, Sequence[float]]) -> bytes:
    """Plot the distances of samples and of held-out images to their nearest training image.

    Args:
        histogram: "edges" (n + 1), and the shares "samples" and "held_out" (n) between them.
    """

    def draw(axes: Axes) -> None:
        axes.stairs(histogram["held_out"], histogram["edges"], color=_PALE, fill=True, label="held-out images")
        axes.stairs(histogram["samples"], histogram["edges"], color=_INK, linewidth=2, label="samples")
        axes.set(xlabel="distance to the nearest training image (share of the full range)", ylabel="share")
        axes.legend(fontsize="small")

    return _figure(draw)


def class_chart(classes: Sequence[Mapping[str, Any]]) -> bytes:
    """Plot the accuracy by class with intervals; rows have "name", "value", "low" and "high"."""

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
