"""A batch as a network takes it: scaled, mirrored, encoded, with its condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from unveil.core.rng import SampleRNG
from unveil.errors import RecipeError, ShapeError
from unveil.model import Model
from unveil.model.config.train import Batching
from unveil.train.data_order import Batch, IndexableItems, collate
from unveil.train.latents import flip_variants, is_cached, latents
from unveil.types import Condition

# Draws of an example's stream; the objective has 0 and 1. DROP is that of the first condition, others follow.
FLIP, DROP = 2, 3


def prepare(
    model: Model, batch: Batch, streams: SampleRNG, step: int | None, flip: bool = False
) -> tuple[Any, Condition | None]:
    """A batch as the objective takes it: x0 (B, ...), or a list of (...), scaled and encoded, and its condition.

    Args:
        step: the training step whose random numbers mirror images, choose among the codec's latents and drop
            conditions; None does nothing of it.
        flip: mirror every second image, left to right, with its context image and its control image.
    """
    condition: Condition | None = None
    mirrored: Tensor | None = None
    if isinstance(batch.data, list):
        each = zip(batch.data, streams.each(), strict=True)
        encoded = [_encoded(model, data[None], stream, step, flip) for data, stream in each]
        x0: Any = [x[0] for x, _ in encoded]
    else:
        x0, mirrored = _encoded(model, batch.data, streams, step, flip)
    for place, conditioner in enumerate(cast(Mapping[str, Any], model.conditioners).values()):
        part: Condition = conditioner.encode(batch.raw[conditioner.key])
        if mirrored is not None and part.channels is not None:
            part = replace(part, channels=hflip(part.channels, mirrored))
        if mirrored is not None and part.hint is not None:
            part = replace(part, hint=hflip(part.hint, mirrored))
        if conditioner.drop and step is not None:
            keep = streams.uniform(step, DROP + place) >= conditioner.drop
            part = part.where(keep, conditioner.null(len(x0)))
        condition = part if condition is None else condition.join(part)
    return x0, condition


def _encoded(
    model: Model, data: Tensor, streams: SampleRNG, step: int | None, flip: bool
) -> tuple[Tensor, Tensor | None]:
    """Data of one size, scaled and encoded, and which of them are mirrored."""
    x0, cached = to_float(data), is_cached(model, data)
    mirrored: Tensor | None = None
    if flip and step is not None:
        mirrored = random_flip_mask(x0, streams, step)
        x0 = x0 if cached else hflip(x0, mirrored)
    return latents(model, flip_variants(x0, mirrored) if cached else x0, streams, step, encoded=cached), mirrored


def to_float(data: Tensor) -> Tensor:
    """uint8 pixels as float32 in [-1, 1]; floating point as float32, unchanged.

    Raises:
        ShapeError: any other type.
    """
    if data.dtype == torch.uint8:
        return data.float().div_(127.5).sub_(1)
    if not data.dtype.is_floating_point:
        raise ShapeError(f"data of type {data.dtype}: must be uint8 (pixels, 0 to 255) or floating point")
    return data.float()


def random_flip_mask(images: Tensor, streams: SampleRNG, step: int) -> Tensor:
    """Which of a batch (B, C, H, W) a training step mirrors, every second one: (B,) bool.

    Raises:
        RecipeError: data that have no left and right.
    """
    if images.ndim < 4:
        raise RecipeError(
            f"random_flip: data of shape {tuple(images.shape[1:])} has no left and right; set random_flip: false"
        )
    return streams.uniform(step, FLIP) < 0.5


def hflip(images: Tensor, which: Tensor) -> Tensor:
    """The images, those chosen by `which` (B,) left to right."""
    rows = which.reshape(-1, *(1,) * (images.ndim - 1)).to(images.device)
    return torch.where(rows, images.flip(-1), images)


def fixed_subset(
    items: IndexableItems, count: int, key: str, raw_keys: Sequence[str], batching: Batching | None = None
) -> Batch:
    """Items spread evenly over a data set, numbered by their index."""
    indices = [place * len(items) // count for place in range(count)]
    return collate(indices, indices, [items[index] for index in indices], key, raw_keys, batching)


def slice_batch(batch: Batch, start: int, stop: int, device: torch.device) -> Batch:
    """The examples from `start` to before `stop`, on a device."""

    def cut(value: Any) -> Any:
        return to_device(value[start:stop], device)

    raw = {key: cut(value) for key, value in batch.raw.items()}
    return Batch(batch.numbers[start:stop], cut(batch.data), raw)


def to_device(value: Any, device: torch.device) -> Any:
    """A tensor, or a list of tensors, on a device; anything else as it is."""
    if isinstance(value, list):
        return [to_device(element, device) for element in value]
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


def noise_for(x0: Any, streams: SampleRNG, step: int) -> Any:
    """Standard normal noise for a batch (B, ...), or for a list of (...), the same for each example."""
    if isinstance(x0, list):
        return [
            stream.normal(element.shape, step)[0].to(element)
            for stream, element in zip(streams.each(), x0, strict=True)
        ]
    return streams.normal(x0.shape[1:], step).to(x0)
