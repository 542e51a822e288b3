"""Comparison of two reports, which is refused where their protocols differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from unveil.errors import RecipeError
from unveil.evaluate.judges import judges
from unveil.evaluate.report import Report, canonical, flatten

BITS = {"": "bits_per_dim", ", ODE": "ode_bits_per_dim"}  # the forms of bits/dim by their metric


class MetricDelta(NamedTuple):
    """One metric of two reports."""

    name: str
    first: float
    second: float

    @property
    def difference(self) -> float:
        """Difference of the second and the first number."""
        return self.second - self.first


def compare(first: Report, second: Report, *, varying: Sequence[str] = ()) -> list[MetricDelta]:
    """Return the common metrics of two reports.

    Args:
        first, second: Reports to compare.
        varying: Protocol settings that may differ, such as "sampling" or "sampling.steps".

    Raises:
        RecipeError: The protocols differ in another setting, so their numbers are not comparable.
    """
    left, right = (flatten(json.loads(canonical(report.protocol))) for report in (first, second))
    differing = [
        key for key in sorted({*left, *right}) if left.get(key) != right.get(key) and not _may_vary(key, varying)
    ]
    if differing:
        named = "; ".join(f"{key}: {left.get(key, 'not set')} and {right.get(key, 'not set')}" for key in differing[:5])
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise RecipeError(
            f"reports of different protocols ({first.protocol_sha256[:12]} and {second.protocol_sha256[:12]}) cannot "
            f"be compared: {named}{more}; evaluate both alike, or name what is compared in varying="
        )
    ours, theirs = _numbers(first), _numbers(second)
    # likelihoods have other images and noise levels, which are not part of the protocol of the samples
    unlike = {f"bits/dim{form}" for form, key in BITS.items() if _settings(first, key) != _settings(second, key)}
    shared = [name for name in ours if name in theirs and name not in unlike]
    return [MetricDelta(name, ours[name], theirs[name]) for name in shared]


def _may_vary(key: str, varying: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in varying)


def _settings(report: Report, metric: str) -> dict[str, Any]:
    """Return the settings of a likelihood without its results."""
    measured = ("value", "low", "high", "calls", "probe_error")
    return {key: value for key, value in report.results.get(metric, {}).items() if key not in measured}


def _numbers(report: Report) -> dict[str, float]:
    """Return one number per metric."""
    flat = flatten(report.results)
    keys = {name: key for judge in judges() for name, key in judge.metrics(report.results).items()}
    return {name: float(flat[key]) for name, key in keys.items() if flat.get(key) is not None}
