"""Latents of training examples: encoded from pixels at every step, or taken from cached encoder outputs.

Both draw the same latents from the same posterior with the same noise, which belongs to the example and the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from unveil.core.rng import SampleRNG
from unveil.data.adapted import SourceDataset
from unveil.data.fingerprint import Progress, tensors_fingerprint
from unveil.data.latent_cache import CachedLatents, LatentCacheOptions, LatentEncoder, cache_latents
from unveil.errors import RecipeError
from unveil.model import Model
from unveil.train.data_order import ALSO

ENCODE = 1 << 16  # the draw of an example's stream that picks its latents; conditions count up from small numbers


@runtime_checkable
class SupportsEncode(Protocol):
    """An autoencoder whose encoder outputs can be cached."""

    def encoded(self, pixels: Tensor) -> Tensor:
        """The encoder's output for pixels (B, C, H, W)."""
        ...

    def latents_of(self, encoded: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents of unit scale, as `encode` returns them."""
        ...


def cache_dataset(
    model: Model, items: SourceDataset, how: LatentCacheOptions | None = None, progress: Progress | None = None
) -> tuple[CachedLatents, bool]:
    """A data set with the encoder's output for each image, from the cache, and whether it was there.

    Args:
        how: options of the cache; the model's key replaces theirs.
        progress: called as progress(done, total) while images are encoded.

    Raises:
        RecipeError: the model has no codec that encodes.
        DataError, ShapeError, NonFinite, OutputError, OutOfResources: see `latent_cache.cache_latents`.
    """
    key = model.config.key if model.config is not None else "pixels"
    path, there = cache_latents(items, encoder_of(model), replace(how or LatentCacheOptions(), key=key), progress)
    keys = [str(conditioner.key) for conditioner in model.conditioners.values()]
    return CachedLatents(items, path, key, [ALSO.get(name, name) for name in keys]), there


def encoder_of(model: Model) -> LatentEncoder:
    """The model's encoder with the hash of its weights and settings.

    Raises:
        RecipeError: the model has no codec that encodes.
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
    """Whether a batch holds encoder outputs: it then has one axis more, of versions, than the model's samples."""
    return data.ndim == len(model.shape) + 2


def flip_variants(data: Tensor, mirrored: Tensor | None) -> Tensor:
    """The requested version of each example, (B, moments * C', h, w) of (B, versions, moments * C', h, w).

    Args:
        mirrored: (B,), which of them are the mirrored images'; None: none.

    Raises:
        RecipeError: some are, and the cache has no such version.
    """
    if mirrored is None:
        return data[:, 0]
    if data.shape[1] < 2:
        raise RecipeError(
            "flip: the cached encoder outputs are of the images as they are, and mirrored latents are not those of "
            "mirrored images; cache them with mirrored=True, set random_flip: false, or train.cache_latents: false"
        )
    return data[torch.arange(len(data), device=data.device), mirrored.long().to(data.device)]


def latents(model: Model, data: Tensor, streams: SampleRNG, step: int | None, *, encoded: bool) -> Tensor:
    """Latents (B, C', h, w) of pixels, or of the encoder's outputs for them.

    Args:
        step: the training step whose noise picks them from the posterior; None takes the likeliest.
        encoded: what `data` is.
    """
    codec: Any = model.autoencoder
    with _at_rest(codec, data.device):
        noise = None
        if step is not None and codec.stochastic:
            shape = model.shape if encoded else tuple(data.shape[1:])
            noise = streams.normal(codec.latent_shape(shape), step, ENCODE)
        return codec.latents_of(data, noise) if encoded else codec.encode(data, noise)


def shape_of(items: object, model: Model) -> tuple[int, ...]:
    """The shape that a data set's data must have: the model's, or that of the cached encoder outputs."""
    return items.shape if isinstance(items, CachedLatents) else model.shape


@contextmanager
def _at_rest(codec: Any, device: torch.device) -> Iterator[None]:
    """Without gradients, without dropout and in float32, so that a latent is the same whenever it is made."""
    before = getattr(codec, "training", False)
    try:
        if before:
            codec.eval()
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        if before:
            codec.train()
