"""The transformer of 2017, and the parts of it that text encoders, captioners and priors are made of.

Letters of shapes: B rows, N tokens, M tokens of a context, C the width of a token, V words of a vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.errors import RecipeError, ShapeError, did_you_mean
from unveil.nn.attention import Attention
from unveil.nn.embeddings import sin_cos_positions
from unveil.nn.transformer_blocks import (
    Activation,
    AttentionMaps,
    BlockCache,
    BlockConfig,
    EncoderStates,
    NormPlace,
    TransformerBlock,
    TransformerStack,
)

# Which tables are one: none, the target's and the output's, or the source's with them
Tie = Literal["none", "output", "all"]


class TokenEmbedding(nn.Module):
    """Tokens by number as vectors at their places: a table, times the root of the width, plus sinusoids.

    Args:
        limit: of the tokens of a sequence.

    Source: Vaswani et al. 2017, sections 3.4 and 3.5 (arXiv:1706.03762).
    """

    def __init__(self, vocabulary: int, width: int, *, limit: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.limit = limit
        self.table = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.table.weight, std=width**-0.5)
        places = sin_cos_positions(torch.arange(limit)[:, None], width, "interleaved")
        self.register_buffer("places", places, persistent=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, first: int = 0) -> Tensor:
        """(B, N) numbers, of which the first is the sequence's token `first`, to (B, N, C).

        Raises:
            ShapeError: a sequence beyond the limit, numbers that are not tokens, or another shape.
        """
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise ShapeError(f"tokens {tuple(tokens.shape)} {tokens.dtype}: must be whole numbers (B, N)")
        if first + tokens.shape[1] > self.limit:
            raise ShapeError(
                f"a sequence of {first + tokens.shape[1]} tokens: this model reads at most {self.limit}; "
                "shorten it, or build the model with a higher limit"
            )
        size = self.table.num_embeddings
        # only checked on a CPU: on another device the check would wait for all work that was sent there
        if tokens.device.type == "cpu" and tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < size:
            raise ShapeError(f"token {int(tokens.max())}: must be 0 to {size - 1}, the model's vocabulary")
        places: Tensor = self.get_buffer("places")[first : first + tokens.shape[1]]
        return self.dropout(self.table(tokens) * math.sqrt(self.table.embedding_dim) + places)


class TransformerDecoder(nn.Module):
    """Decoder of a sequence of tokens, each of which attends to those before it, and to a context if there is one.

    Args:
        tied: the table of the words is also that of the output.
    """

    def __init__(
        self,
        vocabulary: int,
        depth: int,
        config: BlockConfig,
        *,
        limit: int,
        context_width: int | None = None,
        tied: bool = True,
    ) -> None:
        super().__init__()
        self.words = TokenEmbedding(vocabulary, config.width, limit=limit, dropout=config.dropout)
        self.stack = TransformerStack(depth, config, context_width=context_width)
        self.out = None if tied else nn.Linear(config.width, vocabulary, bias=False)
        xavier_(self)

    def forward(
        self,
        tokens: Tensor,
        *,
        context: EncoderStates | None = None,
        caches: Sequence[BlockCache] | None = None,
        maps: list[AttentionMaps] | None = None,
    ) -> Tensor:
        """Tokens (B, N), behind those that are kept, to the vectors (B, N, C) that `logits` reads."""
        x = self.words(tokens, caches[0].own.length if caches else 0)
        return self.stack(x, context=context, causal=True, caches=caches, maps=maps)

    def logits(self, x: Tensor) -> Tensor:
        """(..., C) to (..., V): of the token that follows each."""
        return F.linear(x, self.words.table.weight) if self.out is None else self.out(x)

    def start(self, context: EncoderStates | None = None) -> DecoderState:
        """A reading of sequences with this context, whose keys and values are computed now, once."""
        caches = [BlockCache() for _ in self.stack.blocks]
        if context is not None:
            for cache, block in zip(caches, self.stack.blocks, strict=True):
                assert isinstance(block, TransformerBlock)
                assert block.context is not None
                cache.context = block.context.remember(context.tokens)
        return DecoderState(self, context, caches)


class DecoderState:
    """A batch of sequences in the middle of being read; what `decoding` asks for."""

    def __init__(self, decoder: TransformerDecoder, context: EncoderStates | None, caches: list[BlockCache]) -> None:
        self.decoder = decoder
        self.context = context
        self.caches = caches

    def next(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) of what follows these tokens (B, n), which follow those of the calls before."""
        return self.decoder.logits(self.decoder(tokens, context=self.context, caches=self.caches)[:, -1])

    def select(self, rows: Tensor) -> None:
        """Goes on with the sequences of these numbers, in this order; one may come several times."""
        for cache in self.caches:
            cache.own.select(rows)
            cache.context.select(rows)
        if self.context is not None:
            tokens, mask = self.context
            # the tokens themselves are not read again: their keys and values are kept
            self.context = EncoderStates(tokens[:0], None if mask is None else mask[rows])


