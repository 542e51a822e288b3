"""Images of a data set as one tensor for the metrics."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from unveil.errors import DataError, ShapeError
from unveil.types import Item


class ImageDataset(Protocol):
    """A data set whose items have "pixels"."""

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, index: int, /) -> Item:
        """Return one item."""
        ...


class ImageSet(NamedTuple):
    """Images uint8 (N, C, H, W), or videos (N, C, T, H, W), with their labels where every item has one.

    Attributes:
        pixels: Images or videos.
        labels: Labels (N,) int64.
        classes: Names of the labels.
    """

    pixels: Tensor
    labels: Tensor | None = None
    classes: Sequence[str] | None = None

    def subset(self, rows: Tensor) -> ImageSet:
        """Return the images of the given rows."""
        return ImageSet(self.pixels[rows], None if self.labels is None else self.labels[rows], self.classes)

    def sha256(self) -> str:
        """Return the SHA-256 of shape and pixels, which identifies the images."""
        digest = hashlib.sha256(str(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.contiguous().numpy().tobytes())
        return digest.hexdigest()


def collect_images(dataset: ImageDataset, limit: int | None = None) -> ImageSet:
    """Collect the images or videos of a data set, or `limit` of them spaced evenly.

    Raises:
        DataError: The data set is empty.
        ShapeError: The pixels are not uint8 (C, H, W) or (C, T, H, W), or differ in size.
    """
    classes = getattr(dataset, "classes", None)
    if not len(dataset):
        raise DataError("a data set without images cannot be measured")
    rows = torch.arange(len(dataset))
    if limit is not None and limit < len(dataset):
        rows = rows[(torch.arange(limit) * len(dataset)) // limit]
    whole: Any = getattr(dataset, "pixels", None)
    if isinstance(whole, Tensor) and whole.dtype == torch.uint8:  # already one tensor: no need to take it apart
        labels = getattr(dataset, "labels", None)
        return ImageSet(whole[rows], None if labels is None else labels[rows], classes)
    items = [dataset[int(i)] for i in rows]
    for i, item in enumerate(items):
        pixels, first = item["pixels"], items[0]["pixels"]
        if pixels.dtype != torch.uint8 or pixels.ndim not in (3, 4) or pixels.shape != first.shape:
            raise ShapeError(
                f"image {int(rows[i])} is {tuple(pixels.shape)} {pixels.dtype}; all must be uint8 of one size, "
                f"here {tuple(first.shape)}: resize them when the data set is opened"
            )
    labelled = all("label" in item for item in items)
    labels = torch.tensor([int(item["label"]) for item in items]) if labelled else None
    return ImageSet(torch.stack([item["pixels"] for item in items]), labels, classes)


def evenly_spaced(dataset: ImageDataset, count: int) -> list[Item]:
    """Return `count` items spaced evenly over a data set, or all of them if there are fewer."""
    count = min(count, len(dataset))
    return [dataset[place * len(dataset) // count] for place in range(count)]


def condition_value(item: Item, key: str) -> Any:
    """Return an item's value for a condition key; the key "prompt" falls back to "text"."""
    return item["text"] if key == "prompt" and key not in item else item[key]


def digest_of(items: Sequence[Item], keys: Sequence[str]) -> str:
    """Return the SHA-256 of the tensors and texts of items, which identifies the reference of a metric."""
    digest = hashlib.sha256()
    for item in items:
        for key in keys:
            value = item[key]
            digest.update(value.encode() if isinstance(value, str) else value.contiguous().numpy().tobytes())
    return digest.hexdigest()
