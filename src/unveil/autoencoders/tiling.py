"""Tiled encoding and decoding of large images and videos, with memory for one tile, whatever their size.

A tile of a video contains all of its frames, which the video autoencoder computes in pieces.

Neighbouring tiles share an overlap, in which one fades linearly into the other. A local autoencoder (normalisation over
the channels of each position, no attention) gives the result of the whole image, because the default overlap is as wide
as its receptive field. Other autoencoders are tiled only outside of the attention layers. Their group normalisations
extend over the whole image, so that means and variances are collected in a first pass and then used by all tiles. That
pass is over the image resized to one tile, which gives every normalisation statistics that fit those before it; or over
all tiles, one normalisation after the other, which is exact and takes as many passes as there are normalisations, each
up to its normalisation. (One pass over all tiles, each with its own mean and variance in the earlier normalisations, is
far off for an uneven image.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.autoencoders.autoencoder import Autoencoder
from unveil.errors import OutOfResources, RecipeError, did_you_mean, out_of_memory
from unveil.nn.autoencoder import AutoencoderConfig, ImageDecoder, ImageEncoder

Share = tuple[float, float]


class StatisticsCollected(Exception):
    """End of a pass after the normalisation whose statistics are collected."""


class TiledGroupNorm(nn.Module):
    """Group normalisation over an image that is computed one tile at a time.

    Attributes:
        statistics: Mean and variance (groups,) of the whole image; None: each tile's own.
        shares: Rows and columns of the tile that are counted, as shares of its size; None: nothing is counted.
        last: True if a pass ends here.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm
        self.statistics: tuple[Tensor, Tensor] | None = None
        self.shares: tuple[Share, Share] | None = None
        self.last = False
        self._sums = torch.zeros(3, norm.num_groups, dtype=torch.float64)  # of ones, of values, of squares

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (1, C, H, W)."""
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

    def freeze_statistics(self) -> None:
        """Use the collected statistics from now on, and collect no more."""
        self.shares, self.last = None, False
        count, total, squares = self._sums
        mean = total / count
        self.statistics = mean, (squares / count - mean**2).clamp_min(0)


@contextmanager
def shared_statistics(network: ImageEncoder | ImageDecoder) -> Iterator[list[TiledGroupNorm]]:
    """Replace each group normalisation of the tiled part by a `TiledGroupNorm`, and yield these in order."""
    named = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.GroupNorm) and name.startswith(network.tiled_module_names())
    }
    shared = {name: TiledGroupNorm(norm) for name, norm in named.items()}
    try:
        for name, norm in shared.items():
            network.set_submodule(name, norm)
        yield list(shared.values())
    finally:
        for name, norm in named.items():
            network.set_submodule(name, norm)


SIDE = 512  # pixels of a tile, or more where the overlap needs it
Norms = Literal["own", "shrunk", "exact"]
OVERLAP = 128  # pixels, where no overlap is exact


@dataclass(frozen=True)
class TilingConfig:
    """Layout of the tiles of an image.

    Args:
        side: Side of a tile in pixels, its overlaps included; None: 512, or twice the overlap if that is larger.
        overlap: Overlap of neighbours in pixels; None: twice the receptive field of a local autoencoder, which is then
            exact, else 128.
        norms: Statistics of group normalisations: `own` uses each tile's own mean and variance, `shrunk` those of the
            image resized to one tile, `exact` collects them over all tiles, one normalisation after the other.

    Raises:
        RecipeError: The overlap is negative or not smaller than the side, or `norms` is unknown.
    """

    side: int | None = None
    overlap: int | None = None
    norms: Norms = "shrunk"

    def __post_init__(self) -> None:
        if self.norms not in get_args(Norms):
            allowed = ", ".join(get_args(Norms))
            raise RecipeError(
                f"norms = {self.norms!r}: must be one of {allowed}{did_you_mean(self.norms, get_args(Norms))}"
            )
        if self.overlap is not None and self.overlap < 0:
            raise RecipeError(f"overlap = {self.overlap}: must not be negative")
        if self.side is not None and self.side <= (self.overlap or 0):
            raise RecipeError(f"side = {self.side}: tiles must be wider than their overlap of {self.overlap}")


class TilingDifference(NamedTuple):
    """Difference between an image decoded in tiles and as a whole, with [-1, 1] scaled to 255 levels.

    Attributes:
        mean, largest: Mean and maximum of the absolute difference.
        seam: Mean gradient across the seams, divided by that at all other positions.
    """

    mean: float
    largest: float
    seam: float


class TileBoundaries(NamedTuple):
    """Boundaries of the tiles along an axis: the ends of each tile, and the range in which it fades into the next."""

    tiles: list[tuple[int, int]]
    fades: list[tuple[float, float]]

    @property
    def seams(self) -> list[int]:
        """First position of each tile except the first, in the middle of its fade."""
        return [math.floor((start + stop) / 2) for start, stop in self.fades]

    def weights(self, number: int, step: int) -> Tensor:
        """Weight (N,) of a tile at each of its positions, with `step` values for each position of the axis."""
        start, stop = self.tiles[number]
        places = torch.arange(start * step, stop * step) / step + 0.5 / step
        ends = [_risen(places, *fade) for fade in self.fades]
        before = ends[number - 1] if number else torch.ones_like(places)
        return before - ends[number] if number < len(ends) else before

    def share(self, number: int) -> Share:
        """Start and end of the part of a tile between its seams, as shares of its size."""
        start, stop = self.tiles[number]
        first = self.seams[number - 1] if number else start
        last = self.seams[number] if number < len(self.seams) else stop
        return (first - start) / (stop - start), (last - start) / (stop - start)


def _risen(places: Tensor, start: float, stop: float) -> Tensor:
    """Ramp of positions: 0 before `start`, 1 after `stop`, linear in between."""
    if stop <= start:
        return (places >= start).float()
    return ((places - start) / (stop - start)).clamp(0, 1)


def tile_boundaries(length: int, side: int, overlap: int, reach: int) -> TileBoundaries:
    """Tiles of `side` positions that evenly cover an axis of `length`; neighbours share at least `overlap`.

    Args:
        reach: Receptive field to each side; if the overlap allows it, positions that a tile's edge affects have no
            weight.
    """
    if length <= side:
        return TileBoundaries([(0, length)], [])
    count = math.ceil((length - overlap) / (side - overlap))
    starts = [round(i * (length - side) / (count - 1)) for i in range(count)]
    tiles = [(start, start + side) for start in starts]
    fades = []
    for (_, stop), (start, _) in pairwise(tiles):
        shared = stop - start
        guard = reach if shared >= 2 * reach else shared / 4
        half = min(shared - 2 * guard, side - shared) / 2
        fades.append(((start + stop) / 2 - half, (start + stop) / 2 + half))
    return TileBoundaries(tiles, fades)


# -- how far a result depends on its surroundings -----------------------------------------------------------------


def decoder_reach(config: AutoencoderConfig) -> tuple[int, int]:
    """Receptive field of the decoder's tiled layers in positions to each side, and the pixels of a position."""
    reach = 1  # the last convolution
    for level in range(config.split):
        reach += 2 * (config.num_res_blocks + 1)
        if level + 1 < config.split:
            reach = math.ceil((reach + 1) / 2)
    if config.local:
        reach += 5  # two blocks in the middle and the first convolution
    return reach, config.patch * 2 ** max(config.split - 1, 0)


