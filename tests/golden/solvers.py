"""Golden kinds of DPM-Solver and UniPC: schedules, every method of theirs, and the wrapper of networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.golden.case import Case, Comparison, Unsupported, separately
from unveil.core import prediction as predictions
from unveil.core.denoiser import DenoiseFn, Denoiser, Estimate
from unveil.core.guidance import cfg, clip_dynamic, gradient, shift_eps
from unveil.core.process import DiscreteVP, LinearVP, Process, betas
from unveil.core.samplers import CoefficientTable, Plan, run
from unveil.core.samplers.adaptive import dpm_adaptive
from unveil.core.samplers.coefficients import Of, Rule, exact, linear_step, midpoint, phi_functions, taylor
from unveil.core.samplers.exponential import dpm_multistep, dpm_singlestep, dpm_singlestep_on_schedule
from unveil.core.samplers.stages import last_stage_only, orders_for
from unveil.core.samplers.step_size import IController, StepDecision, Tolerance, max_error, x_unit
from unveil.core.samplers.unipc import b1, b2, unipc, varying
from unveil.core.schedules import Schedule
from unveil.data.gaussian_mixture import Mixture
from unveil.types import Condition, NoiseLevel

LEAST_HALF_LOG_SNR = -5.1  # of DPM-Solver's tables

# ---------------------------------------------------------------------- what a case says


def process_of(case: Case) -> Process:
    """The recorded schedule."""
    schedule = case.meta["schedule"]
    given = schedule["kwargs"]
    if schedule["kind"] == "linear":
        return LinearVP(given["continuous_beta_0"], given["continuous_beta_1"])
    if schedule["kind"] == "discrete":
        table = betas("sqrt-linear", given["T"], start=given["ls"], end=given["le"])
        return DiscreteVP(table if case.kind.startswith("UniPC") else cut(table), interpolate="log-alpha")
    raise Unsupported(f"schedule {schedule['kind']!r}")


def cut(table: Tensor) -> Tensor:
    """The betas without those whose half log-SNR is below -5.1, as DPM-Solver, unlike UniPC, takes a table."""
    alpha_bar = torch.cumprod(1 - table, 0)
    return table[0.5 * (alpha_bar / (1 - alpha_bar)).log() >= LEAST_HALF_LOG_SNR]


def mixture(case: Case) -> Mixture:
    """The recorded analytic model."""
    weights, means, spreads = (case.io[f"gm_{name}"].double() for name in ("weights", "means", "stds"))
    return Mixture(weights.tolist(), means, spreads.tolist())


def ends(case: Case, sample: Mapping[str, Any]) -> tuple[float, float]:
    """The times at which a run begins and ends."""
    schedule = case.meta["schedule"]
    return sample.get("t_start") or schedule["t_T"], sample.get("t_end") or 1 / schedule["total_N"]


def spaced(process: Process, skip: str, first: float, last: float, steps: int) -> Schedule:
    """The published schedules: `time_uniform`, `time_quadratic` and `logSNR`."""
    if skip == "logSNR":
        low, high = (float(process.at(t).half_log_snr) for t in (first, last))
        inner = [process.at(process.t_of(low + (high - low) * i / steps)) for i in range(1, steps)]
        return Schedule(process, [process.at(first), *inner, process.at(last)])
    power = {"time_uniform": 1, "time_quadratic": 2}[skip]
    times = np.linspace(first ** (1 / power), last ** (1 / power), steps + 1) ** power
    return Schedule(process, [process.at(float(t)) for t in times])


def recorded(
    case: Case, name: str, plan: Plan, steps: tuple[DenoiseFn, DenoiseFn], first: int, last: NoiseLevel | None
) -> Iterator[Comparison]:
    """Output, times of the calls, and x after the first update (the row that ends it is number `first`).

    last: of `denoise_to_zero`, the level at which the second step's x0 is the output.
    """
    times: list[float] = []
    states: dict[int, Tensor] = {}

    def watched(x: Tensor, level: NoiseLevel) -> Estimate:
        times.append(level.t.flatten()[0].item())
        return steps[0](x, level)

    out = run(
        plan,
        watched,
        case.io["x_T"].double(),
        on_step=lambda shown: states.setdefault(shown.state.number, shown.state.x.clone()),
    )
    if last is not None:
        times.append(float(last.t))
        out = steps[1](out, last).x0
    yield case.compare(f"{name}.model_t", times)
    if f"{name}.f64.x1" in case.io and first in states:
        yield case.compare(f"{name}.f64.x1", states[first])
    yield case.compare(f"{name}.out", out)


def schedule_values(case: Case) -> Iterator[Comparison]:
    """log(alpha), sigma and their ratio at the recorded times, and back."""
    process, times = process_of(case), case.io["sched.t"]
    levels = [process.at(t) for t in times.tolist()]
    yield case.compare("sched.log_alpha", [math.log(level.alpha) for level in levels])  # type: ignore[arg-type]
    yield case.compare("sched.std", [level.sigma for level in levels])
    yield case.compare("sched.lambda", [level.half_log_snr for level in levels])
    found = [process.t_of(value) for value in case.io["sched.lambda"].tolist()]
    yield case.compare("sched.t_of_lambda", found)


# ---------------------------------------------------------------------- DPM-Solver


def dpm_solver(case: Case) -> Iterator[Comparison]:
    """dpm-solver/discrete and dpm-solver/vp_linear."""
    process = process_of(case)
    yield from schedule_values(case)
    for name, settings in case.meta["solver_runs"].items():
        yield from separately(name, dpm_run(case, name, process, settings["init"], settings["sample"]))


def dpm_run(
    case: Case, name: str, process: Process, init: Mapping[str, Any], sample: Mapping[str, Any]
) -> Iterator[Comparison]:
    """One solver and its keywords."""
    of: Of = {"dpmsolver++": "x0", "dpmsolver": "eps"}[init.get("algorithm_type", "dpmsolver++")]  # type: ignore[assignment]
    plan, first = dpm_plan(process, ends(case, sample), of, sample)
    last = process.at(ends(case, sample)[1]) if sample.get("denoise_to_zero") else None
    yield from recorded(case, name, plan, corrected_x0(mixture(case), init, of), first, last)


def corrected_x0(step: DenoiseFn, init: Mapping[str, Any], of: Of) -> tuple[DenoiseFn, DenoiseFn]:
    """The step with the correction of x0 of a solver's keywords: in the run, of x0 alone, and in `denoise_to_zero`."""
    correction = init.get("correcting_x0_fn")
    ratio, most = init.get("dynamic_thresholding_ratio", 0.995), init.get("thresholding_max_val", 1.0)
    if correction not in (None, "dynamic_thresholding"):
        raise Unsupported(f"correcting_x0_fn {correction!r}")
    if init.get("correcting_xt_fn") is not None:
        raise Unsupported(f"correcting_xt_fn {init['correcting_xt_fn']!r}")
    corrected = step if correction is None else thresholded(step, ratio, most)
    return corrected if of == "x0" else step, corrected


