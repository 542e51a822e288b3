"""Inpainting and outpainting: a part of an image, or what lies beyond its edges, is generated; the rest stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from unveil.core import inverse
from unveil.core.inverse.operator import boolean
from unveil.core.samplers.loop import SamplingRun
from unveil.errors import RecipeError, ShapeError, did_you_mean
from unveil.generation.generate import TaskSpec, encode_latents, input_to_unit, select_rows
from unveil.generation.img2img import check_strength, start_from
from unveil.io.images import to_pixels
from unveil.model import Model
from unveil.model.shapes import round_up_size
from unveil.types import format_size

# Keys of the conditions of a network that was trained to inpaint: the mask, and the latents of the masked image
MASK, MASKED = "mask", "masked"
Method = Literal["auto", "network", "replace", "repaint"]


class Padding(NamedTuple):
    """Number of pixels that are added beyond each edge."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0


class RePaintConfig(NamedTuple):
    """Resampling of RePaint: jumps of `length` steps, each repeated `times` times."""

    jump_length: int = 10
    num_resamples: int = 10


def inpaint(
    model: Model,
    images: Tensor,
    mask: Tensor,
    *,
    strength: float = 1.0,
    feather: int = 0,
    method: Method = "auto",
    jumps: RePaintConfig = RePaintConfig(),  # noqa: B008  a tuple of numbers
) -> TaskSpec:
    """Generate the masked part of images.

    Args:
        model: Model.
        images: (N, C, H, W), uint8 or in [-1, 1]; one for all results, or one each.
        mask: Boolean (N or 1, 1, H, W), True where the image is generated.
        strength: Strength within the mask, as in `img2img`; below 1 the original shines through.
        feather: Number of pixels by which the mask grows, where old and new are blended; the others are exact.
        method: `network`, for models that were trained to inpaint: they are conditioned on the mask and the masked
            image. `replace` puts the unmasked part into every estimate, `repaint` also resamples; both work with any
            model. `auto` is `network` if the model was trained for it, else `replace`.
        jumps: Resampling of `repaint`.

    Raises:
        RecipeError: A strength outside [0, 1], a negative feather, a method that is unknown or not for this model.
        ShapeError: A mask that is not boolean, or of another size than the images.

    Source: Lugmayr et al. 2022 (arXiv:2201.09865); with a trained network: Rombach et al. 2022 (arXiv:2112.10752).
    """
    check_strength(strength)
    if feather < 0:
        raise RecipeError(f"feather {feather}: at least 0 pixels")
    unit = input_to_unit(images, model.shape[0])
    wide = _grown(_checked(mask, unit), feather)  # the image outside of it stays
    chosen = _method(model, method)
    original, weight = to_pixels(unit), _weight(mask, feather)

    def change(run: SamplingRun, rows: slice) -> SamplingRun:
        latents = encode_latents(model, select_rows(unit, rows))
        run = start_from(run, latents, strength)
        if chosen == "network" or not strength:
            return run
        keep = ~_latent_mask(select_rows(wide, rows), latents).to(latents.device)
        run = _resampled(run, jumps) if chosen == "repaint" else run
        return run.wrap_denoiser(partial(inverse.inpaint, pixels=latents, keep=keep))

    def image_conditions(rows: slice) -> Mapping[str, Tensor]:
        part = select_rows(wide, rows)
        masked = encode_latents(model, select_rows(unit, rows).masked_fill(part, 0.0))  # mid-grey
        small = F.interpolate(part.float(), masked.shape[-2:], mode="nearest").to(masked)
        return {key: value for key, value in ((MASK, small), (MASKED, masked)) if key in model.conditioners}

    def finish(pixels: Tensor, rows: slice) -> Tensor:
        old, share = select_rows(original, rows), select_rows(weight, rows)
        blended = (old * share + pixels * (1 - share)).round().to(torch.uint8)
        return torch.where(share == 1, old, blended)

    settings = {"strength": strength, "feather": feather, "method": chosen, "jumps": list(jumps)}
    edit = TaskSpec("inpaint", settings, change, postprocess=finish, size=(unit.shape[2], unit.shape[3]))
    return replace(edit, image_conditions=image_conditions) if chosen == "network" else edit


