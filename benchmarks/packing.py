"""A training step of DiT-S/4 on 24 images of mixed sizes, forward and backward: packed, padded, bucketed by size.

Tokens count that are of an image, not of padding. Padded images are all as large as the largest possible one;
bucketed ones are computed size by size; packed ones share rows of 256 tokens, each image seeing itself alone.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence

import harness
import torch
from torch import Tensor
from torch.nn import functional as F

from unveil.nn.dit import DiT, get_preset
from unveil.types import Condition

COUNT, LARGEST, PATCH, ROW = 24, 32, 4, 256
SIDES = (16, 20, 24, 28, 32)


class Batch:
    """The network and a batch: images of any of 25 sizes, their noise levels and conditions."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        chosen = random.Random(0)
        count = 6 if harness.short() else COUNT
        self.network = DiT(get_preset("dit-s-4")).train()
        self.images = [torch.randn(4, chosen.choice(SIDES), chosen.choice(SIDES)) for _ in range(count)]
        self.t = torch.randint(0, 1000, (count,)).float()
        self.vectors = torch.randn(count, self.network.vector_dim)
        self.tokens = sum(image.shape[1] * image.shape[2] // PATCH**2 for image in self.images)

    def measured(self, forward: Callable[[], Sequence[Tensor]], computed: int) -> dict[str, float]:
        """Useful tokens a CPU second of a step, and the share of the computed ones that is padding."""

        def step() -> None:
            self.network.zero_grad(set_to_none=True)
            torch.stack([answer.square().mean() for answer in forward()]).mean().backward()

        costs = harness.measure(step, repeats=4, warmup=1)
        return {**costs, "tokens_per_s": self.tokens / costs["cpu_s"], "padding": 1 - self.tokens / computed}


def padded() -> dict[str, float]:
    """Zeros around each image up to the largest size; what comes back is cropped."""
    batch = Batch()

    def forward() -> list[Tensor]:
        sides = [image.shape[1:] for image in batch.images]
        x = torch.stack([F.pad(p, (0, LARGEST - p.shape[2], 0, LARGEST - p.shape[1])) for p in batch.images])
        answers = batch.network(x, batch.t, Condition(vector=batch.vectors))
        return [answer[:, :h, :w] for answer, (h, w) in zip(answers, sides, strict=True)]

    return batch.measured(forward, len(batch.images) * (LARGEST // PATCH) ** 2)


def bucketed() -> dict[str, float]:
    """One call for each size that occurs."""
    batch = Batch()
    buckets: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, image in enumerate(batch.images):
        buckets[tuple(image.shape)].append(number)

    def forward() -> list[Tensor]:
        results: list[Tensor] = []
        for numbers in buckets.values():
            x = torch.stack([batch.images[number] for number in numbers])
            results += batch.network(x, batch.t[numbers], Condition(vector=batch.vectors[numbers]))
        return results

    return batch.measured(forward, batch.tokens)


def packed() -> dict[str, float]:
    """Several images in a row of tokens."""
    batch = Batch()
    condition = Condition(vector=batch.vectors)
    waste = batch.network.packed(batch.images, batch.t, condition, length=ROW)[1]
    costs = batch.measured(
        lambda: batch.network.packed(batch.images, batch.t, condition, length=ROW)[0],
        round(batch.tokens / (1 - waste)),
    )
    return costs


if __name__ == "__main__":
    harness.main(
        "packing",
        {"padded": padded, "bucketed": bucketed, "packed": packed},
        [
            harness.Ratio("useful tokens/s, packed / padded", "packed", "padded", "tokens_per_s"),
            harness.Ratio("useful tokens/s, packed / bucketed", "packed", "bucketed", "tokens_per_s"),
        ],
    )
