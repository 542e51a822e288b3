"""Pictures of which a part is made anew, or that go on beyond their edges; what is known stays as it is."""

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
from unveil.core.sampling_run import SamplingRun
from unveil.errors import RecipeError, ShapeError, did_you_mean
from unveil.generation.img2img import check_strength, start_from
from unveil.generation.task_spec import TaskSpec, input_to_unit, latents_of, select_rows
from unveil.io.images import to_pixels
from unveil.model import Model
from unveil.model.shapes import round_up_size
from unveil.types import format_size

# Keys of the conditions of a network that was trained to paint: the mask, and the latents of what is outside of it
MASK, MASKED = "mask", "masked"
Method = Literal["auto", "network", "replace", "repaint"]


class Padding(NamedTuple):
    """Pixels that are added beyond each edge."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0


class RePaintConfig(NamedTuple):
    """How RePaint goes back and forth: jumps of `length` steps, each stretch walked so many `times`."""

    length: int = 10
    times: int = 10


def inpaint(
    model: Model,
    pictures: Tensor,
    hole: Tensor,
    *,
    strength: float = 1.0,
    feather: int = 0,
    method: Method = "auto",
    jumps: RePaintConfig = RePaintConfig(),  # noqa: B008  a tuple of numbers
) -> TaskSpec:
    """Pictures whose hole is made anew.

    Args:
        pictures: (N, C, H, W), uint8 or in [-1, 1]; one for all results, or one each.
        hole: boolean (N or 1, 1, H, W), True where the picture is made anew.
        strength: as in `img2img`, within the hole; below 1 what is there shines through.
        feather: pixels by which the hole grows, where old and new are blended. Pixels further away are exact.
        method: `network`, for models that were trained to paint: they are given the mask and the masked picture.
            `replace` puts what is known into every estimate, `repaint` also goes back and forth; both work with any
            model. `auto` is `network` where the model can, else `replace`.
        jumps: of `repaint`.

    Raises:
        RecipeError: a strength outside [0, 1], a negative feather, a method that is unknown or not for this model.
        ShapeError: a mask that is not boolean, or of another size than the pictures.

    Source: Lugmayr et al. 2022 (arXiv:2201.09865); with a trained network: Rombach et al. 2022 (arXiv:2112.10752).
    """
    check_strength(strength)
    if feather < 0:
        raise RecipeError(f"feather {feather}: at least 0 pixels")
    unit = input_to_unit(pictures, model.shape[0])
    wide = _grown(_checked(hole, unit), feather)  # known is what lies outside of it
    chosen = _method(model, method)
    original, weight = to_pixels(unit), _weight(hole, feather)

    def change(course: SamplingRun, rows: slice) -> SamplingRun:
        latents = latents_of(model, select_rows(unit, rows))
        course = start_from(course, latents, strength)
        if chosen == "network" or not strength:
            return course
        keep = ~_smaller(select_rows(wide, rows), latents).to(latents.device)
        course = _walked(course, jumps) if chosen == "repaint" else course
        return course.around(partial(inverse.inpaint, pixels=latents, keep=keep))

    def shown(rows: slice) -> Mapping[str, Tensor]:
        part = select_rows(wide, rows)
        masked = latents_of(model, select_rows(unit, rows).masked_fill(part, 0.0))  # mid-grey
        mask = F.interpolate(part.float(), masked.shape[-2:], mode="nearest").to(masked)
        return {key: value for key, value in ((MASK, mask), (MASKED, masked)) if key in model.conditioners}

    def finish(pixels: Tensor, rows: slice) -> Tensor:
        old, share = select_rows(original, rows), select_rows(weight, rows)
        blended = (old * share + pixels * (1 - share)).round().to(torch.uint8)
        return torch.where(share == 1, old, blended)

    settings = {"strength": strength, "feather": feather, "method": chosen, "jumps": list(jumps)}
    edit = TaskSpec("inpaint", settings, change, finish=finish, size=(unit.shape[2], unit.shape[3]))
    return replace(edit, shown=shown) if chosen == "network" else edit


def outpaint(
    model: Model,
    pictures: Tensor,
    margins: Padding,
    *,
    feather: int = 0,
    method: Method = "auto",
    jumps: RePaintConfig = RePaintConfig(),  # noqa: B008  a tuple of numbers
) -> TaskSpec:
    """Pictures that go on beyond their edges: a larger canvas, `inpaint` with what is new as the hole.

    Args:
        pictures: (N, C, H, W), uint8 or in [-1, 1].
        margins: that are added; the canvas must be of a size that the network takes, see `fitting`.
        feather, method, jumps: as in `inpaint`; the feather lies within the picture.

    Raises:
        RecipeError: margins below 0, or all 0, and as `inpaint`.
    """
    margins = Padding(*margins)
    if min(margins) < 0 or not any(margins):
        raise RecipeError(f"{_words(margins)}: each at least 0 pixels, and one of them more")
    unit = input_to_unit(pictures, model.shape[0])
    canvas = F.pad(unit, tuple(margins), mode="replicate")
    hole = F.pad(torch.zeros(1, 1, *unit.shape[2:], dtype=torch.bool), tuple(margins), value=True)
    edit = inpaint(model, canvas, hole, feather=feather, method=method, jumps=jumps)
    return replace(edit, verb="outpaint", settings={**edit.settings, "margins": list(margins)})


def fitting(model: Model, size: tuple[int, int], margins: Padding) -> Padding:
    """Margins with which a picture of this size becomes one that the network takes: what lacks is added.

    It goes to the right and the bottom, unless only the left or the top is asked for.
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


