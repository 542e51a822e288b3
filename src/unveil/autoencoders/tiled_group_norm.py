"""Group normalisations of an image that is seen one tile at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unveil.nn.autoencoder import ImageDecoder, ImageEncoder

Share = tuple[float, float]


class StatisticsCollected(Exception):
    """Ends a run behind the norm that was to be gathered."""


class TiledGroupNorm(nn.Module):
    """A group normalisation over an image of which it sees one tile at a time.

    Attributes:
        statistics: mean and variance (groups,) of the whole image; None: each tile's own.
        shares: the rows and columns of the tile that it counts, as shares of its size; None: it counts none.
        last: whether a run ends here.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm
        self.statistics: tuple[Tensor, Tensor] | None = None
        self.shares: tuple[Share, Share] | None = None
        self.last = False
        self._sums = torch.zeros(3, norm.num_groups, dtype=torch.float64)  # of ones, of values, of squares

    def forward(self, x: Tensor) -> Tensor:
        """X (1, C, H, W) normalised."""
        if self.shares is not None:
            rows, columns = (
                slice(round(first * length), round(last * length))
                for (first, last), length in zip(self.shares, x.shape[-2:], strict=True)
            )
            values = x[0, :, rows, columns].float().reshape(self.norm.num_groups, -1)
            variance, mean = (statistic.double().cpu() for statistic in torch.var_mean(values, dim=1, correction=0))
            self._sums += values.shape[1] * torch.stack([torch.ones_like(mean), mean, variance + mean**2])
        if self.last:
            raise StatisticsCollected
        if self.statistics is None:
            return self.norm(x)
        size = x.shape[1] // len(self.statistics[0])
        mean, variance = (statistic.repeat_interleave(size).float() for statistic in self.statistics)
        slope = self.norm.weight / (variance.to(x.device) + self.norm.eps).sqrt()
        offset = self.norm.bias - mean.to(x.device) * slope
        return torch.addcmul(offset[:, None, None].to(x.dtype), x, slope[:, None, None].to(x.dtype))

    def learn(self) -> None:
        """From now on what was gathered is known, and no more is gathered."""
        self.shares, self.last = None, False
        count, total, squares = self._sums
        mean = total / count
        self.statistics = mean, (squares / count - mean**2).clamp_min(0)


@contextmanager
def norms_shared(network: ImageEncoder | ImageDecoder) -> Iterator[list[TiledGroupNorm]]:
    """Put a `TiledGroupNorm` in the place of each group normalisation of the tiled part, in its order."""
    named = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.GroupNorm) and name.startswith(network.tiled_parts())
    }
    shared = {name: TiledGroupNorm(norm) for name, norm in named.items()}
    try:
        for name, norm in shared.items():
            network.set_submodule(name, norm)
        yield list(shared.values())
    finally:
        for name, norm in named.items():
            network.set_submodule(name, norm)
