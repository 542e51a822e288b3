"""Inverse problems on held-out images: PSNR of restorations by a model, compared with a restoration without it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from unveil.core import inverse, schedules
from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.guidance import clip_dynamic, clip_static
from unveil.core.rng import START, SampleRNG
from unveil.core.samplers import Plan, ancestral, run
from unveil.core.schedules import Schedule
from unveil.errors import NonFinite, RecipeError
from unveil.evaluate.verdict import EffectInterval, interval
from unveil.model import Model
from unveil.types import NoiseLevel

Progress = Callable[[int, int], object]  # finished steps, total
FACTOR = 4  # super-resolution factor
BLUR = 1.5  # standard deviation of the Gaussian blur in pixels
MAX_RESIDUAL = 1e-3  # largest |A x - y| / |y| of a measurement without noise
JUMP_LENGTH, RESAMPLES = 4, 3  # RePaint: length of a jump back, and passes over each stretch
DPS_STEPS, DPS_SCALE = 5, 1.0  # DPS: steps for each step of DDRM, and step size along the gradient
AVERAGED, CANDIDATES = 8, 16  # restorations by DDRM that are averaged, and from which the best is chosen
MEAN, BEST = f"mean of {AVERAGED}", f"best of {CANDIDATES}"
METHODS = {
    "DDRM": "DDRM, Kawar et al. 2022 (arXiv:2201.11793)",
    MEAN: f"the mean of {AVERAGED} restorations by DDRM from different noise",
    BEST: f"of {CANDIDATES} restorations by DDRM, that whose uncorrected estimates agree best with y",
    "replacement": "known pixels replaced at each step, Song et al. 2021 (arXiv:2011.13456)",
    "RePaint": "replacement with resampling, Lugmayr et al. 2022 (arXiv:2201.09865)",
    "DPS": "the measurement's gradient through the network, Chung et al. 2022 (arXiv:2209.14687)",
}
_ROUNDING_ERROR = (2 / 255) ** 2 / 12  # squared error of rounding to bytes
_MASK_NOISE, _MEASUREMENT_NOISE = 1, 2  # noise indices; index 0 is the initial noise of the run


# ---------------------------------------------------------------------- problems


class ProblemType(NamedTuple):
    """A kind of problem: its measurement, its baseline, and the required gain over the baseline in dB."""

    measured: str
    baseline: str
    bar: float


PROBLEM_TYPES = {
    "mask": ProblemType("half of the pixels, chosen at random", "the mean of the known pixels in the gaps", 5.0),
    "super-resolution": ProblemType(f"means over blocks of {FACTOR} x {FACTOR} pixels", "bicubic enlargement", 1.0),
    "deblurring": ProblemType(f"a Gaussian blur of {BLUR} pixels", "the blurred image itself", 2.0),
    "colourisation": ProblemType("the mean of the colours of each pixel", "the grey image itself", 2.0),
}


@dataclass(frozen=True)
class InverseProblem:
    """A measurement of all images.

    Attributes:
        name: Name of its type.
        operator: Forward operator A.
        y: Measurement A x + noise.
        baseline: Restorations of y without the model.
        preview: y as images.
        noise: Standard deviation of the noise.
        keep: Mask of the known pixels; None for other measurements.
    """

    name: str
    operator: inverse.Operator
    y: Tensor
    baseline: Tensor
    preview: Tensor
    noise: float = 0.0
    keep: Tensor | None = None

    @property
    def key(self) -> tuple[str, float]:
        """Identity within a study."""
        return self.name, self.noise


def problems(x: Tensor, noises: Sequence[float], rng: SampleRNG) -> tuple[list[InverseProblem], dict[str, str]]:
    """The problems that suit the images, and the reason for each that does not.

    Args:
        x: Images (B, C, H, W) in [-1, 1].
        noises: Standard deviations of the noise of further measurements by blurring, in the range of [-1, 1].
        rng: Noise of the masks and measurements of each image.
    """
    size, skipped = x.shape[2:], dict[str, str]()
    suitable = [_mask(x, rng)]
    if size[0] % FACTOR or size[1] % FACTOR:
        skipped["super-resolution"] = (
            f"images of {size[1]} x {size[0]} do not consist of blocks of {FACTOR} x {FACTOR} pixels"
        )
    else:
        suitable.append(_super_resolution(x))
    blur = inverse.blur(size, inverse.gaussian(BLUR))
    y = blur(x)
    suitable.append(InverseProblem("deblurring", blur, y, y, y))
    if x.shape[1] == 1:
        skipped["colourisation"] = "the model's images are grey"
    else:
        grey = inverse.channel_average(x.shape[1])
        preview = grey(x).expand_as(x)
        suitable.append(InverseProblem("colourisation", grey, grey(x), preview, preview))
    for number, noise in enumerate(noises):
        noisy = y + noise * rng.normal(y.shape[1:], START, _MEASUREMENT_NOISE + number)
        suitable.append(InverseProblem("deblurring", blur, noisy, noisy, noisy, noise))
    return suitable, skipped


def _mask(x: Tensor, rng: SampleRNG) -> InverseProblem:
    keep = rng.normal((1, *x.shape[2:]), START, _MASK_NOISE) > 0
    operator = inverse.Mask(keep)
    y = operator(x)
    mean = y.sum((2, 3), keepdim=True) / keep.sum((2, 3), keepdim=True).clamp(min=1)
    return InverseProblem("mask", operator, y, torch.where(keep, y, mean), y, keep=keep)


def _super_resolution(x: Tensor) -> InverseProblem:
    size = x.shape[2:]
    operator = inverse.block_average(size, FACTOR)
    y = operator(x)
    bicubic = functional.interpolate(y, tuple(size), mode="bicubic", align_corners=False)
    blocks = y.repeat_interleave(FACTOR, 2).repeat_interleave(FACTOR, 3)
    return InverseProblem("super-resolution", operator, y, bicubic, blocks)


# ---------------------------------------------------------------------- the study


@dataclass(frozen=True)
class InverseSettings:
    """Settings of all problems.

    Attributes:
        count: Number of images, restored as one batch.
        steps: Sampling steps of every method except DPS, which has `DPS_STEPS` times as many.
        seed: Seed of masks and noise.
        schedule: Name of the schedule in `schedules.SCHEDULES`; None: "karras" if the process does not scale images,
            else "uniform".
        eta: Stochasticity of DDRM.
        noises: Standard deviations of the measurements with noise, in the range of [-1, 1].

    Raises:
        RecipeError: A number is out of its range.
    """

    count: int = 64
    steps: int = 20
    seed: int = 0
    schedule: str | None = None
    eta: float = 0.85
    noises: tuple[float, ...] = (0.01, 0.05)

    def __post_init__(self) -> None:
        if self.count < 2:
            raise RecipeError(f"count = {self.count}: an interval needs at least 2 images")
        if self.steps < 1:
            raise RecipeError(f"steps = {self.steps}: at least 1; about 20 are enough")


@dataclass(frozen=True)
class InverseRow:
    """Result of one method on one problem.

    Attributes:
        problem, method, noise: Names of the problem and of the method, and the standard deviation of the noise.
        psnr, baseline, gain: Means over images in dB with intervals; the gain is the difference of each image.
        residual: Largest |A x - y| / |y| of all images.
        clipped: The same for x clipped to [-1, 1].
        known: True if all known pixels are bit-equal to the measured ones; None without known pixels.
        calls: Number of function evaluations of the network.
        seconds: Seconds for each image; CPU seconds on the CPU.
        images: Restorations.
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
    images: Tensor = field(repr=False)

    @property
    def bar(self) -> float | None:
        """Required gain in dB; None for measurements with noise."""
        return None if self.noise else PROBLEM_TYPES[self.problem].bar

    @property
    def met(self) -> bool | None:
        """True if gain, residual and known pixels meet their bars; None without a bar."""
        if self.bar is None:
            return None
        return self.gain.mean >= self.bar and self.residual <= MAX_RESIDUAL and self.known is not False

    @property
    def text(self) -> str:
        """One line for the command line."""
        noise = f", noise {self.noise:g}" if self.noise else ""
        bar = "" if self.bar is None else f", bar {self.bar:+g} dB {'met' if self.met else 'not met'}"
        gain = f"{self.gain.mean:+.2f} dB ({self.gain.low:+.2f} to {self.gain.high:+.2f})"
        return f"{self.problem} by {self.method}{noise}: {gain}{bar}"

    def record(self) -> dict[str, Any]:
        """Everything except the images, as plain values."""
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
    """Results of all problems.

    Attributes:
        settings: Settings of all problems.
        schedule: Name of the schedule of all methods.
        clip: Clipping of x0.
        rows: Results.
        skipped: Reason for each problem that is left out.
        images: Originals.
        problems: Problems; those with noise are last.
    """

    settings: InverseSettings
    schedule: str
    clip: str
    rows: list[InverseRow]
    skipped: dict[str, str]
    images: Tensor = field(repr=False)
    problems: list[InverseProblem] = field(repr=False)

    def record(self) -> dict[str, Any]:
        """Everything except the images, as plain values."""
        # "grid" is the stored name of the schedule
        settings = {"grid" if name == "schedule" else name: value for name, value in asdict(self.settings).items()}
        return {
            "settings": {
                **settings,
                "grid": self.schedule,
                "clip": self.clip,
                "averaged": AVERAGED,
                "chosen": CANDIDATES,
                "repaint": {"length": JUMP_LENGTH, "count": RESAMPLES},
                "dps": {"steps": DPS_STEPS * self.settings.steps, "scale": DPS_SCALE},
            },
            "limits": {"residual": MAX_RESIDUAL},
            "problems": {
                problem.name: PROBLEM_TYPES[problem.name]._asdict() for problem in self.problems if not problem.noise
            },
            "rows": [row.record() for row in self.rows],
            "skipped": self.skipped,
        }


