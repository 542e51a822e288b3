"""Golden kinds of EDM's sampler and of its ablation, with any network; every setting comes from meta.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.golden.case import Case, Comparison, Unsupported, separately
from tests.golden.k_diffusion import by_step, mixture, ratio
from unveil.core import schedules
from unveil.core.denoiser import DenoiseFn
from unveil.core.elementary import as_tensor
from unveil.core.rng import Noise
from unveil.core.samplers import CoefficientTable, StepRow, euler_time, heun, heun_time, run
from unveil.core.ve import EDMProcess
from unveil.types import NoiseLevel


class Plan(NamedTuple):
    """The rows of a run, its first level, its noise of recorded numbers, and the error of the original's rounding."""

    table: CoefficientTable
    start: NoiseLevel
    noise: Callable[[Tensor], Noise]
    rounding: float = 0.0


class Sampled(NamedTuple):
    """What was run, its result, and the least tolerance."""

    table: CoefficientTable
    x: Tensor
    least: Tensor | None


Rounding = Callable[[float], float]  # a sigma -> the nearest that a network knows
Build = Callable[..., CoefficientTable]  # a schedule, and options of churn -> rows


@dataclass(frozen=True)
class Net:
    """What the samplers ask of a network: its estimate, and the levels that it knows."""

    step: DenoiseFn
    least: float = 0.0
    most: float = math.inf
    rounded: Rounding = float


@dataclass(frozen=True)
class Clock:
    """sigma(t) of the paper's table, "linear", "ve" or "vp" with its betas, and the scaling "none" or "vp"."""

    schedule: str
    scaling: str
    rise: float
    beta_min: float
    rounded: Rounding

    def at(self, t: Tensor | float) -> NoiseLevel:
        """The level at t, with s(t) as alpha and s(t) sigma(t) as sigma."""
        t = as_tensor(t)
        rows = [self._numbers_at(number) for number in t.flatten().tolist()]
        return NoiseLevel(*(column.reshape(t.shape) for column in as_tensor(rows).reshape(-1, 5).unbind(1)))

    def _numbers_at(self, t: float) -> tuple[float, float, float, float, float]:
        if t == 0:
            return 0.0, 1.0, 0.0, 0.0, math.inf
        if self.schedule == "linear":
            sigma, speed = t, 1.0
        elif self.schedule == "ve":
            sigma = math.sqrt(t)
            speed = 0.5 / sigma
        else:
            sigma = math.sqrt(math.expm1(0.5 * self.rise * t * t + self.beta_min * t))
            speed = 0.5 * (self.beta_min + self.rise * t) * (sigma + 1 / sigma)
        if self.scaling == "none":
            return t, 1.0, sigma, 0.0, speed
        scale = 1 / math.sqrt(1 + sigma**2)
        change = -sigma * speed * scale**3
        return t, scale, scale * sigma, change, change * sigma + scale * speed

    def t_of(self, half_log_snr: Tensor | float) -> Tensor:
        """The time of a sigma, rounded as the network asks."""
        places = as_tensor(half_log_snr)
        return as_tensor([self._time_of(number) for number in places.flatten().tolist()]).reshape(places.shape)

    def _time_of(self, half_log_snr: float) -> float:
        sigma = self.rounded(math.exp(-1.0 * half_log_snr))
        if self.schedule == "linear":
            return sigma
        if self.schedule == "ve":
            return sigma**2
        return (math.sqrt(self.beta_min**2 + 2 * self.rise * math.log1p(sigma**2)) - self.beta_min) / self.rise

    def timestep(self, level: NoiseLevel) -> Tensor:
        """Return sigma, the input of the networks."""
        return level.sigma / level.alpha

    def trainable(self, u: Tensor) -> Tensor:
        """Not called here."""
        return u

    def within(self, t: Tensor) -> Tensor:
        """Not called here."""
        return t

    def prior(self, level: NoiseLevel) -> Tensor:
        """Sigma."""
        return level.sigma


# keywords of both functions with their defaults
EDM = {"num_steps": 18, "sigma_min": 0.002, "sigma_max": 80, "rho": 7, "S_churn": 0, "S_min": 0, "S_max": math.inf,
       "S_noise": 1}  # fmt: skip
