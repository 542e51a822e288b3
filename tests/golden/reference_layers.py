"""Layers of published networks in functional form; each takes the key of its weights, and the weights draw what is new.

A network written with them thus states its keys and shapes itself. References run in float64.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


class Weights:
    """Tensors by published key: those that are stored, or random ones of a seed, drawn at their first use.

    Attributes:
        tensors: What was drawn or stored so far, in float32.
        used: The keys that a network took.
    """

    def __init__(self, seed: int = 0, stored: Mapping[str, Tensor] | None = None) -> None:
        self.seed, self.fixed = seed, stored is not None
        self.tensors: dict[str, Tensor] = dict(stored or {})
        self.used: set[str] = set()

    def __call__(self, key: str, *shape: int) -> Tensor:
        """The tensor of a key in float64.

        Raises:
            AssertionError: Another shape, or a key that the stored tensors do not have.
        """
        self.used.add(key)
        if key not in self.tensors:
            assert not self.fixed, f"{key} is not stored"
            self.tensors[key] = self.drawn(key, shape)
        assert tuple(self.tensors[key].shape) == shape, f"{key}: {tuple(self.tensors[key].shape)}, not {shape}"
        return self.tensors[key].double()

    def drawn(self, key: str, shape: tuple[int, ...]) -> Tensor:
        """Scales of normalisations are near 1, biases near 0; matrices keep the size of what they map."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {key}".encode()))
        numbers = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            return numbers / math.sqrt(numbers[0].numel())
        return 1 + 0.2 * numbers if key.endswith("weight") else 0.2 * numbers


def linear(w: Weights, key: str, x: Tensor, out: int, *, bias: bool = True) -> Tensor:
    """A linear layer over the last axis."""
    return F.linear(x, w(f"{key}.weight", out, x.shape[-1]), w(f"{key}.bias", out) if bias else None)


def conv(
    w: Weights, key: str, x: Tensor, out: int, side: int = 3, stride: int = 1, padding: int | None = None
) -> Tensor:
    """A convolution, padded to keep the size where no padding is given."""
    weight, bias = w(f"{key}.weight", out, x.shape[1], side, side), w(f"{key}.bias", out)
    return F.conv2d(x, weight, bias, stride, side // 2 if padding is None else padding)


def norm(w: Weights, key: str, x: Tensor, groups: int = 32, eps: float = 1e-5) -> Tensor:
    """A normalisation over groups of channels."""
    return F.group_norm(x, groups, w(f"{key}.weight", x.shape[1]), w(f"{key}.bias", x.shape[1]), eps)


def layer_norm(w: Weights, key: str, x: Tensor) -> Tensor:
    """A normalisation over the last axis."""
    return F.layer_norm(x, x.shape[-1:], w(f"{key}.weight", x.shape[-1]), w(f"{key}.bias", x.shape[-1]))


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of (..., N, D) to (..., M, D)."""
    return torch.softmax(query @ key.mT / math.sqrt(query.shape[-1]), -1) @ value


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) as (B, heads, N, C / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def waves(t: Tensor, width: int, *, last: int = 0, sines_first: bool = False) -> Tensor:
    """Sinusoids of times, worked out in float32 as published; `last` 1 reaches the longest wave, 1 / 10000."""
    half = width // 2
    rates = torch.exp(-math.log(10000) / (half - last) * torch.arange(half, dtype=torch.float64)).float()
    angles = t.float()[:, None] * rates
    parts = [angles.sin(), angles.cos()] if sines_first else [angles.cos(), angles.sin()]
    return torch.cat(parts, 1).double()


def doubled(x: Tensor) -> Tensor:
    """Each pixel repeated in 2 x 2."""
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def halved(x: Tensor) -> Tensor:
    """The mean of 2 x 2 pixels."""
    return F.avg_pool2d(x, 2)