def _walked(course: SamplingRun, jumps: RePaintConfig) -> SamplingRun:
    """The course with RePaint's jumps."""
    plan = course.planned(course.grid)
    return replace(course, plan=inverse.repaint(plan, course.grid, length=jumps.length, count=jumps.times))


def _words(margins: Padding) -> str:
    return ", ".join(f"{side} {pixels}" for side, pixels in margins._asdict().items())


def _method(model: Model, method: Method) -> Method:
    if method not in get_args(Method):
        known = get_args(Method)
        raise RecipeError(f"method {method!r}: must be one of {', '.join(known)}{did_you_mean(method, known)}")
    trained = MASKED in model.conditioners
    if method == "network" and not trained:
        raise RecipeError("method 'network': this model was not trained with masks; use replace or repaint")
    return ("network" if trained else "replace") if method == "auto" else method


def _checked(hole: Tensor, pictures: Tensor) -> Tensor:
    """The mask (N or 1, 1, H, W) of pictures (N, C, H, W)."""
    hole = boolean(hole)
    if hole.ndim != 4 or hole.shape[1] != 1 or hole.shape[2:] != pictures.shape[2:]:
        mine, theirs = (format_size(one.shape) for one in (hole, pictures))
        raise ShapeError(f"a mask of {mine} for a picture of {theirs}: must be of the same size, (N or 1, 1, H, W)")
    return hole


def _grown(hole: Tensor, pixels: int) -> Tensor:
    """The hole, and all that is at most so many pixels away in either direction."""
    return F.max_pool2d(hole.float(), 2 * pixels + 1, stride=1, padding=pixels) > 0


def _weight(hole: Tensor, feather: int) -> Tensor:
    """How much of the old picture is left: 0 in the hole, 1 beyond the feather, float32 (N, 1, H, W)."""
    rings = [(~_grown(hole, pixels)).float() for pixels in range(feather + 1)]
    return torch.stack(rings).mean(0)


def _smaller(hole: Tensor, latents: Tensor) -> Tensor:
    """The hole in latents' size: one that shows anything of it belongs to it."""
    if hole.shape[-2:] == latents.shape[-2:]:
        return hole
    return F.adaptive_max_pool2d(hole.float(), latents.shape[-2:]) > 0
