"""The spatial transformer: the positions of an image as tokens, with self-attention and cross-attention to a text.

Source: Rombach et al. 2022, section 3.3 and appendix E.2.1 (arXiv:2112.10752).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from unveil.nn.attention import KVCache
from unveil.nn.layers import group_norm, zeroed
from unveil.nn.transformer import BlockConfig, EncoderStates, TransformerBlock

# What the layers around the blocks are: convolutions of one pixel, as in the paper, or linear layers of the tokens
Projection = Literal["conv", "linear"]


class TextContext(NamedTuple):
    """Context of a network's transformers, with its cached keys and values by block."""

    context: EncoderStates
    caches: Mapping[nn.Module, KVCache] | None = None


class SpatialTransformer(nn.Module):
    """Residual transformer over the positions of an image (B, C, H, W).

    Args:
        channels: Number of channels of the image, and the width of its tokens.
        depth: Number of blocks.
        context_width: Width of the text's tokens; None: a second self-attention takes the place of cross-attention.
        groups: Number of groups of the normalisation before the blocks.
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
        """Return x plus what its positions gathered; the rows of the text are those of x."""
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
    """Apply the projection to tokens (B, N, C); a convolution of one pixel is the same product as a linear layer."""
    if layer._forward_hooks and isinstance(layer, nn.Conv2d):  # they act on the layer's own call
        return layer(tokens.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
    if layer._forward_hooks:
        return layer(tokens)
    return F.linear(tokens, layer.weight.flatten(1), layer.bias)  # pyright: ignore


def precompute_context(network: nn.Module, context: EncoderStates) -> dict[nn.Module, KVCache]:
    """Keys and values of a text for every block of a network with cross-attention."""
    return {
        block: block.context.precompute_context(context.tokens)
        for block in network.modules()
        if isinstance(block, TransformerBlock) and block.reads and block.context is not None
    }
