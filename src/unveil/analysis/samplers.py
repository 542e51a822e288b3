"""Every sampler on one model: how far it is from its own limit with few network calls, and what it costs."""

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
from unveil.core.schedule import Schedule
from unveil.errors import NonFinite, RecipeError
from unveil.model import Model
from unveil.types import NoiseLevel

Tell = Callable[[str], object]
ROUNDING = 1e-5  # distances below this are float32's own, and say nothing of an order
KINDS = {
    "solution": "distance to the fine solve of the ODE from the same noise",
    "path": "distance to the sampler's own fine solve on the same Brownian path",
    "distribution": "energy distance of the samples from those of the fine solve",
}


@dataclass(frozen=True)
class SamplerStudySettings:
    """What all samplers share.

    Attributes:
        calls: network calls of one sample, rising.
        count: samples, drawn as one batch.
        grid: a name in `schedules.GRIDS`; None: "karras", or "uniform" where the process reaches alpha = 0.
        only: names of samplers; empty: all of them.
        fine: a fine solve has so many times the most calls, and at least 200.

    Raises:
        RecipeError: numbers that cannot be, or an unknown sampler.
    """

    calls: tuple[int, ...] = (5, 10, 20, 50)
    count: int = 16
    seed: int = 0
    grid: str | None = None
    only: tuple[str, ...] = ()
    fine: int = 8

    def __post_init__(self) -> None:
        """Refuses what cannot be measured."""
        if not self.calls or list(self.calls) != sorted(set(self.calls)) or self.calls[0] < 1:
            raise RecipeError(f"calls {', '.join(map(str, self.calls))}: give rising numbers, such as 5,10,20,50")
        if self.count < 2:
            raise RecipeError(f"count = {self.count}: at least 2 samples")
        for name in self.only:
            get_sampler(name)

    @property
    def fine_calls(self) -> int:
        """Of a fine solve."""
        return max(200, self.fine * self.calls[-1])


class SamplerPoint(NamedTuple):
    """A sampler with so many network calls: `asked` at most, and made."""

    asked: int
    calls: int
    error: float


@dataclass(frozen=True)
class SamplerMeasurement:
    """What was found of a sampler.

    Attributes:
        kind: which distance, a name in `KINDS`.
        order: fitted to the points, None where there are too few above rounding.
        call_seconds: of one network call of the whole batch; beside_seconds: what the sampler adds to each call.
        samples: at each of the calls asked for.
    """

    name: str
    kind: str
    points: tuple[SamplerPoint, ...]
    order: float | None
    call_seconds: float
    beside_seconds: float
    samples: dict[int, Tensor] = field(repr=False)


@dataclass(frozen=True)
class SamplerStudy:
    """What all samplers do on a model; `refused` holds the error of those that it cannot run.

    Attributes:
        grid: the grid that all of them ran on.
        clip: of x0, as the model samples.
        floor: the energy distance of the fine solve from one of other noise: what a perfect sampler shows.
        exact: samples of the fine solve.
    """

    settings: SamplerStudySettings
    grid: str
    clip: str
    found: list[SamplerMeasurement]
    refused: dict[str, str]
    floor: float
    exact: Tensor = field(repr=False)

    def record(self) -> dict[str, Any]:
        """Everything but the samples, as plain values."""
        return {
            "settings": {
                **asdict(self.settings),
                "grid": self.grid,
                "clip": self.clip,
                "fine_calls": self.settings.fine_calls,
            },
            "samplers": [_plain(one) for one in self.found],
            "refused": self.refused,
            "floor": self.floor,
        }


def _plain(one: SamplerMeasurement) -> dict[str, Any]:
    entry = sampler_specs()[one.name]
    return {
        "name": one.name,
        "source": entry.source,
        "declared": {"order": entry.order, "strong": entry.strong_order, "domain": entry.domain, "calls": entry.calls},
        "stochastic": entry.stochastic,
        "measured": KINDS[one.kind],
        "points": [point._asdict() for point in one.points],
        "fitted_order": one.order,
        "seconds_per_call": one.call_seconds,
        "seconds_beside_per_call": one.beside_seconds,
    }


# ---------------------------------------------------------------------- the study


def study_samplers(model: Model, settings: SamplerStudySettings, tell: Tell = lambda _: None) -> SamplerStudy:
    """Every sampler at the same numbers of network calls, from the same noise, without guidance.

    x0 is clipped as the model samples: at a log-SNR where a network's x0 is its small error times a thousand, no
    solver of high order would stand without. A model that takes labels is told every class in turn.

    Args:
        model: on the device that it should run on.
        tell: told what is being measured.

    Raises:
        RecipeError: a model that needs more than labels, or a grid that its process refuses.
    """
    model.eval()
    bench = _Bench(model, settings)
    tell("the fine solve")
    exact = bench.solved(settings.seed)
    other = bench.solved(settings.seed + 1)
    found: list[SamplerMeasurement] = []
    refused: dict[str, str] = {}
    for name in settings.only or sampler_specs():
        tell(name)
        entry = sampler_specs()[name]
        if entry.denoiser == "consistency":
            refused[name] = "needs a network that was trained as a consistency function"
            continue
        try:
            found.append(bench.measure(entry, exact))
        except (RecipeError, NonFinite) as problem:
            refused[name] = f"{type(problem).__name__}: {problem}"
    floor = energy_distance(other, exact)
    return SamplerStudy(settings, bench.kind_of_grid, model.sampling.threshold, found, refused, floor, exact)


