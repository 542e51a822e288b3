"""Batches of samples: conditions with one value for all or one for each, and batches repeated if memory runs out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from typing import Any, TypeVar

from torch import Tensor, nn

from unveil.errors import RecipeError, did_you_mean, out_of_memory
from unveil.types import Condition, Raw

Result = TypeVar("Result")
_log = logging.getLogger(__name__)


def build_conditions(
    conditioners: Mapping[str, Any], values: Raw, count: int | None = None
) -> tuple[Condition | None, Condition | None]:
    """Condition encoded from `values`, and the null condition, each of `count` rows; None if there is none.

    Args:
        conditioners: Conditioners of the model, by key.
        values, count: Values and number of samples, as in `Model.encode`.

    Raises:
        RecipeError: A key or a value is unknown (the message names the nearest), or the number of values is wrong.
    """
    for key in values:
        if key not in conditioners:
            names = list(conditioners)
            raise RecipeError(
                f"condition {key!r}: this model takes {', '.join(names) or 'none'}{did_you_mean(key, names)}"
            )
    count = count or max([1, *(len(value) for value in values.values() if is_per_sample(value))])
    wanted: list[Condition] = []
    nothing: list[Condition] = []
    for key, conditioner in conditioners.items():
        optional = conditioner.drop > 0 or (keeps_in_uncond(conditioner) and key not in values)
        none: list[Condition] = [conditioner.null(count)] if optional else []
        if key not in values and not none:
            raise RecipeError(f"{key}: missing, and this model was trained with it always; give one")
        encoded = [conditioner.encode(expand_per_sample(key, values[key], count))] if key in values else none
        wanted += encoded
        nothing += encoded if keeps_in_uncond(conditioner) else none
    condition = reduce(Condition.join, wanted) if wanted else None
    # one condition without a "nothing" leaves none for the whole
    null = reduce(Condition.join, nothing) if wanted and len(nothing) == len(wanted) else None
    return condition, null


def is_per_sample(value: Any) -> bool:
    """Return True if a value contains one entry per row, as opposed to one for all."""
    return isinstance(value, list | tuple | range) or (isinstance(value, Tensor) and value.ndim > 0)


def expand_per_sample(key: str, value: Any, count: int) -> Any:
    """Expand a value to one entry per row."""
    if not is_per_sample(value):
        return [value] * count
    if len(value) == 1 and count > 1:
        return value.expand(count, *value.shape[1:]) if isinstance(value, Tensor) else [value[0]] * count
    if len(value) != count:
        raise RecipeError(f"{key}: {len(value)} values for {count} samples; give one, or one for each")
    return value


def keeps_in_uncond(conditioner: nn.Module) -> bool:
    """Return True if guidance keeps this condition unchanged; such a condition has default values instead of "none"."""
    return bool(getattr(conditioner, "stays", False))


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
