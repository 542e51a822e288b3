"""Random numbers that depend on the sample and the step, not on the order of the calls.

One stream per sample, keyed (seed, sample, step, draw): batch size, number of workers and ranks, resuming
and unused draws change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unveil.core import elementary
from unveil.types import NoiseLevel, like

if TYPE_CHECKING:
    from unveil.core.samplers.loop import CoefficientTable

# noise(step, draw=0) -> standard normal noise of the whole batch
Noise = Callable[..., Tensor]
Words = NDArray[np.uint64]

_MASK = (1 << 64) - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def key(*numbers: int) -> int:
    """A 64-bit hash of whole numbers, mixed in one after the other. Source: SplitMix64, Steele et al. 2014."""
    state = np.array([_GOLDEN], dtype=np.uint64)
    for number in numbers:
        state = mix(state + np.uint64((number + _GOLDEN) & _MASK))
    return int(state[0])


def keys(seed: int | Sequence[int], samples: Sequence[int] | Words, step: int, draw: int) -> Words:
    """`key(seed, sample, step, draw)` of every sample, (B,); the seed is one for all, or one for each."""
    state = np.full(len(samples), _GOLDEN, dtype=np.uint64)
    each = samples if isinstance(samples, np.ndarray) else np.array([n & _MASK for n in samples], dtype=np.uint64)
    seeds = seed if isinstance(seed, int) else np.array([n & _MASK for n in seed], dtype=np.uint64)
    for number in (seeds, each, step, draw):
        part = number if isinstance(number, np.ndarray) else np.uint64(number & _MASK)
        state = mix(state + (part + np.full(1, _GOLDEN, dtype=np.uint64)))
    return state


def mix(words: Words) -> Words:
    """SplitMix64's finaliser: every bit of the result depends on every bit of the input."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(_FIRST)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(_SECOND)
    return words ^ (words >> np.uint64(31))


def words(starts: Words, count: int, first: int = 0) -> Words:
    """Words first to first + count of the streams that begin at `starts` (B,): (B, count).

    Each stream has its own stride, so that two streams that meet do not stay together.
    """
    strides = mix(starts ^ np.uint64(_GOLDEN)) | np.uint64(1)
    places = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    return mix(starts[:, None] + strides[:, None] * places)


