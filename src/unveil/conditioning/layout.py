"""Layouts as a condition: objects, each with a class and a box, as tokens for cross-attention.

Sources: layouts as tokens: Rombach et al. 2022, section 4.3.1 (arXiv:2112.10752); a token from the class and the sines
and cosines of its box: Li et al. 2023, section 3.2 (arXiv:2301.07093). Deviation: the class is a row of a table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unveil.conditioning.class_label import Label
from unveil.errors import RecipeError, ShapeError
from unveil.types import Condition

COLUMNS = 5  # class, centre x, centre y, width, height
FREQUENCIES = 6  # of each number of a box: 1 to 32 half turns over the image


class BoxTokens(nn.Module):
    """Tokens of layouts: a learned token first, then one for each object; unused places are masked.

    A layout without objects is only the first token, which also represents "none".

    Args:
        classes: Number of classes.
        dim: Width of a token, the network's `cross_attention_dim`.
        most: Maximum number of objects of a layout.
        drop: Share of the training samples that get "none" instead, in [0, 1).
        names: Names of the classes, which may then be given instead of numbers.
        key: Key of the item that holds the layout, rows (N, 5) of class, centre x, centre y, width and height, the last
            four in [0, 1].

    Raises:
        RecipeError: The settings are inconsistent.
    """

    def __init__(
        self,
        classes: int,
        dim: int,
        most: int,
        drop: float = 0.0,
        names: Sequence[str] | None = None,
        *,
        key: str = "layout",
    ) -> None:
        super().__init__()
        if most < 1 or not 0 <= drop < 1:
            raise RecipeError(f"most = {most}, drop = {drop}: must be at least 1, and lie in [0, 1)")
        self.most, self.drop, self.key = most, drop, key
        self.rows = Label(classes, dim, names=names, key=key)
        self.enter = nn.Sequential(nn.Linear(dim + 8 * FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.first = nn.Parameter(torch.randn(dim))

    def encode(self, raw: Tensor | Sequence[Any]) -> Condition:
        """Condition of B layouts: tokens (B, 1 + most, dim), and their mask.

        Args:
            raw: Rows (N, 5) of each layout, as a tensor, as a list such as [("circle", 0.5, 0.5, 0.2, 0.2)], or as text
                such as "circle 0.5 0.5 0.2 0.2; square 0.1 0.1 0.2 0.2".

        Raises:
            RecipeError: A class is unknown, there are too many objects, or a number is outside the image.
            ShapeError: A row does not have five values.
        """
        device = self.first.device
        rows = [self._rows(boxes) for boxes in raw]
        padded = torch.zeros(len(rows), self.most, COLUMNS)
        mask = torch.zeros(len(rows), 1 + self.most, dtype=torch.bool)
        for place, boxes in enumerate(rows):
            padded[place, : len(boxes)] = boxes
            mask[place, : 1 + len(boxes)] = True
        labels = self.rows.table(padded[..., 0].long().to(device))  # (B, most, dim)
        embedded = torch.cat([labels, fourier_features(padded[..., 1:]).to(labels)], dim=-1)
        first = self.first.expand(len(rows), 1, -1)
        return Condition(tokens=torch.cat([first, self.enter(embedded)], dim=1), mask=mask.to(device))

    def null(self, batch: int) -> Condition:
        """Null condition: the layout without objects, `batch` times.

        Raises:
            RecipeError: The model has no "none", because layouts were never dropped in training.
        """
        if not self.drop:
            raise RecipeError(f"{self.key}: trained without dropout, so it has no null layout; set drop, e.g. 0.1")
        return self.encode([torch.zeros(0, COLUMNS)] * batch)

    def _rows(self, boxes: Any) -> Tensor:
        """Rows of one layout, float32 (N, 5), with classes as numbers."""
        if isinstance(boxes, str):
            boxes = [part.split() for part in boxes.split(";") if part.strip()]
        rows = list(boxes)
        if any(len(row) != COLUMNS for row in rows):
            raise ShapeError(
                f"{self.key}: a row of {[len(row) for row in rows]} values; give class, x, y, width, height"
            )
        if len(rows) > self.most:
            raise RecipeError(f"{self.key}: {len(rows)} objects; this model was trained with {self.most} at most")
        if not rows:
            return torch.zeros(0, COLUMNS)
        classes = self.rows.numbers([row[0] if isinstance(row[0], str) else int(row[0]) for row in rows])
        boxes = torch.tensor([[_number(self.key, value) for value in row[1:]] for row in rows])
        if not bool(((boxes >= 0) & (boxes <= 1)).all()):
            raise RecipeError(f"{self.key} {boxes.tolist()}: places and sizes are shares of the image, from 0 to 1")
        return torch.cat([classes[:, None].float(), boxes], dim=1)


def fourier_features(boxes: Tensor) -> Tensor:
    """Sines and cosines (..., 8 * FREQUENCIES) of boxes (..., 4) in [0, 1]."""
    turns = math.pi * 2.0 ** torch.arange(FREQUENCIES)
    angles = (boxes[..., None] * turns).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _number(key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as problem:
        raise RecipeError(f"{key}: {value!r} is not a number; give class, x, y, width, height") from problem
