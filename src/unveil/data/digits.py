"""scikit-learn's handwritten digits: 1,797 real images of 8 x 8, present wherever scikit-learn is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from unveil.data.registry import data_kind
from unveil.data.tensor_dataset import ImageTensorDataset, Split, stable_hash
from unveil.errors import DataError

HELD_OUT = 450  # the other 1,347 train


@dataclass(frozen=True)
class DigitsConfig:
    """The digits; there is nothing to choose."""

    kind: Literal["digits"] = "digits"


def digits(part: Split = "train") -> ImageTensorDataset:
    """The digits of one part: pixels uint8 (N, 1, 8, 8) and labels 0 to 9.

    The 450 indices with the lowest hash are held out, the other 1,347 train, on every machine alike.

    Raises:
        DataError: scikit-learn is not installed.
    Source: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits (test part, as scikit-learn ships it).
    """
    pixels, labels = _all()
    order = sorted(range(len(pixels)), key=lambda index: stable_hash(f"digits {index}"))
    chosen = sorted(order[:HELD_OUT] if part == "held-out" else order[HELD_OUT:])
    return ImageTensorDataset(pixels[chosen], labels[chosen], [str(digit) for digit in range(10)])


@data_kind("digits", DigitsConfig)
def _open(config: DigitsConfig, part: Split) -> ImageTensorDataset:
    del config
    return digits(part)


@lru_cache(maxsize=1)  # 115 kB, and reading it costs a second
def _all() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "the digits come with scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    values, labels = load_digits(return_X_y=True)
    grey = torch.from_numpy(values).mul(255 / 16).round().to(torch.uint8)  # scikit-learn counts 0 to 16
    return grey.reshape(-1, 1, 8, 8), torch.from_numpy(labels).long()
