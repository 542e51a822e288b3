"""A claim as an experiment, the bench that it is run on, and what it finds."""

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
from unveil.reproduce.variant import TrainBudget, Variant, trained

T = TypeVar("T")

DIGITS = "scikit-learn digits, 8 x 8, unconditional: 1,347 to train on, 450 held out"
LABELLED = "scikit-learn digits, 8 x 8, class-conditional: 1,347 to train on, 450 held out"

# Two seeds that are this far apart make a placebo: the arm of seed s against itself with seed s + PLACEBO.
PLACEBO = 100


class ProgressCounter(Protocol):
    """Counts to a total where a person can see it."""

    def advance(self, by: int = 1) -> None:
        """Counts on."""
        ...


class ProgressConsole(Protocol):
    """Where an experiment shows how far it is."""

    def say(self, text: str) -> None:
        """A line for a person."""
        ...

    def progress(self, what: str, total: int) -> AbstractContextManager[ProgressCounter]:
        """A counter with speed and time left."""
        ...


@dataclass(frozen=True)
class Scale:
    """How large a run is, the same for all of its arms.

    Attributes:
        seeds: how many pairs of arms.
        pictures: held-out pictures that a measure uses, and as many samples; more than features.
    """

    seeds: int = MIN_SEEDS
    pictures: int = 450
    budget: TrainBudget = field(default_factory=TrainBudget)
    quick: bool = False

    def pick(self, full: T, quick: T) -> T:
        """One of two settings of a measure."""
        return quick if self.quick else full


FULL = Scale()
QUICK = Scale(pictures=70, budget=TrainBudget(channels=8, steps=4, batch=8, warmup=1, ema=0.5, chain=50), quick=True)


@dataclass(frozen=True)
class Curve:
    """A measure along a setting, one line per arm; y holds one list per seed, x may hold a list per line.

    Beyond four, lines are told apart by colour and style: every four in turn share a style.
    """

    x_label: str
    y_label: str
    x: Sequence[float] | Mapping[str, Sequence[float]]
    lines: Mapping[str, Sequence[Sequence[float]]]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class ImageSheet:
    """Pictures worth seeing: uint8 (N, C, H, W), C of 1 or 3, in rows of `columns`."""

    name: str
    caption: str
    pixels: Tensor
    columns: int


@dataclass
class ExperimentResults:
    """What an experiment hands back."""

    comparisons: list[Comparison]
    curves: list[Curve] = field(default_factory=list)
    sheets: list[ImageSheet] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class ExperimentContext:
    """Where an experiment gets its networks and pictures from.

    Attributes:
        training_seconds: CPU seconds that the networks took which were asked for, here or in an earlier run.
        asked: these networks, (arm, seed).
    """

    def __init__(self, scale: Scale, cache: Path, console: ProgressConsole) -> None:
        self.scale, self.cache, self.console = scale, cache, console
        self._known: dict[tuple[Variant, int], Denoiser] = {}
        self._followed: dict[tuple[RecipeVariant, int], TrainingHistory] = {}
        self._measured: dict[tuple[str, int], Any] = {}
        self.training_seconds = 0.0
        self.earlier_seconds = 0.0  # of them, spent by earlier runs

    @property
    def asked(self) -> list[tuple[Variant | RecipeVariant, int]]:
        """The networks that were asked for."""
        return [*self._known, *self._followed]

    @property
    def seeds(self) -> range:
        """One number per pair of arms."""
        return range(self.scale.seeds)

    def network(self, arm: Variant, seed: int) -> Denoiser:
        """The arm trained with this seed; the same one for every claim that asks."""
        if (arm, seed) not in self._known:
            steps = self.scale.budget.steps
            with self.console.progress(f"training {describe(arm)}, seed {seed}: step", steps) as counter:
                found = trained(arm, self.scale.budget, seed, self.cache, counter.advance)
            self.spent(found.cpu_seconds, found.kept)
            self._known[arm, seed] = found.denoiser
        return self._known[arm, seed]

    def course(self, arm: RecipeVariant, seed: int) -> TrainingHistory:
        """The training of a recipe's arm with this seed; the same one for every claim that asks."""
        if (arm, seed) not in self._followed:
            before = None if arm.after is None else self.course(arm.after, seed).model
            steps, quick = arm.read(self.scale.quick).train.steps, self.scale.quick
            what = f"{arm.recipe} {arm.changes}".strip()
            with self.console.progress(f"training {what}, seed {seed}: step", steps) as counter:
                found = train_and_track(arm, quick, seed, self.scale.pictures, self.cache, counter.advance, before)
            self.spent(found.cpu_seconds, found.kept)
            self._followed[arm, seed] = found
        return self._followed[arm, seed]

    def spent(self, cpu_seconds: float, earlier: bool) -> None:
        """Counts CPU seconds of a training, of this run or of an earlier one."""
        self.training_seconds += cpu_seconds
        self.earlier_seconds += cpu_seconds if earlier else 0.0

    def held_out(self, count: int | None = None) -> Tensor:
        """uint8 pictures that no network has seen, spread evenly over the held-out part."""
        pixels = digits("held-out").pixels
        count = count or self.scale.pictures
        return pixels[torch.arange(count) * len(pixels) // count]

    def held_out_unit(self, count: int | None = None) -> Tensor:
        """The same in [-1, 1]."""
        return to_unit(self.held_out(count))

    def each_seed(self, what: str, measure: Callable[[int], T]) -> list[T]:
        """The measure of each seed; taken once, so that a larger run adds to a smaller one."""
        return self._each(what, self.seeds, measure)

    def each_placebo(self, what: str, measure: Callable[[int], T]) -> list[T]:
        """The same of the seeds that make the placebo."""
        return self._each(what, [seed + PLACEBO for seed in self.seeds], measure)

    def _each(self, what: str, seeds: Sequence[int], measure: Callable[[int], T]) -> list[T]:
        for seed in seeds:
            if (what, seed) not in self._measured:
                self.console.say(f"{what}, seed {seed}")
                self._measured[what, seed] = measure(seed)
        return [self._measured[what, seed] for seed in seeds]


def describe(arm: Variant) -> str:
    """An arm in a few words."""
    parts = [arm.process, arm.prediction, arm.objective]
    parts += [arm.variance] if arm.variance != "fixed-small" else []
    parts += [{"second-moment": "importance sampling"}.get(arm.time, arm.time)] if arm.time != "uniform" else []
    parts += [arm.modulation] if arm.modulation != "add" else []
    parts += ["labels"] if arm.drop is not None else []
    return " + ".join(parts)


@dataclass(frozen=True)
class Claim:
    """A claim of a paper as an experiment.

    Attributes:
        claim: in one sentence.
        paper: where it is made.
        method: how it is tested here, in a few sentences.
        run: the experiment.
        data: what it is tested on.
        seeds: pairs of arms of a full run; more than three where three leave too wide an interval.
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


def compared(
    name: str,
    measure: str,
    better: tuple[str, Sequence[float]],
    worse: tuple[str, Sequence[float]],
    placebo: tuple[Sequence[float], Sequence[float]],
    *,
    paper: PublishedResult | None = None,
    primary: bool = True,
) -> Comparison:
    """A comparison of two named arms, of which the first is claimed to be lower."""
    pairs = tuple(zip(placebo[0], placebo[1], strict=True))
    arms = (better[0], worse[0])
    return Comparison(name, measure, arms, tuple(better[1]), tuple(worse[1]), pairs, paper, primary)
