"""Batches of samples, which are repeated one by one if memory runs out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from typing import TypeVar

from unveil.errors import out_of_memory

Result = TypeVar("Result")
_log = logging.getLogger(__name__)


def in_batches(count: int, at_once: int, run: Callable[[slice, int, int], Result]) -> Iterator[tuple[slice, Result]]:
    """Yield the rows and the result of each batch.

    If memory runs out in a batch, this and all later batches have one sample.

    Args:
        count: Number of samples.
        at_once: Number of samples of a batch.
        run: Function (rows, number of the batch, number of batches) that computes a batch.

    Raises:
        MemoryError, RuntimeError: Memory runs out with one sample, or another error of `run`.
    """
    start = 0
    while start < count:
        rows = slice(start, min(start + at_once, count))
        try:
            result = run(rows, start // at_once, math.ceil(count / at_once))
        except (MemoryError, RuntimeError) as problem:
            if at_once == 1 or rows.stop - start == 1 or not out_of_memory(problem):
                raise
            _log.warning("out of memory with %d samples at a time; repeated one by one", rows.stop - start)
            at_once = 1
            continue  # behind the except, whose traceback would keep what was computed
        yield rows, result
        start = rows.stop
