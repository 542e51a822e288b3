"""The order of examples that are held in memory, drawn from one stream of random numbers with everything else.

Classifiers and sequence models draw initial weights, the order of the data, augmentations and dropout from one
generator, one after the other. The state of the generator is saved, so a resumed run draws the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from unveil.errors import WeightsError
from unveil.train.data_order import Batch

WINDOW = 32  # batches whose examples are sorted by length, so that a batch holds little padding
_KEYS = ("generator", "order", "window", "batches", "position")


class ExampleNumbers(Dataset[Batch]):
    """Batches of example numbers alone, for learners that hold their data in memory."""

    def __getitems__(self, numbers: list[int]) -> Batch:
        """A batch without data."""
        return Batch(numbers, torch.empty(0), {})


class Part(NamedTuple):
    """A part of a step's batch.

    positions: of its examples in the batch. whole: whether it is all of the batch.
    """

    positions: slice
    whole: bool


class RandomOrder(ABC):
    """Batches of row numbers in a random order, and the generator that draws it.

    The generator starts as the global one is when this is created; call it after the network's weights are drawn.

    Args:
        batch_size: rows of a batch.
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
        """The rows of the next batch, int64; draws from the global generator, so call it inside `drawing`."""

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Inside, the global generator is that of the order."""
        before = torch.get_rng_state()
        torch.set_rng_state(self._generator)
        try:
            yield
        finally:
            self._generator = torch.get_rng_state()
            torch.set_rng_state(before)

    def forward_pass(self, part: Part) -> AbstractContextManager[None]:
        """The context of a forward pass.

        The pass of a whole batch draws dropout from the same generator. Where a batch is split, each part draws from
        a generator keyed by the step and the part instead, so that all processes keep one order of the data.
        """
        return self.drawing() if part.whole else nullcontext()

    def part(self, numbers: Sequence[int]) -> Part:
        """The part of a batch that has these example numbers."""
        begin = numbers[0] % self.batch_size
        return Part(slice(begin, begin + len(numbers)), len(numbers) == self.batch_size)

    def state(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs."""
        window, position = (torch.tensor(number, dtype=torch.int64) for number in (self._window, self._position))
        values = (self._generator, self._order, window, self._batches, position)
        return {f"order.{key}": value.clone() for key, value in zip(_KEYS, values, strict=True)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned.

        Raises:
            WeightsError: a tensor is missing.
        """
        if missing := [key for key in _KEYS if f"order.{key}" not in state]:
            raise WeightsError(f"the state of training lacks order.{missing[0]}; use another checkpoint")
        values = [state[f"order.{key}"].clone() for key in _KEYS]
        self._generator, self._order, self._batches = values[0], values[1], values[3]
        self._window, self._position = int(values[2]), int(values[4])


class ShuffledRows(RandomOrder):
    """Every row once per epoch, except the last ones that fill no batch.

    Args:
        count: of rows.
    """

    def __init__(self, count: int, batch_size: int) -> None:
        super().__init__(batch_size)
        self.count = count

    def draw(self) -> Tensor:
        """The next rows of the epoch, or the first of another one."""
        if len(self._order) == 0 or self._position + self.batch_size > self.count:
            self._order, self._position = torch.randperm(self.count), 0
        rows = self._order[self._position : self._position + self.batch_size]
        self._position += self.batch_size
        return rows


class SortedWindows(RandomOrder):
    """Every row once per epoch, rows of similar length together.

    Args:
        lengths: of the rows.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int) -> None:
        super().__init__(batch_size)
        self.lengths = lengths
        self._parts: list[list[int]] | None = None

    def draw(self) -> Tensor:
        """The rows of a batch of the window, or of the next window, or of another epoch."""
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
            WeightsError: a tensor is missing.
        """
        super().restore(state)
        self._parts = None

    def _sorted_parts(self) -> list[list[int]]:
        """The batches of the window, short rows first."""
        size = self.batch_size
        window = self._order[self._window : self._window + WINDOW * size].tolist()
        window.sort(key=lambda row: self.lengths[row])
        return [window[begin : begin + size] for begin in range(0, len(window) - size + 1, size)]
