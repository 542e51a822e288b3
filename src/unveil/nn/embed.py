"""Sinusoidal embeddings of the time index that a network is given."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EmbeddingOrder = Literal["sin-cos", "cos-sin"]


def sinusoid(t: Tensor, dim: int, order: EmbeddingOrder) -> Tensor:
    """(B,) indices, fractions allowed, to (B, dim) waves of wavelengths 2 pi to 10000 * 2 pi, in float32.

    `sin-cos` divides the exponent by dim/2 - 1 and reaches the longest wavelength, as DDPM does; `cos-sin` divides
    by dim/2 and stops one short of it, as Improved DDPM, ADM and DiT do. An odd `dim` ends in a zero column.

    Source: Vaswani et al. 2017, section 3.5 (arXiv:1706.03762); Ho et al. 2020, appendix B (arXiv:2006.11239).
    """
    half = dim // 2
    divisor = half - 1 if order == "sin-cos" else half
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(-math.log(10000) / max(divisor, 1) * steps)  # (B, dim/2)
    waves = [angles.sin(), angles.cos()] if order == "sin-cos" else [angles.cos(), angles.sin()]
    return F.pad(torch.cat(waves, dim=1), (0, dim % 2))


class TimeEmbedding(nn.Module):
    """The sinusoid of t through two linear layers: (B,) -> (B, width)."""

    def __init__(self, dim: int, width: int, order: EmbeddingOrder) -> None:
        super().__init__()
        self.dim = dim
        self.order: EmbeddingOrder = order
        self.linear_1 = nn.Linear(dim, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """The embedding, in the type of the weights."""
        waves = sinusoid(t, self.dim, self.order).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(waves)))
