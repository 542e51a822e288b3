"""Text as a condition, with a small encoder of the words of the training texts that is trained with the network."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from unveil.conditioning.prompt_weighting import (
    PromptChunk,
    TokenizedPrompt,
    chunk_prompt,
    texts_of,
    truncate_for_message,
)
from unveil.errors import PromptTooLong, PromptTruncated, RecipeError, WeightsError
from unveil.nn.tokenizer import BEGIN, END, PADDING, SPECIAL, UNKNOWN, TokenLayout, Vocabulary
from unveil.nn.transformer import BlockConfig, TokenEmbedding, TransformerStack, xavier_
from unveil.types import Condition

FILE = "vocabulary.json"
_LONG_ENOUGH = 4  # letters of an unknown word for which the nearest known one is named
RAREST = 1 / 5000  # texts per text that a word is in, below which it is a name or a number and not learned
MAX_LISTED = 8  # unknown words that a message names


@dataclass(frozen=True)
class LearnedTextEncoderConfig:
    """Configuration of the encoder.

    Attributes:
        vocab_size: Maximum number of words, the most frequent ones, including four special ones such as begin and end.
        max_length: Maximum number of words of a prompt; further words are dropped with a warning.
        hidden_size, depth, heads: Width of a token, number of blocks, number of attention heads.

    Raises:
        RecipeError: The settings are inconsistent.
    """

    vocab_size: int = 1000
    max_length: int = 32
    hidden_size: int = 64
    depth: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        if self.vocab_size <= len(SPECIAL) or min(self.max_length, self.depth, self.heads) < 1:
            raise RecipeError(
                f"vocab_size = {self.vocab_size}, max_length = {self.max_length}, depth = {self.depth}, "
                f"heads = {self.heads}: vocab_size must be above {len(SPECIAL)}, the others at least 1"
            )
        if self.hidden_size < 2 or self.hidden_size % self.heads or self.hidden_size % 2:
            raise RecipeError(f"hidden_size = {self.hidden_size}: must be even and a multiple of heads = {self.heads}")

    @property
    def frame(self) -> TokenLayout:
        """Layout of a prompt's tokens."""
        return TokenLayout(self.max_length + 2, 1, BEGIN, END, PADDING)