class SampleRNG:
    """The random numbers of a batch of samples.

    Args:
        seed: Seed of the whole run, or one for each sample.
        samples: Number of each sample in the run, (B,): the position in a set of generated images, or the global count
            of training examples before this one.
        device: Device that receives the numbers. They are always drawn on the CPU, so every device gets the same.
    """

    def __init__(
        self, seed: int | Sequence[int], samples: Sequence[int], *, device: torch.device | str = "cpu"
    ) -> None:
        self.seed = seed
        self.samples = [int(n) for n in samples]
        self.device = device

    def normal(self, shape: Sequence[int], step: int, draw: int = 0) -> Tensor:
        """Standard normal noise (B, *shape), float32, by Box and Muller's transform of counted words.

        Two numbers come from one word of 64 bits, so none is beyond 6.8.
        """
        count = int(np.prod(shape, dtype=np.int64))
        drawn = words(keys(self.seed, self.samples, step, draw), (count + 1) // 2)
        radius = np.sqrt(-2 * np.log(((drawn >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32))
        angle = (drawn & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2 * np.pi * 2.0**-32)
        both = np.empty((len(drawn), 2 * drawn.shape[1]), dtype=np.float32)
        np.multiply(radius, np.cos(angle), out=both[:, 0::2], casting="same_kind")
        np.multiply(radius, np.sin(angle), out=both[:, 1::2], casting="same_kind")
        return torch.from_numpy(both[:, :count]).reshape(len(self.samples), *shape).to(self.device)

    def uniform(self, step: int, draw: int = 0) -> Tensor:
        """Uniform numbers in [0, 1), (B,) float64, on the CPU, like levels."""
        bits = keys(self.seed, self.samples, step, draw) >> np.uint64(11)
        return torch.from_numpy(bits.astype(np.float64) * 2.0**-53)

    def uniforms(self, count: int, step: int, draw: int = 0) -> Tensor:
        """`count` uniform numbers of each sample, (B, count) float64."""
        bits = words(keys(self.seed, self.samples, step, draw), count) >> np.uint64(11)
        return torch.from_numpy(bits.astype(np.float64) * 2.0**-53)

    def each(self) -> list[SampleRNG]:
        """Random numbers of each sample by itself, with the same values."""
        seeds = [self.seed] * len(self.samples) if isinstance(self.seed, int) else self.seed
        return [SampleRNG(seed, [sample], device=self.device) for seed, sample in zip(seeds, self.samples, strict=True)]

    def bind(self, shape: Sequence[int]) -> Noise:
        """Return noise(step, draw=0), the noise source of samplers, for samples of this shape.

        Draw 0 of step -1 is the initial noise of a run: `SampleRNG.normal(shape, START)`.
        """
        return lambda step, draw=0: self.normal(shape, step, draw)


START = -1  # the step number of the noise that a run starts from
PATH = -2  # the step number of the nodes of a Brownian path


class BrownianPath:
    """One Brownian path per sample, from pure noise to clean data, that any list of levels cuts into increments.

    A run of 20 steps and one of 200 get increments of the same path, so that their samples agree as far as the steps'
    own error. The path's clock is the share of signal, c = alpha^2 / (alpha^2 + sigma^2), the same under every process.
    Its nodes halve the interval of u = sqrt(alpha) / (sqrt(alpha) + sqrt(sigma)), in which the usual schedules are
    nearly even. Each node's number comes only from `streams`, so neither the order nor the number of calls matters.
    Below 2^-depth the path is a straight line.

    Args:
        streams: Random numbers of the samples.
        shape: Shape of one sample.
        depth: Number of halvings. Steps much narrower than 2^-depth in u get increments that depend on each other.

    Source: Levy's construction; Gaines & Lyons 1997, "Variable step size control".
    """

    def __init__(self, streams: SampleRNG, shape: Sequence[int], *, depth: int = 20) -> None:
        self.streams = streams
        self.shape = tuple(shape)
        self.depth = depth
        self._nodes: dict[int, Tensor] = {}  # those of the last increment: the next one shares about half of them

    def increment(self, here: NoiseLevel, there: NoiseLevel) -> Tensor:
        """The path's increment between two levels over its deviation: standard normal, (B, *shape) float32.

        Where parts of x have levels of their own, its own gets that part; 0 where the two are one.
        """
        starts, ends = _place(here), _place(there)
        if not starts.ndim and not ends.ndim:
            return self._between(starts.item(), ends.item())
        starts, ends = torch.broadcast_tensors(starts, ends)
        increment = torch.zeros(len(self.streams.samples), *self.shape, device=self.streams.device)
        for start, end in product(starts.unique().tolist(), ends.unique().tolist()):
            chosen = (starts == start) & (ends == end)
            if bool(chosen.any()):
                parts = torch.as_tensor(like(chosen.double(), increment)).bool()
                increment = torch.where(parts, self._between(start, end), increment)
        return increment

    def along(self, table: CoefficientTable) -> Noise:
        """noise(step, draw=0) for a table: row by row the increment over its span.

        Rows without a span, the initial noise, and draws beyond the first are fresh, as in `SampleRNG.bind`.
        """
        spans = [row.span for row in table.rows]

        def noise(step: int, draw: int = 0) -> Tensor:
            span = spans[step] if step >= 0 and draw == 0 else None
            return self.streams.normal(self.shape, step, draw) if span is None else self.increment(*span)

        return noise

    def _between(self, start: float, end: float) -> Tensor:
        weights = _weights(end, self.depth)
        for node, weight in _weights(start, self.depth).items():
            weights[node] = weights.get(node, 0.0) - weight
        size = math.sqrt(math.fsum(weight**2 for weight in weights.values()))
        increment = torch.zeros(len(self.streams.samples), *self.shape, device=self.streams.device)
        if size == 0:
            return increment
        needed = {node: weight / size for node, weight in weights.items() if weight != 0}
        nodes, self._nodes = self._nodes, {}
        for node, weight in needed.items():
            value = nodes.get(node)
            self._nodes[node] = self.streams.normal(self.shape, PATH, node) if value is None else value
            increment.add_(self._nodes[node], alpha=weight)
        return increment


def _place(level: NoiseLevel) -> Tensor:
    """Position u in [0, 1]: 0 without signal, 1 without noise."""
    root = elementary.sqrt(level.alpha)
    return root / (root + elementary.sqrt(level.sigma))


def _clock(start: float, end: float) -> float:
    """The clock's time from one place to another, without cancellation near the data."""

    def share(a: float, b: float) -> float:
        return a**4 / (a**4 + b**4)

    if start > 0.5:
        return share(1 - start, start) - share(1 - end, end)
    return share(end, 1 - end) - share(start, 1 - start)


def _weights(place: float, depth: int) -> dict[int, float]:
    """The path at a place as a sum over nodes: node number -> weight of its standard normal number.

    Node 0 is the path's end. The others, numbered like a heap, are the deviations of the middle of an interval
    from the straight line in c between its ends, whose share falls to 0 at the ends.
    """
    weights = {0: math.sqrt(_clock(0.0, 1.0)) * _clock(0.0, place)}
    low, high, node = 0.0, 1.0, 1
    for _ in range(depth):
        middle = (low + high) / 2
        before, after = _clock(low, middle), _clock(middle, high)
        deviation = math.sqrt(before * after / (before + after))
        if place < middle:
            weights[node] = deviation * _clock(low, place) / before
            high, node = middle, 2 * node
        else:
            weights[node] = deviation * _clock(place, high) / after
            low, node = middle, 2 * node + 1
    return weights
