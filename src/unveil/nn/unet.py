"""The U-Net of DDPM, Improved DDPM, ADM and latent diffusion: one network whose configuration expresses all of them.

    x -> enter -> [blocks (+ attention), downsample] per level -> middle -> [blocks (+ attention), upsample] -> leave

Every block of the way down leaves its result on a stack; every block of the way up takes one from it. The time
embedding (plus `condition.vector`) enters each residual block; spatial transformers, where there are any, read
`condition.tokens`.

Sources: Ho et al. 2020, appendix B (arXiv:2006.11239); Nichol & Dhariwal 2021, section 3 (arXiv:2102.09672);
Dhariwal & Nichol 2021, section 3 (arXiv:2105.05233); Rombach et al. 2022, section 3.3 (arXiv:2112.10752).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.errors import ShapeError
from unveil.nn.attention import KVCache
from unveil.nn.embeddings import TimeEmbedding
from unveil.nn.layers import check_multiple, group_norm, vector_of, with_context, zeroed
from unveil.nn.spatial_transformer import Memo, TextContext, keys_values, text_of
from unveil.nn.transformer_blocks import EncoderStates
from unveil.nn.unet_blocks import Upsample, down_blocks, mid_block, up_blocks
from unveil.nn.unet_config import UNetConfig
from unveil.types import Condition


class UNetFeatures(NamedTuple):
    """Output of the first half of a U-Net: the middle's result, the stack, and the second half's conditioning."""

    h: Tensor
    stack: list[Tensor]
    time: Tensor
    text: TextContext | None


class UNetEncoder(nn.Module):
    """The first half of a U-Net, the way down and the middle: (x, t, condition) to `Encoded`."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.vector_dim = config.vector_dim
        self.multiple = config.patch * config.rates[-1]  # of both sides of x
        self.time = TimeEmbedding(config.model_channels, config.vector_dim, config.embedding)
        inputs = (config.in_channels + config.concat_channels) * config.patch**2
        self.enter = nn.Conv2d(inputs, config.stem_channels or config.widths[0], 3, padding=1)
        self.down, self.stack_widths = down_blocks(config)
        self.middle = mid_block(config)
        self._read: Callable[[EncoderStates], TextContext] = TextContext

    def encode(self, x: Tensor, t: Tensor, condition: Condition, hint: Tensor | None = None) -> UNetFeatures:
        """The first half's results.

        Args:
            x, t, condition: as the U-Net's.
            hint: added to what the first convolution makes of x, and of its shape.

        Raises:
            ShapeError: as the U-Net.
        """
        config = self.config
        if x.ndim != 4 or x.shape[1] != config.in_channels:
            raise ShapeError(f"x {tuple(x.shape)}: must be (B, {config.in_channels}, H, W)")
        check_multiple(x, self.multiple)
        context = text_of(condition, config.cross_attention_dim, len(x))
        text = None if context is None else self._read(context)
        time = self.time(t)  # (B, D)
        if (vector := vector_of(condition, len(x), config.vector_dim)) is not None:
            time = time + vector.to(time)
        time = F.silu(time)  # every block takes it activated
        x = with_context(x, condition, config.concat_channels, config.context_size)
        h = self.enter(F.pixel_unshuffle(x, config.patch))
        stack = [h if hint is None else h + hint]
        h = stack[0]
        for down in self.down:
            h = down(h, time, stack, text)
        return UNetFeatures(self.middle(h, time, text), stack, time, text)

    @contextmanager
    def precompute(self, indices: Sequence[float] | Tensor) -> Iterator[None]:
        """Inside, what follows from weights and texts alone is computed once, and looked up in later steps.

        That is the keys and values of a text, when it is first seen, and the kernels of convolutions that enlarge, at
        their first call.

        It is for sampling: results are the same, no weight and no token gets a gradient through them, and weights must
        not change inside. What follows from the levels, `indices`, is computed at each step.
        """
        before, texts = self._read, Memo[dict[nn.Module, KVCache]]()
        # a compiler would make a variant of the network for each text, and does a kernel's sums at little cost
        compiled = bool(getattr(self, "_compiled_call_impl", None))
        enlarging = [] if compiled else [upsample for upsample in self.modules() if isinstance(upsample, Upsample)]
        kernels = [upsample.memo for upsample in enlarging]

        def read(context: EncoderStates) -> TextContext:
            return TextContext(context, texts.of(context.tokens, lambda: keys_values(self, context)))

        self._read = cast(Any, torch.compiler.disable(read)) if compiled else read
        for upsample in enlarging:
            upsample.memo = Memo()
        try:
            yield
        finally:
            self._read = before
            for upsample, kernel in zip(enlarging, kernels, strict=True):
                upsample.memo = kernel


class UNet(UNetEncoder):
    """The denoising network: (x, t, condition) to a tensor of x's size with `out_channels`."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        self.up = up_blocks(config, self.stack_widths)
        self.norm = group_norm(config.widths[0], config.groups, config.norm_eps)
        self.leave = zeroed(nn.Conv2d(config.widths[0], config.out_channels * config.patch**2, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The raw result, in x's size.

        Args:
            x: (B, in_channels, H, W), height and width multiples of patch * 2**(levels - 1).
            t: (B,) the number that stands for the level, fractions allowed.
            condition: its vector (B, vector_dim) joins the time embedding, its channels join x, its tokens
                (B, L, context_width) are read where the mask allows it, its residuals are added to the stack and to
                the middle's result.

        Raises:
            ShapeError: a size that cannot be halved often enough, or a condition that does not fit.
        """
        condition = condition or Condition()
        if condition.hint is not None:
            raise ShapeError("condition.hint: is read by ControlNets, and none is at work; attach one, or leave it out")
        h, stack, time, text = self.encode(x, t, condition)
        if condition.residuals is not None:
            stack, h = _added(stack, h, condition.residuals)
        for up in self.up:
            h = up(h, time, stack, text)
        return F.pixel_shuffle(self.leave(F.silu(self.norm(h))), self.config.patch)


def _added(stack: list[Tensor], h: Tensor, residuals: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The stack and the middle's result with their residuals; a single one is the middle's."""
    if len(residuals) not in (1, len(stack) + 1):
        raise ShapeError(
            f"condition.residuals: {len(residuals)} tensors; this U-Net takes {len(stack) + 1}, or that of its middle"
        )
    for place, (mine, added) in enumerate(zip([h, *reversed(stack)], reversed(residuals), strict=False)):
        if mine.shape != added.shape:
            name = "the middle" if not place else f"place {len(stack) - place} of the stack"
            raise ShapeError(f"condition.residuals: {tuple(added.shape)} for {name}, which is {tuple(mine.shape)}")
    *below, last = residuals
    return [a + b for a, b in zip(stack, below, strict=True)] if below else stack, h + last