class _Bench:
    """One model, one batch of noise."""

    def __init__(self, model: Model, settings: SamplerStudySettings) -> None:
        self.model, self.settings = model, settings
        self.shape = model.autoencoder.latent_shape(model.shape)
        blind = model.process.at(1.0).alpha == 0
        self.kind_of_grid = settings.grid or ("uniform" if blind else "karras")
        step = model.denoise_fn(model.encode(_labels(model, settings.count), settings.count)[0])
        self.step = {"static": clip_static, "dynamic": clip_dynamic}.get(model.sampling.threshold, lambda same: same)(
            step
        )

    def grid(self, steps: int) -> Schedule:
        return schedules.get_schedule(self.model.process, self.kind_of_grid, steps).onto_data()

    def streams(self, seed: int) -> SampleRNG:
        return SampleRNG(seed, range(self.settings.count), device=self.model.device)

    def solved(self, seed: int) -> Tensor:
        """The ODE's solution by Heun's method with many steps, on the CPU."""
        grid = self.grid(self.settings.fine_calls // 2)
        x = grid.start(self.streams(seed).normal(self.shape, START))
        return run(heun(grid), self.step, x).cpu()

    def measure(self, entry: SamplerSpec, exact: Tensor) -> SamplerMeasurement:
        """A sampler at every number of calls."""
        kind, target, clock = "solution", exact, _Clock(self.step)
        if entry.stochastic:
            plan = self.planned(entry, self.settings.fine_calls)[1]
            on_path = entry.strong_order is not None and isinstance(plan, CoefficientTable)
            kind = "path" if on_path else "distribution"
            if on_path:
                target = self.drawn(entry, self.settings.fine_calls, self.step)
        points: list[SamplerPoint] = []
        samples: dict[int, Tensor] = {}
        asked = self.settings.calls if entry.calls is not None else self.settings.calls[-1:]
        for calls in asked:
            before = clock.calls
            samples[calls] = self.drawn(entry, calls, clock)
            gap = energy_distance(samples[calls], target) if kind == "distribution" else _apart(samples[calls], target)
            points.append(SamplerPoint(calls, clock.calls - before, gap))
        order = None if kind == "distribution" else fitted_order([(p.calls, p.error) for p in points])
        return SamplerMeasurement(entry.name, kind, tuple(points), order, clock.per_call, clock.beside, samples)

    def planned(self, entry: SamplerSpec, calls: int) -> tuple[Schedule, Plan]:
        """The sampler with as many steps as make no more network calls than this."""
        steps = calls + 1 if entry.calls is None else math.ceil(calls / entry.calls) + 2
        while True:
            grid = self.grid(steps)
            plan = entry.plan(grid)
            if steps == 1 or entry.calls is None or _calls_of(plan) <= calls:
                return grid, plan
            steps -= 1

    def drawn(self, entry: SamplerSpec, calls: int, step: DenoiseFn) -> Tensor:
        """Its samples, on the CPU; on one Brownian path whatever the number of steps, where it is a table."""
        grid, plan = self.planned(entry, calls)
        streams = self.streams(self.settings.seed)
        noise: Noise = streams.bind(self.shape)
        if isinstance(plan, CoefficientTable):
            noise = BrownianPath(streams, self.shape).along(plan)
        x = grid.start(streams.normal(self.shape, START))
        begun = time.perf_counter()
        samples = run(plan, step, x, noise=noise).cpu()
        if isinstance(step, _Clock):
            step.whole += time.perf_counter() - begun
        if not bool(torch.isfinite(samples).all()):
            raise NonFinite(f"left the finite numbers with {calls} network calls")
        return samples


class _Clock:
    """A step that counts its calls, and how long they take of the runs that they are made in."""

    def __init__(self, step: DenoiseFn) -> None:
        self.step = step
        self.calls = 0
        self.inside = self.whole = 0.0  # seconds of the calls, and of the runs

    def __call__(self, x: Tensor, level: NoiseLevel) -> Estimate:
        begun = time.perf_counter()
        estimate = self.step(x, level)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)  # or only the asking would be timed
        self.inside += time.perf_counter() - begun
        self.calls += 1
        return estimate

    @property
    def per_call(self) -> float:
        return self.inside / self.calls

    @property
    def beside(self) -> float:
        return max(self.whole - self.inside, 0.0) / self.calls


def _calls_of(plan: Plan) -> int:
    """Network calls of a plan that knows them before it runs."""
    if isinstance(plan, CoefficientTable):
        return len(plan.levels)
    assert plan.total is not None
    return plan.total


def _labels(model: Model, count: int) -> dict[str, list[int]]:
    """Every class in turn, for a model that takes labels.

    Raises:
        RecipeError: a condition that is more than a label.
    """
    others = [key for key, one in model.conditioners.items() if not isinstance(one, Label)]
    if others:
        raise RecipeError(f"this model needs {', '.join(others)} for each sample; its samplers are compared without")
    return {
        key: [k % one.classes for k in range(count)]
        for key, one in model.conditioners.items()
        if isinstance(one, Label)
    }


def _apart(samples: Tensor, target: Tensor) -> float:
    """The mean over the batch of the root mean square difference."""
    return float(rms(samples - target).double().mean())


def fitted_order(points: Sequence[tuple[int, float]]) -> float | None:
    """The slope at which the logarithm of an error falls with that of the calls; points below rounding are left out.

    None where fewer than two are left.
    """
    known = [(math.log(calls), math.log(error)) for calls, error in points if error > ROUNDING]
    if len({x for x, _ in known}) < 2:
        return None
    mean_x, mean_y = (math.fsum(values) / len(known) for values in zip(*known, strict=True))
    across = math.fsum((x - mean_x) * (y - mean_y) for x, y in known)
    return -across / math.fsum((x - mean_x) ** 2 for x, _ in known)
