"""Attention, as every network uses it: heads, masks, positions by rotation, caches, maps.

Letters of shapes: B rows, H heads, N queries, M keys, D the width of a head, C the width of a token.
"""

from __future__ import annotations

from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.errors import RecipeError, ShapeError, did_you_mean
from unveil.nn.embeddings import Rotary
from unveil.nn.packing import Packing
from unveil.nn.sdpa import attention_weights, repeat_kv, scaled_dot_product_attention

QkNorm = Literal["none", "layer", "rms"]


class KVCache:
    """The keys and values (B, heads, n, D) that one layer keeps: of the tokens so far, or of a context, fixed.

    It is for reading a model: no gradient passes through tokens that are appended.
    """

    def __init__(self) -> None:
        self.length = 0
        self._tensors: tuple[Tensor, Tensor] | None = None  # with room for more than `length`

    @property
    def stored(self) -> tuple[Tensor, Tensor] | None:
        """All keys and values, None before there are any."""
        if self._tensors is None:
            return None
        key, value = self._tensors
        return key[:, :, : self.length], value[:, :, : self.length]

    def fix(self, key: Tensor, value: Tensor) -> None:
        """Keeps these and no others."""
        self._tensors, self.length = (key, value), key.shape[2]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps these behind the others; returns all of them.

        Raises:
            ShapeError: they want a gradient, or are of another number of rows.
        """
        if torch.is_grad_enabled() and (key.requires_grad or value.requires_grad):
            raise ShapeError("a cache keeps no gradients: read the model under torch.no_grad(), or without a cache")
        if self._tensors is None:
            self._tensors = key[:, :, :0], value[:, :, :0]
        rows = self._tensors[0].shape[0]
        if rows != key.shape[0]:
            raise ShapeError(f"{key.shape[0]} rows given, the cache holds {rows}; select rows first")
        before, self.length = self.length, self.length + key.shape[2]
        if self._tensors[0].shape[2] < self.length:
            more = (0, 0, 0, 2 * self.length - self._tensors[0].shape[2])
            self._tensors = F.pad(self._tensors[0], more), F.pad(self._tensors[1], more)
        for tensor, new in zip(self._tensors, (key, value), strict=True):
            tensor[:, :, before : self.length] = new
        stored = self.stored
        assert stored is not None
        return stored

    def select(self, rows: Tensor) -> None:
        """Keeps the rows of these numbers, in this order; a row may be kept several times."""
        if self._tensors is not None:
            self._tensors = self._tensors[0].index_select(0, rows), self._tensors[1].index_select(0, rows)


class AttentionPattern(Protocol):
    """Says which tokens of rows see each other, and computes what they gather."""

    @property
    def mask(self) -> Tensor:
        """Boolean (rows, 1, N, N), True where a token may see another."""
        ...

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
        """As `attend`, of (rows, H, N, D)."""
        ...


class Attention(nn.Module):
    """Multi-head attention of tokens on themselves, or on a context.

    Args:
        width: C, of a token.
        kv_heads: of keys and values, a divisor of `heads`, each serving several queries' heads.
        context_width: of a context's tokens; None: the tokens look at themselves.
        bias, out_bias: of the projections to queries, keys and values, and of the one back.
        qk_norm: of each head's queries and keys, which keeps their product small in long training.

    Raises:
        RecipeError: a width that the heads do not divide, or heads that the key heads do not.

    Source: Vaswani et al. 2017, section 3.2.2 (arXiv:1706.03762); qk_norm: Henry et al. 2020 (arXiv:2010.04245).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        context_width: int | None = None,
        bias: bool = True,
        out_bias: bool = True,
        qk_norm: QkNorm = "none",
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if heads < 1 or width % heads or kv_heads < 1 or heads % kv_heads:
            raise RecipeError(
                f"width {width}, {heads} heads, {kv_heads} of keys: the width must be a multiple of the heads, "
                "and the heads of those of the keys"
            )
        self.width, self.heads, self.kv_heads, self.head_width = width, heads, kv_heads, width // heads
        self.context_width = context_width
        self.fused = context_width is None and kv_heads == heads
        if self.fused:
            self.qkv = nn.Linear(width, 3 * width, bias)
        else:
            self.query = nn.Linear(width, width, bias)
            self.key = nn.Linear(context_width or width, kv_heads * self.head_width, bias)
            self.value = nn.Linear(context_width or width, kv_heads * self.head_width, bias)
        self.query_norm, self.key_norm = _norm(qk_norm, self.head_width), _norm(qk_norm, self.head_width)
        self.out = nn.Linear(width, width, out_bias)

    def forward(
        self,
        x: Tensor,
        *,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        rotary: Rotary | None = None,
        cache: KVCache | None = None,
        packing: AttentionPattern | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """Attention of each token of x (B, N, C), to x or to the context (B, M, context_width).

        Args:
            mask, causal: as in `attend`.
            rotary: the positions of x, of these N tokens alone where a cache holds others.
            cache: x is looked at behind the tokens that it holds, and joins them. Where there is a context, its keys
                and values are computed at the first call and kept; the context may then be left out.
            packing: which tokens of x see each other, such as a `Packing`, of which each sequence sees itself alone.
                Where there is a context, a `Packing` whose sequences look at one of its rows each, with a mask (S, M).
            maps: the weights (B, H, N, M) are appended to it.

        Raises:
            ShapeError: tokens or a context of another width, or settings that exclude each other.
        """
        if x.ndim != 3 or x.shape[2] != self.width:
            raise ShapeError(f"tokens {tuple(x.shape)}: must be (B, N, {self.width})")
        crossed = self.context_width is not None
        reads = crossed and isinstance(packing, Packing) and maps is None and not causal
        if packing is not None and not reads and (crossed or cache is not None):
            raise ShapeError(
                "packing: for tokens that look at themselves, without a cache, or a Packing of tokens that look at a "
                "context, without maps; give a mask instead"
            )
        query, key, value = (
            self._crossed(x, context, rotary, cache) if crossed else self._self_attended(x, context, rotary, cache)
        )
        if reads:
            return self._out(cast(Packing, packing).read(query, key, value, mask))
        if packing is not None and mask is None and maps is None:
            return self._out(packing.attend(query, key, value, causal=causal))
        if packing is not None:
            packed = packing.mask.to(x.device)
            mask = packed if mask is None else packed & mask
        if maps is None:
            return self._out(scaled_dot_product_attention(query, key, value, mask=mask, causal=causal))
        weights = attention_weights(query, key, mask=mask, causal=causal)
        maps.append(weights)
        return self._out(weights @ repeat_kv(value, self.heads))

    def remember(self, context: Tensor) -> KVCache:
        """The keys and values of a context (B, M, context_width), for every call of a run.

        Raises:
            ShapeError: a context of another width, or a layer that has none.
        """
        cache = KVCache()
        cache.fix(*self._keys_values(context))
        return cache

    def _self_attended(
        self, x: Tensor, context: Tensor | None, rotary: Rotary | None, cache: KVCache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if context is not None:
            raise ShapeError("context: this layer's tokens look at themselves; build it with context_width")
        if self.fused:
            query, key, value = (self._split(part) for part in self.qkv(x).chunk(3, dim=-1))
        else:
            query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        query, key = self.query_norm(query), self.key_norm(key)
        if rotary is not None:
            query, key = rotary.apply(query), rotary.apply(key)
        return (query, key, value) if cache is None else (query, *cache.append(key, value))

    def _crossed(
        self, x: Tensor, context: Tensor | None, rotary: Rotary | None, cache: KVCache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if rotary is not None:
            raise ShapeError("rotary: a context has no place among the tokens' positions; leave it out")
        stored = None if cache is None else cache.stored
        if stored is None:
            if context is None:
                raise ShapeError("context: missing; this layer's tokens look at one, or at what a cache has kept of it")
            stored = self._keys_values(context)
            if cache is not None:
                cache.fix(*stored)
        return self.query_norm(self._split(self.query(x))), *stored

    def _keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        if self.context_width is None or context.ndim != 3 or context.shape[2] != self.context_width:
            raise ShapeError(f"context {tuple(context.shape)}: must be (B, M, {self.context_width})")
        return self.key_norm(self._split(self.key(context))), self._split(self.value(context))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)  # (B, heads, N, D)

    def _out(self, gathered: Tensor) -> Tensor:
        return self.out(gathered.transpose(1, 2).flatten(2))


class _Rms(nn.RMSNorm):
    """With its weight in the input's type, which its kernel wants; under autocast they differ."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def _norm(kind: QkNorm, width: int) -> nn.Module:
    kinds = {"none": nn.Identity, "layer": nn.LayerNorm, "rms": _Rms}
    if kind not in kinds:
        raise RecipeError(f"qk_norm {kind!r}: must be one of {', '.join(kinds)}{did_you_mean(kind, list(kinds))}")
    return nn.Identity() if kind == "none" else kinds[kind](width, eps=1e-6)
