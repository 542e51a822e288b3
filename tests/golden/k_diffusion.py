"""Golden kinds of k-diffusion: its schedules, samplers, wrappers of networks, and densities of training levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.golden.case import Case, Comparison
from unveil.core import preconditioning
from unveil.core import prediction as predictions
from unveil.core import schedules as unveil_schedules
from unveil.core.denoiser import DenoiseFn, Denoiser, Estimate
from unveil.core.flow import RectifiedFlow
from unveil.core.objective import DiffusionLoss
from unveil.core.process import CosineVP, DiscreteVP, Process, betas
from unveil.core.rng import Noise
from unveil.core.samplers.adaptive import PIDController, Tolerance, batch_norm, dpm_adaptive
from unveil.core.samplers.exponential import (
    dpm_fast,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_ancestral,
    dpmpp_3m_sde,
    dpmpp_sde,
    midpoint,
    taylor,
)
from unveil.core.samplers.loop import CoefficientTable, Plan, SamplingProgress, run
from unveil.core.samplers.multistep import lms
from unveil.core.samplers.runge_kutta import dpm2, dpm2_ancestral, euler, euler_ancestral, heun, sigma_down
from unveil.core.schedules import Schedule, level_at_lambda
from unveil.core.timestep_sampling import LogNormal
from unveil.core.ve import VE, EDMProcess
from unveil.data.gaussian_mixture import Mixture
from unveil.types import Condition, NoiseLevel

PUBLISHED = {
    "karras": unveil_schedules.karras,
    "exponential": unveil_schedules.exponential,
    "polyexponential": unveil_schedules.polyexponential,
    "vp": unveil_schedules.vp,
}


def ratio(level: NoiseLevel) -> Any:
    """sigma / alpha, what the original calls sigma."""
    value = level.sigma / level.alpha
    return value if value.ndim else value.item()


def mixture(case: Case) -> Mixture:
    """The recorded analytic model."""
    weights, means, spreads = (case.io[f"gm_{name}"].double() for name in ("weights", "means", "stds"))
    return Mixture(weights.tolist(), means, spreads.tolist())


# ---------------------------------------------------------------------- schedules


def made(name: str, given: dict[str, Any]) -> Schedule:
    """One of the published schedules on a process without limits."""
    settings = {"eps_s": "smallest", "n": "steps"}
    return PUBLISHED[name](EDMProcess(), **{settings.get(key, key): value for key, value in given.items()})


def schedules(case: Case) -> Iterator[Comparison]:
    for name, given in case.meta["arguments"].items():
        schedule = made(name.partition(".")[0], given)
        yield case.compare(name, [ratio(level) for level in schedule])
    pairs = list(zip(case.io["ancestral.from"].tolist(), case.io["ancestral.to"].tolist(), strict=True))
    for name in (key for key in case.io if key.startswith("ancestral.eta")):
        eta = float(name.removeprefix("ancestral.eta"))
        rows = [sigma_down(NoiseLevel(1.0, 1.0, here), NoiseLevel(0.0, 1.0, there), eta) for here, there in pairs]
        yield case.compare(name, torch.tensor([[low.sigma, up] for low, up in rows], dtype=torch.float64))


# ---------------------------------------------------------------------- samplers

# original function -> our builder, and the options that have another name or another default
SAMPLERS: dict[str, tuple[Callable[..., Plan], dict[str, str], dict[str, Any]]] = {
    "sample_euler": (euler, {}, {}),
    "sample_heun": (heun, {}, {}),
    "sample_dpm_2": (dpm2, {}, {}),
    "sample_euler_ancestral": (euler_ancestral, {"s_noise": "noise_scale"}, {}),
    "sample_dpm_2_ancestral": (dpm2_ancestral, {"s_noise": "noise_scale"}, {}),
    "sample_lms": (lms, {}, {}),
    "sample_dpmpp_2s_ancestral": (dpmpp_2s_ancestral, {"s_noise": "noise_scale"}, {}),
    "sample_dpmpp_sde": (dpmpp_sde, {"s_noise": "noise_scale", "r": "share"}, {}),
    "sample_dpmpp_2m": (dpmpp_2m, {}, {"lower_below": 0}),
    "sample_dpmpp_2m_sde": (dpmpp_2m_sde, {"s_noise": "noise_scale", "solver_type": "rule"}, {}),
    "sample_dpmpp_3m_sde": (dpmpp_3m_sde, {"s_noise": "noise_scale"}, {}),
    "sample_dpm_fast": (dpm_fast, {"s_noise": "noise_scale", "n": "calls"}, {}),
}
RULES = {"midpoint": midpoint, "heun": taylor}
CHURNED = ("sample_euler", "sample_heun", "sample_dpm_2")


def planned(settings: dict[str, Any], schedule: Schedule) -> Plan:
    """The plan of an original function and its keywords."""
    given = dict(settings["kwargs"])
    if "sigma_max" in given:  # these two take the ends alone
        schedule = unveil_schedules.from_sigmas(EDMProcess(), [given.pop("sigma_max"), given.pop("sigma_min")])
    if settings["function"] == "sample_dpm_adaptive":
        return adaptive_plan(schedule, given)
    build, names, fixed = SAMPLERS[settings["function"]]
    options = {names.get(key, key): value for key, value in given.items()}
    if "rule" in options:
        options["rule"] = RULES[options["rule"]]
    return build(schedule, **fixed, **options)


def adaptive_plan(schedule: Schedule, given: dict[str, Any]) -> Plan:
    """`sample_dpm_adaptive`: tolerances and controller under our names; the batch counts as one vector."""
    tolerance = Tolerance(given.get("atol", 0.0078), given.get("rtol", 0.05), across=batch_norm)
    names = {
        "pcoeff": "proportional",
        "icoeff": "integral",
        "dcoeff": "derivative",
        "accept_safety": "safety",
        "h_init": "first",
    }
    chosen = {str(ours): float(given[theirs]) for theirs, ours in names.items() if theirs in given}
    control = PIDController(**chosen)
    return dpm_adaptive(
        schedule,
        given.get("order", 3),
        tolerance=tolerance,
        control=control,
        eta=given.get("eta", 0.0),
        noise_scale=given.get("s_noise", 1.0),
    )


def by_step(table: CoefficientTable, schedule: Schedule, noises: Tensor) -> Noise:
    """Churn's noises: one is drawn in each step, whether it is used or not."""
    steps = {level: k for k, level in enumerate(schedule)}
    return lambda row, draw=0: noises[steps[table.rows[row].span[0]]]  # type: ignore[index]


