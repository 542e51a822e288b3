"""Findings of a study of videos, and their form in its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from unveil.evaluate.findings import Finding, Rule, interval_of
from unveil.evaluate.metrics import bootstrap, proportion


@dataclass(frozen=True)
class StudyResult:
    """Findings and figures of one task of a study.

    Attributes:
        title, method: in words.
        findings: its numbers.
        curve: further numbers, such as those of each strength, by what they are of.
        animations: animated WebPs by their captions.
    """

    title: str
    method: str
    findings: Sequence[Finding]
    curve: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    animations: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def record(self) -> dict[str, Any]:
        """Everything except the animations, as plain values."""
        return {
            "title": self.title,
            "method": self.method,
            "rows": [finding_record(finding) for finding in self.findings],
            "curve": {name: dict(numbers) for name, numbers in self.curve.items()},
        }


def finding_record(finding: Finding) -> dict[str, Any]:
    """A finding as plain values, under the keys of stored records."""
    return {
        "measure": finding.name,
        "found": {"value": finding.value, "low": finding.low, "high": finding.high},
        "count": finding.count,
        "unit": finding.unit,
        "bar": finding.bar,
        "rule": finding.rule,
        "ceiling": finding.ceiling,
        "baselines": dict(finding.baselines),
        "main": finding.is_main,
        "met": finding.met,
        "short": finding.is_worse_than_ceiling,
    }


def finding_of(row: Mapping[str, Any], title: str = "") -> Finding:
    """The finding of a stored record; its name begins with the title of its task if one is passed."""
    return Finding(
        f"{title}: {row['measure']}" if title else row["measure"],
        *interval_of(row["found"]),
        unit=row["unit"],
        bar=row["bar"],
        rule=row["rule"],
        ceiling=row["ceiling"],
        baselines=row["baselines"],
        count=row["count"],
        is_main=row["main"],
    )


def shares(
    name: str,
    hits: Sequence[bool],
    ceiling: Sequence[bool] | None = None,
    *,
    bar: float | None = None,
    rule: Rule = "at least",
    baselines: Mapping[str, float] | None = None,
) -> Finding:
    """The share of videos for which a test holds."""
    return Finding(
        name, *proportion(torch.tensor(hits)), unit="%", bar=bar, rule=rule,
        ceiling=None if ceiling is None else sum(map(bool, ceiling)) / len(ceiling),
        baselines=baselines or {}, count=len(hits),
    )  # fmt: skip


def means(
    name: str,
    values: Sequence[float],
    seed: int,
    *,
    unit: str = "",
    bar: float | None = None,
    rule: Rule = "at least",
    ceiling: float | None = None,
    baselines: Mapping[str, float] | None = None,
) -> Finding:
    """The mean of a measure over videos."""
    finding = ratios(name, values, [1.0] * len(values), seed, bar=bar, rule=rule, ceiling=ceiling, baselines=baselines)
    return replace(finding, unit=unit)


def ratios(
    name: str,
    values: Sequence[float],
    divisors: Sequence[float],
    seed: int,
    *,
    bar: float | None = None,
    rule: Rule = "at least",
    ceiling: float | None = None,
    baselines: Mapping[str, float] | None = None,
) -> Finding:
    """The mean of a measure over the mean of another measure of the same videos."""
    top, bottom = (torch.tensor(column, dtype=torch.float64) for column in (values, divisors))
    interval = bootstrap(lambda rows: float(top[rows].mean() / bottom[rows].mean()), len(top), draws=1000, seed=seed)
    return Finding(name, *interval, bar=bar, rule=rule, ceiling=ceiling, baselines=baselines or {}, count=len(values))