def study_inverse(
    model: Model,
    images: Tensor,
    settings: InverseSettings | None = None,
    on_progress: Progress = lambda done, total: None,
) -> InverseStudy:
    """Restore held-out images from measurements.

    The model is conditioned on the measurement only; a class-conditional model runs without a label. x0 is clipped as
    the model's sampling settings state.

    Args:
        model: Image model on its device.
        images: Images (count, C, H, W) in [-1, 1].
        settings: Settings with the same count.
        on_progress: Called with the finished steps and their total.

    Raises:
        RecipeError: The model does not generate images of 1 or 3 channels or needs a condition, or the images have
            another shape.
        NonFinite: A restoration has values that are not finite.
    """
    settings = settings or InverseSettings(count=len(images))
    if len(model.shape) != 3 or model.shape[0] not in (1, 3):
        raise RecipeError(f"the model generates {model.shape}; only images of 1 or 3 channels are restored")
    if images.shape != (settings.count, *model.shape):
        raise RecipeError(
            f"images {tuple(images.shape)}: {settings.count} of the model's shape {model.shape} are needed"
        )
    model.eval()
    solver = _Solver(model, images.to(model.device), settings)
    suitable, skipped = problems(solver.images, settings.noises, solver.rng(settings.seed))
    attempts = [solver.attempt(problem, method) for problem in suitable for method in _methods(problem)]
    total, done = sum(attempt.total for attempt in attempts), 0
    rows: list[InverseRow] = []
    for attempt in attempts:
        rows.append(solver.solve(attempt, lambda steps, done=done: on_progress(done + steps, total)))
        done += attempt.total
    return InverseStudy(settings, solver.schedule_name, model.sampling.threshold, rows, skipped, images, suitable)


