"""Sizes of pictures and clips that a model's network can make."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from unveil.errors import RecipeError, ShapeError
from unveil.model import Model
from unveil.types import format_size

_LONGEST = 65  # frames of one latent that are looked for


def size_multiple(model: Model) -> int:
    """What both sides of a picture must be multiples of, in pixels; 1 where the network does not say."""
    of_network = getattr(model.denoiser.network, "multiple", 1)
    return int(of_network) * vae_scale_factor(model)


def vae_scale_factor(model: Model) -> int:
    """How many pixels of a side one latent stands for; 1 without a codec."""
    return model.shape[-1] // model.autoencoder.latent_shape(model.shape)[-1]


class TemporalCompression(NamedTuple):
    """How frames go together: the first `alone` by themselves, then `step` share their latents, or a token.

    latents: of a step; first: of what comes before the steps.
    """

    alone: int
    step: int
    latents: int = 1
    first: int = 1

    def up(self, frames: int) -> int:
        """The smallest number of frames, at least so many, that latents hold."""
        return self.alone + _up(max(frames, self.alone or 1) - self.alone, self.step)


def temporal_compression(model: Model) -> TemporalCompression:
    """How many frames of a clip share their latents, and a token where there is no codec."""
    frames, latents = model.shape[1], model.autoencoder.latent_shape(model.shape)[1]
    if frames == latents:
        patch = getattr(getattr(model.denoiser.network, "config", None), "patch", None)
        return TemporalCompression(0, patch[0] if isinstance(patch, tuple) and len(patch) == 3 else 1)
    for step in range(2, _LONGEST):
        with suppress(ShapeError):
            more = model.autoencoder.latent_shape((model.shape[0], frames + step, *model.shape[2:]))[1] - latents
            return TemporalCompression(frames % step, step, more, latents - frames // step * more)
    raise RecipeError(
        f"this model's autoencoder makes {latents} latents of {frames} frames; unveil cannot tell of which each"
    )


def is_video_model(model: Model) -> bool:
    """Whether a model makes clips (C, T, H, W)."""
    return len(model.shape) == 4


def check_size(model: Model, size: Sequence[int]) -> None:
    """Refuses a size in pixels, (H, W), or (T, H, W) of clips, that the network does not take.

    Raises:
        RecipeError: names the nearest sizes.
    """
    unit = size_multiple(model)
    if len(model.shape) not in (3, 4):
        raise RecipeError(f"size {format_size(size)}: this model makes samples of shape {model.shape}, no pictures")
    sides = size[-2:]
    if any(side < 1 or side % unit for side in sides):
        below, above = (tuple(max(unit, way(side, unit)) for side in sides) for way in (_down, _up))
        near = " or ".join(dict.fromkeys(format_size(one) for one in (below, above)))
        raise RecipeError(
            f"size {format_size(sides)} (width x height): both sides must be multiples of {unit} px; nearest {near}"
        )
    if len(size) == 3 and size[0] != round_up_frames(model, size[0]):
        raise RecipeError(
            f"{size[0]} frames: the model's latents hold others; nearest {round_up_frames(model, size[0])}"
        )


def round_up_size(model: Model, size: tuple[int, int]) -> tuple[int, int]:
    """The nearest size that is at least as large and that the network takes."""
    unit = size_multiple(model)
    return _up(size[0], unit), _up(size[1], unit)


def round_up_frames(model: Model, frames: int) -> int:
    """The smallest number of frames, at least so many, that the model's latents hold.

    Raises:
        RecipeError: fewer than 1.
    """
    if frames < 1:
        raise RecipeError(f"frames {frames}: at least 1, which is a picture")
    return temporal_compression(model).up(frames)


def _down(side: int, unit: int) -> int:
    return side // unit * unit


def _up(side: int, unit: int) -> int:
    return -(-side // unit) * unit
