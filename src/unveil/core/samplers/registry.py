"""Properties of a sampler: its order, its noise, its cost, and its invariance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from unveil.core.samplers.loop import Plan
from unveil.core.schedule import Schedule


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler by name, with what it declares; `tests/core/test_listed.py` holds every one to its word.

    Args:
        name: in recipes and on the command line, such as "dpmpp-2m".
        build: (grid, **options) -> Plan; its keyword arguments are the options.
        source: paper with section, equation or algorithm.
        order: of the error of a deterministic run against the number of steps; of a stochastic one, that of the
            mean and covariance (weak order). None where none is claimed.
        strong: order of the error on a fixed Brownian path, for stochastic ones that declare one.
        stochastic: it draws noise with the options as they are.
        calls: network calls of one step of the grid, on average over a long run; None where it adapts.
        domain: "log-snr" gives the same sample under every process on one log-SNR grid; "time" depends on the
            process's own time.
        start: log-SNR must be finite at the first level (alpha > 0) where this says "finite".
        denoiser: what a step must return as x0: "mean", the mean of the data given x, or "consistency", the point
            of the data that the deterministic path through x ends at.
        couples: the parts of one sample, as norms over all of it do, or a choice by the number of steps, so that parts
            with levels of their own are not sampled as they would be alone.
        fine: options with which a fine grid gives the distribution itself, where the usual ones leave an error that
            no grid removes; None where none does.
        options: values that this entry fixes, for entries that share a builder.
    """

    name: str
    build: Callable[..., Plan]
    source: str
    order: float | None
    strong: float | None = None
    stochastic: bool = False
    calls: float | None = 1.0
    domain: Literal["log-snr", "time"] = "log-snr"
    start: Literal["any", "finite"] = "any"
    denoiser: Literal["mean", "consistency"] = "mean"
    couples: bool = False
    fine: Mapping[str, Any] | None = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def plan(self, grid: Schedule) -> Plan:
        """The plan of this entry over a grid, with the options that it fixes."""
        return self.build(grid, **self.options)
