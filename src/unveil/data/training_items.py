"""Data sets of users as the items of training: dicts of tensors, whatever the data set yields.

A data set has `len(ds)` and `ds[i]`, or can be iterated: an IterableDataset, a generator, a function that returns one.
An item is a dict, a tuple (data, value of each condition), or only the data. Data are tensors (C, H, W), arrays
(H, W, C) or PIL images; other shapes, such as points, are used as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from unveil.data.adapter import SourceDataset
from unveil.errors import RecipeError, ShapeError
from unveil.io.image_modes import eight_bits
from unveil.types import Item

COLLECTED_BYTES = 4 << 30  # items of an iterable that are held in memory
_LEAST_BYTES = 256  # counted for an item, however small
_LOOKED_AT = 16  # items whose range is looked at
_SLACK = 1e-3  # how far beyond a range rounding may take a value

Range = tuple[float, float]


def training_items(
    dataset: Any,
    key: str,
    *,
    shape: Sequence[int] | None = None,
    conditions: Sequence[str] = (),
    value_range: Range | None = None,
    asks_range: bool = True,
) -> SourceDataset:
    """Return a data set whose items are dicts with a tensor under `key`; the data set itself if its items are.

    Args:
        dataset: Data set, iterable, or function that returns an iterable. An iterable is read once, into memory.
        key: Key of the data in dicts.
        shape: Shape that the model takes; None: that of the data. Arrays of this shape are not transposed, and PIL
            images become grey for 1 channel and RGB for 3.
        conditions: Keys of the values behind the data in tuples, in this order; further values are left out.
        value_range: Range of floating-point data, which is scaled to [-1, 1]; None: they are used as they are.
        asks_range: True if floating-point images without values below 0 are refused when `value_range` is None, since
            they may be in [0, 1], [0, 255] or [-1, 1].

    Raises:
        RecipeError: The data set or its first item is of another kind, or the iterable is too large; or when an item
            is read that lacks the data or a condition.
        ShapeError: The range of images is not clear; or when an item is read with values outside of `value_range`.
    """
    if value_range is not None and not value_range[0] < value_range[1]:
        raise RecipeError(f"value_range = {value_range}: the lowest value, then the highest, such as (0, 255)")
    source = _indexable(dataset)
    if not len(source):
        return source
    first: Any = source[0]
    ready = isinstance(first, Mapping) and not isinstance(first.get(key), Image.Image | np.ndarray)
    items: SourceDataset = source
    if not ready or value_range is not None:
        reading = _Reading(key, None if shape is None else tuple(shape), tuple(conditions), value_range)
        items = TrainingItems(source, reading)
        first = items[0]
    if value_range is None and asks_range:
        _check_range(items, first, key)
    return items


@dataclass(frozen=True)
class _Reading:
    """How items are read; the fields are those of `training_items`."""

    key: str
    shape: tuple[int, ...] | None
    conditions: tuple[str, ...]
    value_range: Range | None

    def item(self, value: object, index: int) -> Item:
        """Return an item as a dict."""
        if isinstance(value, Mapping):
            item = dict(cast(Mapping[str, Any], value))
        elif isinstance(value, tuple):
            item = self._of_tuple(cast(tuple[Any, ...], value), index)
        else:
            item = self._of_tuple((value,), index)
        if self.key in item:
            item[self.key] = self._data(item[self.key], f"item {index}, {self.key!r}")
        return item

    def _of_tuple(self, values: tuple[Any, ...], index: int) -> Item:
        names = (self.key, *self.conditions)
        if len(values) < len(names):
            kinds = ", ".join(type(value).__name__ for value in values)
            raise RecipeError(
                f"item {index} is ({kinds}); the model takes ({', '.join(names)}): let items be tuples in this order, "
                "or dicts with these keys"
            )
        return dict(zip(names, [values[0], *map(_plain, values[1:])], strict=False))

    def _data(self, value: Any, where: str) -> Any:
        if isinstance(value, Image.Image):
            value = self._of_image(value)
        elif isinstance(value, np.ndarray):
            value = torch.from_numpy(self._channels_first(value).copy())
        elif not isinstance(value, Tensor | list | int | float):
            raise RecipeError(f"{where}: {type(value).__name__}; must be a tensor, an array or a PIL image")
        if self.value_range is None or not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        low, high = self.value_range
        least, most = float(value.min()), float(value.max())
        slack = _SLACK * (high - low)
        if not (least >= low - slack and most <= high + slack):
            raise ShapeError(
                f"{where}: values from {least:g} to {most:g}, outside of value_range = ({low:g}, {high:g}); give the "
                "range of all data"
            )
        return (value - low) * (2 / (high - low)) - 1

    def _of_image(self, image: Image.Image) -> Tensor:
        channels = self.shape[0] if self.shape is not None and len(self.shape) == 3 else None
        grey = channels == 1 or (channels is None and (image.mode in ("L", "LA") or image.mode.startswith("I")))
        pixels = torch.from_numpy(np.array(eight_bits(image, grey=grey), dtype=np.uint8))
        return pixels.reshape(*pixels.shape[:2], -1).permute(2, 0, 1).contiguous()

    def _channels_first(self, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return an array with the channels first, where it has them last or lacks the axis of one channel."""
        if value.shape == self.shape:
            return value
        image = self.shape is None and value.dtype == np.uint8
        if value.ndim == 2 and (image or (self.shape is not None and self.shape == (1, *value.shape))):
            return value[None]
        last = np.moveaxis(value, -1, 0) if value.ndim in (3, 4) else value
        return last if image or last.shape == self.shape else value


