"""A run of many steps of Wan's transformer, in which what steps have in common is computed once.

Each call of the published code embeds the text and makes its keys and values in every block, embeds the level, and puts
together the table of places. Here a text's keys and values, a level's modulation and a size's table are remembered, and
levels that differ between frames are modulated frame by frame. Weights are those of diffusers' class.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from unveil.nn.layers import Memo

KeysValues = tuple[Tensor, Tensor]  # each (B, heads, L, D)


class CachedModulation(NamedTuple):
    """Modulation of a noise level: six vectors for each block and the last layer's embedding."""

    blocks: Tensor
    last: Tensor


class CachedWan:
    """The network, called as run(x, levels, tokens), for sampling: no gradient passes what is remembered.

    Args:
        net: A `WanTransformer3DModel`.
        levels: (N,) that the run comes to; others are worked out when they are met.
    """

    def __init__(self, net: Any, levels: Tensor) -> None:
        self.net = net
        self._texts = Memo[list[KeysValues]]()
        self._tables: dict[tuple[int, ...], Tensor] = {}
        self._levels: dict[float, CachedModulation] = {}
        self._expected = sorted(set(levels.tolist()))

    def __call__(self, x: Tensor, levels: Tensor, tokens: Tensor) -> Tensor:
        """The velocity at latents x (B, C, T, H, W).

        Args:
            levels: (B,) or of each token (B, T', H', W').
            tokens: Tokens of the text, (B, L, D).
        """
        texts = self._texts.get(tokens, lambda: self._read(tokens))
        modulation = self._modulation(levels, x.device)
        h = self.net.patch_embedding(x)  # (B, D, T', H', W')
        grid = h.shape[2:]
        h = h.flatten(3).permute(0, 2, 3, 1).float().contiguous()  # (B, T', H' W', D)
        places = self._places(x)
        for block, text in zip(self.net.blocks, texts, strict=True):
            h = _block(block, h, modulation.blocks, text, places)
        shift, scale = (self.net.scale_shift_table[0] + modulation.last[..., None, :]).unbind(-2)
        h = torch.addcmul(shift, self.net.norm_out(h), 1 + scale)
        return self._unpatched(_linear(self.net.proj_out, h), grid).to(x.dtype)

    def _read(self, tokens: Tensor) -> list[KeysValues]:
        """Keys and values of a text in each block."""
        text = self.net.condition_embedder.text_embedder(tokens)
        texts = []
        for block in self.net.blocks:
            attention = block.attn2
            key, value = attention.norm_k(_linear(attention.to_k, text)), _linear(attention.to_v, text)
            texts.append((_heads(key, attention.heads), _heads(value, attention.heads)))
        return texts

    def _modulation(self, levels: Tensor, device: torch.device) -> CachedModulation:
        """Modulation of the blocks, of axes (B, T', H' W' or 1, ...) that broadcast against tokens."""
        if levels.ndim == 1:
            levels = levels[:, None, None]
        else:
            levels = levels.flatten(2)
            if bool((levels == levels[..., :1]).all()):
                levels = levels[..., :1]  # one for each frame
        values, which = levels.unique(return_inverse=True)
        rows = [self._level(value, device) for value in values.tolist()]
        if len(rows) == 1:
            return CachedModulation(rows[0].blocks[None, None, None], rows[0].last[None, None, None])
        return CachedModulation(
            torch.stack([row.blocks for row in rows])[which], torch.stack([row.last for row in rows])[which]
        )

    def _level(self, value: float, device: torch.device) -> CachedModulation:
        """Modulation of one noise level; all expected ones are computed with the first."""
        if value not in self._levels:
            levels = self._expected if value in self._expected else [value]
            embedder = self.net.condition_embedder
            first = embedder.time_embedder
            with torch.no_grad(), torch.autocast(device.type, enabled=False):  # levels are in full precision
                waves = embedder.timesteps_proj(torch.tensor(levels, device=device)).float()
                last = _in_full(first.linear_2, first.act(_in_full(first.linear_1, waves)))
                blocks = _in_full(embedder.time_proj, embedder.act_fn(last)).unflatten(1, (6, -1))
            each = zip(levels, blocks, last, strict=True)
            self._levels |= {level: CachedModulation(*modulation) for level, *modulation in each}
        return self._levels[value]

    def _places(self, x: Tensor) -> Tensor:
        """The turns of each token's pairs as complex numbers, (1, 1, N, D / 2)."""
        size = tuple(x.shape[2:])
        if size not in self._tables:
            cos, sin = self.net.rope(x)  # each (1, N, 1, D), every number twice
            self._tables[size] = torch.complex(cos[..., 0::2].float(), sin[..., 0::2].float()).transpose(1, 2)
        return self._tables[size].to(x.device)

    def _unpatched(self, tokens: Tensor, grid: torch.Size) -> Tensor:
        """(B, T', H' W', p q r C) to (B, C, T, H, W)."""
        cut = tokens.unflatten(2, tuple(grid[1:])).unflatten(4, (*self.net.config.patch_size, -1))
        return cut.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _block(block: Any, h: Tensor, modulation: Tensor, text: KeysValues, places: Tensor) -> Tensor:
    """Tokens (B, T', H' W', D) after a block."""
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (block.scale_shift_table[0] + modulation).unbind(-2)
    seen = torch.addcmul(shift_1, _normal(block.norm1, h), 1 + scale_1)
    h = torch.addcmul(h, gate_1, _itself(block.attn1, seen, places).float())
    h = h + _across(block.attn2, block.norm2(h), text)
    seen = torch.addcmul(shift_2, _normal(block.norm3, h), 1 + scale_2)
    return torch.addcmul(h, gate_2, _perceptron(block.ffn, seen).float())


