"""The discrete cosine transform of boxes of pixels; the lowest frequencies contain most of the energy.

Source: Ahmed, Natarajan & Rao 1974, "Discrete cosine transform", eq. 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dct_matrix(length: int) -> Tensor:
    """Orthonormal cosine basis (frequency, position) of the given length, the constant row first."""
    frequency, place = torch.arange(length)[:, None], torch.arange(length)
    waves = torch.cos(math.pi / length * (place + 0.5) * frequency) * math.sqrt(2 / length)
    return torch.cat([waves[:1] / math.sqrt(2), waves[1:]])


def lowpass_rows(count: int, channels: int, time: int, side: int) -> Tensor:
    """Projection (count, channels * time * side * side) of boxes (C, T, H, W) to their lowest frequencies.

    The rows are orthonormal, so that the transpose reconstructs the box from the coefficients. Rows beyond the number
    of values of a box are 0.
    """
    over, along = dct_matrix(time), dct_matrix(side)
    waves = torch.einsum("at,by,cx->abctyx", over, along, along).flatten(0, 2).flatten(1)  # (T H W, T H W)
    shares = [torch.arange(length) / length for length in (time, side, side)]
    height = sum(share.square() for share in torch.meshgrid(*shares, indexing="ij"))
    chosen = torch.as_tensor(height).flatten().argsort(stable=True).repeat_interleave(channels)[:count]
    rows = torch.zeros(count, channels, waves.shape[1])
    places = torch.arange(len(chosen))
    rows[places, places % channels] = waves[chosen]
    return rows.flatten(1)