def by_draw(table: CoefficientTable, noises: Tensor) -> Noise:
    """The noises of rows that add some, in order."""
    numbers = [k for k, row in enumerate(table.rows) if row.noise != 0]
    return lambda row, draw=0: noises[numbers.index(row)]


class Called:
    """A step that notes the sigmas it was called at."""

    def __init__(self, step: DenoiseFn) -> None:
        self.step = step
        self.sigmas: list[float] = []

    def __call__(self, x: Tensor, level: NoiseLevel) -> Estimate:
        sigma = ratio(level)  # one for each sample where a plan chooses its steps
        self.sigmas.append(sigma.flatten()[0].item() if isinstance(sigma, Tensor) else sigma)
        return self.step(x, level)


def chosen(plan: Plan, step: DenoiseFn, x: Tensor, noises: Tensor) -> Tensor:
    """A run of a plan that chooses its steps; the original draws a noise for each step that stands."""
    places: list[float] = [0.0]

    def watch(shown: SamplingProgress) -> None:
        place = shown.state.integrator_state[1]
        if place > places[-1]:
            places.append(place)

    return run(plan, step, x, noise=lambda number, draw=0: noises[len(places) - 1], on_step=watch)


def samplers(case: Case) -> Iterator[Comparison]:
    noises, start = case.io["noise"].double(), case.io["x_T"].double()
    schedule = unveil_schedules.from_sigmas(EDMProcess(), case.io["sigmas_f64"].tolist())
    for name, settings in case.meta["samplers"].items():
        plan, step = planned(settings, schedule), Called(mixture(case))
        if isinstance(plan, CoefficientTable):
            churned = settings["function"] in CHURNED
            noise = by_step(plan, schedule, noises) if churned else by_draw(plan, noises)
            x = run(plan, step, start, noise=noise)
            spans = [row.span for row in plan.rows if row.span is not None and row.span[1].sigma > 0]
            if f"{name}.noise_args" in case.io and spans:
                ends = torch.tensor([[ratio(a), ratio(b)] for a, b in spans], dtype=torch.float64)
                yield case.compare(f"{name}.noise_args", ends)
        else:
            x = chosen(plan, step, start, noises)
        yield case.compare(f"{name}.model_sigmas", step.sigmas)
        yield case.compare(f"{name}.out", x)


