"""The original transformer (Vaswani et al. 2017), and its parts for text encoders, captioners and priors.

Letters of shapes: B rows, N tokens, M tokens of a context, C the width of a token, V words of a vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.errors import RecipeError, ShapeError, did_you_mean
from unveil.nn.attention import Attention, AttentionPattern, KVCache, QkNorm
from unveil.nn.cpu_kernels import linear_geglu, linear_gelu
from unveil.nn.embeddings import Rotary, sin_cos_positions

# Whether the sum of a residual is normalised (2017), or what goes into its branch (Xiong et al. 2020, arXiv:2002.04745)
NormPlace = Literal["post", "pre"]
# "geglu" multiplies half of the layer inside with the GELU of the other (Shazeer 2020, arXiv:2002.05202)
Activation = Literal["relu", "gelu", "gelu-tanh", "geglu"]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu-tanh": lambda: nn.GELU(approximate="tanh"),
    "geglu": nn.GELU,
}


@dataclass(frozen=True)
class BlockConfig:
    """Configuration of one block of a transformer.

    Attributes:
        hidden: Width of the hidden layer of the MLP.
        kv_heads: Number of heads of keys and values; None: as many as `heads`.
        dropout: Dropout probability of the output of each branch.
        eps: Epsilon of the normalisations.
        qkv_bias: True if the projections to queries, keys and values have biases.
    """

    width: int
    heads: int
    hidden: int
    norm: NormPlace = "pre"
    activation: Activation = "gelu"
    dropout: float = 0.0
    kv_heads: int | None = None
    qk_norm: QkNorm = "none"
    eps: float = 1e-5
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        """Raise RecipeError for an unknown choice, a dropout outside [0, 1), or a hidden width below 1."""
        for name, value, names in (("norm", self.norm, ("post", "pre")), ("activation", self.activation, _ACTIVATIONS)):
            if value not in names:
                raise RecipeError(f"{name} {value!r}: must be one of {', '.join(names)}{did_you_mean(value, [*names])}")
        if not 0 <= self.dropout < 1 or self.hidden < 1:
            raise RecipeError(f"dropout {self.dropout}, hidden {self.hidden}: must be in [0, 1), and at least 1")


class EncoderStates(NamedTuple):
    """Context of cross-attention.

    Attributes:
        tokens: Tokens of the context, (B, M, width).
        mask: Boolean mask (B, M), True for tokens that count; None: all count.
    """

    tokens: Tensor
    mask: Tensor | None = None


@dataclass
class BlockCache:
    """Cache of one block: keys and values of its self-attention, and those of its context."""

    self_attention: KVCache = field(default_factory=KVCache)
    context: KVCache = field(default_factory=KVCache)


@dataclass
class AttentionMaps:
    """Attention weights of one block, (B, H, N, M) for each call: of its self-attention, and of its cross-attention."""

    self_attention: list[Tensor] = field(default_factory=list)
    context: list[Tensor] = field(default_factory=list)


class TransformerBlock(nn.Module):
    """Transformer block: residual self-attention, optional attention to a context, and an MLP.

    Args:
        context_width: Width of a context's tokens. None: no context. "own": a second self-attention.

    Source: Vaswani et al. 2017, section 3.1 (arXiv:1706.03762).
    """

    def __init__(self, config: BlockConfig, *, context_width: int | Literal["own"] | None = None) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.own = _attention(config, None)
        self.own_norm = nn.LayerNorm(width, config.eps)
        self.context, self.reads = None, isinstance(context_width, int)
        if context_width is not None:
            self.context = _attention(config, context_width if isinstance(context_width, int) else None)
            self.context_norm = nn.LayerNorm(width, config.eps)
        self.mlp = Mlp(width, config.hidden, config.activation)
        self.mlp_norm = nn.LayerNorm(width, config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        *,
        context: EncoderStates | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        rotary: Rotary | None = None,
        stored: BlockCache | KVCache | None = None,
        packing: AttentionPattern | None = None,
        maps: AttentionMaps | None = None,
    ) -> Tensor:
        """Output (B, N, C) for tokens x (B, N, C).

        Args:
            mask: Mask of the self-attention, as in `attention.scaled_dot_product_attention`.
            stored: Cache of the tokens of earlier calls and of the context, or of the context only.

        Raises:
            ShapeError: A context is given to a block without cross-attention, or is missing.
        """
        if (context is not None) != self.reads:
            raise ShapeError("context: must be given to a block built with context_width, and to no other")
        added = self.own(
            self._before(x, self.own_norm),
            mask=mask,
            causal=causal,
            rotary=rotary,
            cache=stored.self_attention if isinstance(stored, BlockCache) else None,
            packing=packing,
            maps=None if maps is None else maps.self_attention,
        )
        x = self._after(x, added, self.own_norm)
        if self.context is not None:
            added = self.context(
                self._before(x, self.context_norm),
                context=None if context is None else context.tokens,
                mask=None if context is None or context.mask is None else context.mask[:, None, None],
                cache=stored.context if isinstance(stored, BlockCache) else stored,
                maps=None if maps is None else maps.context,
            )
            x = self._after(x, added, self.context_norm)
        return self._after(x, self.mlp(self._before(x, self.mlp_norm)), self.mlp_norm)

    def _before(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        return norm(x) if self.config.norm == "pre" else x

    def _after(self, x: Tensor, added: Tensor, norm: nn.LayerNorm) -> Tensor:
        x = x + self.dropout(added)
        return norm(x) if self.config.norm == "post" else x


def _attention(config: BlockConfig, context_width: int | None) -> Attention:
    return Attention(
        config.width,
        config.heads,
        kv_heads=config.kv_heads,
        context_width=context_width,
        bias=config.qkv_bias,
        qk_norm=config.qk_norm,
    )


class Mlp(nn.Module):
    """MLP of a transformer block; a gated one has two layers inside, stored as one."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.gated = activation == "geglu"
        self.up = nn.Linear(width, 2 * hidden if self.gated else hidden)
        self.activation = _ACTIVATIONS[activation]()
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., width) to (..., width)."""
        if self.gated:
            return self.down(linear_geglu(x, self.up))
        if isinstance(self.activation, nn.GELU):
            return self.down(linear_gelu(x, self.up, self.activation.approximate))
        return self.down(self.activation(self.up(x)))


class TransformerStack(nn.Module):
    """Sequence of transformer blocks; pre-norm blocks are followed by a final normalisation."""

    def __init__(self, depth: int, config: BlockConfig, *, context_width: int | None = None) -> None:
        super().__init__()
        if depth < 1:
            raise RecipeError(f"depth {depth}: a transformer has at least 1 block")
        self.blocks = nn.ModuleList(TransformerBlock(config, context_width=context_width) for _ in range(depth))
        self.norm = nn.LayerNorm(config.width) if config.norm == "pre" else nn.Identity()

    def forward(
        self,
        x: Tensor,
        *,
        context: EncoderStates | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        rotary: Rotary | None = None,
        caches: Sequence[BlockCache] | None = None,
        packing: AttentionPattern | None = None,
        maps: list[AttentionMaps] | None = None,
    ) -> Tensor:
        """Output (B, N, C) for tokens x (B, N, C), with the arguments of a block.

        Args:
            caches: Cache of each block.
            maps: List to which the attention weights of each block are appended.
        """
        for i, block in enumerate(self.blocks):
            shown = None if maps is None else AttentionMaps()
            if maps is not None and shown is not None:
                maps.append(shown)
            x = block(
                x,
                context=context,
                mask=mask,
                causal=causal,
                rotary=rotary,
                stored=None if caches is None else caches[i],
                packing=packing,
                maps=shown,
            )
        return self.norm(x)


# Which tables are one: none, the target's and the output's, or the source's with them
Tie = Literal["none", "output", "all"]


class TokenEmbedding(nn.Module):
    """Embedding of tokens and positions: a table, times the root of the width, plus sinusoids.

    Args:
        limit: Maximum number of tokens of a sequence.

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
        """Embed tokens (B, N), of which the first is the sequence's token `first`, as (B, N, C).

        Raises:
            ShapeError: The sequence exceeds the limit, a number is not a token, or the shape is wrong.
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
    """Decoder of token sequences with causal self-attention, and cross-attention if there is a context.

    Args:
        tied: True if the output layer uses the embedding table of the words.
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
        """Output vectors (B, N, C) for `logits`, of tokens (B, N) that follow those in the caches."""
        x = self.words(tokens, caches[0].self_attention.length if caches else 0)
        return self.stack(x, context=context, causal=True, caches=caches, maps=maps)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (..., V) of the token that follows each vector (..., C)."""
        return F.linear(x, self.words.table.weight) if self.out is None else self.out(x)

    def start(self, context: EncoderStates | None = None) -> DecoderState:
        """Decoder state for sequences with this context, whose keys and values are computed once, now."""
        caches = [BlockCache() for _ in self.stack.blocks]
        if context is not None:
            for cache, block in zip(caches, self.stack.blocks, strict=True):
                assert isinstance(block, TransformerBlock)
                assert block.context is not None
                cache.context = block.context.precompute_context(context.tokens)
        return DecoderState(self, context, caches)


class DecoderState:
    """State of sequences that are decoded, which implements `decoding.NextToken`."""

    def __init__(self, decoder: TransformerDecoder, context: EncoderStates | None, caches: list[BlockCache]) -> None:
        self.decoder = decoder
        self.context = context
        self.caches = caches

    def next(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) of the next token, after appending tokens (B, n) to the sequences."""
        return self.decoder.logits(self.decoder(tokens, context=self.context, caches=self.caches)[:, -1])

    def select(self, rows: Tensor) -> None:
        """Continue with the sequences of the given indices, in this order; a sequence may be selected several times."""
        for cache in self.caches:
            cache.self_attention.select(rows)
            cache.context.select(rows)
        if self.context is not None:
            tokens, mask = self.context
            # the tokens themselves are not read again: their keys and values are kept
            self.context = EncoderStates(tokens[:0], None if mask is None else mask[rows])


