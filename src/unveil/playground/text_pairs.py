"""Pairs of sequences: algorithmic tasks, sentence pairs of a file, and scene descriptions in English and Chinese.

The split of a pair is a hash of its content, so that neither the seed nor the count moves a pair to another split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from torch.utils.data import Dataset

from unveil.core.rng import keys, words
from unveil.data.tensor_dataset import Split, is_held_out
from unveil.errors import DataError, RecipeError, did_you_mean
from unveil.playground.scene_captions import SceneObject, chinese_caption, english_caption
from unveil.playground.shapes import COLOURS, KINDS
from unveil.types import Item

Task = Literal["copy", "reverse", "sort"]
Direction = Literal["en-zh", "zh-en"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MAX_LINE = 10_000  # characters; a sentence of more is not one
_DRAWS = 64  # random numbers that one try at a pair may use


class Pair(NamedTuple):
    """A source text and its target text."""

    source: str
    target: str


@dataclass(frozen=True)
class TaskConfig:
    """Configuration of tasks on letters: copy, reverse or sort; "sort d a c" becomes "a c d".

    Attributes:
        tasks: Tasks, in turn.
        symbols: Number of letters, the first ones of the alphabet.
        min_length, max_length: Range of the lengths, equally often.
        count, num_val: Number of pairs of the training and the validation split.
    """

    tasks: tuple[Task, ...] = ("copy", "reverse", "sort")
    symbols: int = 16
    min_length: int = 1
    max_length: int = 12
    count: int = 40_000
    num_val: int = 1_200
    seed: int = 0
    kind: Literal["task"] = "task"

    def __post_init__(self) -> None:
        """Raises RecipeError for a setting out of range."""
        for task in self.tasks:
            if task not in get_args(Task):
                choices = get_args(Task)
                raise RecipeError(f"task {task!r}: must be one of {', '.join(choices)}{did_you_mean(task, choices)}")
        if not self.tasks or not 2 <= self.symbols <= len(LETTERS):
            raise RecipeError(f"{len(self.tasks)} tasks, {self.symbols} symbols: at least 1 task, and 2 to 26 symbols")
        if not 1 <= self.min_length <= self.max_length <= _DRAWS - 1:
            raise RecipeError(
                f"lengths {self.min_length} to {self.max_length}: must be 1 to {_DRAWS - 1}, in this order"
            )
        _check_counts(self.count, self.num_val, self.seed)


@dataclass(frozen=True)
class ScenePairsConfig:
    """Configuration of descriptions of one to three shapes in English and Chinese.

    A combination is the set of kinds and colours of a scene. A hash holds out one of ten combinations. The splits share
    none, though each shape and each colour occurs in both.

    Attributes:
        count, held_out: Number of different pairs of each split.
    """

    direction: Direction = "en-zh"
    count: int = 24_000
    num_val: int = 1_000
    seed: int = 0
    kind: Literal["scene-pairs"] = "scene-pairs"

    def __post_init__(self) -> None:
        """Raises RecipeError for a setting out of range."""
        if self.direction not in get_args(Direction):
            choices = get_args(Direction)
            raise RecipeError(
                f"direction {self.direction!r}: must be one of {', '.join(choices)}"
                f"{did_you_mean(self.direction, choices)}"
            )
        _check_counts(self.count, self.num_val, self.seed)


@dataclass(frozen=True)
class PairsConfig:
    """Configuration of a file of sentence pairs, one per line: source, tab, target; UTF-8.

    A hash holds out one of ten sources.
    """

    path: str
    kind: Literal["pairs"] = "pairs"


SequenceConfig = TaskConfig | ScenePairsConfig | PairsConfig
SEQUENCES: dict[str, type[Any]] = {"task": TaskConfig, "scene-pairs": ScenePairsConfig, "pairs": PairsConfig}


class Pairs(Dataset[Item]):
    """Pairs as items with "source" and "target", both texts."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = list(pairs)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> Item:
        """Return one pair."""
        return self.pairs[index]._asdict()


def open_pairs(config: SequenceConfig, part: Split = "train") -> Pairs:
    """Return the pairs that a config describes.

    Raises:
        DataError: The file cannot be read, or contains no pairs of a split.
        RecipeError: More different pairs are requested than exist.
    """
    if isinstance(config, TaskConfig):
        return Pairs(list(_tasks(config, part)))
    if isinstance(config, ScenePairsConfig):
        return Pairs(_scene_pairs(config, part))
    return Pairs(_file_pairs(Path(config.path), part))


# ---------------------------------------------------------------------- the three kinds


