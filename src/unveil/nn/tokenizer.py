"""Tokenizers with small vocabularies of characters or words, which are built from the training texts."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from unveil.errors import RecipeError, ShapeError, did_you_mean

Unit = Literal["characters", "words", "terms"]
PADDING, BEGIN, END, UNKNOWN = range(4)
SPECIAL = ("<padding>", "<begin>", "<end>", "<unknown>")
_WORD = re.compile(r"\w+|[^\w\s]")
# when words are put together again: no space before these, and none about a hyphen ("counter-clockwise")
_TIGHT = re.compile(r" (?=[.,;:!?])|(?<=\w) (?=- \w)|(?<=\w -) (?=\w)")

# Chinese characters and Japanese syllables, which are written without spaces between words
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TERM = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+")


@dataclass(frozen=True)
class TokenLayout:
    """Layout of tokens in rows.

    Attributes:
        length: Length of a row, the special tokens included.
        rows: Number of rows of a prompt; several rows allow longer prompts.
        begin: Token at the start of each row; None: there is none.
        end: Token after the text of each row.
        padding: Token that fills a row up.
    """

    length: int
    rows: int
    begin: int | None
    end: int
    padding: int

    @property
    def room(self) -> int:
        """Number of tokens of text that fit into one row."""
        return self.length - 1 - (self.begin is not None)


def tokenize(text: str) -> list[str]:
    """Split a text into runs of letters and digits in lower case, and single Chinese characters; omit other signs."""
    return _TERM.findall(unicodedata.normalize("NFKC", text).lower())


_SPLIT: Mapping[Unit, Callable[[str], list[str]]] = {"characters": list, "words": _WORD.findall, "terms": tokenize}


@dataclass(frozen=True)
class Vocabulary:
    """Vocabulary of a model, which maps tokens to numbers; the first four are `SPECIAL`.

    Attributes:
        unit: Kind of a token: `characters`; `words`, which are runs of letters and digits, and each other sign; or
            `terms`, see `tokenize`.
        tokens: Tokens after the special ones.

    Raises:
        RecipeError: The unit is unknown, or a token occurs twice.
    """

    unit: Unit
    tokens: tuple[str, ...]
    _numbers: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            units = get_args(Unit)
            raise RecipeError(f"unit {self.unit!r}: must be one of {', '.join(units)}{did_you_mean(self.unit, units)}")
        numbers = {token: i for i, token in enumerate((*SPECIAL, *self.tokens))}
        if len(numbers) != len(self):
            twice = next(token for token, count in Counter((*SPECIAL, *self.tokens)).items() if count > 1)
            raise RecipeError(f"token {twice!r}: is in the vocabulary twice")
        object.__setattr__(self, "_numbers", numbers)

    @classmethod
    def build(
        cls,
        texts: Iterable[str],
        unit: Unit,
        *,
        limit: int | None = None,
        before: Sequence[str] = (),
        rarest: float = 0.0,
    ) -> Vocabulary:
        """Build the vocabulary of texts, the most frequent token first, equally frequent ones in alphabetical order.

        Args:
            limit: Maximum number of tokens, the special ones included; None: all.
            before: Tokens that keep their numbers; those of the texts follow after them.
            rarest: Minimum frequency of a token, in texts per text; rarer tokens are left out.
        """
        count, number = Counter[str](), 0
        for text in texts:
            count.update(set(_SPLIT[unit](text)) if rarest else _SPLIT[unit](text))
            number += 1
        there = set(before)
        frequent = [token for token in count if count[token] >= rarest * number and token not in there]
        tokens = [*before, *sorted(frequent, key=lambda token: (-count[token], token))]
        return cls(unit, tuple(tokens if limit is None else tokens[: max(limit - len(SPECIAL), 0)]))

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Vocabulary:
        """Return the vocabulary that `plain` described."""
        return cls(plain["unit"], tuple(plain["tokens"]))

    def plain(self) -> dict[str, Any]:
        """Return the vocabulary as values that YAML and JSON can contain."""
        return {"unit": self.unit, "tokens": list(self.tokens)}

    def __len__(self) -> int:
        """Number of tokens, the special ones included."""
        return len(SPECIAL) + len(self.tokens)

    def split(self, text: str) -> list[str]:
        """Tokens of a text, as they are written."""
        return _SPLIT[self.unit](text)

    def encode(self, text: str) -> list[int]:
        """Numbers of a text's tokens, UNKNOWN for others; neither begin nor end is added."""
        return [self._numbers.get(token, UNKNOWN) for token in self.split(text)]

    def decode(self, numbers: Sequence[int]) -> str:
        """Text of tokens; padding, begin and end are left out.

        Raises:
            ShapeError: A number is not in the vocabulary.
        """
        words = [self.token(number) for number in numbers if number not in (PADDING, BEGIN, END)]
        return "".join(words) if self.unit == "characters" else _TIGHT.sub("", " ".join(words))

    def token(self, number: int) -> str:
        """Return one token as it is written."""
        if not 0 <= number < len(self):
            raise ShapeError(f"token {number}: the vocabulary has 0 to {len(self) - 1}")
        return SPECIAL[number] if number < len(SPECIAL) else self.tokens[number - len(SPECIAL)]


def pad_sequences(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Pad sequences of numbers with PADDING to the longest: int64 (B, N)."""
    longest = max((len(sequence) for sequence in sequences), default=0)
    rows = torch.full((len(sequences), longest), PADDING)
    for row, sequence in enumerate(sequences):
        rows[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return rows
