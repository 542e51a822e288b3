"""Comparison of samplers on one model: error against the number of function evaluations (NFE), and cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.analysis.metrics import energy_distance, rms
from unveil.conditioning.class_label import Label
from unveil.core import schedules
from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.guidance import clip_dynamic, clip_static
from unveil.core.rng import START, BrownianPath, Noise, SampleRNG
from unveil.core.samplers import CoefficientTable, Plan, SamplerSpec, get_sampler, heun, run, sampler_specs
from unveil.core.schedules import Schedule
from unveil.errors import NonFinite, RecipeError
from unveil.model import Model
from unveil.types import NoiseLevel

ROUNDING = 1e-5  # errors below it are those of float32 and do not depend on the order
DISTANCES = {
    "solution": "distance to the fine solve of the ODE from the same noise",
    "path": "distance to the sampler's own fine solve on the same Brownian path",
    "distribution": "energy distance of the samples from those of the fine solve",
}


@dataclass(frozen=True)
class SamplerStudySettings:
    """Settings of the comparison.

    Attributes:
        calls: NFE of one sample, rising.
        count: Number of samples, generated as one batch.
        seed: Seed of the initial noise.
        schedule: Name of the schedule in `schedules.SCHEDULES`; None: "karras", or "uniform" if the process reaches
            alpha = 0.
        only: Names of samplers; empty: all samplers.
        fine: NFE of a fine solve over the largest of `calls`; a fine solve has at least 200.

    Raises:
        RecipeError: A number is out of its range, or a sampler is unknown.
    """

    calls: tuple[int, ...] = (5, 10, 20, 50)
    count: int = 16
    seed: int = 0
    schedule: str | None = None
    only: tuple[str, ...] = ()
    fine: int = 8

    def __post_init__(self) -> None:
        if not self.calls or list(self.calls) != sorted(set(self.calls)) or self.calls[0] < 1:
            raise RecipeError(f"calls {', '.join(map(str, self.calls))}: give rising numbers, such as 5,10,20,50")
        if self.count < 2:
            raise RecipeError(f"count = {self.count}: at least 2 samples")
        for name in self.only:
            get_sampler(name)

    @property
    def fine_calls(self) -> int:
        """NFE of a fine solve."""
        return max(200, self.fine * self.calls[-1])


class SamplerPoint(NamedTuple):
    """Error of a sampler at a number of function evaluations: at most `requested`, `calls` in fact."""

    requested: int
    calls: int
    error: float


@dataclass(frozen=True)
class SamplerMeasurement:
    """Measurements of a sampler.

    Attributes:
        name: Name of the sampler.
        kind: Kind of the error, a name in `DISTANCES`.
        points: Errors by NFE.
        order: Order fitted to the points; None if fewer than two are above rounding.
        call_seconds: Seconds of one function evaluation of the whole batch.
        overhead_seconds: Further seconds of the sampler for each function evaluation.
        samples: Samples by requested NFE.
    """

    name: str
    kind: str
    points: tuple[SamplerPoint, ...]
    order: float | None
    call_seconds: float
    overhead_seconds: float
    samples: dict[int, Tensor] = field(repr=False)


@dataclass(frozen=True)
class SamplerStudy:
    """Measurements of all samplers on a model.

    Attributes:
        settings: Settings of the comparison.
        schedule: Name of the schedule of all samplers.
        clip: Clipping of x0.
        measurements: Measurements of the samplers that run on the model.
        refused: Error of each sampler that does not.
        floor: Energy distance between two fine solves of different noise, which a perfect sampler has.
        exact: Samples of the fine solve.
    """

    settings: SamplerStudySettings
    schedule: str
    clip: str
    measurements: list[SamplerMeasurement]
    refused: dict[str, str]
    floor: float
    exact: Tensor = field(repr=False)

    def record(self) -> dict[str, Any]:
        """Everything except the samples, as plain values."""
        # "grid" is the stored name of the schedule
        settings = {"grid" if name == "schedule" else name: value for name, value in asdict(self.settings).items()}
        return {
            "settings": {
                **settings,
                "grid": self.schedule,
                "clip": self.clip,
                "fine_calls": self.settings.fine_calls,
            },
            "samplers": [_measurement_record(measurement) for measurement in self.measurements],
            "refused": self.refused,
            "floor": self.floor,
        }


def _measurement_record(measurement: SamplerMeasurement) -> dict[str, Any]:
    spec = sampler_specs()[measurement.name]
    return {
        "name": measurement.name,
        "source": spec.source,
        "declared": {"order": spec.order, "strong": spec.strong_order, "domain": spec.domain, "calls": spec.calls},
        "stochastic": spec.stochastic,
        "measured": DISTANCES[measurement.kind],
        "points": [point._asdict() for point in measurement.points],
        "fitted_order": measurement.order,
        "seconds_per_call": measurement.call_seconds,
        "seconds_beside_per_call": measurement.overhead_seconds,
    }


# ---------------------------------------------------------------------- the study


def study_samplers(
    model: Model, settings: SamplerStudySettings, on_sampler: Callable[[str], object] = lambda name: None
) -> SamplerStudy:
    """Run every sampler with the same numbers of function evaluations, from the same noise, without guidance.

    x0 is clipped as the model's sampling settings state: at a log-SNR at which the network's error in x0 is multiplied
    by a thousand, no solver of high order is stable without clipping. A class-conditional model gets every class in
    turn.

    Args:
        model: Model on its device.
        settings: Settings of the comparison.
        on_sampler: Called with the name of each sampler before it runs, first with "fine solve".

    Raises:
        RecipeError: The model needs a condition other than labels, or its process refuses the schedule.
    """
    model.eval()
    runner = _Runner(model, settings)
    on_sampler("fine solve")
    exact, other = runner.fine_solve(settings.seed), runner.fine_solve(settings.seed + 1)
    measurements: list[SamplerMeasurement] = []
    refused: dict[str, str] = {}
    for name in settings.only or sampler_specs():
        on_sampler(name)
        spec = sampler_specs()[name]
        if spec.denoiser == "consistency":
            refused[name] = "needs a network that was trained as a consistency function"
            continue
        try:
            measurements.append(runner.measure(spec, exact))
        except (RecipeError, NonFinite) as problem:
            refused[name] = f"{type(problem).__name__}: {problem}"
    floor = energy_distance(other, exact)
    return SamplerStudy(settings, runner.schedule_name, model.sampling.threshold, measurements, refused, floor, exact)


class _Runner:
    """Runs samplers on one model from one batch of noise."""

    def __init__(self, model: Model, settings: SamplerStudySettings) -> None:
        self.model, self.settings = model, settings
        self.shape = model.autoencoder.latent_shape(model.shape)
        self.schedule_name = settings.schedule or ("uniform" if model.process.at(1.0).alpha == 0 else "karras")
        denoise = model.denoise_fn(model.encode(_labels(model, settings.count), settings.count)[0])
        clip = {"static": clip_static, "dynamic": clip_dynamic}.get(model.sampling.threshold)
        self.denoise = denoise if clip is None else clip(denoise)

    def schedule(self, steps: int) -> Schedule:
        return schedules.get_schedule(self.model.process, self.schedule_name, steps).onto_data()

    def rng(self, seed: int) -> SampleRNG:
        return SampleRNG(seed, range(self.settings.count), device=self.model.device)

    def fine_solve(self, seed: int) -> Tensor:
        """Solution of the ODE by Heun's method with many steps, on the CPU."""
        schedule = self.schedule(self.settings.fine_calls // 2)
        x = schedule.start(self.rng(seed).normal(self.shape, START))
        return run(heun(schedule), self.denoise, x).cpu()

    def measure(self, spec: SamplerSpec, exact: Tensor) -> SamplerMeasurement:
        """Run a sampler with every requested NFE."""
        kind, target, timed = "solution", exact, _TimedDenoiser(self.denoise)
        if spec.stochastic:
            plan = self.plan(spec, self.settings.fine_calls)[1]
            on_path = spec.strong_order is not None and isinstance(plan, CoefficientTable)
            kind = "path" if on_path else "distribution"
            if on_path:
                target = self.sample(spec, self.settings.fine_calls, self.denoise)
        points: list[SamplerPoint] = []
        samples: dict[int, Tensor] = {}
        for calls in self.settings.calls if spec.calls is not None else self.settings.calls[-1:]:
            before = timed.calls
            samples[calls] = self.sample(spec, calls, timed)
            error = (
                energy_distance(samples[calls], target)
                if kind == "distribution"
                else float(rms(samples[calls] - target).double().mean())
            )
            points.append(SamplerPoint(calls, timed.calls - before, error))
        order = None if kind == "distribution" else fitted_order([(point.calls, point.error) for point in points])
        return SamplerMeasurement(spec.name, kind, tuple(points), order, timed.call_seconds, timed.overhead, samples)

    def plan(self, spec: SamplerSpec, calls: int) -> tuple[Schedule, Plan]:
        """The sampler with the largest number of steps that needs at most this many function evaluations."""
        steps = calls + 1 if spec.calls is None else math.ceil(calls / spec.calls) + 2
        while True:
            schedule = self.schedule(steps)
            plan = spec.plan(schedule)
            if steps == 1 or spec.calls is None or _num_calls(plan) <= calls:
                return schedule, plan
            steps -= 1

    def sample(self, spec: SamplerSpec, calls: int, denoise: DenoiseFn) -> Tensor:
        """Samples on the CPU; a coefficient table uses one Brownian path for every number of steps."""
        schedule, plan = self.plan(spec, calls)
        rng = self.rng(self.settings.seed)
        noise: Noise = rng.bind(self.shape)
        if isinstance(plan, CoefficientTable):
            noise = BrownianPath(rng, self.shape).along(plan)
        x = schedule.start(rng.normal(self.shape, START))
        start = time.perf_counter()
        samples = run(plan, denoise, x, noise=noise).cpu()
        if isinstance(denoise, _TimedDenoiser):
            denoise.run_seconds += time.perf_counter() - start
        if not bool(torch.isfinite(samples).all()):
            raise NonFinite(f"values are not finite after {calls} function evaluations")
        return samples


class _TimedDenoiser:
    """A denoiser that counts its calls and measures their seconds, and those of the runs around them."""

    def __init__(self, denoise: DenoiseFn) -> None:
        self.denoise = denoise
        self.calls = 0
        self.network_seconds = self.run_seconds = 0.0

    def __call__(self, x: Tensor, level: NoiseLevel) -> Estimate:
        start = time.perf_counter()
        estimate = self.denoise(x, level)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)  # or the time would be that of the launch only
        self.network_seconds += time.perf_counter() - start
        self.calls += 1
        return estimate

    @property
    def call_seconds(self) -> float:
        return self.network_seconds / self.calls

    @property
    def overhead(self) -> float:
        return max(self.run_seconds - self.network_seconds, 0.0) / self.calls


