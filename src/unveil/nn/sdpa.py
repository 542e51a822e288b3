"""Each query on all keys: the weights, and what they gather of the values.

Letters of shapes: B rows, H heads, N queries, M keys, D the width of a head.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from unveil.errors import ShapeError

# On a CPU two plain products beat torch's fused kernel in bf16, which computes at the speed of float32: with heads of
# 64 they take two thirds of its time. Where a gradient keeps all weights (queries times keys), they do so up to this
# many. In float32 the fused kernel of torch 2.13 is the faster one from 49 tokens on, both ways.
PLAIN_UP_TO = {torch.bfloat16: 2**19}
# Without gradients they are computed in parts of that many weights, which stay in the cache.
PART = 2**19


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Scaled dot-product attention: query (B, H, N, D) on key and value (B, H or a divisor of it, M, D).

    A query that may look at nothing gathers 0.

    Args:
        mask: boolean, broadcastable to (B, H, N, M), True where a query may look.
        causal: the last query is the last key's; each looks at its own and at those before it.

    Raises:
        ShapeError: heads that the keys' do not divide, or a mask that is not boolean.

    Source: Vaswani et al. 2017, eq. 1 (arXiv:1706.03762); fewer key heads: Ainslie et al. 2023 (arXiv:2305.13245).
    """
    heads = query.shape[1]
    key, value = repeat_kv(key, heads), repeat_kv(value, heads)
    if query.device.type == "cpu" and query.dtype in PLAIN_UP_TO:
        wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
        if not wanted and not torch.compiler.is_compiling():
            return _in_parts(query, key, value, _allowed(query, key, mask, causal))
        if query.shape[2] * key.shape[2] <= PLAIN_UP_TO[query.dtype]:
            return _weights(query, key, _allowed(query, key, mask, causal)) @ value
    if mask is None and query.shape[2] == key.shape[2]:
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=_allowed(query, key, mask, causal))


def attention_weights(query: Tensor, key: Tensor, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Attention weights of queries to keys: (B, H, N, M), each row summing to 1, or all 0 where it may see nothing.

    Args:
        mask, causal: as in `attend`.

    Raises:
        ShapeError: as `attend`.
    """
    return _weights(query, repeat_kv(key, query.shape[1]), _allowed(query, key, mask, causal))


def _weights(query: Tensor, key: Tensor, allowed: Tensor | None) -> Tensor:
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(2, 3)
    if allowed is None:
        return torch.softmax(scores, dim=-1)
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)  # -inf would make a row of nothing NaN
    return torch.softmax(scores, dim=-1).masked_fill(~allowed, 0)


def _in_parts(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
    """Attention of `PART` weights at a time, which stay in the cache, in memory that all parts share; no gradients."""
    rows, heads, queries, keys = *query.shape[:3], key.shape[2]
    if rows * heads * queries * keys <= PART:
        return _weights(query, key, allowed) @ value
    allowed = None if allowed is None else allowed.expand(rows, heads, queries, keys).flatten(0, 1)
    query, key, value = (x.flatten(0, 1) for x in (query * query.shape[-1] ** -0.5, key, value))  # (B H, N, D)
    some = min(queries, max(1, PART // keys))
    several = max(1, PART // (some * keys))
    output = query.new_empty(rows * heads, queries, value.shape[2])
    memory = query.new_empty(2, several * some * keys)
    steps = ((rows * heads, several), (queries, some))
    for r, n in product(*([slice(i, min(i + step, end)) for i in range(0, end, step)] for end, step in steps)):
        shape = (r.stop - r.start, n.stop - n.start, keys)
        scores, weights = (buffer[: math.prod(shape)].view(shape) for buffer in memory)
        torch.bmm(query[r, n], key[r].transpose(1, 2), out=scores)
        if allowed is not None:
            scores.masked_fill_(~allowed[r, n], torch.finfo(scores.dtype).min)
        torch.softmax(scores, dim=-1, out=weights)
        if allowed is not None:
            weights.masked_fill_(~allowed[r, n], 0)
        torch.bmm(weights, value[r], out=output[r, n])
    return output.unflatten(0, (rows, heads))


def repeat_kv(x: Tensor, heads: int) -> Tensor:
    """Keys or values (B, some, M, D), each head repeated for those of the queries that it serves: (B, H, M, D).

    Raises:
        ShapeError: heads that those do not divide.
    """
    if x.shape[1] == heads:
        return x
    if heads % x.shape[1]:
        raise ShapeError(f"{x.shape[1]} heads of keys for {heads} of queries: must divide them")
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def _allowed(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    if mask is not None and mask.dtype != torch.bool:
        raise ShapeError(f"mask of {mask.dtype}: must be boolean, True where a query may look")
    queries, keys = query.shape[2], key.shape[2]
    if not causal or queries == 1:
        return mask
    before = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    return before if mask is None else before & mask
