"""Shapes of samples: the sizes in pixels and frames that a model's network takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from unveil.errors import RecipeError, ShapeError
from unveil.types import format_size

if TYPE_CHECKING:
    from unveil.model.model import Model

_MAX_FRAMES_PER_LATENT = 64


def size_multiple(model: Model) -> int:
    """Return the number of pixels of which height and width must be multiples; 1 if the network has no such limit."""
    of_network = getattr(model.denoiser.network, "multiple", 1)
    return int(of_network) * vae_scale_factor(model)


def vae_scale_factor(model: Model) -> int:
    """Return the ratio of the side of an image to that of its latents; 1 without an autoencoder."""
    return model.shape[-1] // model.autoencoder.latent_shape(model.shape)[-1]


class TemporalCompression(NamedTuple):
    """Grouping of the frames of a video: each of the first frames has its own latents, later groups share theirs.

    Attributes:
        leading_frames: Number of frames at the beginning that share no latents.
        stride: Number of frames of a group; without an autoencoder, number of frames of one token.
        latents_per_stride: Number of latents of a group.
        latents_per_leading_frame: Number of latents of each frame at the beginning.
    """

    leading_frames: int
    stride: int
    latents_per_stride: int = 1
    latents_per_leading_frame: int = 1

    def round_up(self, frames: int) -> int:
        """Return the smallest number of frames, at least `frames`, that fills its latents."""
        return self.leading_frames + _up(max(frames, self.leading_frames or 1) - self.leading_frames, self.stride)


def temporal_compression(model: Model) -> TemporalCompression:
    """Return how many frames of a video share their latents, or a token without an autoencoder."""
    frames, latents = model.shape[1], model.autoencoder.latent_shape(model.shape)[1]
    if frames == latents:
        patch = getattr(getattr(model.denoiser.network, "config", None), "patch", None)
        return TemporalCompression(0, patch[0] if isinstance(patch, tuple) and len(patch) == 3 else 1)
    for step in range(2, _MAX_FRAMES_PER_LATENT + 1):
        with suppress(ShapeError):
            more = model.autoencoder.latent_shape((model.shape[0], frames + step, *model.shape[2:]))[1] - latents
            return TemporalCompression(frames % step, step, more, latents - frames // step * more)
    raise RecipeError(
        f"this model's autoencoder makes {latents} latents of {frames} frames; which frames a latent encodes is unknown"
    )


def check_size(model: Model, size: Sequence[int]) -> None:
    """Check a size in pixels, (H, W), or (T, H, W) of a video, for the network.

    Raises:
        RecipeError: The network does not take it; the message names the nearest sizes.
    """
    unit = size_multiple(model)
    if len(model.shape) not in (3, 4):
        raise RecipeError(f"size {format_size(size)}: this model makes samples of shape {model.shape}, not images")
    sides = size[-2:]
    if any(side < 1 or side % unit for side in sides):
        near = " or ".join(map(format_size, _nearest_sizes(sides[0], sides[1], unit)))
        raise RecipeError(
            f"size {format_size(sides)} (width x height): both sides must be multiples of {unit} px; nearest {near}"
        )
    if len(size) == 3 and size[0] != round_up_frames(model, size[0]):
        raise RecipeError(
            f"{size[0]} frames: the model's latents hold others; nearest {round_up_frames(model, size[0])}"
        )


def _nearest_sizes(height: int, width: int, unit: int) -> list[tuple[int, int]]:
    """Up to two sizes whose sides are multiples: of those around a size, the nearest in aspect ratio, by pixels."""
    around = {
        (max(unit, tall(height, unit)), max(unit, wide(width, unit))) for tall in (_down, _up) for wide in (_down, _up)
    }
    aspect = math.log(max(1, height) / max(1, width))
    nearest = sorted(around, key=lambda size: (round(abs(math.log(size[0] / size[1]) - aspect), 6), size[0] * size[1]))
    return sorted(nearest[:2], key=lambda size: (size[0] * size[1], size))


def round_up_size(model: Model, size: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest size, at least as large, that the network takes."""
    unit = size_multiple(model)
    return _up(size[0], unit), _up(size[1], unit)


def round_up_frames(model: Model, frames: int) -> int:
    """Return the smallest number of frames, at least `frames`, that the model's latents encode.

    Raises:
        RecipeError: `frames` is below 1.
    """
    if frames < 1:
        raise RecipeError(f"frames {frames}: at least 1, which is an image")
    return temporal_compression(model).round_up(frames)


def _down(side: int, unit: int) -> int:
    return side // unit * unit


def _up(side: int, unit: int) -> int:
    return -(-side // unit) * unit
