"""Charts as PNG: the style that all pages share, and many lines with their names beside them."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, PALE = "#1f5fa8", "#9aa5b1"
LINES = (INK, "#c2410c", "#15803d", "#7e22ce")
STYLES = ("-", "--", ":", "-.")
_WHEEL = (*LINES, "#be185d", "#0e7490", "#a16207", "#4b5563")


def few_labels(axes: Axes) -> None:
    """Set labels of a logarithmic axis without overlap: 1, 2 and 5, or only 1 over many decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    few = high / low > 300
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if few else (1.0, 2.0, 5.0), numticks=99))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, place: _power(x)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize="small")


def _power(x: float) -> str:
    """Format a number as a label: 0.05, 200, or a multiple of a power of ten if it is very large or small."""
    if 1e-3 < x < 1e5:
        return f"{x:g}"
    times, exponent = f"{x:.0e}".split("e")
    return ("$" if times == "1" else f"${times} \\times ") + f"10^{{{int(exponent)}}}$"


def figure(draw: Callable[[Sequence[Axes]], None], panels: int, size: tuple[float, float]) -> bytes:
    """Return a PNG of `panels` axes side by side, which `draw` fills; size is in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # costs half a second, and only a page pays it
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    draw(axes)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})  # the same bytes for the same numbers
    return content.getvalue()


class ChartLine(NamedTuple):
    """A named line through points (x, y)."""

    name: str
    points: Sequence[tuple[float, float]]


def lines_chart(
    lines: Sequence[ChartLine],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    level: float | None = None,
    marks: Sequence[str] = (),
) -> bytes:
    """Many lines with their names beside them.

    Args:
        level: Height of a dashed horizontal line.
        marks: Labels at the points of every line.
    """

    def draw(axes: Sequence[Axes]) -> None:
        panel = axes[0]
        for number, line in enumerate(lines):
            x, y = zip(*line.points, strict=True)
            style = STYLES[number // len(_WHEEL) % len(STYLES)]
            colour = _WHEEL[number % len(_WHEEL)]
            panel.plot(x, y, style, color=colour, marker="o", markersize=3.5, linewidth=1.3, label=line.name)
            for mark, place in zip(marks, line.points, strict=False):
                panel.annotate(mark, place, textcoords="offset points", xytext=(4, 4), fontsize="small", color=colour)
        if level is not None:
            panel.axhline(level, color=PALE, linestyle="--", linewidth=1)
        panel.set(xlabel=x_label, ylabel=textwrap.fill(y_label, 44))
        if log_x:
            panel.set_xscale("log")
            few_labels(panel)
        if log_y:
            panel.set_yscale("log")
        panel.grid(alpha=0.3)
        if len(lines) > 1:
            panel.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)

    return figure(draw, 1, (8.4, max(4.0, 0.21 * len(lines))))
