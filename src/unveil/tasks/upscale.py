"""Pictures made larger: by a model that was trained to, or by any other from a plain enlargement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from unveil.core.course import Course
from unveil.core.tiles import OVERLAP, for_tiles, tiles
from unveil.data.low import LOW, enlarged
from unveil.model import Model
from unveil.tasks.edit import Edit, latents_of, of_rows, unit_of
from unveil.tasks.img2img import begun, check_strength
from unveil.types import RecipeError

STRENGTH = 0.3  # of the edit after a plain enlargement, where nothing else is said


def upscale(
    model: Model, pictures: Tensor, *, factor: int = 4, strength: float = STRENGTH, overlap: float = OVERLAP
) -> Edit:
    """Pictures with `factor` times as many pixels a side.

    A model with a condition `low` draws them from noise, given the picture. Any other begins at the bicubic
    enlargement, as `img2img` of this strength. What is larger than the model's own pictures is drawn in tiles of
    their size, whose estimates are averaged at every step.

    Args:
        pictures: (N, C, H, W), uint8 or in [-1, 1]; one for all results, or one each.
        factor: at least 1; of a model with `low`, the one that it was trained with.
        strength: of the edit after a plain enlargement, in [0, 1].
        overlap: of neighbouring tiles, as a share of their side, in [0, 1).

    Raises:
        RecipeError: a factor below 1, or a strength or an overlap outside its range.

    Source: Dhariwal & Nichol 2021 (arXiv:2105.05233) for the condition; Meng et al. 2021 (arXiv:2108.01073); the
    tiles: Bar-Tal et al. 2023 (arXiv:2302.08113).
    """
    check_strength(strength)
    if factor < 1:
        raise RecipeError(f"factor {factor}: at least 1, such as 2 or 4")
    unit = unit_of(pictures, model.shape[0])
    size = unit.shape[2] * factor, unit.shape[3] * factor
    trained = LOW in model.conditioners
    latent = model.codec.latent_shape((*model.shape[:-2], *size))
    whole, tile = (latent[-2], latent[-1]), model.codec.latent_shape(model.shape)[-2:]
    least = max(1, latent[-1] // unit.shape[3]) if trained else 1  # a pixel of `low` lies in one tile or the other
    places = tiles(whole, (tile[0], tile[1]), overlap=overlap, unit=least)

    def change(course: Course, rows: slice) -> Course:
        if not trained:
            course = begun(course, latents_of(model, enlarged(of_rows(unit, rows), size)), strength)
        if len(places) == 1:
            return course
        return replace(course, step=for_tiles(course.guided, course.condition, course.null, places, whole))

    def shown(rows: slice) -> Mapping[str, Tensor]:
        return {LOW: of_rows(unit, rows)} if trained else {}

    settings = {"factor": factor, "strength": strength, "overlap": overlap}
    return Edit("upscale", settings, change, shown=shown, size=size)