def _itself(attention: Any, x: Tensor, places: Tensor) -> Tensor:
    """Self-attention of (B, T', H' W', D)."""
    x = _as(x, attention.to_q)
    query, key, value = (_linear(layer, x).flatten(1, 2) for layer in (attention.to_q, attention.to_k, attention.to_v))
    count = attention.heads
    query, key = (
        _turned(_heads(norm(layer), count), places)
        for norm, layer in ((attention.norm_q, query), (attention.norm_k, key))
    )
    attended = functional.scaled_dot_product_attention(query.to(value), key.to(value), _heads(value, count))
    return _linear(attention.to_out[0], attended.transpose(1, 2).flatten(2)).view(x.shape)


def _across(attention: Any, x: Tensor, text: KeysValues) -> Tensor:
    """Attention of (B, T', H' W', D) to a text."""
    query = attention.norm_q(_linear(attention.to_q, x).flatten(1, 2))
    key, value = text
    attended = functional.scaled_dot_product_attention(_heads(query, attention.heads).to(value), key.to(value), value)
    return _linear(attention.to_out[0], attended.transpose(1, 2).flatten(2)).view(x.shape).float()


def _perceptron(layers: Any, x: Tensor) -> Tensor:
    inner, *_, outer = (layer for layer in layers.net if not isinstance(layer, nn.Dropout))
    return _linear(outer, functional.gelu(_linear(inner.proj, x), approximate="tanh"))


def _turned(x: Tensor, places: Tensor) -> Tensor:
    """Pairs of neighbours turned by their token's angles, (B, heads, N, D)."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * places).flatten(-2)


def _normal(norm: Any, h: Tensor) -> Tensor:
    return functional.layer_norm(h, norm.normalized_shape, eps=norm.eps)


def _heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def _as(x: Tensor, layer: nn.Linear) -> Tensor:
    """X in the type of a layer's weights, once for all that take it."""
    return x.to(layer.weight.dtype)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer(_as(x, layer))


def _in_full(layer: nn.Linear, x: Tensor) -> Tensor:
    """A layer in float32, whatever its weights are kept in."""
    return functional.linear(x, layer.weight.float(), layer.bias.float())
