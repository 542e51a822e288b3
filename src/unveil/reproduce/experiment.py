"""Claims as experiments: the experiment, its context and its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from unveil.core.denoiser import Denoiser
from unveil.data.digits import digits
from unveil.errors import RecipeError
from unveil.evaluate.verdict import MIN_SEEDS, Comparison, PublishedResult
from unveil.io.images import to_unit
from unveil.reproduce.training_history import RecipeVariant, TrainingHistory, train_and_track
from unveil.reproduce.variant import TrainBudget, Variant, train_or_load

T = TypeVar("T")

DIGITS = "scikit-learn digits, 8 x 8, unconditional: 1,347 to train on, 450 held out"
LABELLED = "scikit-learn digits, 8 x 8, class-conditional: 1,347 to train on, 450 held out"

# Offset between the two seeds of a placebo: a variant with seed s against itself with seed s + PLACEBO.
PLACEBO = 100


class ProgressCounter(Protocol):
    """Progress bar of a task with a fixed total."""

    def advance(self, by: int = 1) -> None:
        """Advance the bar."""
        ...


class ProgressConsole(Protocol):
    """Console on which an experiment reports its progress."""

    def say(self, text: str) -> None:
        """Print a line."""
        ...

    def progress(self, what: str, total: int) -> AbstractContextManager[ProgressCounter]:
        """Open a progress bar with speed and remaining time."""
        ...


@dataclass(frozen=True)
class Scale:
    """Size of a run, the same for all of its variants.

    Attributes:
        seeds: Number of seeds, each of which gives one pair of values.
        samples: Number of samples of a metric, and of the held-out images that they are compared with. It exceeds
            the number of features.
        budget: Training budget of the digits networks.
        quick: True for the smoke run.
    """

    seeds: int = MIN_SEEDS
    samples: int = 450
    budget: TrainBudget = field(default_factory=TrainBudget)
    quick: bool = False

    def pick(self, full: T, quick: T) -> T:
        """Return the setting of the full run or that of the smoke run."""
        return quick if self.quick else full


FULL = Scale()
QUICK = Scale(samples=70, budget=TrainBudget(channels=8, steps=4, batch=8, warmup=1, ema=0.5, chain=50), quick=True)


@dataclass(frozen=True)
class Curve:
    """Metric as a function of a setting, with one line per variant.

    The first four lines differ in colour. Every further group of four has another line style.

    Attributes:
        x_label: Name of the setting.
        y_label: Name of the metric.
        x: Values of the setting, the same for all lines or a list by line.
        lines: One list of metric values per seed, by line.
        log_x: Logarithmic x axis.
        log_y: Logarithmic y axis.
    """

    x_label: str
    y_label: str
    x: Sequence[float] | Mapping[str, Sequence[float]]
    lines: Mapping[str, Sequence[Sequence[float]]]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class ImageSheet:
    """Grid of images uint8 (N, C, H, W) for the page, with `columns` images per row and C of 1 or 3."""

    name: str
    caption: str
    pixels: Tensor
    columns: int


@dataclass
class ExperimentResults:
    """Comparisons, curves, image grids and notes of one experiment."""

    comparisons: list[Comparison]
    curves: list[Curve] = field(default_factory=list)
    sheets: list[ImageSheet] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class ExperimentContext:
    """Trained networks, held-out images and progress output for an experiment.

    Attributes:
        training_seconds: CPU seconds of training of all requested networks, in this run or in an earlier one.
        cached_seconds: Part of `training_seconds` that earlier runs spent.
    """

    def __init__(self, scale: Scale, cache: Path, console: ProgressConsole) -> None:
        self.scale, self.cache, self.console = scale, cache, console
        self._networks: dict[tuple[Variant, int], Denoiser] = {}
        self._histories: dict[tuple[RecipeVariant, int], TrainingHistory] = {}
        self._metrics: dict[tuple[str, int], Any] = {}
        self.training_seconds = 0.0
        self.cached_seconds = 0.0

    @property
    def trained_variants(self) -> list[tuple[Variant | RecipeVariant, int]]:
        """Every requested variant with its seed."""
        return [*self._networks, *self._histories]

    @property
    def seeds(self) -> range:
        """Seeds of the run."""
        return range(self.scale.seeds)

    def network(self, variant: Variant, seed: int) -> Denoiser:
        """Return the variant trained with this seed; all claims share it."""
        if (variant, seed) not in self._networks:
            steps = self.scale.budget.steps
            with self.console.progress(f"training {describe(variant)}, seed {seed}: step", steps) as counter:
                result = train_or_load(variant, self.scale.budget, seed, self.cache, counter.advance)
            self.add_training_time(result.cpu_seconds, result.cached)
            self._networks[variant, seed] = result.denoiser
        return self._networks[variant, seed]

    def training_history(self, variant: RecipeVariant, seed: int) -> TrainingHistory:
        """Return the training of a recipe's variant with this seed; all claims share it."""
        if (variant, seed) not in self._histories:
            initial_model = None if variant.after is None else self.training_history(variant.after, seed).model
            steps, quick = variant.recipe_config(self.scale.quick).train.steps, self.scale.quick
            name = f"{variant.recipe} {variant.changes}".strip()
            with self.console.progress(f"training {name}, seed {seed}: step", steps) as counter:
                history = train_and_track(
                    variant, quick, seed, self.scale.samples, self.cache, counter.advance, initial_model
                )
            self.add_training_time(history.cpu_seconds, history.cached)
            self._histories[variant, seed] = history
        return self._histories[variant, seed]

    def add_training_time(self, cpu_seconds: float, cached: bool) -> None:
        """Add the CPU seconds of a training, of this run or of an earlier one."""
        self.training_seconds += cpu_seconds
        self.cached_seconds += cpu_seconds if cached else 0.0

    def held_out(self, count: int | None = None) -> Tensor:
        """Return uint8 images that are not trained on, spread evenly over the held-out split."""
        pixels = digits("held-out").pixels
        count = count or self.scale.samples
        return pixels[torch.arange(count) * len(pixels) // count]

    def held_out_unit(self, count: int | None = None) -> Tensor:
        """Return the held-out images in [-1, 1]."""
        return to_unit(self.held_out(count))

    def each_seed(self, name: str, metric: Callable[[int], T]) -> list[T]:
        """Return the metric of each seed, computed once, so that a larger run reuses those of a smaller one."""
        return self._each(name, self.seeds, metric)

    def each_placebo(self, name: str, metric: Callable[[int], T]) -> list[T]:
        """Return the metric of each seed of the placebo, computed once."""
        return self._each(name, [seed + PLACEBO for seed in self.seeds], metric)

    def _each(self, name: str, seeds: Sequence[int], metric: Callable[[int], T]) -> list[T]:
        for seed in seeds:
            if (name, seed) not in self._metrics:
                self.console.say(f"{name}, seed {seed}")
                self._metrics[name, seed] = metric(seed)
        return [self._metrics[name, seed] for seed in seeds]


def describe(variant: Variant) -> str:
    """Return a short description of a variant."""
    parts = [variant.process, variant.prediction, variant.objective]
    parts += [variant.variance] if variant.variance != "fixed-small" else []
    times = {"uniform": [], "second-moment": ["importance sampling"]}
    parts += times.get(variant.time, [variant.time])
    parts += [variant.modulation] if variant.modulation != "add" else []
    parts += ["labels"] if variant.drop is not None else []
    return " + ".join(parts)


@dataclass(frozen=True)
class Claim:
    """Claim of a paper and the experiment that tests it.

    Attributes:
        name: Name on the command line.
        claim: The claim in one sentence.
        paper: Paper that makes the claim.
        method: Description of the experiment in a few sentences.
        run: The experiment.
        data: Description of the data.
        seeds: Number of seeds of a full run. It exceeds three if three leave too wide an interval.
    """

    name: str
    claim: str
    paper: str
    method: str
    run: Callable[[ExperimentContext], ExperimentResults]
    data: str = DIGITS
    seeds: int = MIN_SEEDS

    def __post_init__(self) -> None:
        if self.seeds < MIN_SEEDS:
            raise RecipeError(f"{self.name}: {self.seeds} seeds; a verdict needs at least {MIN_SEEDS}")


def compare(
    name: str,
    measure: str,
    better: tuple[str, Sequence[float]],
    worse: tuple[str, Sequence[float]],
    placebo: tuple[Sequence[float], Sequence[float]],
    *,
    paper: PublishedResult | None = None,
    primary: bool = True,
) -> Comparison:
    """Return the comparison of two arms, of which the first is claimed to have the lower metric.

    Args:
        name: The claim in words.
        measure: Name of the metric.
        better: Name and values by seed of the arm that is claimed to be better.
        worse: Name and values by seed of the other arm.
        placebo: Values of two arms that differ in their seed only.
        paper: Published values of both arms.
        primary: False for a comparison that does not decide about the claim.
    """
    pairs = tuple(zip(placebo[0], placebo[1], strict=True))
    arms = (better[0], worse[0])
    return Comparison(name, measure, arms, tuple(better[1]), tuple(worse[1]), pairs, paper, primary)
