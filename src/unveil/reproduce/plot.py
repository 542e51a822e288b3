"""The plot of a run, drawn from its record: effects with their intervals, and measures along a setting."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from unveil.evaluate.verdict import interval
from unveil.reproduce.results_json import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _PALE = "#1f5fa8", "#9aa5b1"
_LINES = (_INK, "#c2410c", "#15803d", "#7e22ce")
_WHEEL = (_INK, "#c2410c", "#15803d", "#7e22ce", "#be185d", "#0e7490", "#a16207", "#4b5563")
_STYLES = ("-", "--", ":", "-.")
_COLOUR = {"shown": "#15803d", "reversed": "#b91c1c", "not shown": _INK}


def effects_chart(comparisons: Sequence[Record]) -> bytes:
    """One row per comparison: the effect of each seed, their mean and 95 % interval, and the placebo below it.

    Everything is a share of the worse arm's mean, so that measures of all kinds stand on one axis.
    """

    def draw(axes: Sequence[Axes]) -> None:
        one = axes[0]
        for row, comparison in enumerate(comparisons):
            _effects(one, row, comparison["relative_effects"], _COLOUR[comparison["verdict"]])
            _effects(one, row + 0.3, comparison["placebo"]["relative_effects"], _PALE)
        one.axvline(0, color="black", linewidth=0.8)
        names = [textwrap.fill(comparison["name"], 46) for comparison in comparisons]
        one.set_yticks(range(len(names)), names, fontsize="small")
        one.set_ylim(len(names) - 0.4, -0.4)
        one.set_xlabel("effect in % of the worse arm; right of 0 as claimed; grey: placebo")

    return _figure(draw, 1, (9.0, 1.2 + 0.62 * len(comparisons)))


def curves_chart(curves: Sequence[Record]) -> bytes:
    """A panel per curve; thin lines are seeds, thick ones their mean."""

    def draw(axes: Sequence[Axes]) -> None:
        for one, curve in zip(axes, curves, strict=True):
            own = isinstance(curve["x"], dict)
            for number, (name, seeds) in enumerate(curve["lines"].items()):
                x, colour = curve["x"][name] if own else curve["x"], _LINES[number % len(_LINES)]
                style = _STYLES[number // len(_LINES) % len(_STYLES)]
                for y in seeds:
                    one.plot(x, y, style, color=colour, linewidth=0.6, alpha=0.5)
                mean = [sum(at) / len(at) for at in zip(*seeds, strict=True)]
                marker = "o" if len(mean) <= 12 else ""
                one.plot(x, mean, style, color=colour, linewidth=1.8, marker=marker, markersize=4, label=name)
            one.set(xlabel=curve["x_label"], ylabel=textwrap.fill(curve["y_label"], 40))
            if curve["log_x"]:
                one.set_xscale("log")
                _few_labels(one)
            if curve["log_y"]:
                one.set_yscale("log")
            if not own and len(curve["x"]) <= 12:
                one.set_xticks(curve["x"], [f"{x:g}" for x in curve["x"]])
                one.set_xticks([], minor=True)
            if len(curve["lines"]) > 1:
                few = len(curve["lines"]) <= 2 * len(_LINES)
                one.legend(fontsize="small" if few else "xx-small", ncols=1 if few else 2)

    return _figure(draw, len(curves), (4.8 * len(curves), 3.4))


def _few_labels(axes: Axes) -> None:
    """Labels of a logarithmic axis that do not lie over each other: 1, 2 and 5, or over many decades 1 alone."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    few = high / low > 300
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if few else (1.0, 2.0, 5.0), numticks=99))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, place: _power(x)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize="small")


def _power(x: float) -> str:
    """A number as a label: 0.05, 200, or a multiple of a power of ten where it is very large or small."""
    if 1e-3 < x < 1e5:
        return f"{x:g}"
    times, exponent = f"{x:.0e}".split("e")
    return ("$" if times == "1" else f"${times} \\times ") + f"10^{{{int(exponent)}}}$"


def _effects(axes: Axes, row: float, shares: Sequence[float], colour: str) -> None:
    effects = [100 * share for share in shares]
    found = interval(effects)
    axes.plot([found.low, found.high], [row, row], color=colour, linewidth=2)
    axes.plot(found.mean, row, "o", color=colour, markersize=6)
    axes.plot(effects, [row] * len(effects), "|", color=colour, markersize=9)


def _figure(draw: Any, panels: int, size: tuple[float, float]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # costs half a second, and only a page pays it
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    draw(axes)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})  # the same bytes for the same numbers
    return content.getvalue()


class Line(NamedTuple):
    """A named line through points (x, y)."""

    name: str
    points: Sequence[tuple[float, float]]


def lines_chart(
    lines: Sequence[Line],
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
        level: a dashed line across.
        marks: what stands at the points of every line.
    """

    def draw(axes: Sequence[Axes]) -> None:
        one = axes[0]
        for number, line in enumerate(lines):
            x, y = zip(*line.points, strict=True)
            style = _STYLES[number // len(_WHEEL) % len(_STYLES)]
            colour = _WHEEL[number % len(_WHEEL)]
            one.plot(x, y, style, color=colour, marker="o", markersize=3.5, linewidth=1.3, label=line.name)
            for mark, place in zip(marks, line.points, strict=False):
                one.annotate(mark, place, textcoords="offset points", xytext=(4, 4), fontsize="small", color=colour)
        if level is not None:
            one.axhline(level, color=_PALE, linestyle="--", linewidth=1)
        one.set(xlabel=x_label, ylabel=textwrap.fill(y_label, 44))
        if log_x:
            one.set_xscale("log")
            _few_labels(one)
        if log_y:
            one.set_yscale("log")
        one.grid(alpha=0.3)
        if len(lines) > 1:
            one.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)

    return _figure(draw, 1, (8.4, max(4.0, 0.21 * len(lines))))
