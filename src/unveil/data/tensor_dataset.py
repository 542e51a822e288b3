"""Images of one size that are held in memory, and the split of a data set into its two parts."""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from unveil.errors import RecipeError, ShapeError, did_you_mean
from unveil.types import Item

LOW = "low"  # the item's key


def area_downsample(pixels: Tensor, side: int) -> Tensor:
    """The means of equal squares, float32 (C, side, side) in [-1, 1], of uint8 (C, H, W) whose side it divides.

    Source: Dhariwal & Nichol 2021, the released training script of the upsamplers (arXiv:2105.05233).
    """
    rate = pixels.shape[-1] // side
    squares = pixels.unflatten(-1, (side, rate)).unflatten(-3, (side, rate))  # (C, side, rate, side, rate)
    return squares.to(torch.float32).mean((-3, -1)) / 127.5 - 1


def bicubic_upsample(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, C, H, W) in [-1, 1], bicubic, of another size."""
    return functional.interpolate(images, size, mode="bicubic", align_corners=False).clamp(-1, 1)


def check_low(side: int | None, size: int) -> None:
    """Raises RecipeError when images of `size` pixels a side cannot be made so small by means of squares."""
    fitting = [n for n in range(1, size) if size % n == 0]
    if side is not None and side not in fitting:
        near = min(fitting, key=lambda n: abs(n - side))
        raise RecipeError(f"low {side}: must divide the size, {size} pixels, and be below it; nearest: {near}")


# "train" is what a network may learn from; "held-out" is what it is judged on and never sees.
Split = Literal["train", "held-out"]
_SHARE = 10  # one of that many hashes is held out


def check_split(part: str) -> Split:
    """The part of this name.

    Raises:
        RecipeError: Neither "train" nor "held-out".
    """
    for allowed in get_args(Split):
        if part == allowed:
            return allowed
    raise RecipeError(f"part {part!r}: must be 'train' or 'held-out'{did_you_mean(part, get_args(Split))}")


def stable_hash(key: str) -> int:
    """A 64-bit number that is the same on every machine and in every version, spread evenly over keys."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def is_held_out(what: str) -> bool:
    """Return True if a text's hash puts it into the held-out split: one of ten."""
    return stable_hash(what) % _SHARE == 0


class ImageTensorDataset(Dataset[Item]):
    """Images in one tensor, with or without labels.

    Attributes:
        pixels: uint8 (N, C, H, W).
        labels: int64 (N,), or None.
        classes: The name of each label, or None.
        low: Side of the smaller image that items hold as "low", or None.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor | None = None,
        classes: list[str] | None = None,
        *,
        low: int | None = None,
    ) -> None:
        if pixels.ndim != 4 or pixels.element_size() != 1:
            raise ShapeError(f"pixels of {pixels.dtype} {tuple(pixels.shape)}: must be uint8 (N, C, H, W)")
        if labels is not None and len(labels) != len(pixels):
            raise ShapeError(f"{len(labels)} labels for {len(pixels)} images: must be as many")
        self.pixels = pixels
        self.labels = labels
        self.classes = classes
        self.low = low

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pixels)

    def __getitem__(self, index: int) -> Item:
        """One image, and its label where there is one."""
        item: Item = {"pixels": self.pixels[index]}
        if self.low is not None:
            item[LOW] = area_downsample(item["pixels"], self.low)
        return item | self.facts(index)

    def facts(self, index: int) -> Item:
        """Return an image's annotations, without its pixels."""
        return {} if self.labels is None else {"label": int(self.labels[index])}