@dataclass(frozen=True)
class TransformerConfig:
    """Configuration of an encoder and a decoder; the defaults are the base model of Vaswani et al. 2017.

    Attributes:
        source, target: Number of words of the two vocabularies.
        depth: Number of blocks of the encoder, and of the decoder if `decoder_depth` is None.
        max_length: Number of tokens of the longest sequence.
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
        """Raise RecipeError for settings that are inconsistent."""
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
        """Configuration of the blocks of encoder and decoder."""
        return BlockConfig(
            self.hidden_size, self.heads, self.intermediate_size, self.norm, self.activation, self.dropout
        )


class Transformer(nn.Module):
    """The original encoder-decoder transformer, from the tokens of one sequence to those of another.

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
        """Logits (B, N, V) of the token after each of target (B, N), given source (B, M).

        Args:
            mask: Boolean mask (B, M), True for the source's tokens and False for padding.
        """
        return self.decoder.logits(self.decoder(target, context=self.encode(source, mask)))

    def encode(
        self, source: Tensor, mask: Tensor | None = None, maps: list[AttentionMaps] | None = None
    ) -> EncoderStates:
        """Encoder states of the source, which are the decoder's context."""
        words = self.decoder.words if self.words is None else self.words
        seen = None if mask is None else mask[:, None, None]
        return EncoderStates(self.encoder(words(source), mask=seen, maps=maps), mask)

    def start(self, source: Tensor, mask: Tensor | None = None) -> DecoderState:
        """Decoder state at the start of a target sequence for this source, for `decoding`."""
        return self.decoder.start(self.encode(source, mask))


def token_loss(logits: Tensor, targets: Tensor, *, smoothing: float = 0.0, padding: int | None = None) -> Tensor:
    """Mean cross-entropy in nats of logits (B, N, V) for tokens (B, N), except those that are `padding`.

    Args:
        smoothing: Probability taken from the true token and spread evenly over all V.

    Raises:
        ShapeError: The shapes of logits and targets do not match.

    Source: label smoothing: Szegedy et al. 2015, section 7 (arXiv:1512.00567).
    """
    if logits.shape[:-1] != targets.shape:
        raise ShapeError(f"logits {tuple(logits.shape)} for tokens {tuple(targets.shape)}: must be those and V")
    flat = logits.flatten(0, -2).float(), targets.flatten()
    return F.cross_entropy(*flat, ignore_index=-100 if padding is None else padding, label_smoothing=smoothing)


def xavier_(module: nn.Module) -> None:
    """Draw the weights of all linear layers from Xavier's uniform distribution, and set their biases to 0.

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