def encoder_reach(config: AutoencoderConfig) -> tuple[int, int]:
    """Receptive field of the encoder's tiled layers in positions to each side of their output, and its pixels."""
    last = len(config.rates) - 1
    reach = 5 if config.local else 0
    for level in reversed(range(config.split)):
        reach = (2 * reach + 1 if level < last else reach) + 2 * config.num_res_blocks
    rate = config.rates[min(config.split, last)]
    return math.ceil((reach + 1) / rate), config.patch * rate


def _measures(config: AutoencoderConfig, tiling: TilingConfig, reach: int, pixels: int) -> tuple[int, int]:
    """Side and overlap of tiles, in positions of `pixels` pixels."""
    wanted = tiling.overlap if tiling.overlap is not None else 2 * reach * pixels if config.local else OVERLAP
    overlap = math.ceil(wanted / pixels)
    side = tiling.side if tiling.side is not None else max(SIDE, 2 * overlap * pixels)
    if side // pixels <= overlap:
        raise RecipeError(
            f"side = {side}: tiles must be wider than their overlap of {overlap * pixels} px, in steps of {pixels}; "
            f"at least {(overlap + 1) * pixels}"
        )
    return side // pixels, overlap


# -- tiles --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def decode(codec: Autoencoder, latents: Tensor, tiling: TilingConfig | None = None) -> Tensor:
    """Pixels (B, C, H, W), or (B, C, T, H, W) of videos, on the CPU, decoded one sample and one tile at a time.

    Raises:
        RecipeError: The tiles are not wider than their overlap.
        ShapeError: The number of channels of the latents is wrong.
    """
    config, decoder, tiling = codec.config, codec.decoder, tiling or TilingConfig()
    reach, pixels = decoder_reach(config)
    side, overlap = _measures(config, tiling, reach, pixels)
    results = []
    for sample in latents.split(1):
        z = codec.before_decoder(codec.z_of(sample))
        source = z if config.local else decoder.global_layers(z)
        rows, columns = (tile_boundaries(length, side, overlap, reach) for length in source.shape[-2:])
        job = TileJob(decoder if config.local else decoder.tiled_layers, source, rows, columns, (1, pixels))
        results.append(job.result() if config.local else _shared(job, decoder, tiling.norms))
    return torch.cat(results)


