"""Order of the training data: the item of each example, which depends only on the seed and the example's number.

Optimiser step s takes the examples s * batch ... (s + 1) * batch - 1, whatever the number of workers,
processes and accumulated parts, so a run that resumes at a step has nothing to fast-forward. A step of a fixed number
of tokens is a function of the seed and the step too, whatever the sizes of the examples.

Classifiers and sequence models draw initial weights, the order of the data, augmentations and dropout from one
generator, one after the other. The state of the generator is saved, so a resumed run draws the same.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from unveil.core.rng import key as hash_of
from unveil.errors import DataError, RecipeError, ShapeError, WeightsError, did_you_mean
from unveil.model.config.train import Batching
from unveil.types import Item

# A condition's key and the other name of it in data
ALSO = {"prompt": "text"}


class IndexableItems(Sized, Protocol):
    """A data set: its length, and one item by index."""

    def __getitem__(self, index: int, /) -> Item:
        """The item at an index in [0, len)."""
        ...


class Batch(NamedTuple):
    """Training examples: their numbers, the data, and the raw values of the conditioners, by key.

    The data are one tensor, or a list with one tensor per example if sizes may differ.
    """

    numbers: list[int]
    data: Tensor | list[Tensor]
    raw: dict[str, Any]


class EpochShuffle:
    """Order in which every item occurs once per epoch, each epoch in another order."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self._known: dict[int, Tensor] = {}

    def index(self, number: int) -> int:
        """Index of the item of an example."""
        epoch, place = divmod(number, self.size)
        return int(self.permutation(epoch)[place])

    def permutation(self, epoch: int) -> Tensor:
        """Items of an epoch in their order, int64 (size,)."""
        if epoch not in self._known:
            if len(self._known) > 1:  # a batch spans two epochs at most when it is smaller than the set
                self._known.clear()
            generator = torch.Generator().manual_seed(hash_of(self.seed, epoch) >> 1)
            self._known[epoch] = torch.randperm(self.size, generator=generator)
        return self._known[epoch]


class BatchPlan(Protocol):
    """Plan of the examples of each step."""

    def examples(self, step: int, part: int = 0, parts: int = 1) -> range:
        """Numbers of the examples in one part of a step."""
        ...


