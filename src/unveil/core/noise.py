"""Random numbers that depend on who asks, not on the order of asking.

One stream per sample, keyed (seed, sample, step, draw): batch size, number of workers and ranks, resuming
and unused draws change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# noise(step, draw=0) -> standard normal noise of the whole batch
Noise = Callable[..., Tensor]

_MASK = (1 << 64) - 1


def key(*numbers: int) -> int:
    """A 64-bit hash of whole numbers, each mixed in by SplitMix64 (Steele et al. 2014, figure 14)."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state + (number & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


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
        self._generator = torch.Generator()

    def normal(self, shape: Sequence[int], step: int, draw: int = 0) -> Tensor:
        """Standard normal noise (B, *shape), float32."""
        out = torch.empty((len(self.samples), *shape))
        for row, sample in zip(out, self.samples, strict=True):
            self._generator.manual_seed(key(self.seed, sample, step, draw))
            torch.randn(row.shape, generator=self._generator, out=row)
        return out.to(self.device)

    def uniform(self, step: int, draw: int = 0) -> Tensor:
        """Uniform numbers in [0, 1), (B,) float64, on the CPU, where levels live."""
        numbers = [(key(self.seed, sample, step, draw) >> 11) * 2.0**-53 for sample in self.samples]
        return torch.tensor(numbers, dtype=torch.float64)

    def bind(self, shape: Sequence[int]) -> Noise:
        """noise(step, draw=0), as samplers want it, for samples of this shape.

        Draw 0 of step -1 is what a run starts from: `streams.normal(shape, START)`.
        """
        return lambda step, draw=0: self.normal(shape, step, draw)


START = -1  # the step number of the noise that a run starts from
