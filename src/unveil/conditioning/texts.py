"""One prompt told to several text encoders, and what a network is given of what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from unveil.conditioning.text import Text
from unveil.types import Condition

# what the encoders say, in their order -> what the network is given
Together = Callable[[Sequence[Condition]], Condition]


class Texts(nn.Module):
    """Prompts, by several encoders.

    Args:
        texts: the encoders.
        together: what becomes of what they say.
        beside: numbers at the end of the vector that are left zero, for `numbers.Numbers` to fill.
        none: what stands for no prompt: the empty one, or zeros in place of all that is said of it.
        precision: what the encoders' products are computed in.
        key: of the item that holds the text.
    """

    drop = 0.1  # published models were trained with dropped prompts, at a rate of their own

    def __init__(
        self,
        texts: Sequence[Text],
        together: Together,
        *,
        beside: int = 0,
        zeros: bool = False,
        precision: torch.dtype = torch.float32,
        key: str = "prompt",
    ) -> None:
        super().__init__()
        self.texts = nn.ModuleList(texts)
        self.together, self.beside, self.zeros, self.precision, self.key = together, beside, zeros, precision, key
        self._none: Condition | None = None