class FixedBatch:
    """Plan of batches of one size, split into equal parts."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def examples(self, step: int, part: int = 0, parts: int = 1) -> range:
        """Numbers of the examples in one part of a step."""
        share, begin = self.batch // parts, step * self.batch
        return range(begin + part * share, begin + (part + 1) * share)


@runtime_checkable
class SupportsSizes(Protocol):
    """Data set that knows the sizes of its items without reading them."""

    def sizes(self) -> Tensor:
        """Frames, height and width of each item: int64 (N, 3)."""
        ...


def sizes_of(items: IndexableItems) -> Tensor:
    """Return the sizes of a data set's items, int64 (N, 3).

    Raises:
        RecipeError: The data set does not know the sizes.
    """
    if not isinstance(items, SupportsSizes):
        raise RecipeError(
            f"train.tokens: {type(items).__name__} does not tell the sizes of its items without reading them; "
            "give a number of examples, train.batch_size, instead"
        )
    return items.sizes()


class TokenBudget:
    """Plan of the examples of each step, for steps of about `tokens` tokens.

    The tokens of all examples are concatenated in their order. Step s takes the examples that begin in its `tokens` of
    them, those from s * tokens on; its length differs by at most one example's. So every step is known without
    computing the earlier ones, also after resuming.

    Args:
        order: Item of each example.
        lengths: Number of tokens of each item.
        tokens: Number of tokens of a step.

    Raises:
        RecipeError: An item is longer than a step.
    """

    def __init__(self, order: EpochShuffle, lengths: Sequence[int] | Tensor, tokens: int) -> None:
        self.order, self.tokens = order, tokens
        self.lengths = torch.as_tensor(lengths, dtype=torch.int64)
        self.longest, self.epoch = int(self.lengths.max()), int(self.lengths.sum())
        self._begins: dict[int, Tensor] = {}
        self.split(1)

    def split(self, parts: int) -> None:
        """Check that every part of a step has an example, for the given number of parts.

        Raises:
            RecipeError: A part has no example.
        """
        if self.tokens < parts * self.longest:
            raise RecipeError(
                f"train.tokens = {self.tokens}: the longest item has {self.longest} tokens, in {parts} part(s) of a "
                f"step; at least {parts * self.longest}"
            )

    def examples(self, step: int, part: int = 0, parts: int = 1) -> range:
        """Numbers of the examples in one part of a step; the parts have about as many tokens."""
        first, last = (step * self.tokens + self.tokens * place // parts for place in (part, part + 1))
        return range(self._from(first), self._from(last))

    def _from(self, token: int) -> int:
        """Number of the first example that begins at this token or later."""
        epoch, place = divmod(token, self.epoch)
        if epoch not in self._begins:
            if len(self._begins) > 1:
                self._begins.clear()
            lengths = self.lengths[self.order.permutation(epoch)]
            self._begins[epoch] = lengths.cumsum(0) - lengths
        return epoch * len(self.lengths) + int(torch.searchsorted(self._begins[epoch], place))


class BatchSampler(Sampler[list[int]]):
    """Example numbers of each forward pass of one process, from an optimiser step on.

    Args:
        first: Optimiser step that the length counts from.
        last: Optimiser step after the last one.
        batch: Number of examples of one optimiser step, over all processes and parts; or a plan of them.
        parts: Number of forward passes of one optimiser step in each process.
        rank: Rank of this process.
        world: Number of processes.
        start: First optimiser step that is yielded, if Lightning has already counted the steps before it; None:
            `first`.
    """

    def __init__(
        self,
        first: int,
        last: int,
        *,
        batch: int | BatchPlan,
        parts: int,
        rank: int = 0,
        world: int = 1,
        start: int | None = None,
    ) -> None:
        self.first, self.last = first, last
        self.start = first if start is None else start
        self.parts, self.rank, self.world = parts, rank, world
        self.steps: BatchPlan = FixedBatch(batch) if isinstance(batch, int) else batch

    def __len__(self) -> int:
        """Number of forward passes from the first step to the last."""
        return (self.last - self.first) * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the example numbers of each forward pass: process r computes the r-th slice of a step, part by part."""
        for step in range(self.start, self.last):
            for part in range(self.rank * self.parts, (self.rank + 1) * self.parts):
                yield list(self.steps.examples(step, part, self.world * self.parts))


class IndexedDataset(Dataset[Batch]):
    """Data set that is read by example number instead of by index.

    Attributes:
        batching: Method of computing data of different sizes together; None: all data have one size.
    """

    def __init__(
        self,
        items: IndexableItems,
        order: EpochShuffle,
        key: str,
        raw_keys: Sequence[str],
        batching: Batching | None = None,
    ) -> None:
        self.items = items
        self.order = order
        self.key = key
        self.raw_keys = list(raw_keys)
        self.batching: Batching | None = batching

    def __getitems__(self, numbers: list[int]) -> Batch:
        """Return the examples as one batch.

        A data set may draw random numbers itself (crops, captions). The global generators are seeded from the first
        example's number, so that these are the same after resuming and with any number of workers.
        """
        seed = hash_of(self.order.seed, numbers[0], len(numbers))
        torch.default_generator.manual_seed(seed >> 1)
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        indices = [self.order.index(number) for number in numbers]
        return collate(numbers, indices, items_of(self.items, indices), self.key, self.raw_keys, self.batching)


