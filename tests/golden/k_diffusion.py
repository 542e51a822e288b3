"""Golden kinds of k-diffusion: its schedules, samplers, wrappers of networks, and densities of training levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.golden.case import Case, Comparison, Unsupported, separately
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
from unveil.types import Condition, NoiseLevel, like

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


def schedule_of(name: str, given: Mapping[str, Any]) -> Schedule:
    """One of the published schedules on a process without limits; a keyword that it does not have is an error."""
    settings = {"eps_s": "smallest", "n": "steps"}
    return PUBLISHED[name](EDMProcess(), **{settings.get(key, key): value for key, value in given.items()})


def schedules(case: Case) -> Iterator[Comparison]:
    for name, given in case.meta["arguments"].items():
        yield from separately(name, one_schedule(case, name, given))
    pairs = list(zip(case.io["ancestral.from"].tolist(), case.io["ancestral.to"].tolist(), strict=True))
    for name in (key for key in case.io if key.startswith("ancestral.eta")):
        eta = float(name.removeprefix("ancestral.eta"))
        rows = [sigma_down(NoiseLevel(1.0, 1.0, here), NoiseLevel(0.0, 1.0, there), eta) for here, there in pairs]
        yield case.compare(name, torch.tensor([[low.sigma, up] for low, up in rows], dtype=torch.float64))


def one_schedule(case: Case, name: str, given: Mapping[str, Any]) -> Iterator[Comparison]:
    """The sigmas of a schedule."""
    yield case.compare(name, [ratio(level) for level in schedule_of(name.partition(".")[0], given)])


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
# names of the controller of adaptive steps
CONTROLLER = {
    "pcoeff": "proportional",
    "icoeff": "integral",
    "dcoeff": "derivative",
    "accept_safety": "safety",
    "h_init": "first",
}
CHURNED = ("sample_euler", "sample_heun", "sample_dpm_2")


def planned(settings: Mapping[str, Any], schedule: Schedule) -> Plan:
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
    if unknown := set(given) - {"atol", "rtol", "order", "eta", "s_noise", "return_info", *CONTROLLER}:
        raise Unsupported(f"keywords {', '.join(sorted(unknown))}")
    chosen = {ours: float(given[theirs]) for theirs, ours in CONTROLLER.items() if theirs in given}
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
    """k-diffusion/samplers: the case's schedule, then each sampler on it."""
    given = dict(case.meta["sigmas"])
    schedule = schedule_of(given.pop("function").removeprefix("get_sigmas_"), given)
    for key in ("sigmas", "sigmas_f64"):
        if key in case.io:
            yield Comparison(
                key,
                torch.tensor([ratio(level) for level in schedule], dtype=torch.float64).to(case.io[key]),
                case.io[key],
            )
    for name, settings in case.meta["samplers"].items():
        yield from separately(name, one_sampler(case, name, settings, schedule))


def one_sampler(case: Case, name: str, settings: Mapping[str, Any], schedule: Schedule) -> Iterator[Comparison]:
    """A function with its keywords."""
    noises, start = case.io["noise"].double(), case.io["x_T"].double()
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
    """The recorded network: sin(a x) + b t; with two heads the variance is any other number."""

    def __init__(self, inner: Mapping[str, float], *, heads: int = 1) -> None:
        super().__init__()
        self.a, self.b, self.heads = inner["a"], inner["b"], heads

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        del condition
        y = torch.sin(self.a * x) + self.b * t.reshape(-1, *(1,) * (x.ndim - 1))
        return torch.cat([y, 0 * y], 1) if self.heads == 2 else y


