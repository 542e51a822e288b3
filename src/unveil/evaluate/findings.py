"""Results of judges: findings, which are numbers with an interval, a bar and baselines, and figures.

Pages and the command line are made of these; `page_writer` is the only module that writes HTML or Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Rule = Literal["at least", "at most", "like"]  # the better side of a number; "like": equality is best


@dataclass(frozen=True)
class Finding:
    """One number of an evaluation.

    Attributes:
        name: Name of the metric in words.
        value: Estimate.
        low, high: Ends of its 95 % interval; None without an interval.
        unit: Unit: "%" for shares of 1, else such as "px" or "dB", or "" for plain numbers.
        form: Format specification of the number; "" chooses one by the unit.
        bar: Number that must be reached; None without a bar.
        rule: Side from which the bar must be reached.
        ceiling: The number for real data, which is the best possible result.
        baselines: Numbers without a model, by name.
        count: Number of samples that the number is taken over.
        is_main: True if models of several sizes are compared by it.
        note: Text after the number.
        remark: Explanation of the number.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""
    form: str = ""
    bar: float | None = None
    rule: Rule = "at least"
    ceiling: float | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)
    count: int = 0
    is_main: bool = False
    note: str = ""
    remark: str = ""

    @property
    def met(self) -> bool | None:
        """True if the bar is reached; None without a bar."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.rule == "at least" else self.value <= self.bar

    @property
    def is_worse_than_ceiling(self) -> bool:
        """True if the whole interval is worse than the ceiling."""
        if self.ceiling is None or self.low is None or self.high is None:
            return False
        below, above = self.high < self.ceiling, self.low > self.ceiling
        return {"at least": below, "at most": above, "like": below or above}[self.rule]

    def number(self, value: float, *, unit: bool = True) -> str:
        """A number in the form and unit of this finding."""
        text = f"{value:{self.form or ('.1%' if self.unit == '%' else '.2f')}}"
        return f"{text} {self.unit}" if unit and self.unit not in ("", "%") else text

    @property
    def text(self) -> str:
        """The value with its interval in brackets, and the note."""
        if self.low is None or self.high is None:
            return self.number(self.value) + self.note
        low, high = (self.number(end, unit=False) for end in (self.low, self.high))
        return f"{self.number(self.value)} ({low} to {high}){self.note}"

    @property
    def bar_text(self) -> str:
        """The bar with its side, or "" without one."""
        return "" if self.bar is None else f"{self.rule} {self.number(self.bar)}"

    @property
    def line(self) -> str:
        """One line for the command line: name, text, and whether the bar is met."""
        verdict = "" if self.bar is None else f", bar {self.bar_text} {'met' if self.met else 'not met'}"
        return f"{self.name}: {self.text}{verdict}"


def interval_of(stored: Mapping[str, float]) -> tuple[float, float, float]:
    """Return value, low and high of a stored result."""
    return stored["value"], stored["low"], stored["high"]


@dataclass(frozen=True)
class Figure:
    """An image of a page with its caption.

    Attributes:
        caption: Description of the image.
        image: PNG or animated WebP, for pages that contain their images.
        file: Name of the image file, for pages in the same folder.
        alt: Alternative text; the caption if it is empty.
    """

    caption: str
    image: bytes = field(default=b"", repr=False)
    file: str = ""
    alt: str = ""
