"""Inverse problems on held-out pictures: how far a model restores them beyond what one would do without it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.analysis.inverse_problems import KINDS, InverseProblem, problems
from unveil.core import inverse, schedules
from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.guidance import clip_dynamic, clip_static
from unveil.core.rng import START, SampleRNG
from unveil.core.samplers import Plan, ancestral, run
from unveil.core.schedule import Schedule
from unveil.errors import NonFinite, RecipeError
from unveil.evaluate.verdict import EffectInterval, interval
from unveil.model import Model
from unveil.types import NoiseLevel

Reach = Callable[[int, int], object]  # steps made, of how many
RESIDUAL = 1e-3  # the most that |A x - y| / |y| may be where the measurement has no noise
LENGTH, COUNT = 4, 3  # of RePaint: how far it goes back, how often each stretch is walked
DPS_STEPS, DPS_SCALE = 5, 1.0  # of DPS: steps for each one of DDRM, and its step along the gradient
_ROUNDED = (2 / 255) ** 2 / 12  # the squared error that rounding to bytes leaves


AVERAGED, CHOSEN = 8, 16  # pictures by DDRM that are averaged, and that the best is chosen from
MEAN, BEST = f"mean of {AVERAGED}", f"best of {CHOSEN}"
METHODS = {
    "DDRM": "DDRM, Kawar et al. 2022 (arXiv:2201.11793)",
    MEAN: f"the mean of {AVERAGED} pictures by DDRM from different noise",
    BEST: f"of {CHOSEN} pictures by DDRM that whose estimates on the way agreed best with y before y corrected them",
    "replacement": "known pixels put in at each step, Song et al. 2021 (arXiv:2011.13456)",
    "RePaint": "the same, going back and forth, Lugmayr et al. 2022 (arXiv:2201.09865)",
    "DPS": "the measurement's gradient through the network, Chung et al. 2022 (arXiv:2209.14687)",
}


@dataclass(frozen=True)
class InverseSettings:
    """What all problems share.

    Attributes:
        count: pictures, restored as one batch.
        steps: of every method but DPS, which takes `DPS_STEPS` times as many.
        grid: a name in `schedules.GRIDS`; None: "karras" if the process does not scale images, else "uniform".
        eta: of DDRM.
        noises: deviations of the noise of those rows that have some, in pixels of [-1, 1].

    Raises:
        RecipeError: numbers that cannot be.
    """

    count: int = 64
    steps: int = 20
    seed: int = 0
    grid: str | None = None
    eta: float = 0.85
    noises: tuple[float, ...] = (0.01, 0.05)

    def __post_init__(self) -> None:
        """Refuses what cannot be measured."""
        if self.count < 2:
            raise RecipeError(f"count = {self.count}: an interval needs at least 2 pictures")
        if self.steps < 1:
            raise RecipeError(f"steps = {self.steps}: at least 1; about 20 are enough")


@dataclass(frozen=True)
class InverseRow:
    """One problem, solved by one method.

    Attributes:
        psnr, baseline, gain: dB, means over pictures with intervals; the gain is that of each picture.
        residual: |A x - y| / |y|, the largest of all pictures; clipped: that of x in [-1, 1], as it is stored.
        known: whether all known pixels are bit-equal to the measured ones; None where nothing is known bit by bit.
        calls: of the network.
        seconds: per picture, of the processor where the model is on one.
    """

    problem: str
    method: str
    noise: float
    psnr: EffectInterval
    baseline: EffectInterval
    gain: EffectInterval
    residual: float
    clipped: float
    known: bool | None
    calls: int
    seconds: float
    pictures: Tensor = field(repr=False)

    @property
    def bar(self) -> float | None:
        """DB that the gain must reach; None for measurements with noise, which are shown only."""
        return None if self.noise else KINDS[self.problem].bar

    @property
    def met(self) -> bool | None:
        """Whether gain, residual and known pixels are as they must be; None without a bar."""
        if self.bar is None:
            return None
        return self.gain.mean >= self.bar and self.residual <= RESIDUAL and self.known is not False

    @property
    def text(self) -> str:
        """One line for a person."""
        noise = f", noise {self.noise:g}" if self.noise else ""
        bar = "" if self.bar is None else f", bar {self.bar:+g} dB {'met' if self.met else 'not met'}"
        gain = f"{self.gain.mean:+.2f} dB ({self.gain.low:+.2f} to {self.gain.high:+.2f})"
        return f"{self.problem} by {self.method}{noise}: {gain}{bar}"

    def record(self) -> dict[str, Any]:
        """Everything but the pictures, as plain values."""
        intervals = {name: getattr(self, name)._asdict() for name in ("psnr", "baseline", "gain")}
        names = ("residual", "clipped", "known", "calls", "seconds", "bar", "met")
        return {
            "problem": self.problem,
            "method": self.method,
            "noise": self.noise,
            **intervals,
            **{name: getattr(self, name) for name in names},
            "whole_interval": None if self.bar is None else self.gain.low >= self.bar,
        }


@dataclass(frozen=True)
class InverseStudy:
    """What a model makes of each problem; `skipped` says why a problem was left out.

    Attributes:
        pictures: the originals.
        problems: by name, those without noise before the others.
    """

    settings: InverseSettings
    grid: str
    clip: str
    rows: list[InverseRow]
    skipped: dict[str, str]
    pictures: Tensor = field(repr=False)
    problems: list[InverseProblem] = field(repr=False)

    def record(self) -> dict[str, Any]:
        """Everything but the pictures, as plain values."""
        return {
            "settings": {
                **asdict(self.settings),
                "grid": self.grid,
                "clip": self.clip,
                "averaged": AVERAGED,
                "chosen": CHOSEN,
                "repaint": {"length": LENGTH, "count": COUNT},
                "dps": {"steps": DPS_STEPS * self.settings.steps, "scale": DPS_SCALE},
            },
            "limits": {"residual": RESIDUAL},
            "problems": {one.name: KINDS[one.name]._asdict() for one in self.problems if not one.noise},
            "rows": [row.record() for row in self.rows],
            "skipped": self.skipped,
        }


def study_inverse(
    model: Model, pictures: Tensor, settings: InverseSettings | None = None, reach: Reach = lambda done, total: None
) -> InverseStudy:
    """Measures pictures that the model never saw, and restores them from that.

    The model is told nothing but the measurement: one that takes labels runs without. x0 is clipped as it samples.

    Args:
        model: of pictures, on the device that it should run on.
        pictures: (count, C, H, W) in [-1, 1].
        settings: as many pictures as these.
        reach: told the steps made and their number.

    Raises:
        RecipeError: a model that makes no pictures of 1 or 3 channels or needs a condition, or other pictures.
        NonFinite: a restoration left the finite numbers.
    """
    settings = settings or InverseSettings(count=len(pictures))
    _check(model, pictures, settings)
    model.eval()
    bench = _Bench(model, pictures.to(model.device), settings)
    found, skipped = problems(bench.pictures, settings.noises, bench.streams(settings.seed))
    attempts = [bench.attempt(problem, method) for problem in found for method in _methods(problem)]
    total, done = sum(one.total for one in attempts), 0
    rows: list[InverseRow] = []
    for one in attempts:
        before = done
        rows.append(bench.solve(one, lambda made, before=before: reach(before + made, total)))
        done += one.total
    return InverseStudy(settings, bench.kind_of_grid, model.sampling.threshold, rows, skipped, pictures, found)


def _check(model: Model, pictures: Tensor, settings: InverseSettings) -> None:
    if len(model.shape) != 3 or model.shape[0] not in (1, 3):
        raise RecipeError(f"this model makes {model.shape}; what is restored here are pictures of 1 or 3 channels")
    if pictures.shape != (settings.count, *model.shape):
        raise RecipeError(
            f"pictures {tuple(pictures.shape)}: {settings.count} of the model's shape {model.shape} are needed"
        )


def _methods(problem: InverseProblem) -> tuple[str, ...]:
    if problem.keep is not None:
        return ("DDRM", MEAN, "replacement", "RePaint")
    if problem.noise:
        return "DDRM", "DPS"
    # colours are decided while noise hides the grey values: what comes out must be asked again
    return ("DDRM", MEAN, BEST) if problem.name == "colourisation" else ("DDRM", MEAN)


class _Attempt(NamedTuple):
    """A method on a problem: its plan, what it makes of noise to start from, and how often it is carried out."""

    problem: InverseProblem
    method: str
    plan: Plan
    start: Callable[[Tensor], Tensor]
    draws: int = 1

    @property
    def total(self) -> int:
        """Steps of all draws."""
        return self.draws * (self.plan.total or 0)


class _Bench:
    """One model and one batch of pictures."""

    def __init__(self, model: Model, pictures: Tensor, settings: InverseSettings) -> None:
        self.model, self.pictures, self.settings = model, pictures, settings
        self.kind_of_grid = settings.grid or ("karras" if model.process.at(1.0).alpha == 1 else "uniform")
        step = model.denoise_fn(model.encode({}, len(pictures))[0])
        self.step = {"static": clip_static, "dynamic": clip_dynamic}.get(model.sampling.threshold, lambda same: same)(
            step
        )

    def streams(self, seed: int) -> SampleRNG:
        return SampleRNG(seed, range(len(self.pictures)), device=self.model.device)

    def grid(self, steps: int) -> Schedule:
        return schedules.get_schedule(self.model.process, self.kind_of_grid, steps).onto_data()

    def attempt(self, problem: InverseProblem, method: str) -> _Attempt:
        settings = self.settings
        grid = self.grid(settings.steps * (DPS_STEPS if method == "DPS" else 1))
        if method in ("DDRM", MEAN, BEST):
            plan = inverse.ddrm(grid, problem.operator, problem.y, noise_level=problem.noise, eta=settings.eta)
            return _Attempt(problem, method, plan, plan.start, {MEAN: AVERAGED, BEST: CHOSEN}.get(method, 1))
        plan = ancestral(grid)
        if method == "DPS":
            plan = inverse.dps(plan, problem.operator, problem.y, scale=DPS_SCALE)
        elif method == "RePaint":
            plan = inverse.repaint(plan, grid, length=LENGTH, count=COUNT)
        return _Attempt(problem, method, plan, grid.start)

    def solve(self, attempt: _Attempt, made: Callable[[int], object]) -> InverseRow:
        problem, method, plan, start, draws = attempt
        clock = _Clock(self.step, self.model.device)
        witness = _Witness(clock, problem)
        step: DenoiseFn = witness if method == BEST else clock
        if method in ("replacement", "RePaint"):
            assert problem.keep is not None
            step = inverse.inpaint(step, problem.y, problem.keep)
        begun = clock.now()
        shape = self.pictures.shape[1:]
        found = self.pictures
        least = torch.zeros(0)
        for draw in range(draws):
            streams, before = self.streams(self.settings.seed + draw), draw * (plan.total or 0)
            x = run(
                plan, step, start(streams.normal(shape, START)), noise=streams.bind(shape),
                on_step=lambda progress, before=before: made(before + progress.state.number),
            )  # fmt: skip
            off = witness.taken()
            if draw == 0:
                found, least = x, off
            elif method == BEST:
                found = torch.where((off < least).reshape(-1, 1, 1, 1), x, found)
                least = torch.minimum(off, least)
            else:
                found = found + (x - found) / (draw + 1)  # known pixels stay as they are to the bit
        seconds = (clock.now() - begun) / len(found)
        if not bool(torch.isfinite(found).all()):
            raise NonFinite(f"{problem.name} by {method} left the finite numbers")
        return self.row(problem, method, found, clock.calls, seconds)

    def row(self, problem: InverseProblem, method: str, found: Tensor, calls: int, seconds: float) -> InverseRow:
        mine, naive = psnr(found, self.pictures), psnr(problem.baseline, self.pictures)
        gain = [one - other for one, other in zip(mine, naive, strict=True)]
        known = None
        if problem.keep is not None:
            keep = problem.keep.expand_as(found)
            known = torch.equal(found[keep], problem.y[keep])
        off, clipped = (residual(problem.operator, x, problem.y) for x in (found, found.clamp(-1, 1)))
        return InverseRow(
            problem.name, method, problem.noise, interval(mine), interval(naive), interval(gain), off, clipped, known,
            calls, seconds, found.cpu(),
        )  # fmt: skip


class _Clock:
    """A step that counts its calls; and the time, of the processor where the model is on one."""

    def __init__(self, step: DenoiseFn, device: torch.device) -> None:
        self.step, self.device = step, device
        self.calls = 0

    def __call__(self, x: Tensor, level: NoiseLevel) -> Estimate:
        self.calls += 1
        return self.step(x, level)

    def now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()  # a busy machine takes no longer
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class _Witness:
    """A step that notes how far its estimates are from the measurement, before it corrects them.

    Where the noise has become less than the picture, a picture that was begun wrongly shows: the model would have it
    measured as something else. In units of the noise all levels count alike, as in the weights of particles of
    Cardoso et al. 2023 (arXiv:2308.07983).
    """

    def __init__(self, step: DenoiseFn, problem: InverseProblem) -> None:
        self.step, self.problem = step, problem
        self.off = torch.zeros(len(problem.y), device=problem.y.device)

    def __call__(self, x: Tensor, level: NoiseLevel) -> Estimate:
        estimate = self.step(x, level)
        ratio = float(level.sigma) / max(float(level.alpha), 1e-9)
        if 0 < ratio < 1:
            gap = (self.problem.operator(estimate.x0) - self.problem.y) / ratio
            self.off = self.off + gap.square().flatten(1).sum(1)
        return estimate

    def taken(self) -> Tensor:
        """What was noted since the last time, (B,)."""
        off, self.off = self.off, torch.zeros_like(self.off)
        return off


def psnr(x: Tensor, truth: Tensor) -> list[float]:
    """Peak signal-to-noise ratio of each picture, dB; pixels are in [-1, 1], and x is cut to it.

    At most 58.9, which rounding to bytes leaves.
    """
    errors = (x.clamp(-1, 1) - truth).to(torch.float64).square().flatten(1).mean(1)
    return [10 * math.log10(4 / max(error, _ROUNDED)) for error in errors.tolist()]


def residual(operator: inverse.Operator, x: Tensor, y: Tensor) -> float:
    """|A x - y| / |y|: the largest over the batch."""
    off, size = ((one.flatten(1)).norm(dim=1) for one in (operator(x) - y, y))
    return float((off / size.clamp(min=1e-12)).max())
