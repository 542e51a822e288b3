"""A data set whose items also hold a hint: a picture that is drawn from what else is in the item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import Dataset

from unveil.data.adapted import Source
from unveil.types import DataError, Item, RecipeError, ShapeError

HINT = "hint"  # the item's key
Draw = Callable[[Item], Tensor]


@dataclass(frozen=True)
class HintedConfig:
    """Another data set with hints.

    of: the config of the data set. draw: from an item with "pixels" to its hint, uint8 (3, H, W); the same each time.
    """

    of: Any
    draw: Draw
    kind: Literal["hinted"] = "hinted"


class Hinted(Dataset[Item]):
    """The items of a data set, each with its "hint", uint8 (3, H, W), drawn when it is read.

    Attributes:
        classes: the source's, where it has them.
    """

    def __init__(self, source: Source, draw: Draw) -> None:
        self.source = source
        self.draw = draw
        self.classes: list[str] | None = getattr(source, "classes", None)

    def __len__(self) -> int:
        """How many items."""
        return len(self.source)

    def __getitem__(self, index: int) -> Item:
        """The source's item and its hint.

        Raises:
            RecipeError, ShapeError: an item that lacks what the hint is drawn from, or holds something else there.
        """
        item = dict(self.source[index])
        try:
            item[HINT] = self.draw(item)
        except (RecipeError, ShapeError, DataError) as problem:
            raise type(problem)(f"item {index}: {problem}") from problem
        return item