def thresholded(step: DenoiseFn, ratio: float, most: float) -> DenoiseFn:
    """Dynamic thresholding, which there scales to [-1, 1] whatever it clips at; ours scales to what it clips at."""
    clipped = clip_dynamic(step, ratio, most)
    return lambda x, level: Estimate.of_x0(clipped(x, level).x0 / most, x, level)


def dpm_plan(process: Process, between: tuple[float, float], of: Of, sample: Mapping[str, Any]) -> tuple[Plan, int]:
    """One run's plan, and the number of rows in its first update, or for single steps in its first two."""
    first, last = between
    method, order = sample.get("method", "multistep"), sample.get("order", 2)
    skip, kind = sample.get("skip_type", "time_uniform"), sample.get("solver_type", "dpmsolver")
    if kind not in ("dpmsolver", "taylor"):
        raise Unsupported(f"solver_type {kind!r}")
    bent = kind == "taylor"
    # every method takes these, whether it uses them or not
    absolute, relative, steps = sample.get("atol", 0.0078), sample.get("rtol", 0.05), sample.get("steps", 20)
    lower = 10 if sample.get("lower_order_final", True) else 0
    sample.get("return_intermediate")  # returns more, and changes nothing
    if method == "adaptive":
        near = float(process.at(last).half_log_snr) - float(process.at(last + 1e-5).half_log_snr)
        tolerance = Tolerance(absolute, relative, across=max_error, unit=x_unit, slack=near)
        schedule = Schedule(process, [process.at(first), process.at(last)])
        rule = exact if bent else last_stage_only
        return dpm_adaptive(schedule, order, of=of, tolerance=tolerance, control=Rounded(), rule=rule), 0
    if method == "multistep":
        schedule = spaced(process, skip, first, last, steps)
        return dpm_multistep(schedule, order, of=of, rule=taylor if bent else midpoint, lower_below=lower), 1
    if method not in ("singlestep", "singlestep_fixed"):
        raise Unsupported(f"method {method!r}")
    fixed = method == "singlestep_fixed"
    orders = [order] * (steps // order) if fixed else orders_for(steps, order)
    rule = exact if bent else last_stage_only
    if skip == "logSNR":  # the steps are even, and so are the calls inside each
        schedule = spaced(process, skip, first, last, len(orders))
        return dpm_singlestep(schedule, orders, of=of, rule=rule), sum(orders[:2])
    schedule = spaced(process, skip, first, last, sum(orders))
    return dpm_singlestep_on_schedule(schedule, orders, of=of, rule=rule), sum(orders[:2])


class Rounded(IController):
    """The published code rounds the factor on the width to float32."""

    def judge(self, error: float, width: float, taken: float, past: tuple[float, float], order: float) -> StepDecision:
        found = super().judge(error, width, taken, past, order)
        factor = torch.tensor(found.width / (self.safety * taken), dtype=torch.float32).item()
        return found._replace(width=self.safety * taken * factor)


class Wrapped(nn.Module):
    """The recorded network: tanh(a x) + b t + c mean(condition), without the last term where there is no condition."""

    def __init__(self, model: Mapping[str, float]) -> None:
        super().__init__()
        self.a, self.b, self.c = model["a"], model["b"], model["c"]

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        shift = self.b * t
        if condition is not None and condition.vector is not None:
            shift = shift + self.c * condition.vector.mean(1)
        return torch.tanh(self.a * x) + shift.reshape(-1, *(1,) * (x.ndim - 1))


class Timed:
    """A process whose network gets scale (t - shift)."""

    def __init__(self, process: Process, model_time: Mapping[str, float]) -> None:
        self.process = process
        self.scale, self.shift = model_time["scale"], model_time["shift"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.process, name)

    def timestep(self, level: NoiseLevel) -> Tensor:
        """The network's time input."""
        return self.scale * (level.t - self.shift)


WRAPPED = {"noise": predictions.eps, "x_start": predictions.x0, "v": predictions.v, "score": predictions.score}
TABLES = {"square-root-linear": "sqrt-linear", "linear": "linear"}


def wrapped_process(given: Mapping[str, Any]) -> Process:
    """The schedule of a wrapped network."""
    if given["kind"] == "linear":
        return LinearVP(given["beta_min"], given["beta_max"])
    if given["kind"] != "discrete":
        raise Unsupported(f"schedule {given['kind']!r}")
    if given["betas"] not in TABLES:
        raise Unsupported(f"betas {given['betas']!r}")
    table = betas(TABLES[given["betas"]], given["N"], start=given["beta_start"], end=given["beta_end"])
    return DiscreteVP(cut(table), interpolate="log-alpha")


def model_wrapper(case: Case) -> Iterator[Comparison]:
    """dpm-solver/model_wrapper: what each kind of network says of the noise, plain and with both guidances."""
    settings = case.meta["settings"]
    process = Timed(wrapped_process(case.meta["schedule_settings"]), settings["model_time"])
    level = process.at(case.io["t"].double())
    yield case.compare("model_t_input", process.timestep(level))
    for name in WRAPPED:
        if any(key.endswith(f".{name}") for key in case.io):
            yield from separately(name, wrapped(case, name, process, level))


def wrapped(case: Case, name: str, process: Timed, level: NoiseLevel) -> Iterator[Comparison]:
    """One kind of network."""
    x, scale = case.io["x"], case.meta["guidance_scale"]
    model, classifier = Wrapped(case.meta["settings"]["model"]), case.meta["settings"]["classifier"]
    a, b = classifier["a"], classifier["b"]
    denoiser = Denoiser(model, process, prediction=WRAPPED[name])  # type: ignore[arg-type]
    plain, cond, null = (bound(denoiser, vector) for vector in (None, case.io["cond"], case.io["uncond"]))
    rows = case.io["cond"].mean(1)

    def score(x: Tensor, level: NoiseLevel) -> Tensor:
        return a * rows * x.flatten(1).square().sum(1) + b * process.timestep(level)

    steps = {
        "uncond": plain,
        "cfg": cfg(cond, null, scale),
        "classifier": shift_eps(plain, gradient(score, scale)),
    }
    for kind, step in steps.items():
        yield case.compare(f"{kind}.{name}", step(x, level).eps)


def bound(denoiser: Denoiser, vector: Tensor | None) -> DenoiseFn:
    """The step with its condition bound."""
    condition = None if vector is None else Condition(vector=vector)
    return lambda x, level: denoiser(x, level, condition)


# ---------------------------------------------------------------------- UniPC


def uni_pc(case: Case) -> Iterator[Comparison]:
    """UniPC/discrete and UniPC/vp_linear."""
    process, step = process_of(case), mixture(case)
    yield from schedule_values(case)
    rules: dict[str, tuple[Rule, Rule]] = {"bh1": (b1, b1), "bh2": (b2, b2), "vary_coeff": (varying, published_varying)}
    for name, settings in case.meta["solver_runs"].items():
        init = settings["init"]
        rule = rules[init.get("variant", "bh1")]
        yield from separately(name, unipc_run(case, name, (process, step), rule, init, settings["sample"]))


def unipc_run(
    case: Case, name: str, parts: tuple[Process, DenoiseFn], rule: tuple[Rule, Rule], init: Mapping[str, Any],
    sample: Mapping[str, Any],
) -> Iterator[Comparison]:  # fmt: skip
    """One variant and its keywords."""
    if sample.get("method", "multistep") != "multistep":
        raise Unsupported(f"method {sample['method']!r}")
    predicted = init.get("algorithm_type", "data_prediction")
    of: Of = {"data_prediction": "x0", "noise_prediction": "eps"}[predicted]  # type: ignore[assignment]
    (process, step), (predict, correct) = parts, rule
    steps, number = corrected_x0(step, init, of), sample.get("steps", 20)
    schedule = spaced(process, sample.get("skip_type", "time_uniform"), *ends(case, sample), number)
    lower = math.inf if sample.get("lower_order_final", True) else 0
    plan = unipc(schedule, sample.get("order", 2), of=of, predict=predict, correct=correct, lower_below=lower)
    yield from recorded(case, name, plan, steps, -1, schedule[-1] if sample.get("denoise_to_zero") else None)
    for unused in ("atol", "rtol", "return_intermediate"):  # of other methods; all keywords are taken
        sample.get(unused)
    if number > 1:
        first = corrected(unipc(schedule, 1, of=of, correct=correct), schedule, steps[0], case)
        yield case.compare(f"{name}.f64.x1", first)


def corrected(plan: CoefficientTable, schedule: Schedule, step: DenoiseFn, case: Case) -> Tensor:
    """x after the first step and its correction: the second step of a plan of order 1 taken back."""
    calls: list[Estimate] = []
    states: list[Tensor] = []
    run(
        plan,
        lambda x, level: calls.append(step(x, level)) or calls[-1],  # type: ignore[func-returns-value]
        case.io["x_T"].double(),
        on_step=lambda shown: states.append(shown.state.x.clone()),
    )
    second = linear_step(schedule[1], schedule[2], plan.of)
    quantity = calls[1].x0 if plan.of == "x0" else calls[1].eps
    return (states[1] - second.gain * quantity) / second.keep


def published_varying(nodes: Sequence[Tensor], reach: Tensor) -> list[Tensor]:
    """`published_varying_of` of every step of a table; 0 where one of the steps before does not exist."""
    rows = [
        published_varying_of(places, width) if len(set(places)) == len(places) else [0.0] * len(places)
        for *places, width in zip(*(node.expand_as(reach).tolist() for node in nodes), reach.tolist(), strict=True)
    ]
    return list(torch.tensor(rows, dtype=torch.float64).unbind(1))


def published_varying_of(nodes: Sequence[float], reach: float) -> list[float]:
    """The corrector's weights in the published code, which for 2 differences and more are not the paper's.

    It leaves out the last row of the inverse for the old differences, and takes a wrong entry of it for the new one.
    """
    places = [*nodes[2:], nodes[1]]
    count = len(places)
    matrix = torch.tensor(
        [[place**k / math.factorial(k + 1) for k in range(count)] for place in places], dtype=torch.float64
    )
    inverse = torch.linalg.inv(matrix)
    first, *others = (value.item() for value in phi_functions(count + 1, torch.tensor(reach, dtype=torch.float64)))
    shares = torch.tensor([other / first for other in others], dtype=torch.float64)
    old = (shares[:-1] @ inverse[:-1, :-1]).tolist()
    new = (shares[-1] * inverse[max(count - 2, 0), -1]).item()
    weights = [weight / place for weight, place in zip([*old, new], places, strict=True)]
    return [1.0 - sum(weights), weights[-1], *weights[:-1]]


KINDS: dict[str, Callable[[Case], Iterator[Comparison]]] = {
    "dpm-solver/discrete": dpm_solver,
    "dpm-solver/vp_linear": dpm_solver,
    "dpm-solver/model_wrapper": model_wrapper,
    "UniPC/discrete": uni_pc,
    "UniPC/vp_linear": uni_pc,
}
