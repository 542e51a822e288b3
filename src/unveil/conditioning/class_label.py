"""Class labels, and continuous values rounded to codes, as rows of an embedding table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from unveil.errors import RecipeError, did_you_mean
from unveil.types import Condition


class Label(nn.Module):
    """One learned row per class, added to the time embedding; with dropout, one more row is used for "none".

    Args:
        classes: Number of classes.
        dim: Width of a row, the network's `vector_dim`.
        drop: Share of the training samples that get "none" instead, in [0, 1).
        names: Names of the classes, which may then be given instead of numbers.
        key: Key of the item that holds the label.

    Source: Nichol & Dhariwal 2021, section 3 (arXiv:2102.09672); the extra row: Ho & Salimans 2022
    (arXiv:2207.12598).
    """

    def __init__(
        self, classes: int, dim: int, drop: float = 0.0, names: Sequence[str] | None = None, *, key: str = "label"
    ) -> None:
        super().__init__()
        if not 0 <= drop < 1:
            raise RecipeError(f"drop = {drop}: must lie in [0, 1)")
        if names is not None and len(names) != classes:
            raise RecipeError(f"{len(names)} class names given for {classes} classes")
        self.classes, self.drop, self.key = classes, drop, key
        self.names = list(names) if names is not None else None
        self.table = nn.Embedding(classes + (drop > 0), dim)

    def numbers(self, raw: Tensor | Sequence[int | str]) -> Tensor:
        """Classes (B,) int64 of B labels, given by number or name.

        Raises:
            RecipeError: A label is not a class; the message names the nearest.
        """
        if isinstance(raw, Tensor):
            if raw.is_floating_point() or raw.ndim != 1:
                raise RecipeError(f"labels {raw.dtype} {tuple(raw.shape)}: must be integers (B,)")
            if raw.numel() and not 0 <= int(raw.min()) <= int(raw.max()) < self.classes:
                raw = raw.tolist()  # the list names the wrong one
        return raw.long() if isinstance(raw, Tensor) else torch.tensor([self._number(label) for label in raw])

    def encode(self, raw: Tensor | Sequence[int | str]) -> Condition:
        """Condition of B labels: the rows of their classes.

        Raises:
            RecipeError: A label is not a class; the message names the nearest.
        """
        return Condition(vector=self.table(self.numbers(raw).to(self.table.weight.device)))

    def null(self, batch: int) -> Condition:
        """Null condition: the row of "none", `batch` times.

        Raises:
            RecipeError: The model has no "none", because labels were never dropped in training.
        """
        if not self.drop:
            raise RecipeError(f"{self.key}: trained without dropout, so it has no null label; set drop, e.g. 0.1")
        none = torch.full((batch,), self.classes, device=self.table.weight.device)
        return Condition(vector=self.table(none))

    def _number(self, label: int | str) -> int:
        names = self.names or []
        if isinstance(label, str):
            if label in names:
                return names.index(label)
            if not label.lstrip("-").isdigit():
                allowed = f"one of {', '.join(names)}" if names else f"a number from 0 to {self.classes - 1}"
                raise RecipeError(f"label {label!r}: must be {allowed}{did_you_mean(label, names)}")
        number = int(label)
        if not 0 <= number < self.classes:
            closest = min(max(number, 0), self.classes - 1)
            name = f" ({names[closest]})" if names else ""
            raise RecipeError(f"label {number}: must be 0 to {self.classes - 1}; nearest: {closest}{name}")
        return number


class LabelToken(nn.Module):
    """One learned token per class for cross-attention; with dropout, the last class is used for "none".

    Args:
        classes: Number of classes, that of "none" included, as in published tables.
        dim: Width of a token, the network's `cross_attention_dim`.
        drop: Share of the training samples that get "none" instead, in [0, 1).
        names: Names of the classes except "none", which may then be given instead of numbers.
        key: Key of the item that holds the label.

    Source: Rombach et al. 2022, section 4.3.1 (arXiv:2112.10752).
    """

    def __init__(
        self, classes: int, dim: int, drop: float = 0.0, names: Sequence[str] | None = None, *, key: str = "label"
    ) -> None:
        super().__init__()
        self.rows = Label(classes - (drop > 0), dim, drop, names, key=key)

    @property
    def key(self) -> str:
        """Key of the item that holds the label."""
        return self.rows.key

    @property
    def drop(self) -> float:
        """Share of the training samples that get "none"."""
        return self.rows.drop

    def encode(self, raw: Tensor | Sequence[int | str]) -> Condition:
        """Condition of B labels: tokens (B, 1, dim); raises RecipeError for a label that is not a class."""
        return _as_token(self.rows.encode(raw))

    def null(self, batch: int) -> Condition:
        """Null condition: the token of "none", `batch` times; raises RecipeError if there is none."""
        return _as_token(self.rows.null(batch))


def _as_token(condition: Condition) -> Condition:
    assert condition.vector is not None
    return Condition(tokens=condition.vector[:, None])


class BinnedValue(nn.Module):
    """Continuous values in [low, high] as rows of a table of evenly spaced codes.

    Args:
        low, high: Ends of the range, which are the first and the last code.
        codes: Number of codes, evenly spaced.
        dim: Width of a row, the network's `vector_dim`.
        drop: Share of the training samples that get "none" instead, in [0, 1).
        lookup: `nearest` rounds a value to the nearest code (ties to the even code); `exact` accepts only codes.
        key: Key of the item that holds the value.
    """

    def __init__(
        self,
        low: float,
        high: float,
        codes: int,
        dim: int,
        drop: float = 0.0,
        *,
        lookup: Literal["nearest", "exact"] = "nearest",
        key: str = "value",
    ) -> None:
        super().__init__()
        if codes < 2 or not low < high:
            raise RecipeError(f"{codes} codes from {low} to {high}: at least 2 codes and low < high are needed")
        self.low, self.high, self.codes = low, high, codes
        self.lookup = lookup
        self.rows = Label(codes, dim, drop, key=key)

    @property
    def key(self) -> str:
        """Key of the item that holds the value."""
        return self.rows.key

    @property
    def drop(self) -> float:
        """Share of the training samples that get "none"."""
        return self.rows.drop

    def encode(self, raw: Tensor | Sequence[float | str]) -> Condition:
        """Condition of B values, given as numbers or the text of numbers: the rows of their codes.

        Raises:
            RecipeError: A value is not a number, is outside the range, or, with exact look-up, is not a code.
        """
        try:
            values = torch.tensor([float(number) for number in raw], dtype=torch.float64)
        except (TypeError, ValueError) as problem:
            raise RecipeError(
                f"{self.key} {list(raw)}: must be numbers from {self.low:g} to {self.high:g}"
            ) from problem
        places = (values - self.low) / (self.high - self.low) * (self.codes - 1)
        numbers = places.round()
        inside = (numbers >= 0) & (numbers < self.codes) & (values >= self.low) & (values <= self.high)
        fits = inside if self.lookup == "nearest" else inside & ((places - numbers).abs() < 1e-6)
        if not fits.all():
            self._refuse(float(values[~fits][0]))
        return self.rows.encode(numbers.long())

    def null(self, batch: int) -> Condition:
        """Null condition: the row of "none", `batch` times; raises RecipeError if there is none."""
        return self.rows.null(batch)

    def _refuse(self, value: float) -> None:
        step = (self.high - self.low) / (self.codes - 1)
        clamped = min(max(value, self.low), self.high) if value == value else self.low
        closest = self.low + round((clamped - self.low) / step) * step
        allowed = f"from {self.low:g} to {self.high:g}"
        allowed += f" in steps of {step:g}" if self.lookup == "exact" else ""
        raise RecipeError(f"{self.key} {value:g}: must be {allowed}; nearest: {closest:g}")
