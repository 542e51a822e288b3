"""The exponential moving average (EMA) of the weights, which is used for sampling."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Ema(Generic[M]):
    """EMA of a model's trained weights: average <- average + (1 - d) (weights - average).

    The decay d grows as (1 + n) / (10 + n) with the number n of earlier updates until it reaches `decay`, so that the
    random initial weights lose their influence early. Frozen parameters are shared with the model, and buffers are
    copied from it.

    Attributes:
        model: Second model with the averaged weights, in evaluation mode.
        updates: Number of updates.

    Source: Tarvainen & Valpola 2017, section 3 (arXiv:1703.01780) for the average in place of the weights.
    """

    def __init__(self, model: M, decay: float) -> None:
        frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
        self.model: M = copy.deepcopy(model, frozen)
        self.model.eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0
        pairs = list(zip(self.model.parameters(), model.parameters(), strict=True))
        self._averages: list[Tensor] = [mine.data for mine, live in pairs if mine is not live]
        self._weights: list[Tensor] = [live.data for mine, live in pairs if mine is not live]
        self._buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))

    def next_decay(self) -> float:
        """Decay of the next update."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the model's present weights."""
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            self._averages, self._weights, 1 - self.next_decay()
        )
        for mine, live in self._buffers:
            mine.copy_(live)
        self.updates += 1
