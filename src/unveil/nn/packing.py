"""Sequences of different lengths in one row, each seeing itself alone.

Letters of shapes: H heads, N tokens of a row, D the width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from unveil.errors import ShapeError
from unveil.nn.sdpa import repeat_kv, scaled_dot_product_attention


class Packing:
    """Sequences of different lengths, several in a row, each seeing itself alone; the end of a row may be padding.

    Args:
        lengths: of the sequences, in the caller's order.
        length: of a row; the sequences then fill rows longest first, each the first row with room for it. None: one
            row holds all in the order given.

    Attributes:
        places: the row of each sequence and where in it it begins, in the caller's order.
        shape: rows, and tokens in each.

    Raises:
        ShapeError: no sequence, an empty one, or one longer than a row.

    Source: Dehghani et al. 2023 (arXiv:2307.06304), section 2.
    """

    def __init__(self, lengths: Sequence[int], *, length: int | None = None) -> None:
        self.lengths = tuple(int(n) for n in lengths)
        width = sum(self.lengths) if length is None else length
        if not self.lengths or min(self.lengths) < 1 or max(self.lengths) > width:
            raise ShapeError(f"sequences of {list(self.lengths)} tokens in rows of {width}: each needs 1 to {width}")
        order = sorted(range(len(self.lengths)), key=lambda i: 0 if length is None else -self.lengths[i])
        places: dict[int, tuple[int, int]] = {}
        filled: list[int] = []
        for i in order:
            row = next((r for r, used in enumerate(filled) if used + self.lengths[i] <= width), len(filled))
            if row == len(filled):
                filled.append(0)
            places[i] = (row, filled[row])
            filled[row] += self.lengths[i]
        self.places = tuple(places[i] for i in range(len(self.lengths)))
        self.shape = (len(filled), width)
        starts = [row * width + start for row, start in self.places]
        # Of each token, in the caller's order, its number among the rows' tokens laid end to end.
        self.index = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, self.lengths, strict=True)])
        self.owner = torch.repeat_interleave(torch.tensor(self.lengths))  # of each of these tokens its sequence
        self._offsets = F.pad(torch.tensor(self.lengths).cumsum(0), (1, 0))
        self._in_order = bool(torch.equal(self.index, torch.arange(len(filled) * width)))

    def to(self, device: torch.device | str) -> Packing:
        """The same packing, its tables moved to where the sequences are, once instead of at each call."""
        self.index, self.owner, self._offsets = (x.to(device) for x in (self.index, self.owner, self._offsets))
        return self

    @property
    def waste(self) -> float:
        """The share of all tokens that is padding."""
        return 1 - sum(self.lengths) / (self.shape[0] * self.shape[1])

    @property
    def segments(self) -> Tensor:
        """The sequence of every token, -1 for padding: int64 (rows, N)."""
        segments = torch.full((self.shape[0] * self.shape[1],), -1, device=self.index.device)
        segments[self.index] = self.owner
        return segments.view(self.shape)

    @property
    def mask(self) -> Tensor:
        """Attention mask: boolean (rows, 1, N, N)."""
        segments = self.segments
        return ((segments[:, :, None] == segments[:, None]) & (segments >= 0)[:, None])[:, None]

    def pack(self, sequences: Sequence[Tensor]) -> Tensor:
        """Sequences (n, ...) in the caller's order as rows (rows, N, ...), padded with 0.

        Raises:
            ShapeError: sequences of other lengths than this packing is for.
        """
        if tuple(len(sequence) for sequence in sequences) != self.lengths:
            raise ShapeError(f"lengths {[len(one) for one in sequences]}: packed for {list(self.lengths)}")
        return self._rows(torch.cat([*sequences]))

    def unpack(self, x: Tensor) -> list[Tensor]:
        """The sequences of rows (rows, N, ...), in the caller's order."""
        return list(self._tokens(x).split(self.lengths))

    def spread(self, values: Tensor) -> Tensor:
        """One value a sequence (S, ...) as one a token (rows, N, ...), 0 for padding."""
        return self._rows(values.index_select(0, self.owner.to(values.device)))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
        """As `attend`, each sequence by itself: (rows, H, N, D)."""
        heads = query.shape[1]
        if query.device.type == "cpu":
            return self._parted(self._alone([self._in_line(x) for x in (query, key, value)], causal))
        tokens = [self._tokens(repeat_kv(x, heads).transpose(1, 2)) for x in (query, key, value)]  # (tokens, H, D)
        return self._rows(self._jagged(tokens, causal)).transpose(1, 2)

    def read(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention of the sequences to a context that each has for itself: (rows, H, N, D).

        Args:
            query: (rows, H, N, D).
            key, value: of the contexts, (S, H or a divisor of it, M, D), in the caller's order.
            mask: boolean (S, M), True where a token of a context may be looked at; None: all.

        Raises:
            ShapeError: not one context for each sequence.
        """
        if len(key) != len(self.lengths):
            raise ShapeError(f"{len(key)} contexts for {len(self.lengths)} sequences: one for each")
        gathered = self._sequence_by_sequence if query.device.type == "cpu" else self._padded
        gathered_tokens = gathered(self._in_line(query), key, value, None if mask is None else mask[:, None, None])
        return self._parted(gathered_tokens)

    def _sequence_by_sequence(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        # on a CPU small products cost little, and padding what it computes
        masks = [None] * len(key) if mask is None else mask.split(1)
        parts = zip(query.split(self.lengths, dim=2), key.split(1), value.split(1), masks, strict=True)
        return torch.cat([scaled_dot_product_attention(q, k, v, mask=seen) for q, k, v, seen in parts], dim=2)

    def _padded(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        tokens = query[0].transpose(0, 1)
        longest = max(self.lengths)
        starts = range(0, longest * len(key), longest)
        each = [torch.arange(start, start + n) for start, n in zip(starts, self.lengths, strict=True)]
        index = torch.cat(each).to(tokens.device)  # of each token, where each sequence has its own row
        rows = tokens.new_zeros(longest * len(key), *tokens.shape[1:]).index_copy(0, index, tokens)
        padded = scaled_dot_product_attention(
            rows.unflatten(0, (len(key), longest)).transpose(1, 2), key, value, mask=mask
        )
        return padded.transpose(1, 2).flatten(0, 1).index_select(0, index).transpose(0, 1)[None]

    def _alone(self, each: Sequence[Tensor], causal: bool) -> Tensor:
        # Sequence by sequence: on a CPU this is five times faster than jagged tensors, twice than one masked product.
        parts = zip(*(x.split(self.lengths, dim=2) for x in each), strict=True)
        return torch.cat([scaled_dot_product_attention(*part, causal=causal) for part in parts], dim=2)

    def _jagged(self, tokens: Sequence[Tensor], causal: bool) -> Tensor:
        # torch takes its kernels for sequences of different lengths where the device has them
        offsets = self._offsets.to(tokens[0].device)
        short, long = min(self.lengths), max(self.lengths)
        query, key, value = (
            torch.nested.nested_tensor_from_jagged(x, offsets, min_seqlen=short, max_seqlen=long).transpose(1, 2)
            for x in tokens
        )
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal).transpose(1, 2).values()

    def _in_line(self, x: Tensor) -> Tensor:
        """(rows, H, N, D) to all tokens in the caller's order (1, H, tokens, D)."""
        if self._in_order and len(x) == self.shape[0] == 1:
            return self._fits(x, x.shape[:3:2])
        return self._tokens(x.transpose(1, 2)).transpose(0, 1)[None]

    def _parted(self, x: Tensor) -> Tensor:
        """And back."""
        return x if self._in_order and self.shape[0] == 1 else self._rows(x[0].transpose(0, 1)).transpose(1, 2)

    def _tokens(self, x: Tensor) -> Tensor:
        """(rows, N, ...) to all tokens in the caller's order."""
        x = self._fits(x, x.shape[:2]).flatten(0, 1)
        return x if self._in_order else x.index_select(0, self.index.to(x.device))

    def _fits(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        if tuple(shape) != self.shape:
            raise ShapeError(f"rows of shape {tuple(shape)}: this packing is of {self.shape}")
        return x

    def _rows(self, tokens: Tensor) -> Tensor:
        if not self._in_order:
            empty = tokens.new_zeros(self.shape[0] * self.shape[1], *tokens.shape[1:])
            tokens = empty.index_copy(0, self.index.to(tokens.device), tokens)
        return tokens.unflatten(0, self.shape)