@dataclass(frozen=True)
class TransformerConfig:
    """An encoder and a decoder; the defaults are the base model of 2017.

    Attributes:
        source, target: words of the two vocabularies.
        depth: blocks of the encoder, and of the decoder where `decoder_depth` is None.
        max_length: tokens of the longest sequence.
    """

    source: int
    target: int
    hidden_size: int = 512
    heads: int = 8
    intermediate_size: int = 2048
    depth: int = 6
    decoder_depth: int | None = None
    dropout: float = 0.1
    norm: NormPlace = "post"
    activation: Activation = "relu"
    tie: Tie = "none"
    max_length: int = 512

    def __post_init__(self) -> None:
        """Raises RecipeError for a setting that cannot work."""
        if self.tie not in ("none", "output", "all"):
            choices = ("none", "output", "all")
            raise RecipeError(f"tie {self.tie!r}: must be one of {', '.join(choices)}{did_you_mean(self.tie, choices)}")
        if self.tie == "all" and self.source != self.target:
            raise RecipeError(
                f"tie = all: the vocabularies of {self.source} and {self.target} words must be one; use tie = output"
            )
        if self.hidden_size % 2 or self.hidden_size % self.heads:
            raise RecipeError(f"hidden_size {self.hidden_size}: must be even and a multiple of the {self.heads} heads")

    @property
    def block(self) -> BlockConfig:
        """Configuration of the blocks of both halves."""
        return BlockConfig(
            self.hidden_size, self.heads, self.intermediate_size, self.norm, self.activation, self.dropout
        )


class Transformer(nn.Module):
    """The encoder and decoder of 2017: from the tokens of one sequence to those of another.

    Source: Vaswani et al. 2017 (arXiv:1706.03762).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.words = None
        if config.tie != "all":
            self.words = TokenEmbedding(
                config.source, config.hidden_size, limit=config.max_length, dropout=config.dropout
            )
        self.encoder = TransformerStack(config.depth, config.block)
        xavier_(self)
        depth = config.decoder_depth or config.depth
        tied = config.tie != "none"
        self.decoder = TransformerDecoder(
            config.target, depth, config.block, limit=config.max_length, context_width=config.hidden_size, tied=tied
        )

    def forward(self, source: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Logits (B, N, V) of what follows each token of target (B, N), given source (B, M).

        Args:
            mask: boolean (B, M), True for the source's tokens and False for padding.
        """
        return self.decoder.logits(self.decoder(target, context=self.encode(source, mask)))

    def encode(
        self, source: Tensor, mask: Tensor | None = None, maps: list[AttentionMaps] | None = None
    ) -> EncoderStates:
        """The source as the decoder's context."""
        words = self.decoder.words if self.words is None else self.words
        seen = None if mask is None else mask[:, None, None]
        return EncoderStates(self.encoder(words(source), mask=seen, maps=maps), mask)

    def start(self, source: Tensor, mask: Tensor | None = None) -> DecoderState:
        """A reading of this source, for `decoding`."""
        return self.decoder.start(self.encode(source, mask))


def token_loss(logits: Tensor, targets: Tensor, *, smoothing: float = 0.0, padding: int | None = None) -> Tensor:
    """Mean cross-entropy in nats of logits (B, N, V) on tokens (B, N), without those that are `padding`.

    Args:
        smoothing: probability taken from the true token and spread evenly over all V.

    Raises:
        ShapeError: shapes that do not match.

    Source: label smoothing: Szegedy et al. 2015, section 7 (arXiv:1512.00567).
    """
    if logits.shape[:-1] != targets.shape:
        raise ShapeError(f"logits {tuple(logits.shape)} for tokens {tuple(targets.shape)}: must be those and V")
    flat = logits.flatten(0, -2).float(), targets.flatten()
    return F.cross_entropy(*flat, ignore_index=-100 if padding is None else padding, label_smoothing=smoothing)


def xavier_(module: nn.Module) -> None:
    """Draws every linear layer's weights uniformly, with the spread that keeps variances, and zeroes its biases.

    Source: Glorot & Bengio 2010, eq. 16.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for part in module.modules():
        if isinstance(part, Attention) and part.fused:
            for weight in part.qkv.weight.chunk(3):  # three layers, though one product computes them
                nn.init.xavier_uniform_(weight)
