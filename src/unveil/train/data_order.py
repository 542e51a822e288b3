"""Which item a training example is: a function of the seed and the example's number alone.

Optimiser step s takes the examples s * batch ... (s + 1) * batch - 1, whatever the number of workers,
processes and accumulated parts, so a run that resumes at a step has nothing to fast-forward. A step of a fixed number
of tokens is a function of the seed and the step too, whatever the sizes of the examples.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence, Sized
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from unveil.core.rng import key as hash_of
from unveil.errors import DataError, RecipeError, ShapeError, did_you_mean
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
    """Training examples: their numbers, the data, and the raw values that conditioners read, by key.

    The data are one tensor, or where sizes may differ a list of one for each example.
    """

    numbers: list[int]
    data: Tensor | list[Tensor]
    raw: dict[str, Any]


class EpochShuffle:
    """Every item once per epoch, each epoch in another order."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self._known: dict[int, Tensor] = {}

    def index(self, number: int) -> int:
        """The item of an example."""
        epoch, place = divmod(number, self.size)
        return int(self.permutation(epoch)[place])

    def permutation(self, epoch: int) -> Tensor:
        """The items of an epoch in their order, int64 (size,)."""
        if epoch not in self._known:
            if len(self._known) > 1:  # a batch spans two epochs at most when it is smaller than the set
                self._known.clear()
            generator = torch.Generator().manual_seed(hash_of(self.seed, epoch) >> 1)
            self._known[epoch] = torch.randperm(self.size, generator=generator)
        return self._known[epoch]


class BatchPlan(Protocol):
    """Which examples a step takes."""

    def examples(self, step: int, part: int = 0, parts: int = 1) -> range:
        """The numbers of the examples of one of a step's parts."""
        ...


class FixedBatch:
    """As many examples in each step, `batch`, and in each of its parts."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def examples(self, step: int, part: int = 0, parts: int = 1) -> range:
        """The numbers of the examples of one of a step's parts."""
        share, begin = self.batch // parts, step * self.batch
        return range(begin + part * share, begin + (part + 1) * share)


@runtime_checkable
class SupportsSizes(Protocol):
    """A data set that knows the sizes of its items without reading them."""

    def sizes(self) -> Tensor:
        """Frames, height and width of each item: int64 (N, 3)."""
        ...


def sizes_of(items: IndexableItems) -> Tensor:
    """What a data set says of its items' sizes, int64 (N, 3).

    Raises:
        RecipeError: it does not know them.
    """
    if not isinstance(items, SupportsSizes):
        raise RecipeError(
            f"train.tokens: {type(items).__name__} does not tell the sizes of its items without reading them; "
            "give a number of examples, train.batch_size, instead"
        )
    return items.sizes()


class TokenBudget:
    """The examples of each step when a step is to be of `tokens` tokens.

    All examples' tokens are laid end to end in their order. Step s takes the examples that begin in its `tokens` of
    them, those from s * tokens on: at most one example's length more or less. So any step is known at once, and a run
    that resumes has nothing to count.

    Args:
        order: which item an example is.
        lengths: of each item, in tokens.
        tokens: of a step.

    Raises:
        RecipeError: an item that is longer than a step.
    """

    def __init__(self, order: EpochShuffle, lengths: Sequence[int] | Tensor, tokens: int) -> None:
        self.order, self.tokens = order, tokens
        self.lengths = torch.as_tensor(lengths, dtype=torch.int64)
        self.longest, self.epoch = int(self.lengths.max()), int(self.lengths.sum())
        self._begins: dict[int, Tensor] = {}
        self.split(1)

    def split(self, parts: int) -> None:
        """Check that each of a number of parts of a step has an example.

        Raises:
            RecipeError: none is.
        """
        if self.tokens < parts * self.longest:
            raise RecipeError(
                f"train.tokens = {self.tokens}: the longest item has {self.longest} tokens, in {parts} part(s) of a "
                f"step; at least {parts * self.longest}"
            )

    def examples(self, step: int, part: int = 0, parts: int = 1) -> range:
        """The numbers of the examples of one of a step's parts, all of about as many tokens."""
        first, last = (step * self.tokens + self.tokens * place // parts for place in (part, part + 1))
        return range(self._from(first), self._from(last))

    def _from(self, token: int) -> int:
        """The first example that begins at this token or later."""
        epoch, place = divmod(token, self.epoch)
        if epoch not in self._begins:
            if len(self._begins) > 1:
                self._begins.clear()
            lengths = self.lengths[self.order.permutation(epoch)]
            self._begins[epoch] = lengths.cumsum(0) - lengths
        return epoch * len(self.lengths) + int(torch.searchsorted(self._begins[epoch], place))


class BatchSampler(Sampler[list[int]]):
    """The example numbers of each forward pass of one process, from an optimiser step on.

    Args:
        first: the optimiser step that the length counts from.
        last: the one to end before.
        batch: examples of one optimiser step, over all processes and parts; or a plan of them.
        parts: forward passes of one optimiser step in each process.
        rank: of this process.
        world: number of processes.
        start: the optimiser step to begin with, where Lightning has counted the steps before it already; None: first.
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
        """Forward passes from the first step to the last."""
        return (self.last - self.first) * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        """The example numbers of each forward pass: process r computes the r-th slice of a step, part by part."""
        for step in range(self.start, self.last):
            for part in range(self.rank * self.parts, (self.rank + 1) * self.parts):
                yield list(self.steps.examples(step, part, self.world * self.parts))


class IndexedDataset(Dataset[Batch]):
    """A data set read by example number instead of by index.

    batching: how data of different sizes are computed together; None: they are all of one.
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
        """The examples as one batch.

        A data set may draw random numbers itself (crops, captions): the global generators are set from
        the first example's number, so those are the same after resuming and with any number of workers.
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
    """Items as one batch: tensors of one shape are stacked, everything else becomes a list.

    Args:
        batching: how data of different sizes are computed together, which then are a list; None: they are of one.

    Raises:
        RecipeError: an item lacks a key.
        ShapeError: the data of two items differ in shape, and batching is off.
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
    """Looks at the first item, before anything is written.

    Raises:
        DataError: the data set is empty.
        RecipeError: the first item lacks a key that training reads.
        ShapeError: its data has another shape than the model's, or a type that is neither float nor uint8.
    """
    if not len(items):
        raise DataError("the data set is empty; training needs at least 1 item")
    first = items[0]
    data = torch.as_tensor(value_of(first, key, 0))
    for raw_key in raw_keys:
        value_of(first, raw_key, 0)
    if data.dtype != torch.uint8 and not data.dtype.is_floating_point:
        raise ShapeError(f"item 0: {key!r} is {data.dtype}; must be uint8 (pixels, 0 to 255) or floating point")
    if shape is not None and tuple(data.shape) != tuple(shape):
        raise ShapeError(
            f"item 0: {key!r} has the shape {tuple(data.shape)}, the model takes {tuple(shape)}; "
            "change the data's size or the recipe's shape"
        )


def items_of(items: IndexableItems, indices: Sequence[int]) -> Sequence[Item]:
    """Several items of a data set, at once where it can do that."""
    several = getattr(items, "__getitems__", None)  # as torch's own loader asks
    return [items[index] for index in indices] if several is None else several(indices)


def value_of(item: Item, key: str, index: int) -> Any:
    """What an item, which is the data set's `index`, holds under a key, or under the other name of it.

    Raises:
        RecipeError: nothing; names the nearest key.
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
