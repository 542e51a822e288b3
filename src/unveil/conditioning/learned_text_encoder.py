"""Text as a condition, by a small encoder that is trained with the network, over the words of the training texts."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unveil.conditioning.prompt_weighting import (
    PromptChunk,
    TokenizedPrompt,
    chunk_prompt,
    texts_of,
    truncate_for_message,
)
from unveil.errors import PromptTooLong, PromptTruncated, RecipeError, WeightsError, did_you_mean
from unveil.nn.tokenizer import BEGIN, END, PADDING, SPECIAL, UNKNOWN, TokenLayout, Vocabulary
from unveil.nn.transformer import BlockConfig, TokenEmbedding, TransformerStack, xavier_
from unveil.types import Condition

FILE = "vocabulary.json"
RAREST = 1 / 5000  # texts per text that a word is in, below which it is a name or a number and not learned


@dataclass(frozen=True)
class LearnedTextEncoderConfig:
    """Configuration of the encoder.

    Attributes:
        vocab_size: Maximum number of words, the most frequent ones; four of them are taken for begin, end and
            such.
        max_length: Words of a prompt that are read; the rest is left out with a warning.
        hidden_size, depth, heads: Width of a token, number of blocks, number of attention heads.

    Raises:
        RecipeError: Numbers that do not fit together.
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
        """Layout of a prompt's words."""
        return TokenLayout(self.max_length + 2, 1, BEGIN, END, PADDING)


class LearnedTextEncoder(nn.Module):
    """Prompts as tokens that attention reads: a vector for each word, and a transformer in which they see each other.

    A word is a run of letters or digits, whatever its case; each Chinese character is one too, see
    `nn.tokenizer`. A prompt without words is the tokens of its begin and end alone, and that is also what stands
    for "none".

    Args:
        config: Configuration of the encoder.
        dim: Width of the tokens that the network reads.
        drop: Share of the training samples that get "none" instead, in [0, 1).
        key: Key of the item that holds the text.
        vector_dim: Width of a vector of the whole prompt, from its tokens' mean, beside the tokens; None: none.

    Raises:
        RecipeError: Another share.

    Source: a text encoder trained with the network: Rombach et al. 2022, section 4.3.1 (arXiv:2112.10752); its blocks:
        Vaswani et al. 2017 (arXiv:1706.03762); a vector of the whole beside the tokens: Podell et al. 2023, section 2.1
        (arXiv:2307.01952).
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
        """Add the vocabulary of the training texts to the words that it has.

        Raises:
            RecipeError: Texts without a word.
        """
        before = () if self.vocabulary is None else self.vocabulary.tokens
        vocabulary = Vocabulary.build(texts, "terms", limit=self.config.vocab_size, before=before, rarest=RAREST)
        if not vocabulary.tokens:
            raise RecipeError(f"{self.key}: the training texts hold no word; give items a text, such as captions")
        self.vocabulary = vocabulary

    def files(self) -> dict[str, str]:
        """Files that a saved model needs beside the weights, by the end of the file's name."""
        return {} if self.vocabulary is None else {FILE: json.dumps(self.vocabulary.plain(), indent=1) + "\n"}

    def restore_files(self, files: dict[str, str]) -> None:
        """Restore the contents of `files`.

        Raises:
            WeightsError: Not a vocabulary, or one of more words than the table has rows.
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
        """Return tokens (B, most + 2, dim) of B prompts, their mask, a vector of each; warn of words unread.

        In training only the first such text gives a warning.

        Raises:
            RecipeError: Not a list of texts, no vocabulary yet, or a prompt of unknown words alone.
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
            RecipeError: No vocabulary yet.
        """
        split, unknown = self._split(text)
        return not split or len(unknown) < len(split)

    def null(self, batch: int) -> Condition:
        """The prompt without words, `batch` times.

        Raises:
            RecipeError: There is none, since nothing was dropped in training.
        """
        if not self.drop:
            raise RecipeError(f"{self.key}: trained without dropout, so it has no null prompt; set drop, e.g. 0.1")
        return self.encode([""]).map(lambda tensor: tensor.expand(batch, *tensor.shape[1:]))

    def _laid_out(self, text: str) -> TokenizedPrompt:
        """A prompt's known words as a row of numbers."""
        split, unknown = self._split(text)
        vocabulary = self.vocabulary
        assert vocabulary is not None
        if split and len(unknown) == len(split) and not self.training:
            raise RecipeError(
                f"{self.key} {truncate_for_message(text)!r}: none of its words is known"
                f"{_hint(unknown, vocabulary)}; this model "
                f"knows {len(vocabulary.tokens)} words, such as {', '.join(vocabulary.tokens[:8])}"
            )
        laid = chunk_prompt(
            [PromptChunk(" ".join(word for word in split if word not in unknown))], vocabulary, self.config.frame
        )
        if unknown:
            hint = _hint(unknown, vocabulary)
            self._tell(
                f"{truncate_for_message(text)!r}: words that this model does not know, left out: "
                f"{', '.join(unknown)}{hint}"
            )
        if laid.lost:
            room = self.config.frame.room
            shown = truncate_for_message(text)
            message = f"{shown!r}: {laid.lost} words more than the {room} that fit, left out: {laid.left_out!r}"
            self._tell(message, PromptTooLong)
        return laid

    def _split(self, text: str) -> tuple[list[str], list[str]]:
        """The words of a text, and those of them that are not known."""
        if self.vocabulary is None:
            raise RecipeError(f"{self.key}: this encoder has no vocabulary yet; train the model, or load a saved one")
        split = self.vocabulary.split(text)
        return split, [word for word in split if self.vocabulary.encode(word) == [UNKNOWN]]

    def _tell(self, what: str, kind: type[PromptTruncated] = PromptTruncated) -> None:
        if not (self.training and self._warned):
            warnings.warn(f"{self.key} {what}", kind, stacklevel=4)
            self._warned = self.training


def _hint(unknown: Sequence[str], vocabulary: Vocabulary) -> str:
    """The nearest known word of each that has one."""
    return "".join(dict.fromkeys(did_you_mean(word, vocabulary.tokens) for word in unknown))