def _methods(problem: InverseProblem) -> tuple[str, ...]:
    if problem.keep is not None:
        return ("DDRM", MEAN, "replacement", "RePaint")
    if problem.noise:
        return "DDRM", "DPS"
    # colours are decided at noise levels that hide the grey values, so several candidates are compared with y
    return ("DDRM", MEAN, BEST) if problem.name == "colourisation" else ("DDRM", MEAN)


class _Attempt(NamedTuple):
    """A method on a problem: its plan, its initial state from noise, and its number of restorations."""

    problem: InverseProblem
    method: str
    plan: Plan
    start: Callable[[Tensor], Tensor]
    draws: int = 1

    @property
    def total(self) -> int:
        """Steps of all restorations."""
        return self.draws * (self.plan.total or 0)


class _Solver:
    """Runs methods on one batch of images with one model."""

    def __init__(self, model: Model, images: Tensor, settings: InverseSettings) -> None:
        self.model, self.images, self.settings = model, images, settings
        self.schedule_name = settings.schedule or ("karras" if model.process.at(1.0).alpha == 1 else "uniform")
        denoise = model.denoise_fn(model.encode({}, len(images))[0])
        clip = {"static": clip_static, "dynamic": clip_dynamic}.get(model.sampling.threshold)
        self.denoise = denoise if clip is None else clip(denoise)

    def rng(self, seed: int) -> SampleRNG:
        return SampleRNG(seed, range(len(self.images)), device=self.model.device)

    def schedule(self, steps: int) -> Schedule:
        return schedules.get_schedule(self.model.process, self.schedule_name, steps).onto_data()

    def attempt(self, problem: InverseProblem, method: str) -> _Attempt:
        settings = self.settings
        schedule = self.schedule(settings.steps * (DPS_STEPS if method == "DPS" else 1))
        if method in ("DDRM", MEAN, BEST):
            plan = inverse.ddrm(schedule, problem.operator, problem.y, noise_level=problem.noise, eta=settings.eta)
            return _Attempt(problem, method, plan, plan.start, {MEAN: AVERAGED, BEST: CANDIDATES}.get(method, 1))
        plan = ancestral(schedule)
        if method == "DPS":
            plan = inverse.dps(plan, problem.operator, problem.y, scale=DPS_SCALE)
        elif method == "RePaint":
            plan = inverse.repaint(plan, schedule, length=JUMP_LENGTH, count=RESAMPLES)
        return _Attempt(problem, method, plan, schedule.start)

    def solve(self, attempt: _Attempt, on_step: Callable[[int], object]) -> InverseRow:
        problem, method, plan, start, draws = attempt
        timed = _TimedDenoiser(self.denoise, self.model.device)
        recorder = _MisfitRecorder(timed, problem)
        denoise: DenoiseFn = recorder if method == BEST else timed
        if method in ("replacement", "RePaint"):
            assert problem.keep is not None
            denoise = inverse.inpaint(denoise, problem.y, problem.keep)
        start_seconds = timed.now()
        shape = self.images.shape[1:]
        restored = self.images
        smallest = torch.zeros(0)
        for draw in range(draws):
            rng, before = self.rng(self.settings.seed + draw), draw * (plan.total or 0)
            x = run(
                plan, denoise, start(rng.normal(shape, START)), noise=rng.bind(shape),
                on_step=lambda progress, before=before: on_step(before + progress.state.number),
            )  # fmt: skip
            misfit = recorder.pop()
            if draw == 0:
                restored, smallest = x, misfit
            elif method == BEST:
                restored = torch.where((misfit < smallest).reshape(-1, 1, 1, 1), x, restored)
                smallest = torch.minimum(misfit, smallest)
            else:
                restored = restored + (x - restored) / (draw + 1)  # known pixels stay bit-equal
        seconds = (timed.now() - start_seconds) / len(restored)
        if not bool(torch.isfinite(restored).all()):
            raise NonFinite(f"{problem.name} by {method}: values are not finite")
        return self.row(problem, method, restored, timed.calls, seconds)

    def row(self, problem: InverseProblem, method: str, restored: Tensor, calls: int, seconds: float) -> InverseRow:
        ours, baseline = psnr(restored, self.images), psnr(problem.baseline, self.images)
        gain = [value - other for value, other in zip(ours, baseline, strict=True)]
        is_equal = None
        if problem.keep is not None:
            keep = problem.keep.expand_as(restored)
            is_equal = torch.equal(restored[keep], problem.y[keep])
        full, clipped = (residual(problem.operator, x, problem.y) for x in (restored, restored.clamp(-1, 1)))
        return InverseRow(
            problem.name, method, problem.noise, interval(ours), interval(baseline), interval(gain), full, clipped,
            is_equal, calls, seconds, restored.cpu(),
        )  # fmt: skip


