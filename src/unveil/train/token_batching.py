"""Steps of a fixed number of tokens for examples of any size: a function of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from unveil.train.data_order import EpochShuffle, IndexableItems
from unveil.types import RecipeError


@runtime_checkable
class SupportsSizes(Protocol):
    """A data set that knows the sizes of its items without reading them."""

    def sizes(self) -> Tensor:
        """Frames, height and width of each item: int64 (N, 3)."""
        ...


def sizes_of(items: IndexableItems) -> Tensor:
    """What a data set says of its items' sizes, int64 (N, 3).

    Raises:
        RecipeError: it does not know them.
    """
    if not isinstance(items, SupportsSizes):
        raise RecipeError(
            f"train.tokens: {type(items).__name__} does not tell the sizes of its items without reading them; "
            "give a number of examples, train.batch_size, instead"
        )
    return items.sizes()


class TokenBudget:
    """The examples of each step when a step is to be of `tokens` tokens.

    All examples' tokens are laid end to end in their order. Step s takes the examples that begin in its `tokens` of
    them, those from s * tokens on: at most one example's length more or less. So any step is known at once, and a run
    that resumes has nothing to count.

    Args:
        order: which item an example is.
        lengths: of each item, in tokens.
        tokens: of a step.

    Raises:
        RecipeError: an item that is longer than a step.
    """

    def __init__(self, order: EpochShuffle, lengths: Sequence[int] | Tensor, tokens: int) -> None:
        self.order, self.tokens = order, tokens
        self.lengths = torch.as_tensor(lengths, dtype=torch.int64)
        self.longest, self.epoch = int(self.lengths.max()), int(self.lengths.sum())
        self._begins: dict[int, Tensor] = {}
        self.split(1)

    def split(self, parts: int) -> None:
        """Check that each of a number of parts of a step has an example.

        Raises:
            RecipeError: none is.
        """
        if self.tokens < parts * self.longest:
            raise RecipeError(
                f"train.tokens = {self.tokens}: the longest item has {self.longest} tokens, in {parts} part(s) of a "
                f"step; at least {parts * self.longest}"
            )

    def examples(self, step: int, part: int = 0, parts: int = 1) -> range:
        """The numbers of the examples of one of a step's parts, all of about as many tokens."""
        first, last = (step * self.tokens + self.tokens * place // parts for place in (part, part + 1))
        return range(self._from(first), self._from(last))

    def _from(self, token: int) -> int:
        """The first example that begins at this token or later."""
        epoch, place = divmod(token, self.epoch)
        if epoch not in self._begins:
            if len(self._begins) > 1:
                self._begins.clear()
            lengths = self.lengths[self.order.permutation(epoch)]
            self._begins[epoch] = lengths.cumsum(0) - lengths
        return epoch * len(self.lengths) + int(torch.searchsorted(self._begins[epoch], place))
