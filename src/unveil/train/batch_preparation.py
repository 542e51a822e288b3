"""Preparation of a batch for a network: scaling, mirroring, encoding to latents, and conditions.

Latents are encoded at every step or taken from the cache. Both draw the same latents from the same posterior with the
same noise, which belongs to the example and the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from unveil.core.rng import SampleRNG
from unveil.data.adapter import SourceDataset
from unveil.data.fingerprint import Progress, tensors_fingerprint
from unveil.data.latent_cache import CachedLatents, LatentCacheOptions, LatentEncoder, cache_latents
from unveil.errors import RecipeError, ShapeError
from unveil.model import Model
from unveil.model.config.train import Batching
from unveil.train.data_order import ALSO, Batch, IndexableItems, collate
from unveil.types import Condition

# Draws of an example's stream; the objective has 0 and 1. DROP is that of the first condition, others follow.
FLIP, DROP = 2, 3


def prepare(
    model: Model, batch: Batch, streams: SampleRNG, step: int | None, flip: bool = False
) -> tuple[Any, Condition | None]:
    """Prepare a batch for the objective: x0 (B, ...), or a list of (...), scaled and encoded, and its condition.

    Args:
        step: Training step whose random numbers mirror images, sample latents and drop conditions; None: none of these.
        flip: True if images are mirrored left-right with probability 1/2, with their context and control images.
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
        if mirrored is not None and part.concat is not None:
            part = replace(part, concat=hflip(part.concat, mirrored))
        if mirrored is not None and part.control_image is not None:
            part = replace(part, control_image=hflip(part.control_image, mirrored))
        if conditioner.drop and step is not None:
            keep = streams.uniform(step, DROP + place) >= conditioner.drop
            part = part.where(keep, conditioner.null(len(x0)))
        condition = part if condition is None else condition.join(part)
    return x0, condition


def _encoded(
    model: Model, data: Tensor, streams: SampleRNG, step: int | None, flip: bool
) -> tuple[Tensor, Tensor | None]:
    """Scale and encode data of one size; return also which samples are mirrored."""
    x0, cached = to_float(data), is_cached(model, data)
    mirrored: Tensor | None = None
    if flip and step is not None:
        mirrored = random_flip_mask(x0, streams, step)
        x0 = x0 if cached else hflip(x0, mirrored)
    return batch_latents(model, flip_variants(x0, mirrored) if cached else x0, streams, step, encoded=cached), mirrored


def to_float(data: Tensor) -> Tensor:
    """Convert uint8 pixels to float32 in [-1, 1], and other floating-point types to float32.

    Raises:
        ShapeError: The type is neither uint8 nor floating point.
    """
    if data.dtype == torch.uint8:
        return data.float().div_(127.5).sub_(1)
    if not data.dtype.is_floating_point:
        raise ShapeError(f"data of type {data.dtype}: must be uint8 (pixels, 0 to 255) or floating point")
    return data.float()


def random_flip_mask(images: Tensor, streams: SampleRNG, step: int) -> Tensor:
    """Return which images a training step mirrors, (B,) bool, each with probability 1/2.

    Raises:
        RecipeError: The data have no left and right.
    """
    if images.ndim < 4:
        raise RecipeError(
            f"random_flip: data of shape {tuple(images.shape[1:])} has no left and right; set random_flip: false"
        )
    return streams.uniform(step, FLIP) < 0.5


def hflip(images: Tensor, which: Tensor) -> Tensor:
    """Mirror the images that `which` (B,) selects left-right."""
    rows = which.reshape(-1, *(1,) * (images.ndim - 1)).to(images.device)
    return torch.where(rows, images.flip(-1), images)