@dataclass
class Wrapped:
    """A network and its calls: the original returns x0 for x0 + sigma noise, for any sigma."""

    denoiser: Denoiser
    process: Process
    clamps_sigma: bool = False

    def levels(self, sigma: Tensor) -> NoiseLevel:
        """The levels (N,) of sigmas: the time as near as the process comes, alpha and sigma exactly."""
        noisy = ratio(self.process.at(1.0)) if self.process.at(1.0).alpha != 0 else math.inf
        clean = ratio(self.process.at(1 / self.process.steps)) if isinstance(self.process, DiscreteVP) else 0.0
        near = sigma.double().clamp(clean, noisy)
        level = level_at_lambda(self.process, -near.log())
        if self.clamps_sigma or not isinstance(self.process, DiscreteVP):
            return level
        alpha = (1 + sigma.double() ** 2).rsqrt()
        return level._replace(alpha=alpha, sigma=alpha * sigma.double())

    def denoised(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x0 at x0 + sigma noise."""
        level = self.levels(sigma)
        return self.denoiser(like(level.alpha, x) * x, level, None).x0

    def loss(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Per sample; the objective has levels of the process alone, others are computed here."""
        level = self.levels(sigma)
        x = like(level.alpha, x0) * x0 + like(level.sigma, x0) * noise
        a, b = self.denoiser.prediction(level)
        error = self.denoiser.output(x, level)[0] - like(a, x0) * x0 - like(b, x0) * noise
        per_sample = error.square().flatten(1).mean(1)
        objective = DiffusionLoss().at(self.denoiser, x0, None, torch.as_tensor(level.t), noise).per_sample
        same = torch.as_tensor(self.process.at(level.t).sigma).sub(level.sigma).abs() < 1e-9
        return torch.where(same, objective, per_sample)


def wrappers(case: Case) -> Iterator[Comparison]:
    """k-diffusion/wrappers."""
    given, settings = case.meta["schedule_settings"], case.meta["settings"]
    if (given["kind"], given["betas"]) != ("discrete", "square-root-linear"):
        raise Unsupported(f"schedule {given['kind']!r} of betas {given['betas']!r}")
    if not settings["clamped_to_table"]["t"]:
        raise Unsupported("times outside the table")
    table = betas("sqrt-linear", given["N"], start=given["beta_start"], end=given["beta_end"])
    yield case.compare("T", case.meta.get("T", len(table)), want=len(table))
    yield case.compare("alphas_cumprod", DiscreteVP(table).alpha_bar[1:])
    names = sorted({".".join(key.split(".")[:2]) for key in case.io if key.partition(".")[0] in ("eps", "v")})
    for name in names:
        yield from separately(name, wrapped_run(case, name, table))
    yield from separately("vd", continuous(case))
    yield from separately("openai", openai(case, table))


def recorded_x(case: Case) -> Tensor:
    """What the wrappers are given."""
    return case.io["x"] * like(case.io["sigma"], case.io["x"])


def wrapped_network(case: Case, kind: str, table: Tensor, quantize: bool, heads: int = 1) -> Wrapped:
    """A network on the case's table."""
    settings = case.meta["settings"]
    process = DiscreteVP(table, rounding="nearest" if quantize else "none")
    network = Inner(settings["inner"], heads=heads)
    prediction = predictions.PREDICTIONS[kind]
    denoiser = Denoiser(network, process, prediction=prediction, learns_variance=heads == 2)
    return Wrapped(denoiser, process, settings["clamped_to_table"]["sigma"])


def wrapped_run(case: Case, name: str, table: Tensor) -> Iterator[Comparison]:
    """CompVisDenoiser or CompVisVDenoiser, with or without rounding of t."""
    io, (kind, variant) = case.io, name.split(".")
    wrapped = wrapped_network(case, kind, table, case.meta["settings"]["quantize"][variant])
    process = wrapped.process
    assert isinstance(process, DiscreteVP)
    index = process.timestep(wrapped.levels(io["sigma_query"]))
    every = process.at(process.t_of_timestep(torch.arange(process.steps, dtype=torch.float64)))
    rows = {
        "sigma_to_t": torch.as_tensor(index),
        "denoised": wrapped.denoised(recorded_x(case), io["sigma"]),
        "loss": wrapped.loss(io["x"], io["noise"], io["sigma"]),
        "sigmas": ratio(every),
        "t_to_sigma": ratio(process.at(process.t_of_timestep(io["t_query"].double()))),
    }
    for field, value in rows.items():
        if f"{name}.{field}" in io:
            yield case.compare(f"{name}.{field}", value.to(io[f"{name}.{field}"].dtype))
    for key in io:
        if key.startswith(f"{name}.get_sigmas_"):
            count = int(key.removeprefix(f"{name}.get_sigmas_"))
            places = [(process.steps - 1) * k / (count - 1) for k in range(count - 1, -1, -1)]
            times = [*(process.t_of_timestep(place) for place in places), 0.0]
            schedule = unveil_schedules.from_times(process, times)
            yield case.compare(key, torch.tensor([ratio(level) for level in schedule]))


def openai(case: Case, table: Tensor) -> Iterator[Comparison]:
    """OpenAIDenoiser."""
    wrapped = wrapped_network(case, "eps", table, case.meta["settings"]["quantize"]["openai"], heads=2)
    yield case.compare("openai.denoised", wrapped.denoised(recorded_x(case), case.io["sigma"]))


def continuous(case: Case) -> Iterator[Comparison]:
    """VDenoiser: the cosine process in continuous time."""
    io = case.io
    process = CosineVP(index_scale=1.0)
    network = Inner(case.meta["settings"]["vd_inner"])
    wrapped = Wrapped(Denoiser(network, process, prediction=predictions.v), process)
    yield case.compare("vd.sigma_to_t", process.timestep(wrapped.levels(io["sigma_query"])))
    yield case.compare("vd.t_to_sigma", ratio(process.at(io["vd.t_query"].double())))
    yield case.compare("vd.denoised", wrapped.denoised(recorded_x(case), io["sigma"]))
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
    """k-diffusion/denoiser_densities."""
    io, data, settings = case.io, case.meta["sigma_data"], case.meta["settings"]
    process, shell, sigma = EDMProcess(), RawSigma(data), io["sigma"]
    wrapped = Wrapped(Denoiser(Inner(settings["inner"]), process, prediction=shell), process)
    levels = wrapped.levels(sigma)
    columns = preconditioning.scalings(shell, levels)
    yield case.compare(
        "scalings", torch.stack([torch.as_tensor(c) for c in (columns.c_skip, columns.c_out, columns.c_in)])
    )
    noised = io["x"] + io["noise"] * like(sigma, io["x"])
    yield case.compare("denoised", wrapped.denoised(noised, sigma))
    for name, weighting in WEIGHTINGS.items():
        if f"{name}.loss" in io:
            loss = wrapped.loss(io["x"], io["noise"], sigma) * weighting(sigma, data)
            yield case.compare(f"{name}.loss", loss)
    for name, density in settings["densities"].items():
        yield from separately(name, drawn(case, name, density))


def drawn(case: Case, name: str, density: Mapping[str, Any]) -> Iterator[Comparison]:
    """Levels from uniform numbers: each density is that of some process at even times, between two ends."""
    if density["from"] != "u":
        raise Unsupported(f"{name} from {density['from']!r}")
    u = case.io["u"].double()

    def between(process: Process, scale: Callable[[float], float]) -> Tensor:
        """Ratios at times even between those of the density's ends, which are scaled."""
        bounds = density.get("min_value", 0.0), density.get("max_value", math.inf)
        ends = [_time_of(process, scale(end)) for end in bounds]
        return torch.as_tensor(ratio(process.at(ends[0] + u * (ends[1] - ends[0]))))

    match name:
        case "rand_log_normal":
            wide = EDMProcess(1e-30, 1e30)
            # the original keeps u off its ends
            times, _ = LogNormal(density.get("loc", 0.0), density.get("scale", 1.0)).times(
                wide, u * (1 - 2e-7) + 1e-7, range(len(u))
            )
            levels = torch.as_tensor(ratio(wide.at(times)))
        case "rand_log_uniform":
            levels = torch.as_tensor(VE(density["min_value"], density["max_value"]).at(u).sigma)
        case "rand_v_diffusion":
            data = density.get("sigma_data", 1.0)
            levels = data * between(CosineVP(), lambda end: end / data)
        case "rand_log_logistic":
            location, width = math.exp(density.get("loc", 0.0)), density.get("scale", 1.0)
            levels = location * between(RectifiedFlow(), lambda end: (end / location) ** (1 / width)) ** width
        case _:
            raise Unsupported(f"the density {name!r}")
    yield case.compare(name, levels)


def _time_of(process: Process, sigma: float) -> float:
    """The time of a ratio, which may be 0 or infinite."""
    if sigma in (0.0, math.inf):
        return 0.0 if sigma == 0 else 1.0
    return float(process.t_of(-math.log(sigma)))


KINDS: dict[str, Callable[[Case], Iterator[Comparison]]] = {
    "k-diffusion/schedules": schedules,
    "k-diffusion/samplers": samplers,
    "k-diffusion/wrappers": wrappers,
    "k-diffusion/denoiser_densities": densities,
}
