"""Samples for evaluation: one per item, conditioned on the item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.evaluate.image_set import condition_value
from unveil.model import Model
from unveil.model.config import SampleConfig
from unveil.types import Item, Raw


class SamplingOptions(NamedTuple):
    """Options of sampling, one sample per item.

    Attributes:
        sampling: Sampling settings; None for those of the model.
        seed: Seed of all samples.
        batch: Number of samples per batch.
        on_batch: Function of the number of finished samples, called after each batch.
    """

    sampling: SampleConfig | None = None
    seed: int = 0
    batch: int = 100
    on_batch: Callable[[int], object] | None = None


def generate_for(model: Model, items: Sequence[Item], how: SamplingOptions, negative: Raw | None = None) -> Tensor:
    """Generate one sample per item, conditioned on the item: (N, ...) as the model outputs them.

    Args:
        model: Model conditioned on keys of the items; a prompt is read from "text".
        items: Items that hold the conditions.
        how: Options of sampling.
        negative: Negative conditions by key, one per item.
    """
    settings = (how.sampling or model.sampling).flat()
    batches: list[Tensor] = []
    for start in range(0, len(items), how.batch):
        here = slice(start, start + how.batch)
        raw = {key: [condition_value(item, key) for item in items[here]] for key in model.conditioners}
        away = {key: values[here] for key, values in (negative or {}).items()}
        count = len(items[here])
        batches.append(
            model.generate(
                cond=raw, count=count, seed=how.seed, start_index=start, sampling=settings, negative_cond=away or None
            )
        )
        if how.on_batch is not None:
            how.on_batch(start + count)
    return torch.cat(batches)
