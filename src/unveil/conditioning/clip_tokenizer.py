"""Byte-pair encoding of text as published with CLIP: cleaning, splitting into words, merging.

Source: Sennrich et al. 2016, section 3.2 (arXiv:1508.07909) for the merges; Radford et al. 2021, section 2.4
(arXiv:2103.00020) for their use on lower-cased text. Facts (order of the vocabulary, what counts as a word, the
cleaning): github.com/openai/CLIP, clip/simple_tokenizer.py.
"""

from __future__ import annotations

import gzip
import html
import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from importlib import resources
from itertools import pairwise

from unveil.errors import ShapeError
from unveil.io.optional_deps import import_extra

MERGES = "assets/vocabularies/clip.txt.gz"
ENDS = "</w>"  # marks the last piece of a word
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
# What is one word wherever a word may begin; case is ignored as published, which tells for signs like the long s.
_WHOLE = re.compile(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d", re.IGNORECASE)
# Bytes that stand for themselves; the others take the signs from 256 on, in their order.
_PLAIN = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
_OTHER = [byte for byte in range(256) if byte not in _PLAIN]
_SIGNS = {byte: chr(byte) for byte in _PLAIN} | {byte: chr(256 + n) for n, byte in enumerate(_OTHER)}
_BYTES = {sign: byte for byte, sign in _SIGNS.items()}


class BPETokenizer:
    """Tokenizer whose vocabulary of pieces of words can encode any text.

    Numbers are in this order: 256 bytes, the same as ends of words, a piece for each merge, and the two special tokens.

    Args:
        merges: Pairs of pieces that are merged, lowest rank first.
    """

    def __init__(self, merges: Sequence[tuple[str, str]]) -> None:
        self.merges = list(merges)
        signs = list(_SIGNS.values())
        self.pieces = [*signs, *(sign + ENDS for sign in signs), *(a + b for a, b in merges), BEGIN, END]
        self._numbers = {piece: number for number, piece in enumerate(self.pieces)}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._of_word = lru_cache(maxsize=1 << 16)(self._merged)

    def __len__(self) -> int:
        """Number of tokens, the special ones included."""
        return len(self.pieces)

    @property
    def begin(self) -> int:
        """Number of the token at the start of a row."""
        return len(self) - 2

    @property
    def end(self) -> int:
        """Number of the token at the end of a text."""
        return len(self) - 1

    def encode(self, text: str) -> list[int]:
        """Numbers of a text's tokens; neither begin nor end is added.

        A special token written out in the text is encoded as that token, as published.

        Raises:
            RecipeError: The package ftfy is not installed.
        """
        return [number for word in split_words(clean_text(text)) for number in self._of_word(word)]

    def decode(self, numbers: Sequence[int]) -> str:
        """Text of tokens, with a space after every word.

        Raises:
            ShapeError: A number is not in the vocabulary.
        """
        for number in numbers:
            if not 0 <= number < len(self):
                raise ShapeError(f"token {number}: the vocabulary has 0 to {len(self) - 1}")
        signs = "".join(self.pieces[number] for number in numbers)
        # special tokens are written in signs of bytes too
        return bytes(_BYTES[sign] for sign in signs).decode(errors="replace").replace(ENDS, " ")

    def _merged(self, word: str) -> tuple[int, ...]:
        """Numbers of one word's pieces, after all merges that apply."""
        if word in (BEGIN, END):
            return (self._numbers[word],)
        pieces = [_SIGNS[byte] for byte in word.encode()]
        pieces[-1] += ENDS
        ranks = [self._rank(first, second) for first, second in pairwise(pieces)]
        while ranks and (best := min(ranks)) < len(self.merges):
            place = 0
            while best in ranks[place:]:  # every occurrence, from the left
                place = ranks.index(best, place)
                pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
                del ranks[place]
                if place > 0:
                    ranks[place - 1] = self._rank(pieces[place - 1], pieces[place])
                if place < len(ranks):
                    ranks[place] = self._rank(pieces[place], pieces[place + 1])
        return tuple(self._numbers[piece] for piece in pieces)

    def _rank(self, first: str, second: str) -> int:
        """Rank of the merge of two pieces; pairs without a merge have a rank after all others."""
        return self._ranks.get((first, second), len(self.merges))


@cache
def clip_tokenizer() -> BPETokenizer:
    """CLIP's tokenizer with its vocabulary of 49,408 tokens, which is part of the package."""
    return BPETokenizer(clip_merges())


def clip_merges() -> list[tuple[str, str]]:
    """CLIP's 48,894 merges, lowest rank first."""
    packed = resources.files("unveil").joinpath(MERGES).read_bytes()
    return [(first, second) for first, second in map(str.split, gzip.decompress(packed).decode().splitlines())]


def clean_text(text: str) -> str:
    """Clean a text as CLIP does: repaired encoding, HTML entities resolved twice, single spaces, lower case.

    Raises:
        RecipeError: The package ftfy is not installed.
    """
    mended: str = import_extra("ftfy", "a prompt").fix_text(text)
    return " ".join(html.unescape(html.unescape(mended)).split()).lower()


def split_words(text: str) -> Iterator[str]:
    """Words of a text: runs of letters, single digits, runs of other signs, and English endings such as 's."""
    start = 0
    while start < len(text):
        whole = _WHOLE.match(text, start)
        stop = whole.end() if whole else _end_of_run(text, start)
        if not text[start].isspace():
            yield text[start:stop]
        start = stop


def _end_of_run(text: str, start: int) -> int:
    kind, stop = _kind(text[start]), start + 1
    while kind != "number" and stop < len(text) and _kind(text[stop]) == kind:
        stop += 1
    return stop


def _kind(sign: str) -> str:
    if sign.isalpha() or sign == "\u0345":  # a combining iota: a letter once case is ignored
        return "letter"
    if sign.isnumeric():
        return "number"
    return "space" if sign.isspace() else "other"
