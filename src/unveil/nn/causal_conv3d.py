"""Convolutions over clips (B, C, T, H, W) that look back in time and never ahead, and what they keep of the past.

A layer with a kernel of k frames and a stride of s needs k - s frames of what came before. These stand in a `KVCache`,
a plain tuple of tensors in the order in which the layers run: whoever calls a network piece by piece gives it the
cache that the piece before came back with, and nothing is kept on a module. Before the first frame there are copies of
it, so that a clip of one frame is a clip that stands still. Of frames, 1 + a multiple of s come first, and multiples of
s later.

Sources: Yu et al. 2024, section 3.2 (arXiv:2310.05737), for the causal convolution and the 1 + k frames; van den Oord
et al. 2016, section 2.1 (arXiv:1609.03499), for causality in convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.errors import ShapeError

Cache = tuple[Tensor, ...]


class StreamState:
    """Cache that the layers of one call read, and the one that they write for the next.

    Args:
        before: the cache of the piece before; None: the clip begins here.
    """

    def __init__(self, before: Cache | None = None) -> None:
        self.begins = before is None
        self.saved: list[Tensor] = []
        self._before: Iterator[Tensor] = iter(before or ())

    def behind(self, x: Tensor, frames: int) -> Tensor:
        """X (B, C, T, H, W) with what comes before it: of the cache, or `frames` copies of its first frame.

        Raises:
            ShapeError: the cache is of another network or of other clips.
        """
        if self.begins:
            return torch.cat([x[:, :, :1].expand(-1, -1, frames, -1, -1), x], 2)
        before = next(self._before, None)
        if before is None or (*before.shape[:2], *before.shape[3:]) != (*x.shape[:2], *x.shape[3:]):
            shape = "nothing" if before is None else tuple(before.shape)
            raise ShapeError(
                f"cache: {shape} for {tuple(x.shape)}: give the cache that came back with the piece before, of the "
                "same network and the same clips"
            )
        return torch.cat([before.to(x.dtype), x], 2)

    def keep(self, frames: Tensor) -> None:
        """Leaves frames (B, C, n, H, W) for the next piece: alone, without what they were cut from."""
        self.saved.append(frames if torch.is_grad_enabled() else frames.clone())


class CausalConv(nn.Conv3d):
    """A convolution of (frames, side, side) whose last frame is the present one.

    Args:
        kernel: frames, an odd number or 1, and pixels a side, an odd number.
        stride: in time; 2 halves the frames after the first.
    """

    def __init__(self, width: int, out: int, kernel: tuple[int, int], *, stride: int = 1) -> None:
        frames, side = kernel
        super().__init__(width, out, (frames, side, side), stride=(stride, 1, 1), padding=(0, side // 2, side // 2))

    def forward(self, input: Tensor, past: StreamState) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(B, C, T, H, W) to (B, out, T', H, W): T' = 1 + (T - 1) / stride at the beginning, later T / stride."""
        frames, stride = self.kernel_size[0], self.stride[0]
        if frames == 1:
            return super().forward(input)
        if past.begins and input.shape[2] == 1:  # an image, which meets the sum of the weights over time
            past.keep(input.expand(-1, -1, frames - stride, -1, -1))
            side = self.padding[1]
            weight = self.weight.sum(2)
            return F.conv2d(input[:, :, 0], weight, self.bias, padding=int(side))[:, :, None]
        x = past.behind(input, frames - 1)
        output = super().forward(x)
        past.keep(x[:, :, output.shape[2] * stride :])
        return output


def by_frame(layer: Callable[[Tensor], Tensor], clips: Tensor) -> Tensor:
    """Output of a layer for images (B, C, H, W) on each frame of clips (B, C, T, H, W)."""
    output = layer(clips.transpose(1, 2).flatten(0, 1))  # (B T, C', H', W')
    return output.unflatten(0, (len(clips), -1)).transpose(1, 2)
