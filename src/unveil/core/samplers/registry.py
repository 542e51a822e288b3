"""Samplers by name, with their declared order, noise, cost and invariance.

A module of this package lists its samplers as `SAMPLERS`. Another package names a `SamplerSpec` as an entry point of
the group `unveil.samplers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Literal

from unveil.core import foreign_names
from unveil.core.foreign_names import Spelled
from unveil.core.samplers.loop import Plan
from unveil.core.schedules import Schedule
from unveil.errors import RecipeError, did_you_mean

GROUP = "unveil.samplers"


@dataclass(frozen=True)
class SamplerSpec:
    """Sampler with its name and its declared properties, which `tests/core/test_listed.py` checks.

    Args:
        name: Name in recipes and on the command line, such as "dpmpp-2m".
        build: (schedule, **options) -> Plan; its keyword arguments are the options.
        source: Paper with section, equation or algorithm.
        order: Order of the error of a deterministic run against the number of steps. Of a stochastic run: order of the
            error of mean and covariance (weak order). None: no order is claimed.
        strong_order: Order of the error on a fixed Brownian path, for stochastic samplers that declare one.
        stochastic: True if the sampler draws noise with its options as they are.
        calls: Number of network calls of one step of the schedule, on average over a long run; None: it adapts.
        domain: "log-snr" gives the same sample under every process on one log-SNR schedule; "time" depends on the
            process's own time.
        start: log-SNR must be finite at the first level (alpha > 0) where this says "finite".
        denoiser: Meaning of the x0 that a step must return: "mean", the mean of the data given x, or "consistency", the
            point of the data that the deterministic path through x ends at.
        couples_parts: True if the parts of one sample depend on each other, for example by norms over the whole sample
            or by a choice from the number of steps. Parts with levels of their own are then not sampled as separate
            samples would be.
        fine_options: Options with which a fine schedule gives the distribution itself, if the usual ones leave an error
            that no schedule removes. None: no options do.
        options: Values that this entry fixes, for entries that share a builder.
    """

    name: str
    build: Callable[..., Plan]
    source: str
    order: float | None
    strong_order: float | None = None
    stochastic: bool = False
    calls: float | None = 1.0
    domain: Literal["log-snr", "time"] = "log-snr"
    start: Literal["any", "finite"] = "any"
    denoiser: Literal["mean", "consistency"] = "mean"
    couples_parts: bool = False
    fine_options: Mapping[str, Any] | None = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def plan(self, schedule: Schedule) -> Plan:
        """Return the plan of this entry over a schedule, with the options that it fixes."""
        return self.build(schedule, **self.options)


@cache
def bundled() -> Mapping[str, SamplerSpec]:
    """Return the samplers of this package by name."""
    every: list[SamplerSpec] = []
    for module in iter_modules([str(Path(__file__).parent)]):
        every += getattr(import_module(f"{__package__}.{module.name}"), "SAMPLERS", ())
    return _by_name(every)


@cache
def sampler_specs() -> Mapping[str, SamplerSpec]:
    """Return every sampler by name, in the order of names: the bundled ones, and those of installed packages.

    Raises:
        RecipeError: An entry point is not a sampler, or two samplers share a name.
    """
    every = [*bundled().values()]
    for entry in entry_points(group=GROUP):
        spec = entry.load()
        if not isinstance(spec, SamplerSpec):
            raise RecipeError(f"entry point group {GROUP}: {entry.value} is not a core.samplers.SamplerSpec")
        every.append(spec)
    return _by_name(every)


def _by_name(every: list[SamplerSpec]) -> Mapping[str, SamplerSpec]:
    names = sorted(spec.name for spec in every)
    if repeated := [name for name in names if names.count(name) > 1]:
        raise RecipeError(f"sampler {repeated[0]!r}: two samplers have this name; rename one")
    return {spec.name: spec for spec in sorted(every, key=lambda spec: spec.name)}


def get_sampler(name: str) -> SamplerSpec:
    """Return the sampler of a name, ours or that of another program, such as "euler_a"; see `core.foreign_names`.

    Raises:
        RecipeError: There is none; names the nearest.
    """
    spec = bundled().get(name)  # without a look at installed packages, which takes 10 ms
    return sampler_specs()[spelled(name).sampler] if spec is None else spec


def spelled(name: str) -> Spelled:
    """Return our name of a sampler, and the schedule that its name includes, as "DPM++ 2M Karras" does.

    Raises:
        RecipeError: There is none; names the nearest.
    """
    entry = foreign_names.sampler(name, sampler_specs())
    if entry is None:
        if instead := foreign_names.absent_sampler(name, sampler_specs()):
            raise RecipeError(f"sampler {name!r}: {instead}; `unveil inspect samplers` lists all")
        close = did_you_mean(foreign_names.plain(name), list(sampler_specs()))
        raise RecipeError(f"sampler {name!r}: no such sampler{close}; `unveil inspect samplers` lists all")
    return entry
