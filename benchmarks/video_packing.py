"""A training step of the video transformer on 24 videos and images of mixed sizes: packed, padded, in buckets.

Lengths, heights and widths are drawn independently; every frame has another noise level and every video a text. Useful
tokens are those of videos, not of padding. Padded videos are all as large as the batch's largest in each direction, as
a stack needs it; bucketed ones are computed size by size, as `train.batching: buckets` does; packed ones are one row,
as `packed` does. Forward and backward in bf16, as training on this CPU is.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence

import harness
import torch
from torch import Tensor
from torch.nn import functional as F

from unveil.nn.video_dit import VideoDiT, VideoDiTConfig
from unveil.types import Condition

COUNT, PATCH, WORDS, WIDTH = 24, 8, 16, 192
SIDES, FRAMES = (16, 24, 32, 40, 48), (1, 5, 9, 16)
Answers = Sequence[Tensor]


class Batch:
    """The network and a batch: videos of any of 100 sizes, their levels and texts."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        chosen = random.Random(0)
        depth = 2 if harness.short() else 6
        config = VideoDiTConfig(
            3, 3, (1, PATCH, PATCH), depth=depth, hidden_size=WIDTH, heads=3, cross_attention_dim=WIDTH
        )
        self.network = VideoDiT(config).train()
        for parameter in self.network.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        sizes = [(chosen.choice(FRAMES), chosen.choice(SIDES), chosen.choice(SIDES)) for _ in range(COUNT)]
        self.videos = [torch.randn(3, *size) for size in sizes]
        self.t = [1000 * torch.rand(1, frames, 1, 1) for frames, _, _ in sizes]
        counts = torch.randint(4, WORDS + 1, (COUNT,))
        self.conditions = Condition(tokens=torch.randn(COUNT, WORDS, WIDTH), mask=torch.arange(WORDS) < counts[:, None])
        self.tokens = sum(self.network.tokens(video.shape) for video in self.videos)
        self.largest = [max(size[axis] for size in sizes) for axis in range(3)]

    def measured(self, forward: Callable[[], Answers], computed: int) -> dict[str, float]:
        """Useful tokens a CPU second of a step, and the share of the computed ones that is padding."""

        def step() -> None:
            self.network.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16):
                answers = forward()
            torch.stack([answer.float().square().mean() for answer in answers]).mean().backward()

        costs = harness.measure(step, repeats=3, warmup=1)
        return {**costs, "tokens_per_s": self.tokens / costs["cpu_s"], "padding": 1 - self.tokens / computed}


def padded() -> dict[str, float]:
    """Zeros behind each video up to the largest frames, height and width; what comes back is cropped."""
    batch = Batch()
    size = torch.Size((3, *batch.largest))

    def filled(x: Tensor) -> Tensor:
        return F.pad(x, [amount for axis in (3, 2, 1) for amount in (0, size[axis] - x.shape[axis])])

    def forward() -> Answers:
        x = torch.stack([filled(video) for video in batch.videos])
        t = torch.stack([F.pad(t, (0, 0, 0, 0, 0, size[1] - t.shape[1])) for t in batch.t])
        answers = batch.network(x, t, batch.conditions)
        return [
            answer[:, : video.shape[1], : video.shape[2], : video.shape[3]]
            for answer, video in zip(answers, batch.videos, strict=True)
        ]

    return batch.measured(forward, len(batch.videos) * batch.network.tokens(size))


def bucketed() -> dict[str, float]:
    """One call for each size that occurs."""
    batch = Batch()
    buckets: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, video in enumerate(batch.videos):
        buckets[tuple(video.shape)].append(number)

    def forward() -> Answers:
        answers: list[Tensor] = []
        for numbers in buckets.values():
            x, t = (torch.stack([each[number] for number in numbers]) for each in (batch.videos, batch.t))
            answers += batch.network(x, t, batch.conditions.map(lambda route, rows=numbers: route[rows]))
        return answers

    return {**batch.measured(forward, batch.tokens), "calls": len(buckets)}


def packed() -> dict[str, float]:
    """All videos in one row of tokens."""
    batch = Batch()
    return batch.measured(lambda: batch.network.packed(batch.videos, batch.t, batch.conditions)[0], batch.tokens)


if __name__ == "__main__":
    harness.main(
        "video_packing",
        {"padded": padded, "bucketed": bucketed, "packed": packed},
        [
            harness.Ratio("useful tokens/s, packed / padded", "packed", "padded", "tokens_per_s", at_least=1.3),
            harness.Ratio("useful tokens/s, packed / bucketed", "packed", "bucketed", "tokens_per_s"),
        ],
    )