# ---------------------------------------------------------------------- wrappers


class Inner(nn.Module):
    """sin(1.3 x) + rate t; with two heads the variance is any other number."""

    def __init__(self, rate: float, *, heads: int = 1) -> None:
        super().__init__()
        self.rate, self.heads = rate, heads

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        del condition
        y = torch.sin(1.3 * x) + self.rate * t.reshape(-1, *(1,) * (x.ndim - 1))
        return torch.cat([y, 0 * y], 1) if self.heads == 2 else y


@dataclass
class Wrapped:
    """A network and its calls: the original returns x0 for x0 + sigma noise, for any sigma."""

    denoiser: Denoiser
    process: Process

    def levels(self, sigma: Tensor) -> NoiseLevel:
        """The levels (N,) of sigmas, as near as the process comes."""
        noisy = ratio(self.process.at(1.0)) if self.process.at(1.0).alpha != 0 else math.inf
        clean = ratio(self.process.at(1 / self.process.steps)) if isinstance(self.process, DiscreteVP) else 0.0
        return level_at_lambda(self.process, -sigma.double().clamp(clean, noisy).log())

    def denoised(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x0 at x0 + sigma noise."""
        level = self.levels(sigma)
        return self.denoiser(level.alpha.reshape(-1, 1, 1, 1).to(x) * x, level, None).x0  # type: ignore[union-attr]

    def loss(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Per sample."""
        t = torch.as_tensor(self.levels(sigma).t)
        return DiffusionLoss().at(self.denoiser, x0, None, t, noise).per_sample


def wrappers(case: Case) -> Iterator[Comparison]:
    io, given = case.io, case.meta["schedule_settings"]
    x, noise, sigma, query = io["x"], io["noise"], io["sigma"], io["sigma_query"]
    x = x * sigma.reshape(-1, 1, 1, 1)  # what the wrappers are given
    table = betas("sqrt-linear", given["N"], start=given["beta_start"], end=given["beta_end"])
    for name in ("eps.q0", "eps.q1", "v.q0", "v.q1"):
        kind, rounding = name.split(".q")
        process = DiscreteVP(table, rounding="nearest" if rounding == "1" else "none")
        wrapped = Wrapped(Denoiser(Inner(0.001), process, prediction=predictions.PREDICTIONS[kind]), process)
        index = process.timestep(wrapped.levels(query))
        yield case.compare(f"{name}.sigma_to_t", torch.as_tensor(index).to(io[f"{name}.sigma_to_t"].dtype))
        yield case.compare(f"{name}.denoised", wrapped.denoised(x, sigma))
        yield case.compare(f"{name}.loss", wrapped.loss(io["x"], noise, sigma))
        places = [(given["N"] - 1) * k / 7 for k in range(7, -1, -1)]
        schedule = unveil_schedules.from_times(process, [*(process.t_of_timestep(place) for place in places), 0.0])
        yield case.compare(f"{name}.get_sigmas_8", torch.tensor([ratio(level) for level in schedule]))
        if kind == "eps":
            every = process.at(process.t_of_timestep(torch.arange(given["N"], dtype=torch.float64)))
            yield case.compare(f"{name}.sigmas", ratio(every))
            some = process.at(process.t_of_timestep(io["t_query"].double()))
            yield case.compare(f"{name}.t_to_sigma", ratio(some))
    yield case.compare("alphas_cumprod", DiscreteVP(table).alpha_bar[1:])
    yield from continuous(case, x)
    process = DiscreteVP(table, rounding="nearest")
    network = Denoiser(Inner(0.001, heads=2), process, learns_variance=True)
    yield case.compare("openai.denoised", Wrapped(network, process).denoised(x, sigma))


def continuous(case: Case, x: Tensor) -> Iterator[Comparison]:
    """VDenoiser: the cosine process in continuous time."""
    io = case.io
    process = CosineVP(index_scale=1.0)
    wrapped = Wrapped(Denoiser(Inner(0.5), process, prediction=predictions.v), process)
    yield case.compare("vd.sigma_to_t", process.timestep(wrapped.levels(io["sigma_query"])))
    yield case.compare("vd.t_to_sigma", ratio(process.at(io["vd.t_query"].double())))
    yield case.compare("vd.denoised", wrapped.denoised(x, io["sigma"]))
    yield case.compare("vd.loss", wrapped.loss(io["x"], io["noise"], io["sigma"]))


# ---------------------------------------------------------------------- preconditioning and densities


@dataclass(frozen=True)
class RawSigma(preconditioning.EDMPreconditioning):
    """EDM's preconditioning, but the network gets sigma itself."""

    def timestep(self, level: NoiseLevel) -> Any:
        return ratio(level)


# factors of the error of the network's own output, by the original's names
WEIGHTINGS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "karras": lambda s, d: torch.ones_like(s),
    "soft-min-snr": lambda s, d: (s * d) ** 2 / (s**2 + d**2) ** 2,
    "snr": lambda s, d: d**2 / (s**2 + d**2),
}


