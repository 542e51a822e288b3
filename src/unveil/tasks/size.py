"""Sizes of pictures that a model's network can make."""

from __future__ import annotations

from unveil.model import Model
from unveil.types import RecipeError


def multiple(model: Model) -> int:
    """What both sides of a picture must be multiples of, in pixels; 1 where the network does not say."""
    of_network = getattr(model.denoiser.network, "multiple", 1)
    return int(of_network) * rate(model)


def rate(model: Model) -> int:
    """How many pixels of a side one latent stands for; 1 without a codec."""
    return model.shape[-1] // model.codec.latent_shape(model.shape)[-1]


def check_size(model: Model, size: tuple[int, int]) -> None:
    """Refuses a size (H, W) in pixels that the network does not take.

    Raises:
        RecipeError: names the nearest sizes.
    """
    unit = multiple(model)
    if len(model.shape) != 3:
        raise RecipeError(f"size {size[0]}x{size[1]}: this model makes samples of shape {model.shape}, no pictures")
    if any(side < 1 or side % unit for side in size):
        below, above = (tuple(max(unit, way(side, unit)) for side in size) for way in (_down, _up))
        near = " or ".join(dict.fromkeys(f"{one[0]}x{one[1]}" for one in (below, above)))
        raise RecipeError(f"size {size[0]}x{size[1]}: both sides must be multiples of {unit} px; nearest {near}")


def rounded(model: Model, size: tuple[int, int]) -> tuple[int, int]:
    """The nearest size that is at least as large and that the network takes."""
    unit = multiple(model)
    return _up(size[0], unit), _up(size[1], unit)


def _down(side: int, unit: int) -> int:
    return side // unit * unit


def _up(side: int, unit: int) -> int:
    return -(-side // unit) * unit
