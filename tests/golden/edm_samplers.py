"""Golden kinds of EDM's sampler and of its ablation, with any network; every setting comes from meta.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.golden.case import Case, Comparison
from tests.golden.k_diffusion import by_step, mixture, ratio
from unveil.core import schedules
from unveil.core.denoiser import DenoiseFn
from unveil.core.elementary import as_tensor
from unveil.core.samplers import CoefficientTable, euler_time, heun, heun_time, run
from unveil.core.schedules import Schedule
from unveil.core.ve import EDMProcess
from unveil.types import NoiseLevel

Rounding = Callable[[float], float]  # a sigma -> the nearest that a network knows


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
        return NoiseLevel(*(as_tensor(column).reshape(t.shape) for column in zip(*rows, strict=True)))

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


def churn(given: dict[str, Any]) -> dict[str, float]:
    """The four numbers under our names."""
    names = {"S_churn": "s_churn", "S_min": "s_tmin", "S_max": "s_tmax", "S_noise": "s_noise"}
    return {ours: given[theirs] for theirs, ours in names.items() if theirs in given}


def edm_table(given: dict[str, Any], net: Net) -> tuple[CoefficientTable, Schedule]:
    """`edm_sampler`: Heun with churn on the Karras schedule."""
    low, high = max(given.get("sigma_min", 0.002), net.least), min(given.get("sigma_max", 80), net.most)
    steps, rho = given.get("num_steps", 18), given.get("rho", 7)
    drawn = schedules.karras(EDMProcess(), steps, sigma_min=low, sigma_max=high, rho=rho)
    schedule = ended(Clock("linear", "none", 0.0, 0.0, net.rounded), [ratio(level) for level in drawn[:-1]])
    return heun(schedule, **churn(given)), schedule


def ablation_table(given: dict[str, Any], net: Net) -> tuple[CoefficientTable, Schedule]:
    """`ablation_sampler`: Euler or a second-order method in t, on four discretisations."""
    kind, steps = given.get("discretization", "edm"), given.get("num_steps", 18)
    smallest = given.get("epsilon_s", 1e-3)
    vp_low, vp_high = (math.sqrt(math.expm1(0.5 * 19.9 * t * t + 0.1 * t)) for t in (smallest, 1.0))
    least = {"vp": vp_low, "ve": 0.02, "iddpm": 0.002, "edm": 0.002}[kind]
    most = {"vp": vp_high, "ve": 100, "iddpm": 81, "edm": 80}[kind]
    low = max(given.get("sigma_min") or least, net.least)
    high = min(given.get("sigma_max") or most, net.most)
    # the betas that reach both ends
    rise = 2 * (math.log1p(low**2) / smallest - math.log1p(high**2)) / (smallest - 1)
    beta_min = math.log1p(high**2) - 0.5 * rise
    if kind == "vp":
        drawn = schedules.vp(EDMProcess(), steps, beta_d=rise, beta_min=beta_min, smallest=smallest)
    elif kind == "ve":
        drawn = schedules.exponential(EDMProcess(), steps, sigma_min=low, sigma_max=high)
    elif kind == "edm":
        drawn = schedules.karras(EDMProcess(), steps, sigma_min=low, sigma_max=high, rho=given.get("rho", 7))
    else:
        drawn = schedules.from_sigmas(EDMProcess(), [*iddpm_sigmas(given, low, high, steps), 0.0])
    clock = Clock(given.get("schedule", "linear"), given.get("scaling", "none"), rise, beta_min, net.rounded)
    schedule = ended(clock, [ratio(level) for level in drawn[:-1]])
    if given.get("solver", "heun") == "euler":
        return euler_time(schedule, **churn(given)), schedule
    return heun_time(schedule, node=given.get("alpha", 1), **churn(given)), schedule


def iddpm_sigmas(given: dict[str, Any], low: float, high: float, steps: int) -> list[float]:
    """Improved DDPM's levels between two ends, evenly by number; alpha-bar and its ratio in float32, as published."""
    count, least, offset = given.get("M", 1000), given.get("C_1", 0.001), given.get("C_2", 0.008)
    numbers = torch.arange(count + 1)
    alpha_bar = (0.5 * math.pi * numbers / count / (offset + 1)).sin() ** 2
    levels = torch.zeros(count + 1, dtype=torch.float64)
    for j in range(count, 0, -1):
        share = (alpha_bar[j - 1] / alpha_bar[j]).clip(min=least)
        levels[j - 1] = ((levels[j] ** 2 + 1) / share - 1).sqrt()
    kept = levels[(levels >= low) & (levels <= high)]
    places = (len(kept) - 1) / max(steps - 1, 1) * torch.arange(steps, dtype=torch.float64)
    return kept[places.round().long()].tolist()


def ended(clock: Clock, sigmas: Sequence[float]) -> Schedule:
    """The levels of these sigmas on a clock, each once where rounding makes two of them one, and clean data."""
    return schedules.from_sigmas(clock, [*dict.fromkeys(clock.rounded(sigma) for sigma in sigmas), 0.0])


def sampled(settings: dict[str, Any], net: Net, latents: Tensor, noises: Tensor) -> tuple[CoefficientTable, Tensor]:
    """One recorded run: `settings` names the function and its keywords; float64, as the original."""
    make = {"edm_sampler": edm_table, "ablation_sampler": ablation_table}[settings["function"]]
    table, schedule = make(settings["kwargs"], net)
    x = schedule[0].sigma * latents.double()
    return table, run(table, net.step, x, noise=by_step(table, schedule, noises.double()))


def samplers(case: Case) -> Iterator[Comparison]:
    """edm/samplers: with the analytic model."""
    exact = mixture(case)
    for name, settings in case.meta["runs"].items():
        net = Net(exact, float(settings["net_sigma_min"]), float(settings["net_sigma_max"]))
        table, x = sampled(settings, net, case.io["latents"], case.io["noise"])
        yield case.compare(f"{name}.net_sigmas", [ratio(level) for level in table.levels])
        yield case.compare(f"{name}.out", x)


KINDS: dict[str, Callable[[Case], Iterator[Comparison]]] = {"edm/samplers": samplers}
