"""One prompt for several text encoders, and the condition that is made of their outputs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from unveil.conditioning.text_encoder import TextEncoder
from unveil.errors import RecipeError
from unveil.nn.lora import fingerprint
from unveil.types import Condition

# What each encoder says, in their order -> what the network is given
Together = Callable[[Sequence[Condition]], Condition]


class MultiTextEncoder(nn.Module):
    """Prompts, by several encoders that are not trained.

    Args:
        texts: the encoders.
        together: what becomes of what they say.
        beside: numbers at the end of the vector that are left zero, for `micro_conditioning.ScalarCondition` to fill.
        zeros: "none" is zeros in place of the encoding of the empty prompt.
        precisions: of each encoder's products, None: float32. What they say is float32.
        key: of the item that holds the text.
    """

    drop = 0.1  # published models were trained with dropped prompts, each at its own rate

    def __init__(
        self,
        texts: Sequence[TextEncoder],
        together: Together,
        *,
        beside: int = 0,
        zeros: bool = False,
        precisions: Sequence[torch.dtype] | None = None,
        key: str = "prompt",
    ) -> None:
        super().__init__()
        self.texts = nn.ModuleList(texts)
        self.precisions = list(precisions or [torch.float32] * len(texts))
        self.together, self.beside, self.zeros, self.key = together, beside, zeros, key
        self._nothing: tuple[Hashable, Condition] | None = None  # and of which encoders it is

    @torch.no_grad()
    def encode(self, raw: Sequence[str]) -> Condition:
        """Tokens (B, L, D) and the vector (B, P + beside) of B prompts.

        Raises:
            RecipeError: not a list of texts.
        """
        device = next(self.parameters()).device.type
        each: list[Condition] = []
        for text, precision in zip(cast(Sequence[TextEncoder], self.texts), self.precisions, strict=True):
            with torch.autocast(device, precision, enabled=precision != torch.float32):
                each.append(text.encode(raw).map(lambda tensor: tensor.float()))
        joined = self.together(each)
        if joined.vector is None:
            raise RecipeError(f"{self.key}: no encoder gives a vector for the whole prompt, which this network takes")
        return Condition(vector=functional.pad(joined.vector, (0, self.beside)), tokens=joined.tokens)

    def null(self, batch: int) -> Condition:
        """The condition of no prompt, `batch` times."""
        state = fingerprint(self), tuple(self.precisions)
        if self._nothing is None or self._nothing[0] != state:
            empty = self.encode([""])
            self._nothing = state, empty.map(torch.zeros_like) if self.zeros else empty
        return self._nothing[1].map(lambda tensor: tensor.expand(batch, *tensor.shape[1:]))


def sdxl_concat(conditions: Sequence[Condition]) -> Condition:
    """SDXL's rule: tokens next to each other, (B, L, D1 + D2), and the vector of the last encoder.

    Source: Podell et al. 2023, section 2.1 (arXiv:2307.01952).
    """
    tokens = torch.cat([_tokens(condition) for condition in conditions], dim=2)
    return Condition(vector=conditions[-1].vector, tokens=tokens)


def sd3_concat(width: int, length: int) -> Together:
    """Stable Diffusion 3's rule: tokens of the first two next to each other, filled up with zeros, then the third's.

    Where there are but two encoders, the third one's tokens are zeros. The vectors of the first two stand next to
    each other.

    Args:
        width: of the network's tokens.
        length: tokens of the third encoder.

    Source: Esser et al. 2024, appendix B.3 (arXiv:2403.03206).
    """

    def together(conditions: Sequence[Condition]) -> Condition:
        first = torch.cat([_tokens(condition) for condition in conditions[:2]], dim=2)
        first = functional.pad(first, (0, width - first.shape[2]))
        third = _tokens(conditions[2]) if len(conditions) > 2 else first.new_zeros(len(first), length, width)
        vectors = [condition.vector for condition in conditions[:2] if condition.vector is not None]
        return Condition(vector=torch.cat(vectors, dim=1), tokens=torch.cat([first, third], dim=1))

    return together


def flux_concat(conditions: Sequence[Condition]) -> Condition:
    """FLUX.1's rule: the vector of the first encoder, the tokens of the second.

    Source: FLUX.1's published inference code (github.com/black-forest-labs/flux).
    """
    return Condition(vector=conditions[0].vector, tokens=_tokens(conditions[1]))


def _tokens(condition: Condition) -> Tensor:
    assert condition.tokens is not None  # every encoder here gives tokens
    return condition.tokens
