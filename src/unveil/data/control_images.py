"""A data set whose items also hold a hint: an image that is drawn from what else is in the item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import Dataset

from unveil.data import registry
from unveil.data.adapter import SourceDataset
from unveil.data.tensor_dataset import Split
from unveil.errors import DataError, RecipeError, ShapeError
from unveil.types import Item

HINT = "hint"  # the item's key
Draw = Callable[[Item], Tensor]


@dataclass(frozen=True)
class ControlImageConfig:
    """Another data set with hints.

    of: the config of the data set. draw: from an item with "pixels" to its hint, uint8 (3, H, W); the same each time.
    """

    of: Any
    draw: Draw
    kind: Literal["hinted"] = "hinted"


class ControlImageDataset(Dataset[Item]):
    """The items of a data set, each with its "hint", uint8 (3, H, W), drawn when it is read.

    Attributes:
        classes: The source's, where it has them.
    """

    def __init__(self, source: SourceDataset, draw: Draw) -> None:
        self.source = source
        self.draw = draw
        self.classes: list[str] | None = getattr(source, "classes", None)

    def __len__(self) -> int:
        """Number of items."""
        return len(self.source)

    def __getitem__(self, index: int) -> Item:
        """The source's item and its hint.

        Raises:
            RecipeError, ShapeError: An item that lacks what the hint is drawn from, or holds something else there.
        """
        item = dict(self.source[index])
        try:
            item[HINT] = self.draw(item)
        except (RecipeError, ShapeError, DataError) as problem:
            raise type(problem)(f"item {index}: {problem}") from problem
        return item


@registry.data_wrapper(ControlImageConfig)
def _open(config: ControlImageConfig, part: Split) -> ControlImageDataset:
    return ControlImageDataset(registry.open(config.of, part), config.draw)