def fixed_subset(
    items: IndexableItems, count: int, key: str, raw_keys: Sequence[str], batching: Batching | None = None
) -> Batch:
    """Return a batch of items spread evenly over a data set, numbered by their index."""
    indices = [place * len(items) // count for place in range(count)]
    return collate(indices, indices, [items[index] for index in indices], key, raw_keys, batching)


def slice_batch(batch: Batch, start: int, stop: int, device: torch.device) -> Batch:
    """Return the examples from `start` up to, but without, `stop`, on a device."""

    def cut(value: Any) -> Any:
        return to_device(value[start:stop], device)

    raw = {key: cut(value) for key, value in batch.raw.items()}
    return Batch(batch.numbers[start:stop], cut(batch.data), raw)


def to_device(value: Any, device: torch.device) -> Any:
    """Move a tensor, or a list of tensors, to a device; return other values unchanged."""
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


ENCODE = 1 << 16  # the draw of an example's stream that picks its latents; conditions count up from small numbers


@runtime_checkable
class SupportsEncode(Protocol):
    """Autoencoder whose encoder outputs can be cached."""

    def encoded(self, pixels: Tensor) -> Tensor:
        """Output of the encoder for pixels (B, C, H, W)."""
        ...

    def latents_of(self, encoded: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents of unit scale from the encoder's output, as `encode` returns them."""
        ...


def cache_dataset(
    model: Model, items: SourceDataset, how: LatentCacheOptions | None = None, progress: Progress | None = None
) -> tuple[CachedLatents, bool]:
    """Return a data set with the encoder's output for each image, and whether it came from the cache.

    Args:
        how: Options of the cache; their key is replaced by that of the model.
        progress: Function (done, total) that is called while images are encoded.

    Raises:
        RecipeError: The model has no autoencoder with an encoder.
        DataError, ShapeError, NonFinite, OutputError, OutOfResources: Caching fails; see `latent_cache.cache_latents`.
    """
    key = model.config.key if model.config is not None else "pixels"
    path, there = cache_latents(items, encoder_of(model), replace(how or LatentCacheOptions(), key=key), progress)
    keys = [str(conditioner.key) for conditioner in model.conditioners.values()]
    return CachedLatents(items, path, key, [ALSO.get(name, name) for name in keys]), there


def encoder_of(model: Model) -> LatentEncoder:
    """Return the model's encoder with the hash of its weights and settings.

    Raises:
        RecipeError: The model has no autoencoder with an encoder.
    """
    codec: Any = model.autoencoder
    if not isinstance(codec, SupportsEncode) or not isinstance(codec, nn.Module):
        raise RecipeError(
            f"latents cannot be cached: the model's autoencoder, {type(codec).__name__}, encodes nothing; "
            "set train.cache_latents: false, or give the recipe an autoencoder"
        )

    def encode(pixels: Tensor) -> Tensor:
        with _at_rest(codec, model.device):
            return codec.encoded(pixels.to(model.device))

    config: Any = getattr(codec, "config", None)
    identity = f"{type(codec).__name__} {config!r} {tensors_fingerprint(codec.state_dict())}"
    numbers = {name: getattr(codec, name, torch.tensor([usual])) for name, usual in (("scale", 1.0), ("shift", 0.0))}
    scale, shift = (numbers[name].flatten().tolist() for name in ("scale", "shift"))
    return LatentEncoder(encode, identity, 2 if codec.stochastic else 1, scale, shift)


def is_cached(model: Model, data: Tensor) -> bool:
    """Return True if a batch contains encoder outputs, which have an additional axis for mirrored versions."""
    return data.ndim == len(model.shape) + 2


def flip_variants(data: Tensor, mirrored: Tensor | None) -> Tensor:
    """Select the version of each example: (B, versions, moments * C', h, w) to (B, moments * C', h, w).

    Args:
        mirrored: Mask (B,) of the examples whose mirrored version is selected; None: none.

    Raises:
        RecipeError: A mirrored version is selected, but the cache has none.
    """
    if mirrored is None:
        return data[:, 0]
    if data.shape[1] < 2:
        raise RecipeError(
            "flip: the cached encoder outputs are of the images as they are, and mirrored latents are not those of "
            "mirrored images; cache them with mirrored=True, set random_flip: false, or train.cache_latents: false"
        )
    return data[torch.arange(len(data), device=data.device), mirrored.long().to(data.device)]


def batch_latents(model: Model, data: Tensor, streams: SampleRNG, step: int | None, *, encoded: bool) -> Tensor:
    """Latents (B, C', h, w) of pixels, or of the encoder's outputs for pixels.

    Args:
        step: Training step whose noise samples from the posterior; None: the most probable latents.
        encoded: True if `data` are encoder outputs.
    """
    codec: Any = model.autoencoder
    with _at_rest(codec, data.device):
        noise = None
        if step is not None and codec.stochastic:
            shape = model.shape if encoded else tuple(data.shape[1:])
            noise = streams.normal(codec.latent_shape(shape), step, ENCODE)
        return codec.latents_of(data, noise) if encoded else codec.encode(data, noise)


def shape_of(items: object, model: Model) -> tuple[int, ...]:
    """Return the shape that a data set's data must have: the model's, or that of the cached encoder outputs."""
    return items.shape if isinstance(items, CachedLatents) else model.shape


@contextmanager
def _at_rest(codec: Any, device: torch.device) -> Iterator[None]:
    """Context without gradients and dropout, in float32, so that latents do not depend on when they are computed."""
    before = getattr(codec, "training", False)
    try:
        if before:
            codec.eval()
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        if before:
            codec.train()