class LearnedTextEncoder(nn.Module):
    """Prompts as tokens for cross-attention: an embedding of each word, and a transformer over them.

    A word is a run of letters or digits, whatever its case; each Chinese character is one too, see `nn.tokenizer`. A
    prompt without words consists only of the begin and end tokens, and also represents "none".

    Args:
        config: Configuration of the encoder.
        dim: Width of the output tokens.
        drop: Share of the training samples that get "none" instead, in [0, 1).
        key: Key of the item that holds the text.
        vector_dim: Width of an additional vector of the whole prompt, from the mean of its tokens; None: no vector.

    Raises:
        RecipeError: `drop` is outside [0, 1).

    Source: a text encoder trained with the network: Rombach et al. 2022, section 4.3.1 (arXiv:2112.10752); its blocks:
        Vaswani et al. 2017 (arXiv:1706.03762); a vector of the whole prompt with the tokens: Podell et al. 2023,
        section 2.1 (arXiv:2307.01952).
    """

    def __init__(
        self,
        config: LearnedTextEncoderConfig,
        dim: int,
        drop: float = 0.0,
        *,
        key: str = "prompt",
        vector_dim: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= drop < 1:
            raise RecipeError(f"drop = {drop}: must lie in [0, 1)")
        self.config, self.drop, self.key = config, drop, key
        width = config.hidden_size
        self.words = TokenEmbedding(config.vocab_size, width, limit=config.frame.length)
        self.stack = TransformerStack(config.depth, BlockConfig(width, config.heads, 4 * width))
        self.leave = nn.Linear(width, dim)
        self.whole = None if vector_dim is None else nn.Linear(width, vector_dim)
        xavier_(self)
        self.vocabulary: Vocabulary | None = None
        self._warned = False

    def build_vocabulary(self, texts: Iterable[str]) -> None:
        """Build the vocabulary from the training texts, after the words that it already contains.

        Raises:
            RecipeError: The texts contain no word.
        """
        before = () if self.vocabulary is None else self.vocabulary.tokens
        vocabulary = Vocabulary.build(texts, "terms", limit=self.config.vocab_size, before=before, rarest=RAREST)
        if not vocabulary.tokens:
            raise RecipeError(f"{self.key}: the training texts hold no word; give items a text, such as captions")
        self.vocabulary = vocabulary

    def files(self) -> dict[str, str]:
        """Files that a saved model needs besides the weights, by the end of the file's name."""
        return {} if self.vocabulary is None else {FILE: json.dumps(self.vocabulary.plain(), indent=1) + "\n"}

    def restore_files(self, files: dict[str, str]) -> None:
        """Restore the contents of `files`.

        Raises:
            WeightsError: The file is not a vocabulary, or has more words than the table has rows.
        """
        if FILE not in files:
            return
        try:
            vocabulary = Vocabulary.from_plain(json.loads(files[FILE]))
        except (ValueError, KeyError, TypeError) as problem:
            raise WeightsError(f"{self.key}: {FILE} is not a vocabulary ({problem}); copy it again") from problem
        if len(vocabulary) > self.config.vocab_size:
            raise WeightsError(
                f"{self.key}: {FILE} holds {len(vocabulary)} words, the model knows {self.config.vocab_size}"
            )
        self.vocabulary = vocabulary

    def encode(self, raw: Sequence[str]) -> Condition:
        """Condition of B prompts: tokens (B, max_length + 2, dim), their mask, and optionally a vector of each.

        Unknown words and words beyond `max_length` are dropped with a warning.

        In training only the first such text gives a warning.

        Raises:
            RecipeError: The value is not a list of texts, there is no vocabulary, or all words of a prompt are unknown.
        """
        laid = [self._laid_out(text) for text in texts_of(self.key, raw)]
        device = self.leave.weight.device
        numbers = torch.tensor([row.numbers[0] for row in laid], device=device)
        used = torch.tensor([row.used[0] for row in laid], device=device)
        tokens: Tensor = self.stack(self.words(numbers), mask=used[:, None, None])  # (B, L, width)
        vector = None
        if self.whole is not None:
            counted = used[..., None].to(tokens)
            vector = self.whole((tokens * counted).sum(1) / counted.sum(1))
        return Condition(vector=vector, tokens=self.leave(tokens), mask=used)

    def has_known_words(self, text: str) -> bool:
        """Return True if the vocabulary has a word of a text, or the text has no word.

        Raises:
            RecipeError: The encoder has no vocabulary yet.
        """
        split, unknown = self._split(text)
        return not split or len(unknown) < len(split)

    def null(self, batch: int) -> Condition:
        """Null condition: the prompt without words, `batch` times.

        Raises:
            RecipeError: The model has no "none", because prompts were never dropped in training.
        """
        if not self.drop:
            raise RecipeError(f"{self.key}: trained without dropout, so it has no null prompt; set drop, e.g. 0.1")
        return self.encode([""]).map(lambda tensor: tensor.expand(batch, *tensor.shape[1:]))

    def _laid_out(self, text: str) -> TokenizedPrompt:
        """Known words of a prompt as a row of numbers."""
        split, unknown = self._split(text)
        vocabulary = self.vocabulary
        assert vocabulary is not None
        if split and len(unknown) == len(split) and not self.training:
            raise RecipeError(
                f"{self.key} {truncate_for_message(text)!r}: none of its words is known"
                f"{_all_hints(unknown, vocabulary)}; this model "
                f"knows {len(vocabulary.tokens)} words, such as {', '.join(vocabulary.tokens[:8])}"
            )
        laid = chunk_prompt(
            [PromptChunk(" ".join(word for word in split if word not in unknown))], vocabulary, self.config.frame
        )
        if unknown:
            self._tell(
                f"{truncate_for_message(text)!r}: words that this model does not know, left out: "
                f"{_listed(unknown, vocabulary)}"
            )
        if laid.lost:
            room = self.config.frame.room
            shown, rest = truncate_for_message(text), truncate_for_message(laid.left_out)
            message = f"{shown!r}: {laid.lost} words more than the {room} that fit, left out: {rest!r}"
            self._tell(message, PromptTooLong)
        return laid

    def _split(self, text: str) -> tuple[list[str], list[str]]:
        """Words of a text, and the unknown ones of them."""
        if self.vocabulary is None:
            raise RecipeError(f"{self.key}: this encoder has no vocabulary yet; train the model, or load a saved one")
        split = self.vocabulary.split(text)
        return split, [word for word in split if self.vocabulary.encode(word) == [UNKNOWN]]

    def _tell(self, what: str, kind: type[PromptTruncated] = PromptTruncated) -> None:
        if not (self.training and self._warned):
            warnings.warn(f"{self.key} {what}", kind, stacklevel=4)
            self._warned = self.training


def _all_hints(unknown: Sequence[str], vocabulary: Vocabulary) -> str:
    """The unknown words that resemble known ones, each with its own, for a message."""
    hinted = [word + hint for word in dict.fromkeys(unknown) if (hint := _hint(word, vocabulary))]
    return f": {', '.join(hinted[:MAX_LISTED])}" if hinted else ""


def _listed(unknown: Sequence[str], vocabulary: Vocabulary) -> str:
    """The first of the unknown words, each with the known one that it resembles, and the number of the others."""
    words = list(dict.fromkeys(unknown))
    listed = [truncate_for_message(word) + _hint(word, vocabulary) for word in words[:MAX_LISTED]]
    return ", ".join(listed) + (f" and {len(words) - MAX_LISTED} others" if len(words) > MAX_LISTED else "")


def _hint(word: str, vocabulary: Vocabulary) -> str:
    """The known word that an unknown one resembles, in brackets; short words resemble too many."""
    if len(word) < _LONG_ENOUGH:
        return ""
    close = get_close_matches(word, [token for token in vocabulary.tokens if token[0] == word[0]], n=1, cutoff=0.7)
    return f" (nearest: {close[0]!r})" if close else ""
