"""A classifier of noisy digits, trained for an experiment to guide its samples; it judges nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from unveil.core.noise import Streams
from unveil.core.process import Process
from unveil.data.digits import digits
from unveil.nn.classifier import NoisyClassifier, NoisyClassifierConfig
from unveil.study.arm import CLASSES, to_unit
from unveil.types import Level, like

TIME, NOISE = 0, 1  # draws of a training example's stream
BATCH, RATE, WARMUP = 128, 2e-3, 30
NETWORK = NoisyClassifierConfig(
    1, CLASSES, 8, channels=16, multipliers=(1, 2), blocks=1, attention=(2,), head_channels=16, groups=8
)


class Guide:
    """Log-probabilities of the classes of x at any level of a process: (x, level) -> logits (B, 10)."""

    def __init__(self, network: nn.Module, process: Process) -> None:
        self.network, self.process = network, process

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """The logits; differentiable in x."""
        index = torch.as_tensor(self.process.index(level), dtype=torch.float32)
        return self.network(x, index.expand(len(x)))


def train_guide(process: Process, seed: int, steps: int, on_step: Callable[[], object] = lambda: None) -> Guide:
    """A small encoder with attention pooling, on the training digits with the noise of every time alike.

    Source: Dhariwal & Nichol 2021, section 4.1 and appendix H (arXiv:2105.05233).
    """
    part = digits("train")
    assert part.labels is not None
    data = to_unit(part.pixels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        guide = Guide(NoisyClassifier(NETWORK), process)
    optimizer = torch.optim.AdamW(guide.network.parameters(), lr=RATE, weight_decay=0.05)
    order = torch.Generator().manual_seed(seed)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / WARMUP) * (1 - step / steps)
        rows = torch.randint(len(data), (BATCH,), generator=order)
        streams = Streams(seed, range(step * BATCH, (step + 1) * BATCH))
        level = process.at(process.trainable(streams.uniform(step, TIME)))
        noise = streams.normal(data.shape[1:], step, NOISE)
        x = like(level.alpha, noise) * data[rows] + like(level.sigma, noise) * noise
        loss = functional.cross_entropy(guide(x, level), part.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        on_step()
    guide.network.eval().requires_grad_(False)
    return guide
