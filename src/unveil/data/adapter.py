"""Anybody's data set as one of ours: the wanted key becomes "pixels", whatever kind of image it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from unveil.errors import DataError, RecipeError, ShapeError, did_you_mean
from unveil.io.image_modes import eight_bits
from unveil.types import Item

_SLACK = 1e-3  # how far beyond [-1, 1] rounding may take a value


class SourceDataset(Protocol):
    """A map-style data set whose items are dicts."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class AdaptedDataset(Dataset[Item]):
    """A data set seen through `adapt_dataset`; `classes` is the source's, where it has them."""

    def __init__(self, source: SourceDataset, key: str) -> None:
        self.source = source
        self.key = key
        self.classes: list[str] | None = getattr(source, "classes", None)

    def __len__(self) -> int:
        """Number of items."""
        return len(self.source)

    def __getitem__(self, index: int) -> Item:
        """The source's item, with "pixels" in the place of the key."""
        item = dict(self.source[index])
        if self.key not in item:
            raise RecipeError(
                f"item {index} has no {self.key!r}{did_you_mean(self.key, list(item))}; "
                f"it has {', '.join(map(str, item))}"
            )
        item["pixels"] = _pixels(item.pop(self.key), f"item {index}, {self.key!r}")
        return item


def adapt_dataset(source: SourceDataset, key: str) -> AdaptedDataset:
    """The data set with its images under "pixels" as training reads them; other keys pass through.

    Args:
        source: Any map-style data set of dicts.
        key: Key of the image: a PIL image; a uint8 array (H, W) or (H, W, C); a uint8 tensor (C, H, W); or
            floats in [-1, 1], of any shape with the channels first, kept as float32.

    Raises:
        RecipeError, ShapeError, DataError: When an item is read that has no such key, or a value that cannot be used
            (another type, outside [-1, 1], not finite); the message names the item.
    """
    return AdaptedDataset(source, key)


def _pixels(value: object, where: str) -> Tensor:
    if isinstance(value, Image.Image):
        grey = value.mode == "LA" or value.mode.startswith("I")
        value = np.array(value if value.mode in ("L", "RGB") else eight_bits(value, grey=grey), dtype=np.uint8)
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        if value.ndim not in (2, 3):
            raise ShapeError(f"{where}: uint8 array {value.shape}; must be (H, W) or (H, W, C)")
        return torch.from_numpy(value.copy()).reshape(*value.shape[:2], -1).permute(2, 0, 1).contiguous()
    tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    if not isinstance(tensor, Tensor):
        raise ShapeError(f"{where}: {type(value).__name__}; must be a PIL image, an array or a tensor")
    if tensor.dtype == torch.uint8:
        if tensor.ndim < 3 or tensor.shape[0] > 4:
            raise ShapeError(f"{where}: uint8 tensor {tuple(tensor.shape)}; must be (C, H, W) with 1 to 4 channels")
        return tensor
    if not tensor.is_floating_point():
        raise ShapeError(f"{where}: {tensor.dtype}; must be uint8 in 0 to 255 or floats in [-1, 1]")
    if not bool(torch.isfinite(tensor).all()):
        raise DataError(f"{where}: holds NaN or infinite values; repair or leave out this item")
    low, high = float(tensor.min()), float(tensor.max())
    if low < -1 - _SLACK or high > 1 + _SLACK:
        raise ShapeError(f"{where}: values from {low:g} to {high:g}; floats must lie in [-1, 1] (or be uint8)")
    return tensor.to(torch.float32)
