"""Random numbers that depend on who asks, not on the order of asking.

One stream per sample, keyed (seed, sample, step, draw): batch size, number of workers and ranks, resuming
and unused draws change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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


def keys(seed: int, samples: Sequence[int] | Words, step: int, draw: int) -> Words:
    """`key(seed, sample, step, draw)` of every sample, (B,)."""
    state = np.full(len(samples), _GOLDEN, dtype=np.uint64)
    each = samples if isinstance(samples, np.ndarray) else np.array([n & _MASK for n in samples], dtype=np.uint64)
    for number in (seed, each, step, draw):
        part = number if isinstance(number, np.ndarray) else np.uint64(number & _MASK)
        state = mix(state + (part + np.full(1, _GOLDEN, dtype=np.uint64)))
    return state


def mix(words: Words) -> Words:
    """SplitMix64's finaliser: every bit of the result depends on every bit given."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(_FIRST)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(_SECOND)
    return words ^ (words >> np.uint64(31))


def words(starts: Words, count: int, first: int = 0) -> Words:
    """Words first to first + count of the streams that begin at `starts` (B,): (B, count).

    Each stream walks with a stride of its own, so that two streams that meet do not go on together.
    """
    strides = mix(starts ^ np.uint64(_GOLDEN)) | np.uint64(1)
    places = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    return mix(starts[:, None] + strides[:, None] * places)


class Streams:
    """The random numbers of a batch of samples.

    Args:
        seed: of the whole run.
        samples: the number of each sample in it, (B,): position in a set of generated pictures, or the
            global count of training examples seen before this one.
        device: where the numbers are sent; they are always drawn on the CPU, so every device gets the same.
    """

    def __init__(self, seed: int, samples: Sequence[int], *, device: torch.device | str = "cpu") -> None:
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
        """Uniform numbers in [0, 1), (B,) float64, on the CPU, where levels live."""
        bits = keys(self.seed, self.samples, step, draw) >> np.uint64(11)
        return torch.from_numpy(bits.astype(np.float64) * 2.0**-53)

    def bind(self, shape: Sequence[int]) -> Noise:
        """noise(step, draw=0), as samplers want it, for samples of this shape.

        Draw 0 of step -1 is what a run starts from: `streams.normal(shape, START)`.
        """
        return lambda step, draw=0: self.normal(shape, step, draw)


START = -1  # the step number of the noise that a run starts from
