"""The blocks that transformers of text are made of: attention, a context, a perceptron.

Letters of shapes: B rows, N tokens, M tokens of a context, C the width of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor, nn

from unveil.errors import RecipeError, ShapeError, did_you_mean
from unveil.nn.attention import Attention, AttentionPattern, KVCache, QkNorm
from unveil.nn.cpu_kernels import linear_geglu, linear_gelu
from unveil.nn.embeddings import Rotary

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
    """One block of a transformer.

    Attributes:
        hidden: width of the layer inside its perceptron.
        kv_heads: heads of keys and values; None: as many as `heads`.
        dropout: of what each branch adds.
        eps: of the normalisations.
        qkv_bias: whether the projections to queries, keys and values have biases.
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
        """Raises RecipeError for a name that is none of the choices, or a dropout that is not a share."""
        for name, value, names in (("norm", self.norm, ("post", "pre")), ("activation", self.activation, _ACTIVATIONS)):
            if value not in names:
                raise RecipeError(f"{name} {value!r}: must be one of {', '.join(names)}{did_you_mean(value, [*names])}")
        if not 0 <= self.dropout < 1 or self.hidden < 1:
            raise RecipeError(f"dropout {self.dropout}, hidden {self.hidden}: must be in [0, 1), and at least 1")


class EncoderStates(NamedTuple):
    """Context that tokens attend to beside themselves.

    tokens: (B, M, width). mask: boolean (B, M), True where one counts; None: all count.
    """

    tokens: Tensor
    mask: Tensor | None = None


@dataclass
class BlockCache:
    """Cache of one block: its own tokens' keys and values, and those of its context."""

    own: KVCache = field(default_factory=KVCache)
    context: KVCache = field(default_factory=KVCache)


@dataclass
class AttentionMaps:
    """The weights of one block's heads, a tensor (B, H, N, M) for each call: on its own tokens, and on its context."""

    own: list[Tensor] = field(default_factory=list)
    context: list[Tensor] = field(default_factory=list)


class TransformerBlock(nn.Module):
    """Attention of tokens on themselves, on a context where there is one, and a perceptron, each a residual.

    Args:
        context_width: of a context's tokens; None: there is none; "own": the tokens look at themselves once more.

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
        """X (B, N, C) with what its tokens gathered.

        Args:
            mask: of x on itself, as `attend` takes it.
            stored: earlier calls' tokens, and the context, read once; or a cache of a context alone.

        Raises:
            ShapeError: a context for a block without one, or the other way round.
        """
        if (context is not None) != self.reads:
            raise ShapeError("context: must be given to a block built with context_width, and to no other")
        added = self.own(
            self._before(x, self.own_norm),
            mask=mask,
            causal=causal,
            rotary=rotary,
            cache=stored.own if isinstance(stored, BlockCache) else None,
            packing=packing,
            maps=None if maps is None else maps.own,
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
    """The perceptron that each token passes through by itself; a gated one has two layers inside, stored as one."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.gated = activation == "geglu"
        self.up = nn.Linear(width, 2 * hidden if self.gated else hidden)
        self.activation = _ACTIVATIONS[activation]()
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same."""
        if self.gated:
            return self.down(linear_geglu(x, self.up))
        if isinstance(self.activation, nn.GELU):
            return self.down(linear_gelu(x, self.up, self.activation.approximate))
        return self.down(self.activation(self.up(x)))


class TransformerStack(nn.Module):
    """Blocks one after the other; pre-norm ones end in a normalisation."""

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
        """(B, N, C) to the same; settings as a block's, `caches` and `maps` one for each block, the maps appended."""
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