class TrainingItems(Dataset[Item]):
    """A data set seen through `training_items`; `classes` is the source's, where it has them."""

    def __init__(self, source: SourceDataset, reading: _Reading) -> None:
        self.source, self.reading = source, reading
        self.classes: list[str] | None = getattr(source, "classes", None)

    def __len__(self) -> int:
        """Number of items."""
        return len(self.source)

    def __getitem__(self, index: int) -> Item:
        """The source's item as a dict."""
        return self.reading.item(self.source[index], index)


def _indexable(dataset: Any) -> SourceDataset:
    """Return the data set, or the items of an iterable as a list."""
    if isinstance(dataset, str | PathLike):
        raise RecipeError(f"dataset {str(dataset)!r}: a path; open it, such as by data.open(FolderConfig(path=...))")
    if isinstance(dataset, DataLoader):
        raise RecipeError("dataset: a DataLoader; give its data set, loader.dataset, and set config.batch_size")
    if isinstance(dataset, Mapping):
        raise RecipeError("dataset: a dict; give a list with one dict for each item")
    listed = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if listed and not isinstance(dataset, IterableDataset):
        return dataset
    if not isinstance(dataset, Iterable) and callable(dataset):
        dataset = cast(Callable[[], Any], dataset)()
    if not isinstance(dataset, Iterable):
        raise RecipeError(
            f"dataset: {type(dataset).__name__}; must have len() and [index], or be an iterable, or a function that "
            "returns one"
        )
    return _collected(iter(cast(Iterable[Any], dataset)))


def _collected(items: Iterator[Any]) -> list[Any]:
    collected: list[Any] = []
    size = 0
    for item in items:
        collected.append(item)
        size += max(_bytes(item), _LEAST_BYTES)
        if size > COLLECTED_BYTES:
            raise RecipeError(
                f"dataset: the iterable has not ended after {len(collected)} items, {size / 2**30:.3g} GiB; iterables "
                "are read into memory: end it, such as by itertools.islice, or give a data set with len() and [index]"
            )
    return collected


def _bytes(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    if isinstance(value, tuple | list):
        return sum(map(_bytes, value))
    if isinstance(value, Image.Image):
        return value.width * value.height * len(value.getbands())
    return int(getattr(value, "nbytes", 8))


def _plain(value: Any) -> Any:
    """Return a number of NumPy or torch as a Python number."""
    scalar = isinstance(value, np.generic) or (isinstance(value, Tensor | np.ndarray) and value.ndim == 0)
    return value.item() if scalar else value


def _check_range(items: SourceDataset, first: Any, key: str) -> None:
    """Raise ShapeError if floating-point images have no value below 0, so that their range is not clear."""
    data = first.get(key)
    image = isinstance(data, Tensor) and data.is_floating_point() and data.ndim in (3, 4) and data.shape[0] in (1, 3)
    if not image:
        return
    count, highest = min(len(items), _LOOKED_AT), 0.0
    for place in range(count):
        data = items[place * len(items) // count][key]
        if not float(data.min()) >= 0:  # also for NaN, which training reports
            return
        highest = max(highest, float(data.max()))
    if highest == 0:
        return
    near = "(0, 1)" if highest <= 1 + _SLACK else "(0, 255)" if highest <= 255.5 else f"(0, {highest:g})"
    more = ", or value_range=(-1, 1) to keep them" if highest <= 1 + _SLACK else ""
    raise ShapeError(
        f"{key!r}: floats from 0 to {highest:g} in {count} items, and none below 0; the pixels of models are in "
        f"[-1, 1]: give value_range={near} to scale them{more}, or give uint8"
    )
