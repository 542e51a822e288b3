"""The rows of a study of clips: what is measured, with its interval, its bar, and what stands beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from unveil.evaluate.metrics import Interval, bootstrap, proportion

Rule = Literal["at least", "at most", "like"]  # which side of a number is better; "like": none, being it is


@dataclass(frozen=True)
class MetricRow:
    """One number of a task.

    Attributes:
        measure: what it is of; `unit` is "%", "px" or "" for ratios.
        found: with its 95 % interval, over `count` clips.
        bar, rule: which number must be reached, from which side; None: there is none.
        ceiling: the same of real clips, which is what the detector allows.
        baselines: the same of what takes no model, by name.
        main: whether models of several sizes are compared by it; where no row of a task is, they are by its first.
    """

    measure: str
    found: Interval
    count: int
    unit: Literal["%", "px", ""] = ""
    bar: float | None = None
    rule: Rule = "at least"
    ceiling: float | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)
    main: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the bar is reached; None without one."""
        if self.bar is None:
            return None
        return self.found.value >= self.bar if self.rule == "at least" else self.found.value <= self.bar

    @property
    def short(self) -> bool:
        """Whether it is worse than real clips are by more than chance."""
        if self.ceiling is None:
            return False
        below, above = self.found.high < self.ceiling, self.found.low > self.ceiling
        return {"at least": below, "at most": above, "like": below or above}[self.rule]

    def record(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {**asdict(self), "found": self.found._asdict(), "met": self.met, "short": self.short}

    @property
    def text(self) -> str:
        """One line for a person."""
        value, low, high = (format_row(one, self.unit) for one in self.found)
        met = "met" if self.met else "not met"
        bar = "" if self.bar is None else f", bar {self.rule} {format_row(self.bar, self.unit)} {met}"
        return f"{self.measure}: {value} ({low} to {high}){bar}"


@dataclass(frozen=True)
class StudyResult:
    """What a task gave.

    Attributes:
        title, method: in words.
        rows: its numbers. curve: further ones, such as those of each strength, by what they are of.
        films: animated WebPs by their captions.
    """

    title: str
    method: str
    rows: Sequence[MetricRow]
    curve: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    films: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def record(self) -> dict[str, Any]:
        """All but the films."""
        plain = {name: dict(one) for name, one in self.curve.items()}
        return {"title": self.title, "method": self.method, "rows": [row.record() for row in self.rows], "curve": plain}


def format_row(value: float, unit: str) -> str:
    """A number in its unit."""
    return f"{value:.1%}" if unit == "%" else f"{value:.2f}" + (f" {unit}" if unit else "")


def shares(measure: str, hits: Sequence[bool], ceiling: Sequence[bool] | None = None, **rest: Any) -> MetricRow:
    """A row of how many clips are right."""
    top = None if ceiling is None else _part(ceiling)
    return MetricRow(measure, proportion(torch.tensor(hits)), len(hits), "%", ceiling=top, **rest)


def means(measure: str, values: Sequence[float], seed: int, **rest: Any) -> MetricRow:
    """A row of the mean of a measure over clips."""
    return ratios(measure, values, [1.0] * len(values), seed, **rest)


def ratios(measure: str, values: Sequence[float], over: Sequence[float], seed: int, **rest: Any) -> MetricRow:
    """A row of the mean of a measure over the mean of another one of the same clips."""
    top, bottom = (torch.tensor(one, dtype=torch.float64) for one in (values, over))
    found = bootstrap(lambda rows: float(top[rows].mean() / bottom[rows].mean()), len(top), draws=1000, seed=seed)
    return MetricRow(measure, found, len(values), **rest)


def _part(hits: Sequence[bool]) -> float:
    return sum(map(bool, hits)) / len(hits)
