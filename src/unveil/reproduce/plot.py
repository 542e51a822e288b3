"""The plot of a run, drawn from its record: effects with their intervals, and measures along a setting."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from unveil.evaluate.charts import INK, LINES, PALE, STYLES, few_labels, figure
from unveil.evaluate.verdict import interval
from unveil.reproduce.results_json import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOUR = {"shown": "#15803d", "reversed": "#b91c1c", "not shown": INK}


def effects_chart(comparisons: Sequence[Record]) -> bytes:
    """One row per comparison: the effect of each seed, their mean and 95 % interval, and the placebo below it.

    Everything is a share of the worse arm's mean, so that measures of all kinds stand on one axis.
    """

    def draw(axes: Sequence[Axes]) -> None:
        one = axes[0]
        for row, comparison in enumerate(comparisons):
            _effects(one, row, comparison["relative_effects"], _COLOUR[comparison["verdict"]])
            _effects(one, row + 0.3, comparison["placebo"]["relative_effects"], PALE)
        one.axvline(0, color="black", linewidth=0.8)
        names = [textwrap.fill(comparison["name"], 46) for comparison in comparisons]
        one.set_yticks(range(len(names)), names, fontsize="small")
        one.set_ylim(len(names) - 0.4, -0.4)
        one.set_xlabel("effect in % of the worse arm; right of 0 as claimed; grey: placebo")

    return figure(draw, 1, (9.0, 1.2 + 0.62 * len(comparisons)))


def curves_chart(curves: Sequence[Record]) -> bytes:
    """A panel per curve; thin lines are seeds, thick ones their mean."""

    def draw(axes: Sequence[Axes]) -> None:
        for one, curve in zip(axes, curves, strict=True):
            own = isinstance(curve["x"], dict)
            for number, (name, seeds) in enumerate(curve["lines"].items()):
                x, colour = curve["x"][name] if own else curve["x"], LINES[number % len(LINES)]
                style = STYLES[number // len(LINES) % len(STYLES)]
                for y in seeds:
                    one.plot(x, y, style, color=colour, linewidth=0.6, alpha=0.5)
                mean = [sum(at) / len(at) for at in zip(*seeds, strict=True)]
                marker = "o" if len(mean) <= 12 else ""
                one.plot(x, mean, style, color=colour, linewidth=1.8, marker=marker, markersize=4, label=name)
            one.set(xlabel=curve["x_label"], ylabel=textwrap.fill(curve["y_label"], 40))
            if curve["log_x"]:
                one.set_xscale("log")
                few_labels(one)
            if curve["log_y"]:
                one.set_yscale("log")
            if not own and len(curve["x"]) <= 12:
                one.set_xticks(curve["x"], [f"{x:g}" for x in curve["x"]])
                one.set_xticks([], minor=True)
            if len(curve["lines"]) > 1:
                few = len(curve["lines"]) <= 2 * len(LINES)
                one.legend(fontsize="small" if few else "xx-small", ncols=1 if few else 2)

    return figure(draw, len(curves), (4.8 * len(curves), 3.4))


def _effects(axes: Axes, row: float, shares: Sequence[float], colour: str) -> None:
    effects = [100 * share for share in shares]
    found = interval(effects)
    axes.plot([found.low, found.high], [row, row], color=colour, linewidth=2)
    axes.plot(found.mean, row, "o", color=colour, markersize=6)
    axes.plot(effects, [row] * len(effects), "|", color=colour, markersize=9)