def collate(
    numbers: list[int],
    indices: Sequence[int],
    items: Sequence[Item],
    key: str,
    raw_keys: Sequence[str],
    batching: Batching | None = None,
) -> Batch:
    """Collate items to one batch: tensors of one shape are stacked, everything else becomes a list.

    Args:
        batching: Method of computing data of different sizes together, which then are a list; None: all data have one
            size.

    Raises:
        RecipeError: An item lacks a key.
        ShapeError: The data of two items differ in shape, and batching is off.
    """
    data = [torch.as_tensor(value_of(item, key, index)) for item, index in zip(items, indices, strict=True)]
    raw = {
        k: _stacked([value_of(item, k, index) for item, index in zip(items, indices, strict=True)]) for k in raw_keys
    }
    if batching is not None:
        return Batch(numbers, data, raw)
    for tensor, index in zip(data, indices, strict=True):
        if tensor.shape != data[0].shape:
            raise ShapeError(
                f"item {index}: {key!r} has the shape {tuple(tensor.shape)}, item {indices[0]} {tuple(data[0].shape)}; "
                "bring every item to one shape, or set train.batching where the network packs clips"
            )
    return Batch(numbers, torch.stack(data), raw)


def check_items(items: IndexableItems, key: str, raw_keys: Sequence[str], shape: tuple[int, ...] | None) -> None:
    """Check the first item, before anything is written.

    Raises:
        DataError: The data set is empty.
        RecipeError: The first item lacks a key that training reads.
        ShapeError: Its data has another shape than the model's, or a type that is neither float nor uint8.
    """
    if not len(items):
        raise DataError("the data set is empty; training needs at least 1 item")
    first = items[0]
    data = torch.as_tensor(value_of(first, key, 0))
    for raw_key in raw_keys:
        explain = getattr(items, "explain_missing", None)  # a data set knows where its values come from
        stored = ALSO.get(raw_key, raw_key)
        if explain is not None and not {raw_key, stored} & set(first) and (reason := explain(stored)):
            raise RecipeError(reason)
        value_of(first, raw_key, 0)
    if data.dtype != torch.uint8 and not data.dtype.is_floating_point:
        raise ShapeError(f"item 0: {key!r} is {data.dtype}; must be uint8 (pixels, 0 to 255) or floating point")
    if shape is not None and tuple(data.shape) != tuple(shape):
        raise ShapeError(
            f"item 0: {key!r} has the shape {tuple(data.shape)}, the model takes {tuple(shape)}; "
            "change the data's size or the recipe's shape"
        )


def items_of(items: IndexableItems, indices: Sequence[int]) -> Sequence[Item]:
    """Return several items of a data set, in one call if it supports that."""
    several = getattr(items, "__getitems__", None)  # as torch's own loader asks
    return [items[index] for index in indices] if several is None else several(indices)


def value_of(item: Item, key: str, index: int) -> Any:
    """Return the value of an item under a key or the other name of that key.

    Raises:
        RecipeError: The item has no such key; the error names the nearest one.
    """
    if key not in item and key in ALSO:
        key = ALSO[key]
    if key not in item:
        has = ", ".join(repr(k) for k in item)
        raise RecipeError(f"item {index} has no key {key!r}{did_you_mean(key, list(item))}; it has {has or 'none'}")
    return item[key]


def _stacked(values: list[Any]) -> Any:
    if all(isinstance(v, Tensor) and v.shape == values[0].shape for v in values):
        return torch.stack(values)
    if all(isinstance(v, int | float) for v in values):
        return torch.tensor(values)
    return values


WINDOW = 32  # batches whose examples are sorted by length, so that a batch holds little padding
_KEYS = ("generator", "order", "window", "batches", "position")


class ExampleNumbers(Dataset[Batch]):
    """Batches of example numbers only, for learners that hold their data in memory."""

    def __getitems__(self, numbers: list[int]) -> Batch:
        """Return a batch without data."""
        return Batch(numbers, torch.empty(0), {})


class BatchPart(NamedTuple):
    """Part of a step's batch.

    Attributes:
        positions: Positions of its examples in the batch.
        whole: True if the part is the whole batch.
    """

    positions: slice
    whole: bool