class _TimedDenoiser:
    """A denoiser that counts its calls, and a clock of CPU seconds on the CPU, else of elapsed seconds."""

    def __init__(self, denoise: DenoiseFn, device: torch.device) -> None:
        self.denoise, self.device = denoise, device
        self.calls = 0

    def __call__(self, x: Tensor, level: NoiseLevel) -> Estimate:
        self.calls += 1
        return self.denoise(x, level)

    def now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()  # does not depend on the load of the machine
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class _MisfitRecorder:
    """A denoiser that sums the distances of its estimates from the measurement, before they are corrected.

    At noise levels below the signal, a wrong restoration is visible: its estimates have another measurement. In units
    of the noise all levels have equal weight, as in the particle weights of Cardoso et al. 2023 (arXiv:2308.07983).
    """

    def __init__(self, denoise: DenoiseFn, problem: InverseProblem) -> None:
        self.denoise, self.problem = denoise, problem
        self.misfit = torch.zeros(len(problem.y), device=problem.y.device)

    def __call__(self, x: Tensor, level: NoiseLevel) -> Estimate:
        estimate = self.denoise(x, level)
        ratio = float(level.sigma) / max(float(level.alpha), 1e-9)
        if 0 < ratio < 1:
            difference = (self.problem.operator(estimate.x0) - self.problem.y) / ratio
            self.misfit = self.misfit + difference.square().flatten(1).sum(1)
        return estimate

    def pop(self) -> Tensor:
        """The sums since the last call, (B,)."""
        misfit, self.misfit = self.misfit, torch.zeros_like(self.misfit)
        return misfit


def psnr(x: Tensor, truth: Tensor) -> list[float]:
    """Peak signal-to-noise ratio of each image in dB, for pixels in [-1, 1] to which x is clipped.

    At most 58.9 dB, the limit of rounding to bytes.
    """
    errors = (x.clamp(-1, 1) - truth).to(torch.float64).square().flatten(1).mean(1)
    return [10 * math.log10(4 / max(error, _ROUNDING_ERROR)) for error in errors.tolist()]


def residual(operator: inverse.Operator, x: Tensor, y: Tensor) -> float:
    """The largest |A x - y| / |y| of the batch."""
    error, size = (difference.flatten(1).norm(dim=1) for difference in (operator(x) - y, y))
    return float((error / size.clamp(min=1e-12)).max())
