"""Images of a run: sample sheets and curves, drawn without a display."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.errors import ShapeError
from unveil.io import images
from unveil.io.files import write_atomically

# What a line of the log holds whatever is trained
COMMON = {"step", "loss", "grad_norm", "loss_by_t", "lr", "skipped", "steps_per_second"}


def image_sheet(samples: Tensor, columns: int | None = None) -> bytes:
    """Return a PNG of samples (B, C, H, W) in [-1, 1], C of 1 or 3, side by side with a margin; a row per video.

    Small images are enlarged by repeating pixels, without smoothing, so that an 8 x 8 digit can be seen.

    Raises:
        ShapeError: The samples are neither images nor videos.
    """
    if samples.ndim not in (4, 5) or samples.shape[1] not in (1, 3):
        raise ShapeError(f"samples {tuple(samples.shape)}: a sheet needs (B, 1 or 3, H, W) or (B, 1 or 3, T, H, W)")
    pixels = images.to_pixels(samples.nan_to_num(0))
    return images.png(images.frame_rows(pixels) if pixels.ndim == 5 else images.make_grid(pixels, columns))


def with_control_images(hints: Sequence[Tensor], samples: Tensor) -> tuple[Tensor, int]:
    """Put the control images before each sample; return the images, and the number of images in a row of a sheet.

    Args:
        hints: Control images of each ControlNet (B, 1 or 3, H, W), uint8 or in [-1, 1], of the samples' size.
        samples: Samples (B, 1 or 3, H, W) in [-1, 1].
    """
    shown = [image if image.is_floating_point() else images.to_unit(image) for image in hints]
    every = torch.stack([image.to(samples).expand(-1, 3, -1, -1) for image in (*shown, samples)], 1)
    across = max(1, round(math.sqrt(len(samples)) / 2)) * 2  # samples, an even number of them
    return every.flatten(0, 1), min(across, len(samples)) * every.shape[1]


def plot_run(lines: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Plot the curves of a metrics.jsonl into a folder: loss, its terms or parts by noise level, and held-out loss."""
    written: list[Path] = []
    steps = [line for line in lines if line.get("loss") is not None and "event" not in line]  # "nan" is a fault's
    if steps:
        written.append(_curves(folder / "loss.png", "training loss", steps, {"loss": [s["loss"] for s in steps]}))
        if terms := _terms(steps):
            written.append(_curves(folder / "terms.png", "terms of the training loss", steps, terms))
        levels = [step for step in steps if "loss_by_t" in step]
        if levels:
            parts = _by_level([s["loss_by_t"] for s in levels])
            written.append(_curves(folder / "loss_by_t.png", "training loss by noise level", levels, parts))
    held_out = [line for line in lines if line.get("validation") is not None]
    if held_out:
        mean = {"mean": [line["validation"] for line in held_out]}
        levelled = all("validation_by_t" in line for line in held_out)
        parts = _by_level([line["validation_by_t"] for line in held_out]) if levelled else {}
        title = f"validation loss{' by noise level' if levelled else ''}, EMA weights"
        written.append(_curves(folder / "validation.png", title, held_out, mean | parts))
        if all("condition_use" in line for line in held_out):
            use = {"condition use": [line["condition_use"] for line in held_out]}
            written.append(
                _curves(
                    folder / "condition_use.png",
                    "increase of validation loss with swapped control images",
                    held_out,
                    use,
                )
            )
        if all("psnr" in line for line in held_out):
            decibels = {"PSNR": [line["psnr"] for line in held_out]}
            written.append(_curves(folder / "psnr.png", "validation PSNR in dB, EMA weights", held_out, decibels))
    return written


def _terms(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the values of terms that not every line has; NaN if a term is missing."""
    names = dict.fromkeys(name for line in lines for name in line if name not in COMMON)
    return {name: [line.get(name, math.nan) for line in lines] for name in names}


def _by_level(rows: Sequence[Sequence[float | None]]) -> dict[str, list[float]]:
    count = len(rows[0])
    return {
        f"t {place / count:.1f} to {(place + 1) / count:.1f}": [
            math.nan if row[place] is None else row[place] for row in rows
        ]  # type: ignore[misc]
        for place in range(count)
    }


def _curves(path: Path, title: str, lines: Sequence[Mapping[str, Any]], curves: Mapping[str, Sequence[float]]) -> Path:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    # the layout engine takes most of the time of a plot, and only a legend has a width that is not known
    figure = Figure(figsize=(7.5, 4.5), dpi=100, layout="constrained" if len(curves) > 1 else None)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if len(curves) == 1:
        figure.subplots_adjust(left=0.11, right=0.98, bottom=0.11, top=0.93)
    colours = matplotlib.colormaps["viridis"]
    x = [line["step"] for line in lines]
    for place, (name, y) in enumerate(curves.items()):
        colour = "black" if name in ("loss", "mean") else colours(place / max(len(curves) - 1, 1))
        axes.plot(x, y, label=name, color=colour, linewidth=1, marker="." if len(x) < 20 else None)
    if all(value > 0 for y in curves.values() for value in y if not math.isnan(value)):
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        number = FuncFormatter(lambda y, _: f"{y:g}")  # 0.6 is easier to read, and to lay out, than a power of ten
        axes.yaxis.set_major_formatter(number)
        axes.yaxis.set_minor_formatter(number if high < 1000 * low else NullFormatter())
        if 10 * low <= high < 1000 * low:  # one or two powers of ten alone do not say where a curve ends
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.set(title=title, xlabel="optimiser steps")
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return write_atomically(path, file.getvalue())
