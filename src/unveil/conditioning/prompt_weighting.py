"""Prompts as rows of tokens, with weights in brackets and limits of length."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple, Protocol

from unveil.errors import RecipeError
from unveil.nn.tokenizer import TokenLayout

SHOWN = 60  # signs of a text that a message shows
STRONGER = 1.1  # of one pair of round brackets; square ones divide by it
# An escaped sign, the end of "(words:1.2)", one sign of the syntax, or text.
_PART = re.compile(r"\\[()\[\]\\]|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[()\[\]\\:]|[^()\[\]\\:]+")
_OPENS = {")": "(", "]": "["}
_FACTORS = {"(": STRONGER, "[": 1 / STRONGER}


class Tokenizer(Protocol):
    """Tokenizer of text, without the special tokens around it."""

    def encode(self, text: str) -> list[int]:
        """Numbers of a text's tokens."""
        ...

    def decode(self, numbers: Sequence[int]) -> str:
        """Text of tokens."""
        ...


class PromptChunk(NamedTuple):
    """Piece of a prompt and its weight; 1 is neutral."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class TokenizedPrompt:
    """Prompt as rows of tokens.

    Attributes:
        numbers: Numbers of the tokens, `rows` lists of `length`.
        weights: Weight of each token, 1 for special tokens and padding.
        used: Flag of each token, False for padding.
        left_out: Text that did not fit, decoded from its tokens; their number is `lost`.
    """

    numbers: list[list[int]]
    weights: list[list[float]]
    used: list[list[bool]]
    left_out: str = ""
    lost: int = 0


def parse_weights(text: str) -> list[PromptChunk]:
    r"""Split a prompt into pieces with weights, in the bracket syntax of the web user interface.

    `(word)` has weight 1.1, `[word]` 1 / 1.1, and `(word:1.3)` 1.3; nested weights multiply. A backslash makes a
    bracket literal: `\(`. A bracket that is never closed reaches to the end; one that was never opened is text.
    Neighbouring pieces of equal weight are merged, so that weights of 1 give the same as no weights.
    """
    texts: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for part in _PART.finditer(text):
        sign = part[0]
        bracket = ")" if part[1] is not None else sign
        if sign in opened:
            opened[sign].append(len(texts))
        elif bracket in _OPENS and opened[_OPENS[bracket]]:
            factor = _FACTORS[_OPENS[bracket]] if part[1] is None else float(part[1])
            _strengthen(weights, opened[_OPENS[bracket]].pop(), factor)
        else:
            texts.append(sign[1] if len(sign) == 2 and sign[0] == "\\" else sign)
            weights.append(1.0)
    for sign, starts in opened.items():
        for start in starts:
            _strengthen(weights, start, _FACTORS[sign])
    return [
        PromptChunk("".join(text for text, _ in same), weight)
        for weight, same in groupby(zip(texts, weights, strict=True), key=itemgetter(1))
    ]


def chunk_prompt(pieces: Sequence[PromptChunk], tokenizer: Tokenizer, frame: TokenLayout) -> TokenizedPrompt:
    """Lay out the tokens of a prompt in the rows of `frame`; the rest is left out and reported."""
    tokens = [(number, span.weight) for span in pieces for number in tokenizer.encode(span.text)]
    room = frame.room * frame.rows
    rest = [number for number, _ in tokens[room:]]
    laid = TokenizedPrompt([], [], [], tokenizer.decode(rest).strip() if rest else "", len(rest))
    head = [] if frame.begin is None else [(frame.begin, 1.0)]
    for row in range(frame.rows):
        text = tokens[:room][row * frame.room : (row + 1) * frame.room]
        used = [*head, *text, (frame.end, 1.0)]
        empty = frame.length - len(used)
        laid.numbers.append([number for number, _ in used] + [frame.padding] * empty)
        laid.weights.append([weight for _, weight in used] + [1.0] * empty)
        laid.used.append([True] * len(used) + [False] * empty)
    return laid


def _strengthen(weights: list[float], start: int, factor: float) -> None:
    weights[start:] = [weight * factor for weight in weights[start:]]


def texts_of(key: str, raw: Sequence[object]) -> list[str]:
    """Check that the values of a key are a list of texts, and return it.

    Raises:
        RecipeError: The value is not a list of texts.
    """
    each = raw if isinstance(raw, list | tuple) else [None]
    wrong = raw if each is not raw else next((item for item in each if not isinstance(item, str)), "")
    if not isinstance(wrong, str) or wrong is raw:
        raise RecipeError(f"{key}: {type(wrong).__name__} given; needs a list of texts")
    return [str(item) for item in each]


def truncate_for_message(text: str) -> str:
    """Shorten a text for a message."""
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