def densities(case: Case) -> Iterator[Comparison]:
    io, data = case.io, case.meta["sigma_data"]
    process, shell, sigma = EDMProcess(), RawSigma(data), io["sigma"]
    denoiser = Denoiser(Inner(0.1), process, prediction=shell)
    wrapped = Wrapped(denoiser, process)
    levels = wrapped.levels(sigma)
    columns = preconditioning.scalings(shell, levels)
    yield case.compare(
        "scalings", torch.stack([torch.as_tensor(c) for c in (columns.c_skip, columns.c_out, columns.c_in)])
    )
    noised = io["x"] + io["noise"] * sigma.reshape(-1, 1, 1, 1)
    yield case.compare("denoised", wrapped.denoised(noised, sigma))
    for name, weighting in WEIGHTINGS.items():
        yield case.compare(f"{name}.loss", wrapped.loss(io["x"], io["noise"], sigma) * weighting(sigma, data))
    yield from drawn(case, data)


def drawn(case: Case, data: float) -> Iterator[Comparison]:
    """Levels from uniform numbers: each density is that of some process at even times, between two ends."""
    u = case.io["u"].double()  # the normal numbers, too, were made of these

    def between(process: Process, low: float, high: float) -> Tensor:
        ends = [float(process.t_of(-math.log(end))) for end in (low, high)]
        return torch.as_tensor(ratio(process.at(ends[0] + u * (ends[1] - ends[0]))))

    wide = EDMProcess(1e-9, 1e9)
    times, _ = LogNormal(-1.2, 1.2).times(wide, u, range(len(u)))
    yield case.compare("rand_log_normal", ratio(wide.at(times)))
    yield case.compare("rand_log_uniform", torch.as_tensor(VE(1e-2, 80.0).at(u).sigma))
    yield case.compare("rand_v_diffusion", data * between(CosineVP(), 1e-3 / data, 1e3 / data))
    location, scale = math.exp(0.1), 0.9
    low, high = ((end / location) ** (1 / scale) for end in (1e-2, 80.0))
    yield case.compare("rand_log_logistic", location * between(RectifiedFlow(), low, high) ** scale)


KINDS: dict[str, Callable[[Case], Iterator[Comparison]]] = {
    "k-diffusion/schedules": schedules,
    "k-diffusion/samplers": samplers,
    "k-diffusion/wrappers": wrappers,
    "k-diffusion/denoiser_densities": densities,
}
