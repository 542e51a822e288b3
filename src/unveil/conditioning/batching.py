"""What a user gives under the keys of conditions, one value for all samples or one for each, and what it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

from torch import Tensor, nn

from unveil.errors import RecipeError, did_you_mean
from unveil.types import Condition, Raw


def build_conditions(
    conditioners: Mapping[str, Any], raw: Raw, count: int | None = None
) -> tuple[Condition | None, Condition | None]:
    """The condition that `raw` asks for, and the null condition, each of `count` rows.

    Args:
        conditioners: by key.
        raw, count: as `Model.encode` takes them.

    Raises:
        RecipeError: a key or a value that is not known (names the nearest), or a wrong number of values.
    """
    for key in raw:
        if key not in conditioners:
            known = list(conditioners)
            raise RecipeError(
                f"condition {key!r}: this model takes {', '.join(known) or 'none'}{did_you_mean(key, known)}"
            )
    count = count or max([1, *(len(value) for value in raw.values() if is_per_sample(value))])
    wanted: list[Condition] = []
    nothing: list[Condition] = []
    for key, one in conditioners.items():
        none: list[Condition] = [one.null(count)] if one.drop > 0 or (keeps_in_uncond(one) and key not in raw) else []
        if key not in raw and not none:
            raise RecipeError(f"{key}: missing, and this model was trained with it always; give one")
        given = [one.encode(expand_per_sample(key, raw[key], count))] if key in raw else none
        wanted += given
        nothing += given if keeps_in_uncond(one) else none
    condition = reduce(Condition.join, wanted) if wanted else None
    # one condition without a "nothing" leaves none for the whole
    null = reduce(Condition.join, nothing) if wanted and len(nothing) == len(wanted) else None
    return condition, null


def is_per_sample(value: Any) -> bool:
    """Whether a raw value holds one entry per row, as opposed to one for all."""
    return isinstance(value, list | tuple | range) or (isinstance(value, Tensor) and value.ndim > 0)


def expand_per_sample(key: str, value: Any, count: int) -> Any:
    """The value with one entry per row."""
    if not is_per_sample(value):
        return [value] * count
    if len(value) == 1 and count > 1:
        return value.expand(count, *value.shape[1:]) if isinstance(value, Tensor) else [value[0]] * count
    if len(value) != count:
        raise RecipeError(f"{key}: {len(value)} values for {count} samples; give one, or one for each")
    return value


def keeps_in_uncond(conditioner: nn.Module) -> bool:
    """Whether guidance compares with the same value of this condition: it has a usual value, and no "none"."""
    return bool(getattr(conditioner, "stays", False))
