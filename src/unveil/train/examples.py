"""A batch as a network takes it: scaled, mirrored, encoded, with its condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from unveil.core.noise import Streams
from unveil.model import Model
from unveil.train.order import Batch, Items, collate
from unveil.types import Condition, RecipeError, ShapeError

# Draws of an example's stream; the objective has 0 and 1. DROP is that of the first condition, others follow.
FLIP, DROP, LATENT = 2, 3, 1000


def prepare(
    model: Model, batch: Batch, streams: Streams, step: int | None, flip: bool = False
) -> tuple[Tensor, Condition | None]:
    """A batch as the denoiser takes it: x0 (B, ...) scaled and encoded, and its condition.

    Args:
        step: the training step whose random numbers mirror pictures, choose among the codec's latents and drop
            conditions; None does nothing of it.
        flip: mirror every second picture, left to right, with its context picture.
    """
    x0 = scaled(batch.data)
    mirrored: Tensor | None = None
    if flip and step is not None:
        mirrored = chosen_to_mirror(x0, streams, step)
        x0 = mirror(x0, mirrored)
    noise: Tensor | None = None
    if model.codec.stochastic and step is not None:
        noise = streams.normal(model.codec.latent_shape(tuple(x0.shape[1:])), step, LATENT)
    with torch.no_grad():
        x0 = model.codec.encode(x0, noise)
    condition: Condition | None = None
    for place, conditioner in enumerate(cast(Mapping[str, Any], model.conditioners).values()):
        part: Condition = conditioner.encode(batch.raw[conditioner.key])
        if mirrored is not None and part.channels is not None:
            part = Condition(part.vector, part.tokens, part.mask, mirror(part.channels, mirrored))
        if conditioner.drop and step is not None:
            keep = streams.uniform(step, DROP + place) >= conditioner.drop
            part = part.where(keep, conditioner.null(len(x0)))
        condition = part if condition is None else condition.join(part)
    return x0, condition


def scaled(data: Tensor) -> Tensor:
    """uint8 pixels as float32 in [-1, 1]; floating point as float32, unchanged.

    Raises:
        ShapeError: any other type.
    """
    if data.dtype == torch.uint8:
        return data.float().div_(127.5).sub_(1)
    if not data.dtype.is_floating_point:
        raise ShapeError(f"data of type {data.dtype}: must be uint8 (pixels, 0 to 255) or floating point")
    return data.float()


def chosen_to_mirror(pictures: Tensor, streams: Streams, step: int) -> Tensor:
    """Which of a batch (B, C, H, W) a training step mirrors, every second one: (B,) bool.

    Raises:
        RecipeError: data that have no left and right.
    """
    if pictures.ndim < 4:
        raise RecipeError(f"flip: data of shape {tuple(pictures.shape[1:])} has no left and right; set flip: false")
    return streams.uniform(step, FLIP) < 0.5


def mirror(pictures: Tensor, which: Tensor) -> Tensor:
    """The pictures, those chosen by `which` (B,) left to right."""
    rows = which.reshape(-1, *(1,) * (pictures.ndim - 1)).to(pictures.device)
    return torch.where(rows, pictures.flip(-1), pictures)


def fixed(items: Items, count: int, key: str, raw_keys: list[str]) -> Batch:
    """Items spread evenly over a data set, numbered by their index."""
    indices = [place * len(items) // count for place in range(count)]
    return collate(indices, indices, [items[index] for index in indices], key, raw_keys)


def rows(batch: Batch, start: int, stop: int, device: torch.device) -> Batch:
    """The examples from `start` to before `stop`, on a device."""

    def cut(value: Any) -> Any:
        part = value[start:stop]
        return part.to(device) if isinstance(part, Tensor) else part

    raw = {key: cut(value) for key, value in batch.raw.items()}
    return Batch(batch.numbers[start:stop], cut(batch.data), raw)