def _tasks(config: TaskConfig, part: Split) -> Iterator[Pair]:
    act: dict[str, Callable[[list[str]], list[str]]] = {"copy": list, "reverse": lambda x: x[::-1], "sort": sorted}
    count = config.num_val if part == "held-out" else config.count
    for number, tries in _draws(config.seed, count, part):
        task = config.tasks[number % len(config.tasks)]
        for draws in tries:
            length = config.min_length + int(draws[0] * (config.max_length - config.min_length + 1))
            letters = [LETTERS[int(draw * config.symbols)] for draw in draws[1 : length + 1]]
            source = " ".join([task, *letters])
            if is_held_out(source) == (part == "held-out"):
                yield Pair(source, " ".join(act[task](letters)))
                break


def _scene_pairs(config: ScenePairsConfig, part: Split) -> list[Pair]:
    pairs: dict[Pair, None] = {}
    wanted = config.num_val if part == "held-out" else config.count
    for _, tries in _draws(config.seed, 20 * wanted, part):  # descriptions of one shape soon repeat themselves
        if len(pairs) == wanted:
            break
        for draws in tries:
            things = _things(draws)
            if is_held_out(_combination(things)) == (part == "held-out"):
                relation = bool(draws[-1] < 0.5)
                english, other = english_caption(things, relation=relation), chinese_caption(things, relation=relation)
                pairs.setdefault(Pair(english, other) if config.direction == "en-zh" else Pair(other, english))
                break
    if len(pairs) < wanted:
        raise RecipeError(f"{wanted} different pairs of the {part} part: only {len(pairs)} were found; ask for fewer")
    return list(pairs)


def _things(draws: Sequence[float]) -> list[SceneObject]:
    """Return one to three objects with different colours."""
    count, colours, things = 1 + int(draws[0] * 3), list(COLOURS), list[SceneObject]()
    for i in range(count):
        object_draws = draws[1 + 5 * i : 6 + 5 * i]
        size: Literal["small", "large"] = "large" if object_draws[2] < 0.5 else "small"
        colour = colours.pop(int(object_draws[1] * len(colours)))
        things.append(
            SceneObject(KINDS[int(object_draws[0] * len(KINDS))], colour, size, object_draws[3], object_draws[4])
        )
    return things


def _combination(things: Sequence[SceneObject]) -> str:
    return " + ".join(sorted(f"{thing.colour} {thing.kind}" for thing in things))


def _file_pairs(path: Path, part: Split) -> list[Pair]:
    try:
        # at line feeds alone: other signs that Python takes for ends of lines may stand in a sentence
        lines = [line.rstrip("\r") for line in path.read_text("utf-8-sig").split("\n")]
    except OSError as problem:
        raise DataError(
            f"{path}: cannot be read ({problem.strerror}); give a file of lines SOURCE<tab>TARGET"
        ) from None
    except UnicodeDecodeError as problem:
        raise DataError(f"{path}: not UTF-8 text at byte {problem.start}; save it as UTF-8") from problem
    pairs: list[Pair] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        columns = [column.strip() for column in line.split("\t")]
        if len(columns) != 2 or not all(columns) or len(line) > MAX_LINE:
            raise DataError(
                f"{path}, line {number}: {len(columns)} columns, {len(line)} characters; must be a source, one tab and "
                f"a target, together at most {MAX_LINE} characters"
            )
        if is_held_out(columns[0]) == (part == "held-out"):
            pairs.append(Pair(*columns))
    if not pairs:
        raise DataError(f"{path}: {len(lines)} lines, none of them for the {part} part; give more pairs")
    return pairs


def _draws(seed: int, count: int, part: Split) -> Iterator[tuple[int, Iterator[list[float]]]]:
    """Yield each number with its successive attempts at a pair: random numbers in [0, 1)."""
    which = 1 if part == "held-out" else 0

    def drawn(numbers: range, attempt: int) -> list[list[float]]:
        bits = words(keys(seed, numbers, attempt, which), _DRAWS) >> np.uint64(11)
        return (bits.astype(np.float64) * 2.0**-53).tolist()

    def tries(number: int, first: list[float]) -> Iterator[list[float]]:
        yield first
        for attempt in range(1, 1000):
            yield drawn(range(number, number + 1), attempt)[0]
        raise RecipeError(f"no pair for the {part} part in 1,000 tries; allow longer sequences or more symbols")

    for begin in range(0, count, 1024):
        numbers = range(begin, min(begin + 1024, count))
        for number, first in zip(numbers, drawn(numbers, 0), strict=True):
            yield number, tries(number, first)


def _check_counts(count: int, held_out: int, seed: int) -> None:
    if count < 1 or held_out < 1 or seed < 0:
        raise RecipeError(f"count {count}, held_out {held_out}, seed {seed}: at least 1, 1 and 0")
