"""The spatial transformer: the positions of an image as tokens, which look at themselves and at a text.

Source: Rombach et al. 2022, section 3.3 and appendix E.2.1 (arXiv:2112.10752).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.errors import ShapeError
from unveil.nn.attention import KVCache
from unveil.nn.layers import group_norm, zeroed
from unveil.nn.transformer import BlockConfig, EncoderStates, TransformerBlock
from unveil.types import Condition

# What the layers around the blocks are: convolutions of one pixel, as in the paper, or linear layers of the tokens
Projection = Literal["conv", "linear"]
# A tensor is one of that many that are remembered: the condition's, the null's, and both in one batch, of a few runs
REMEMBERED = 8
T = TypeVar("T")


class TextContext(NamedTuple):
    """Context of a network's transformers, with its cached keys and values by block."""

    context: EncoderStates
    caches: Mapping[nn.Module, KVCache] | None = None


class SpatialTransformer(nn.Module):
    """Residual transformer over the positions of an image (B, C, H, W).

    Args:
        channels: of the image, and the width of its tokens.
        depth: blocks.
        context_width: of the text's tokens; None: in the text's place the image looks at itself again.
        groups: of the normalisation before the blocks.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        depth: int = 1,
        context_width: int | None = None,
        projection: Projection = "conv",
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups, 1e-6)
        self.enter = _projection(channels, projection)
        config = BlockConfig(channels, heads, 4 * channels, activation="geglu", qkv_bias=False)
        reads = "own" if context_width is None else context_width
        self.blocks = nn.ModuleList(TransformerBlock(config, context_width=reads) for _ in range(depth))
        self.leave = zeroed(_projection(channels, projection))

    def forward(self, x: Tensor, text: TextContext | None = None) -> Tensor:
        """X plus what its positions gathered; the text's rows are those of x."""
        height, width = x.shape[2:]
        tokens = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)  # (B, N, C)
        tokens = _per_token(self.enter, tokens)
        context, caches = text or (None, None)
        for block in self.blocks:
            tokens = block(tokens, context=context, stored=None if caches is None else caches[block])
        tokens = _per_token(self.leave, tokens)
        return x + tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def _projection(channels: int, kind: Projection) -> nn.Conv2d | nn.Linear:
    return nn.Conv2d(channels, channels, 1) if kind == "conv" else nn.Linear(channels, channels)


def _per_token(layer: nn.Module, tokens: Tensor) -> Tensor:
    """Either kind on tokens (B, N, C): a convolution of one pixel is the same product."""
    if layer._forward_hooks and isinstance(layer, nn.Conv2d):  # they act on the layer's own call
        return layer(tokens.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
    if layer._forward_hooks:
        return layer(tokens)
    return F.linear(tokens, layer.weight.flatten(1), layer.bias)  # pyright: ignore


def text_of(condition: Condition, width: int | None, batch: int) -> EncoderStates | None:
    """Tokens for a network that reads this width, None for one that reads none.

    Raises:
        ShapeError: tokens are missing or of another width, or they are given to a network that reads none.
    """
    tokens, mask = condition.tokens, condition.mask
    if width is None:
        if tokens is not None:
            raise ShapeError("condition.tokens: this network has no cross-attention; pass a vector or channels")
        return None
    if tokens is None:
        raise ShapeError(f"condition.tokens: missing; this network reads tokens (B, L, {width})")
    if tokens.ndim != 3 or tokens.shape[2] != width:
        raise ShapeError(
            f"condition.tokens {tuple(tokens.shape)}: of width {tokens.shape[-1]}, this network reads width {width}; "
            "take the text encoder that it was trained with"
        )
    if len(tokens) != batch:
        raise ShapeError(f"condition.tokens {tuple(tokens.shape)}: {len(tokens)} rows for {batch} of x")
    if mask is not None and mask.shape != tokens.shape[:2]:
        raise ShapeError(f"condition.mask {tuple(mask.shape)}: must be {tuple(tokens.shape[:2])}, one for each token")
    return EncoderStates(tokens, mask)


def keys_values(network: nn.Module, context: EncoderStates) -> dict[nn.Module, KVCache]:
    """The keys and values of a text for every block of a network that reads it."""
    return {
        block: block.context.remember(context.tokens)
        for block in network.modules()
        if isinstance(block, TransformerBlock) and block.reads and block.context is not None
    }


class Memo(Generic[T]):
    """Values that depend on one tensor only, computed without gradients when that tensor is first seen.

    It is known again by its identity, how often it was written to, and the precision; a tensor that is
    remembered is held, so that no other one can take its identity. The oldest of `REMEMBERED` is forgotten.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[Tensor, tuple[Any, ...], T]] = []

    def of(self, tensor: Tensor, make: Callable[[], T]) -> T:
        """Result of `make` at this tensor's first call."""
        state = _state(tensor)
        for past, at, value in self._entries:
            if past is tensor and at == state:
                return value
        with torch.no_grad():
            value = make()
        self._entries = [*self._entries[1 - REMEMBERED :], (tensor, state, value)]
        return value


def _state(tensor: Tensor) -> tuple[Any, ...]:
    kind = tensor.device.type
    lowered = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return (0 if tensor.is_inference() else tensor._version, lowered)