@torch.no_grad()
def encode(
    codec: Autoencoder, pixels: Tensor, tiling: TilingConfig | None = None, *, noise: Tensor | None = None
) -> Tensor:
    """Latents of pixels (B, C, H, W), or videos (B, C, T, H, W), on the CPU, one sample and one tile at a time.

    `noise` is as in `Autoencoder.encode`.

    Raises:
        RecipeError: The tiles are not wider than their overlap.
        ShapeError: The channels are wrong, or the size is not a multiple of the factor; the message names the nearest.
    """
    config, encoder, tiling = codec.config, codec.encoder, tiling or TilingConfig()
    codec.latent_shape(tuple(pixels.shape[1:]))
    reach, place = encoder_reach(config)
    side, overlap = _measures(config, tiling, reach, place)
    results = []
    for number, sample in enumerate(pixels.split(1)):
        rows, columns = (tile_boundaries(length // place, side, overlap, reach) for length in sample.shape[-2:])
        job = TileJob(encoder if config.local else encoder.tiled_layers, sample, rows, columns, (place, 1))
        h = (
            job.result().to(sample)
            if config.local
            else encoder.global_layers(_shared(job, encoder, tiling.norms).to(sample))
        )
        drawn = None if noise is None else noise[number : number + 1]
        results.append(codec.latents_of(codec.after_encoder(h), drawn).cpu())
    return torch.cat(results)


def decode_slicing(codec: Autoencoder, latents: Tensor) -> Tensor:
    """Pixels (B, C, H, W) of latents, one sample at a time."""
    return torch.cat([codec.decode(sample) for sample in latents.split(1)])


def encode_slicing(codec: Autoencoder, pixels: Tensor, *, noise: Tensor | None = None) -> Tensor:
    """Latents of pixels (B, C, H, W), one sample at a time; `noise` is as in `Autoencoder.encode`."""
    rows = pixels.split(1)
    drawn = [None] * len(rows) if noise is None else noise.split(1)
    return torch.cat([codec.encode(sample, sample_noise) for sample, sample_noise in zip(rows, drawn, strict=True)])


@dataclass
class TileJob:
    """Computation of one image in tiles, with the function of a tile and the tiles' boundaries.

    Args:
        run: Function of a tile of `source`, (1, C, h, w) or for videos (1, C, t, h, w), that returns its result.
        source: Whole image or video.
        rows, columns: Boundaries of the tiles, in units of `steps[0]` of the source and `steps[1]` of the result.
        steps: Size of a unit in the source and in the result.
    """

    run: Callable[[Tensor], Tensor]
    source: Tensor
    rows: TileBoundaries
    columns: TileBoundaries
    steps: tuple[int, int]

    def parts(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the row, the column and the part of the source of each tile."""
        step = self.steps[0]
        for i, (top, bottom) in enumerate(self.rows.tiles):
            for j, (left, right) in enumerate(self.columns.tiles):
                yield i, j, self.source[..., top * step : bottom * step, left * step : right * step]

    def next_size(self) -> Tensor:
        """Source reduced to the size of a tile by evenly spaced positions, which keeps their variance."""
        longest = [max(stop - start for start, stop in axis.tiles) for axis in (self.rows, self.columns)]
        whole = [axis.tiles[-1][1] for axis in (self.rows, self.columns)]
        share = max(size / side for size, side in zip(whole, longest, strict=True))
        size = [max(1, round(length / share)) * self.steps[0] for length in whole]
        return F.interpolate(self.source, size, mode="nearest-exact")

    def result(self) -> Tensor:
        """Combine the results of all tiles, on the CPU."""
        output: Tensor | None = None
        step = self.steps[1]
        height, width = (axis.tiles[-1][1] * step for axis in (self.rows, self.columns))
        for i, j, part in self.parts():
            tile = self.run(part)
            if output is None:
                output = torch.zeros(*tile.shape[:-2], height, width, dtype=tile.dtype)
            weights = self.rows.weights(i, step)[:, None] * self.columns.weights(j, step)
            top, left = self.rows.tiles[i][0] * step, self.columns.tiles[j][0] * step
            place = output[..., top : top + tile.shape[-2], left : left + tile.shape[-1]]
            place.add_(tile.cpu() * weights.to(tile.dtype))
        assert output is not None
        return output


# -- statistics that tiles share ----------------------------------------------------------------------------------


def _shared(job: TileJob, network: ImageEncoder | ImageDecoder, how: Norms) -> Tensor:
    """Result with the statistics of normalisations given by `TilingConfig.norms`."""
    if how == "own":
        return job.result()
    with shared_statistics(network) as norms:
        for group in [norms] if how == "shrunk" else [[norm] for norm in norms]:
            for norm in group:
                norm.last = norm is group[-1]
            if how == "shrunk":
                _gather(job, job.next_size(), group, ((0.0, 1.0), (0.0, 1.0)))
            else:
                for i, j, part in job.parts():
                    _gather(job, part, group, (job.rows.share(i), job.columns.share(j)))
            for norm in group:
                norm.freeze_statistics()
        return job.result()


def _gather(job: TileJob, part: Tensor, norms: list[TiledGroupNorm], shares: tuple[Share, Share]) -> None:
    for norm in norms:
        norm.shares = shares
    with suppress(StatisticsCollected):
        job.run(part)


# -- what it costs, and what it saves -----------------------------------------------------------------------------


@torch.no_grad()
def tiling_difference(codec: Autoencoder, latents: Tensor, tiling: TilingConfig | None = None) -> TilingDifference:
    """Measure the difference between tiled and whole decoding; the whole image has to fit into memory.

    Raises:
        RecipeError: The tiles are not wider than their overlap.
    """
    whole, tiled = codec.decode(latents).cpu().float(), decode(codec, latents, tiling).float()
    reach, pixels = decoder_reach(codec.config)
    side, overlap = _measures(codec.config, tiling or TilingConfig(), reach, pixels)
    across, elsewhere = [], []
    for axis in (-2, -1):
        gradient = tiled.diff(dim=axis).abs().movedim(axis, -1).flatten(0, -2).mean(0)
        seams = [
            place * pixels - 1 for place in tile_boundaries(tiled.shape[axis] // pixels, side, overlap, reach).seams
        ]
        here = torch.zeros(len(gradient), dtype=torch.bool)
        here[seams] = True
        across.append(gradient[here])
        elsewhere.append(gradient[~here])
    seam = torch.cat(across).mean() / torch.cat(elsewhere).mean() if len(torch.cat(across)) else torch.tensor(1.0)
    error = (tiled - whole).abs() * 127.5
    return TilingDifference(error.mean().item(), error.max().item(), seam.item())


class SupportsDecode(Protocol):
    """Object that decodes latents to pixels."""

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of latents, both (B, ...)."""
        ...


def decode_with_fallback(codec: SupportsDecode, latents: Tensor) -> Tensor:
    """Pixels of latents, as `Autoencoder.decode` returns them; if memory runs out, they are decoded in tiles.

    Raises:
        OutOfResources: Memory runs out in tiles too; the message names what to reduce.
    """
    try:
        return codec.decode(latents)
    except (MemoryError, RuntimeError) as problem:
        if not out_of_memory(problem):
            raise
    # Behind the except, whose traceback would keep what was computed.
    advice = "lower the batch or the size of the images, or use dtype bfloat16"
    if not isinstance(codec, Autoencoder):
        raise OutOfResources(f"out of memory while decoding latents {tuple(latents.shape)}; {advice}")
    try:
        return decode(codec, latents).to(latents.device)
    except (MemoryError, RuntimeError) as problem:
        if not out_of_memory(problem):
            raise
        raise OutOfResources(
            f"out of memory while decoding latents {tuple(latents.shape)}, in tiles of {SIDE} px too; {advice}, or "
            "decode in smaller ones: unveil.autoencoders.tiling.decode(model.autoencoder, latents, TilingConfig(256))"
        ) from problem