def _num_calls(plan: Plan) -> int:
    """Number of function evaluations of a plan, if it is fixed before the run."""
    if isinstance(plan, CoefficientTable):
        return len(plan.levels)
    assert plan.total is not None
    return plan.total


def _labels(model: Model, count: int) -> dict[str, list[int]]:
    """Every class in turn, for a class-conditional model.

    Raises:
        RecipeError: The model has a condition other than a label.
    """
    others = [key for key, conditioner in model.conditioners.items() if not isinstance(conditioner, Label)]
    if others:
        raise RecipeError(f"this model needs {', '.join(others)} for each sample; samplers are compared without them")
    return {
        key: [k % conditioner.classes for k in range(count)]
        for key, conditioner in model.conditioners.items()
        if isinstance(conditioner, Label)
    }


def fitted_order(points: Sequence[tuple[int, float]]) -> float | None:
    """The negative slope of log(error) over log(NFE), without errors below rounding.

    None if fewer than two points remain.
    """
    logs = [(math.log(calls), math.log(error)) for calls, error in points if error > ROUNDING]
    if len({x for x, _ in logs}) < 2:
        return None
    mean_x, mean_y = (math.fsum(values) / len(logs) for values in zip(*logs, strict=True))
    covariance = math.fsum((x - mean_x) * (y - mean_y) for x, y in logs)
    return -covariance / math.fsum((x - mean_x) ** 2 for x, _ in logs)
