"""Which times a batch is trained at, and the weights that keep the loss unbiased."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from unveil.types import RecipeError


class TimeSampler(Protocol):
    """From uniform numbers to uniform numbers of another distribution, with importance weights."""

    def draw(self, u: Tensor, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(B,) numbers in [0, 1) for `process.trainable`, and 1 / (density there), both float64.

        u: uniform in [0, 1), (B,). samples: the global number of each training example.
        """
        ...


class Uniform:
    """Every time equally often."""

    def draw(self, u: Tensor, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The numbers themselves, with weight 1."""
        del samples
        return u, torch.ones_like(u)


class Stratified:
    """One time in each of `strata` equal parts in turn: fewer chance gaps than independent times.

    Source: Kingma et al. 2021, appendix I.1 (arXiv:2107.00630).
    """

    def __init__(self, strata: int) -> None:
        if strata < 1:
            raise RecipeError(f"strata = {strata}: at least 1; the batch size is a good number")
        self.strata = strata

    def draw(self, u: Tensor, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Example n falls into part n mod strata."""
        part = torch.tensor([n % self.strata for n in samples], dtype=u.dtype)
        return (part + u) / self.strata, torch.ones_like(u)


class SecondMoment:
    """Index t with probability proportional to sqrt(E[L_t^2]) over its last losses.

    Uniform until every index has `history` losses; `uniform` of the probability always stays uniform.
    Its state is `history_table` and `counts`, part of a checkpoint.

    Source: Nichol & Dhariwal 2021, eq. 18 (arXiv:2102.09672); 10 losses and 0.001 as published.
    """

    def __init__(self, steps: int, history: int = 10, uniform: float = 0.001) -> None:
        self.steps = steps
        self.uniform = uniform
        self.history_table = torch.zeros(steps, history, dtype=torch.float64)
        self.counts = torch.zeros(steps, dtype=torch.int64)

    def weights(self) -> Tensor:
        """The probability of each index, (steps,), summing to 1."""
        if bool((self.counts < self.history_table.shape[1]).any()):
            return torch.full((self.steps,), 1 / self.steps, dtype=torch.float64)
        second = self.history_table.square().mean(1).sqrt()
        return second / second.sum() * (1 - self.uniform) + self.uniform / self.steps

    def draw(self, u: Tensor, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The middle of index i's interval, drawn by inverting the cumulative sum, and 1 / (steps p_i)."""
        del samples
        p = self.weights()
        cumulative = p.cumsum(0)
        index = torch.searchsorted(cumulative / cumulative[-1], u, right=True).clamp(max=self.steps - 1)
        return (index.double() + 0.5) / self.steps, 1 / (self.steps * p[index])

    def update(self, index: Tensor, losses: Tensor) -> None:
        """Remember unweighted losses (B,) of indices (B,), those of every rank in one order; the oldest go."""
        for i, loss in zip(index.tolist(), losses.tolist(), strict=True):
            self.history_table[i] = self.history_table[i].roll(-1)
            self.history_table[i, -1] = loss
            self.counts[i] = min(int(self.counts[i]) + 1, self.history_table.shape[1])
        # until the buffer is full its filled part is at the end; weights() is uniform then, so order is free

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"history_table": self.history_table.clone(), "counts": self.counts.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        self.history_table = state["history_table"].clone()
        self.counts = state["counts"].clone()