ABLATION = EDM | {"sigma_min": None, "sigma_max": None, "solver": "heun", "discretization": "edm", "schedule": "linear",
                  "scaling": "none", "epsilon_s": 1e-3, "C_1": 0.001, "C_2": 0.008, "M": 1000, "alpha": 1}  # fmt: skip
CHURN = {"S_churn": "s_churn", "S_min": "s_tmin", "S_max": "s_tmax", "S_noise": "s_noise"}
# sigma(t) of "vp" and its inverse do not cancel to the last digit. Where a step has no churn, the original therefore
# adds noise of the root of the difference.
VP_ROUNDING = 2e-7


def keywords(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """All keywords of a call.

    Raises:
        Unsupported: One that the function does not have.
    """
    if unknown := [name for name in given if name not in defaults]:
        raise Unsupported(f"keywords {', '.join(unknown)}")
    return {**defaults, **given}


def planned(build: Build, clock: Clock, sigmas: Sequence[float], call: Mapping[str, Any]) -> Plan:
    """The rows over these sigmas as the network rounds them, and onto the data."""
    rounded = [*(clock.rounded(sigma) for sigma in sigmas), 0.0]
    options = {ours: call[theirs] for theirs, ours in CHURN.items()}
    if not call["S_churn"] or len(set(rounded)) == len(rounded):
        # without churn a step between equal levels does nothing
        schedule = schedules.from_sigmas(clock, list(dict.fromkeys(rounded)))
        table = build(schedule, **options)
        return Plan(table, schedule[0], lambda noises: by_step(table, schedule, noises))
    options["s_churn"] = call["S_churn"] / call["num_steps"]  # of a run of one step
    rows: list[StepRow] = []
    steps: list[int] = []
    for step, pair in enumerate(pairwise(rounded)):
        added = step_rows(build, clock, pair, options)
        rows += added
        steps += [step] * len(added)
    start = schedules.from_sigmas(clock, [rounded[0], 0.0])[0]
    return Plan(CoefficientTable(rows), start, lambda noises: lambda row, draw=0: noises[steps[row]])


def step_rows(build: Build, clock: Clock, pair: tuple[float, float], options: Mapping[str, float]) -> Sequence[StepRow]:
    """One step with churn; one between equal levels begins and ends at the level, and is made from the churned one."""
    here, there = pair
    if there < here:
        return build(schedules.from_sigmas(clock, pair), **options).rows
    share = min(options["s_churn"], math.sqrt(2) - 1) if options["s_tmin"] <= here <= options["s_tmax"] else 0.0
    top = clock.rounded(here * (1 + share))
    if top <= here:
        return []
    schedule = schedules.from_sigmas(clock, [top, there])
    keep, width = schedule[0].alpha / schedule[1].alpha, math.sqrt(top**2 - here**2)
    raised = StepRow(None, as_tensor(keep), noise=as_tensor(options["s_noise"] * schedule[0].alpha * width))
    return [raised, *build(schedule).rows]


def edm_table(given: Mapping[str, Any], net: Net) -> Plan:
    """`edm_sampler`: Heun with churn on the Karras schedule."""
    call = keywords(given, EDM)
    low, high = max(call["sigma_min"], net.least), min(call["sigma_max"], net.most)
    drawn = schedules.karras(EDMProcess(), call["num_steps"], sigma_min=low, sigma_max=high, rho=call["rho"])
    clock = Clock("linear", "none", 0.0, 0.0, net.rounded)
    return planned(heun, clock, [ratio(level) for level in drawn[:-1]], call)


def ablation_table(given: Mapping[str, Any], net: Net) -> Plan:
    """`ablation_sampler`: Euler or a second-order method in t, on four discretisations."""
    call = keywords(given, ABLATION)
    kind, steps, smallest = call["discretization"], call["num_steps"], call["epsilon_s"]
    vp_low, vp_high = (math.sqrt(math.expm1(0.5 * 19.9 * t * t + 0.1 * t)) for t in (smallest, 1.0))
    least = {"vp": vp_low, "ve": 0.02, "iddpm": 0.002, "edm": 0.002}[kind]
    most = {"vp": vp_high, "ve": 100, "iddpm": 81, "edm": 80}[kind]
    low = max(least if call["sigma_min"] is None else call["sigma_min"], net.least)
    high = min(most if call["sigma_max"] is None else call["sigma_max"], net.most)
    # the betas that reach both ends
    rise = 2 * (math.log1p(low**2) / smallest - math.log1p(high**2)) / (smallest - 1)
    beta_min = math.log1p(high**2) - 0.5 * rise
    if kind == "vp":
        drawn = schedules.vp(EDMProcess(), steps, beta_d=rise, beta_min=beta_min, smallest=smallest)
    elif kind == "ve":
        drawn = schedules.exponential(EDMProcess(), steps, sigma_min=low, sigma_max=high)
    elif kind == "edm":
        drawn = schedules.karras(EDMProcess(), steps, sigma_min=low, sigma_max=high, rho=call["rho"])
    else:
        drawn = schedules.from_sigmas(EDMProcess(), [*iddpm_sigmas(call, low, high), 0.0])
    for name, allowed in (("schedule", ("linear", "ve", "vp")), ("scaling", ("none", "vp")),
                          ("solver", ("euler", "heun"))):  # fmt: skip
        if call[name] not in allowed:
            raise Unsupported(f"{name} {call[name]!r}")
    clock = Clock(call["schedule"], call["scaling"], rise, beta_min, net.rounded)
    sigmas = [ratio(level) for level in drawn[:-1]]
    within = [call["S_min"] <= clock.rounded(sigma) <= call["S_max"] for sigma in sigmas]
    rounds = call["schedule"] == "vp" and not (call["S_churn"] and all(within))
    # the original follows the velocity onto clean data, too
    build = partial(euler_time, end="velocity")
    if call["solver"] == "heun":
        build = partial(heun_time, node=call["alpha"], end="velocity")
    return planned(build, clock, sigmas, call)._replace(rounding=VP_ROUNDING if rounds else 0.0)


def iddpm_sigmas(call: Mapping[str, Any], low: float, high: float) -> list[float]:
    """Improved DDPM's levels between two ends, evenly by number; alpha-bar and its ratio in float32, as published."""
    count, least, offset, steps = call["M"], call["C_1"], call["C_2"], call["num_steps"]
    numbers = torch.arange(count + 1)
    alpha_bar = (0.5 * math.pi * numbers / count / (offset + 1)).sin() ** 2
    levels = torch.zeros(count + 1, dtype=torch.float64)
    for j in range(count, 0, -1):
        share = (alpha_bar[j - 1] / alpha_bar[j]).clip(min=least)
        levels[j - 1] = ((levels[j] ** 2 + 1) / share - 1).sqrt()
    kept = levels[(levels >= low) & (levels <= high)]
    places = (len(kept) - 1) / max(steps - 1, 1) * torch.arange(steps, dtype=torch.float64)
    return kept[places.round().long()].tolist()


def sampled(settings: Mapping[str, Any], net: Net, latents: Tensor, noises: Tensor) -> Sampled:
    """One recorded run: `settings` names the function and its keywords; float64, as the original."""
    make = {"edm_sampler": edm_table, "ablation_sampler": ablation_table}[settings["function"]]
    plan = make(settings["kwargs"], net)
    x = plan.start.sigma * latents.double()
    x = run(plan.table, net.step, x, noise=plan.noise(noises.double()))
    return Sampled(plan.table, x, torch.tensor(plan.rounding) if plan.rounding else None)


def samplers(case: Case) -> Iterator[Comparison]:
    """edm/samplers: with the analytic model."""
    for name, settings in case.meta["runs"].items():
        yield from separately(name, exact_run(case, name, settings))


def exact_run(case: Case, name: str, settings: Mapping[str, Any]) -> Iterator[Comparison]:
    """One run with the analytic model."""
    net = Net(mixture(case), float(settings["net_sigma_min"]), float(settings["net_sigma_max"]))
    result = sampled(settings, net, case.io["latents"], case.io["noise"])
    yield case.compare(f"{name}.net_sigmas", [ratio(level) for level in result.table.levels])
    yield case.compare(f"{name}.out", result.x, least=result.least)


KINDS: dict[str, Callable[[Case], Iterator[Comparison]]] = {"edm/samplers": samplers}