def outpaint(
    model: Model,
    images: Tensor,
    margins: Padding,
    *,
    feather: int = 0,
    method: Method = "auto",
    jumps: RePaintConfig = RePaintConfig(),  # noqa: B008  a tuple of numbers
) -> TaskSpec:
    """Extend images beyond their edges: `inpaint` on a larger canvas, whose new part is the mask.

    Args:
        model: Model.
        images: (N, C, H, W), uint8 or in [-1, 1].
        margins: Added pixels; the canvas must be of a size that the network takes, see `fitting`.
        feather, method, jumps: As in `inpaint`; the feather lies within the image.

    Raises:
        RecipeError: Margins below 0, or all 0, and as `inpaint`.
    """
    margins = Padding(*margins)
    if min(margins) < 0 or not any(margins):
        raise RecipeError(f"{_text(margins)}: each at least 0 pixels, and one of them more")
    unit = input_to_unit(images, model.shape[0])
    canvas = F.pad(unit, tuple(margins), mode="replicate")
    mask = F.pad(torch.zeros(1, 1, *unit.shape[2:], dtype=torch.bool), tuple(margins), value=True)
    edit = inpaint(model, canvas, mask, feather=feather, method=method, jumps=jumps)
    return replace(edit, name="outpaint", settings={**edit.settings, "margins": list(margins)})


def fit_padding(model: Model, size: tuple[int, int], margins: Padding) -> Padding:
    """Return margins that are enlarged until the canvas has a size that the network takes.

    The right and the bottom margin grow, or the left or the top one if only that is above 0.
    """
    height, width = size[0] + margins.top + margins.bottom, size[1] + margins.left + margins.right
    tall, wide = round_up_size(model, (height, width))
    sides = (
        ("left" if margins.left and not margins.right else "right", wide - width),
        (
            "top" if margins.top and not margins.bottom else "bottom",
            tall - height,
        ),
    )
    return margins._replace(**{side: getattr(margins, side) + more for side, more in sides})


def _resampled(run: SamplingRun, jumps: RePaintConfig) -> SamplingRun:
    """Return the run with RePaint's resampling."""
    plan = run.make_plan(run.schedule)
    return replace(run, plan=inverse.repaint(plan, run.schedule, length=jumps.jump_length, count=jumps.num_resamples))


def _text(margins: Padding) -> str:
    return ", ".join(f"{side} {pixels}" for side, pixels in margins._asdict().items())


def _method(model: Model, method: Method) -> Method:
    if method not in get_args(Method):
        methods = get_args(Method)
        raise RecipeError(f"method {method!r}: must be one of {', '.join(methods)}{did_you_mean(method, methods)}")
    trained = MASKED in model.conditioners
    if method == "network" and not trained:
        raise RecipeError("method 'network': this model was not trained with masks; use replace or repaint")
    return ("network" if trained else "replace") if method == "auto" else method


def _checked(mask: Tensor, images: Tensor) -> Tensor:
    """Return the boolean mask (N or 1, 1, H, W) of images (N, C, H, W)."""
    mask = boolean(mask)
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2:] != images.shape[2:]:
        mask_size, image_size = (format_size(tensor.shape) for tensor in (mask, images))
        raise ShapeError(
            f"a mask of {mask_size} for an image of {image_size}: must be of the same size, (N or 1, 1, H, W)"
        )
    return mask


def _grown(mask: Tensor, pixels: int) -> Tensor:
    """Return the mask dilated by a number of pixels in both directions."""
    return F.max_pool2d(mask.float(), 2 * pixels + 1, stride=1, padding=pixels) > 0


def _weight(mask: Tensor, feather: int) -> Tensor:
    """Return the weight of the original image: 0 in the mask, 1 beyond the feather, float32 (N, 1, H, W)."""
    rings = [(~_grown(mask, pixels)).float() for pixels in range(feather + 1)]
    return torch.stack(rings).mean(0)


def _latent_mask(mask: Tensor, latents: Tensor) -> Tensor:
    """Return the mask at the size of the latents: a latent that covers any masked pixel is masked."""
    if mask.shape[-2:] == latents.shape[-2:]:
        return mask
    return F.adaptive_max_pool2d(mask.float(), latents.shape[-2:]) > 0
