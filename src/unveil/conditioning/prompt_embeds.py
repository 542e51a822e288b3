"""Prompts as token sequences of one length, from a frozen text encoder or precomputed."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unveil.conditioning.prompt_weighting import texts_of, truncate_for_message
from unveil.conditioning.text_encoder import TextEncoder
from unveil.errors import RecipeError, did_you_mean
from unveil.io.optional_deps import import_extra
from unveil.types import Condition

# Tokens after a prompt's end: the encoder's vectors, zeros, or none by a mask
Padding = Literal["text", "zeros", "hidden"]


class LongPromptEncoder(nn.Module):
    """Prompts as tokens of one length, from a frozen text encoder.

    Args:
        text: Text encoder, whose output are tokens.
        padding: Treatment of the tokens after the end of a prompt.
        precision: Precision of the encoder's products. Its output is float32.
        cleaned: Function that cleans a prompt before it is read; None: prompts are read unchanged.
        key: Key of the item that holds the text.
    """

    drop = 0.1  # published models were trained with dropped prompts, each at its own rate

    def __init__(
        self,
        text: TextEncoder,
        padding: Padding,
        *,
        precision: torch.dtype = torch.float32,
        cleaned: Callable[[str], str] | None = None,
        key: str = "prompt",
    ) -> None:
        super().__init__()
        self.text, self.padding, self.precision, self.cleaned, self.key = text, padding, precision, cleaned, key

    @torch.no_grad()
    def encode(self, raw: Sequence[str]) -> Condition:
        """Condition of B prompts: tokens (B, L, D), with a mask (B, L) if padding is hidden.

        Raises:
            RecipeError: The value is not a list of texts.
        """
        texts = texts_of(self.key, raw)
        once = list(dict.fromkeys(texts))
        rows = self.text.tokenize([self.cleaned(text) if self.cleaned else text for text in once])
        device = next(self.text.parameters()).device
        with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
            tokens = self.text.condition(rows).tokens
        assert tokens is not None  # the encoder gives tokens
        tokens, used = tokens.float(), rows.used.flatten(1).to(device)
        if self.padding == "zeros":
            tokens = tokens * used[..., None]
        places = torch.tensor([once.index(text) for text in texts], device=device)
        return Condition(tokens=tokens[places], mask=used[places] if self.padding == "hidden" else None)

    def null(self, batch: int) -> Condition:
        """Null condition: the empty prompt, `batch` times."""
        return self.encode([""]).map(lambda tensor: tensor.expand(batch, *tensor.shape[1:]))


class PrecomputedPrompts(nn.Module):
    """Prompts whose tokens are precomputed, for encoders larger than the rest of the model.

    Args:
        prompts: List of N prompts; the empty one is used for "none".
        condition: Condition of N rows.
        where: Origin of the prompts, for messages.
        key: Key of the item that holds the text.

    Raises:
        RecipeError: The condition has another number of rows than there are prompts.
    """

    drop = 0.1

    def __init__(self, prompts: Sequence[str], condition: Condition, *, where: str, key: str = "prompt") -> None:
        super().__init__()
        self.prompts, self.where, self.key = list(prompts), where, key
        self._routes = [name for name, value in condition.routes().items() if value is not None]
        for name in self._routes:
            value: Tensor = condition.routes()[name]
            if len(value) != len(self.prompts):
                raise RecipeError(f"{where}: {len(self.prompts)} prompts, but {name} has {len(value)} rows")
            self.register_buffer(f"of_{name}", value, persistent=False)

    def encode(self, raw: Sequence[str]) -> Condition:
        """Condition of B prompts.

        Raises:
            RecipeError: A prompt is not among the precomputed ones; the message names the nearest.
        """
        texts = texts_of(self.key, raw)
        for text in texts:
            if text not in self.prompts:
                raise RecipeError(
                    f"{self.key} {truncate_for_message(text)!r}: not one of the {len(self.prompts)} in {self.where}"
                    f"{did_you_mean(text, self.prompts)}; the text encoder is needed for others"
                )
        places = torch.tensor([self.prompts.index(text) for text in texts])
        routes: dict[str, Any] = {name: getattr(self, f"of_{name}") for name in self._routes}
        return Condition(**{name: value[places.to(value.device)] for name, value in routes.items()})

    def null(self, batch: int) -> Condition:
        """Null condition: the empty prompt, `batch` times; raises RecipeError if it is not precomputed."""
        return self.encode([""]).map(lambda tensor: tensor.expand(batch, *tensor.shape[1:]))


def clean_prompt(prompt: str) -> str:
    """Clean a prompt as Wan's pipelines do: repaired encoding, HTML entities resolved twice, single spaces.

    Raises:
        RecipeError: The package ftfy is not installed.
    """
    text = import_extra("ftfy", "a prompt of Wan").fix_text(prompt)
    return " ".join(html.unescape(html.unescape(text)).split())