class RandomOrder(ABC):
    """Random order of batches of row numbers, and the generator that draws it.

    The generator starts in the state of the global one at creation; create it after the network's weights are drawn.

    Args:
        batch_size: Number of rows of a batch.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._generator = torch.get_rng_state()
        self._order = torch.empty(0, dtype=torch.int64)  # of this epoch
        self._window = 0  # where the window of sorted rows begins in it
        self._batches = torch.empty(0, dtype=torch.int64)  # the order of batches in the window
        self._position = 0  # in the epoch, or in the window

    @abstractmethod
    def draw(self) -> Tensor:
        """Draw the rows of the next batch, int64, from the global generator; call it inside `drawing`."""

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Context in which the global generator is that of the order."""
        before = torch.get_rng_state()
        torch.set_rng_state(self._generator)
        try:
            yield
        finally:
            self._generator = torch.get_rng_state()
            torch.set_rng_state(before)

    def forward_pass(self, part: BatchPart) -> AbstractContextManager[None]:
        """Context of a forward pass.

        The pass of a whole batch draws dropout from the same generator. If a batch is split, each part draws from a
        generator keyed by the step and the part instead, so that all processes keep one order of the data.
        """
        return self.drawing() if part.whole else nullcontext()

    def part(self, numbers: Sequence[int]) -> BatchPart:
        """Return the part of a batch that has these example numbers."""
        begin = numbers[0] % self.batch_size
        return BatchPart(slice(begin, begin + len(numbers)), len(numbers) == self.batch_size)

    def state(self) -> dict[str, Tensor]:
        """Tensors that are needed to resume a run."""
        window, position = (torch.tensor(number, dtype=torch.int64) for number in (self._window, self._position))
        values = (self._generator, self._order, window, self._batches, position)
        return {f"order.{key}": value.clone() for key, value in zip(_KEYS, values, strict=True)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned.

        Raises:
            WeightsError: A tensor is missing.
        """
        if missing := [key for key in _KEYS if f"order.{key}" not in state]:
            raise WeightsError(f"the state of training lacks order.{missing[0]}; use another checkpoint")
        values = [state[f"order.{key}"].clone() for key in _KEYS]
        self._generator, self._order, self._batches = values[0], values[1], values[3]
        self._window, self._position = int(values[2]), int(values[4])


class ShuffledRows(RandomOrder):
    """Order in which every row occurs once per epoch, except the last ones that do not fill a batch.

    Args:
        count: Number of rows.
    """

    def __init__(self, count: int, batch_size: int) -> None:
        super().__init__(batch_size)
        self.count = count

    def draw(self) -> Tensor:
        """Draw the next rows of the epoch, or the first of a new one."""
        if len(self._order) == 0 or self._position + self.batch_size > self.count:
            self._order, self._position = torch.randperm(self.count), 0
        rows = self._order[self._position : self._position + self.batch_size]
        self._position += self.batch_size
        return rows


class SortedWindows(RandomOrder):
    """Order in which every row occurs once per epoch, with rows of similar length in one batch.

    Args:
        lengths: Lengths of the rows.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int) -> None:
        super().__init__(batch_size)
        self.lengths = lengths
        self._parts: list[list[int]] | None = None

    def draw(self) -> Tensor:
        """Draw the rows of a batch of the window, or of the next window, or of a new epoch."""
        if self._position >= len(self._batches):
            self._window += WINDOW * self.batch_size
            if self._window > len(self._order) - self.batch_size:
                self._order, self._window = torch.randperm(len(self.lengths)), 0
            self._parts = self._sorted_parts()
            self._batches, self._position = torch.randperm(len(self._parts)), 0
        if self._parts is None:  # a resumed run
            self._parts = self._sorted_parts()
        rows = self._parts[int(self._batches[self._position])]
        self._position += 1
        return torch.tensor(rows)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned.

        Raises:
            WeightsError: A tensor is missing.
        """
        super().restore(state)
        self._parts = None

    def _sorted_parts(self) -> list[list[int]]:
        """Batches of the window, short rows first."""
        size = self.batch_size
        window = self._order[self._window : self._window + WINDOW * size].tolist()
        window.sort(key=lambda row: self.lengths[row])
        return [window[begin : begin + size] for begin in range(0, len(window) - size + 1, size)]
