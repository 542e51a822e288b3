"""One step of the reverse process: q(x_s | x_t, x0) for a pair of levels s < t, and chains of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.core import elementary
from unveil.core.elementary import level_by_level
from unveil.core.process import DiscreteVP
from unveil.core.schedules import levels_at, stacked
from unveil.errors import RecipeError
from unveil.types import NoiseLevel, like


class Transition(NamedTuple):
    """The Gaussian q(x_s | x_t, x0) = N(c0 x0 + ct x_t, var).

    beta: variance that the forward process adds from s to t (DDPM's beta_t, for any pair of levels).
    floor: var, but never 0: the step that ends at the data borrows its neighbour's, so that its
        logarithm exists. It depends on the chain, not on the pair.

    Source: Ho et al. 2020, eq. 6 and 7 (arXiv:2006.11239), written for any alpha and sigma.
    """

    t: NoiseLevel
    s: NoiseLevel
    beta: Tensor
    c0: Tensor
    ct: Tensor
    var: Tensor
    floor: Tensor

    def mean(self, x0: Tensor, x: Tensor) -> Tensor:
        """c0 x0 + ct x_t, of x's shape."""
        return like(self.c0, x) * x0 + like(self.ct, x) * x


def transition(t: NoiseLevel, s: NoiseLevel) -> Transition:
    """The step from level t to the cleaner level s; parts of x that are clean at t do not change."""
    ratio = t.alpha / s.alpha
    variance = elementary.square(t.sigma)
    beta = variance - elementary.square(ratio * s.sigma)
    left = elementary.safe_divide(elementary.square(s.sigma), variance, 1.0)  # share of it that is there at s
    var = beta * left
    c0 = elementary.safe_divide(s.alpha * beta, variance, 0.0)
    return Transition(t, s, beta, c0, ratio * left, var, var)


class Chain(Sequence[Transition]):
    """The transitions of a list of levels from noise to data, in the order in which they are sampled.

    Raises:
        RecipeError: There are fewer than two levels, or the levels do not fall towards the data.
    """

    def __init__(self, levels: Sequence[NoiseLevel]) -> None:
        if len(levels) < 2:
            raise RecipeError(f"a chain of {len(levels)} levels: needs at least 2")
        with level_by_level():
            table = transition(stacked(levels[:-1]), stacked(levels[1:]))
        if table.var.ndim == 1:  # the last step borrows its noisier neighbour's variance
            neighbour = torch.cat([table.beta[:1], table.var[:-1]])
            table = table._replace(floor=torch.where(table.var == 0, neighbour, table.var))
        columns = (column.unbind() for column in table[2:])
        self._steps = list(map(Transition, levels, levels[1:], *columns))
        self.table = table

    def __len__(self) -> int:
        """The number of steps."""
        return len(self._steps)

    def __getitem__(self, k):  # type: ignore[no-untyped-def]  # int or slice, as Sequence has it
        """Step k, 0 the noisiest."""
        return self._steps[k]

    def of(self, level: NoiseLevel) -> Transition:
        """The transitions that start at these levels, as tensors of level.t's shape.

        Raises:
            RecipeError: The level is not one of the chain's.
        """
        wanted = level.t
        rising = self.table.t.t.flip(0)
        at = torch.searchsorted(rising, (wanted - 1e-9).reshape(-1)).clamp(max=len(rising) - 1)
        nearest = rising[at].reshape(wanted.shape)
        if bool(((nearest - wanted).abs() > 1e-6).any()):
            raise RecipeError(f"t = {level.t}: not a level of this chain of {len(self)} steps")
        return _pick(self.table, (len(rising) - 1 - at).reshape(wanted.shape))


def chain_of(process: object) -> Chain:
    """The chain over every level of a discrete process, computed once.

    Raises:
        RecipeError: The process has continuous time, and so no chain.
    """
    if not isinstance(process, DiscreteVP):
        raise RecipeError(
            f"{type(process).__name__} has no chain: pass chain=Chain(schedules.uniform(process, steps)), "
            "or use a discrete process"
        )
    chain = getattr(process, "_chain", None)
    if chain is None:
        chain = Chain(levels_at(process, [i / process.steps for i in range(process.steps, -1, -1)]))
        process._chain = chain  # type: ignore[attr-defined]
    return chain


def _pick(table: Transition, at: Tensor) -> Transition:
    t, s = (NoiseLevel(*(field[at] for field in level)) for level in (table.t, table.s))  # type: ignore[index]
    return Transition(t, s, *(field[at] for field in table[2:]))  # type: ignore[index]
