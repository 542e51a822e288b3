"""Pictures and clips made larger: by a model that was trained to, or by any other from a plain enlargement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from unveil.core.course import Course
from unveil.core.tiles import OVERLAP, for_tiles, tiles
from unveil.data.low import LOW, enlarged
from unveil.model import Model
from unveil.tasks.edit import Edit, latents_of, of_rows, unit_of
from unveil.tasks.img2img import begun, check_strength
from unveil.tasks.places import spaced
from unveil.tasks.size import multiple, rate
from unveil.types import RecipeError

STRENGTH = 0.3  # of the edit after a plain enlargement, where nothing else is said


def upscale(
    model: Model,
    pictures: Tensor,
    *,
    factor: int = 4,
    size: Sequence[int] | None = None,
    strength: float = STRENGTH,
    overlap: float = OVERLAP,
    reach: int = 1,
) -> Edit:
    """Pictures or clips with `factor` times as many pixels a side.

    A model with a condition `low` draws them from noise, given the picture. Any other begins at the bicubic
    enlargement, as `img2img` of this strength. What is larger than the model's own pictures is drawn in tiles of
    their size, whose estimates are averaged at every step; of clips, each tile has all frames.

    Args:
        pictures: (N, C, H, W), of a model of clips (N, C, T, H, W), uint8 or in [-1, 1]; one for all results, or one
            each.
        factor: at least 1; of a model with `low`, the one that it was trained with.
        size: height and width of the results, in the place of a factor.
        strength: of the edit after a plain enlargement, in [0, 1].
        overlap: of neighbouring tiles, as a share of their side, in [0, 1).
        reach: how many of the model's own sides a tile has; its tokens lie so much closer, so that they are where
            those of the model's own pictures are. For networks that read places (`Condition.places`).

    Raises:
        RecipeError: a factor below 1, or a strength or an overlap outside its range.

    Source: Dhariwal & Nichol 2021 (arXiv:2105.05233) for the condition; Meng et al. 2021 (arXiv:2108.01073); the
    tiles: Bar-Tal et al. 2023 (arXiv:2302.08113).
    """
    check_strength(strength)
    if factor < 1:
        raise RecipeError(f"factor {factor}: at least 1, such as 2 or 4")
    unit = unit_of(pictures, model.shape[0], "H, W" if len(model.shape) == 3 else "T, H, W")
    before = unit.shape[-2], unit.shape[-1]
    wide = (before[0] * factor, before[1] * factor) if size is None else (size[0], size[1])
    trained = LOW in model.conditioners
    shape = (model.shape[0], *unit.shape[2:-2], *wide)
    latent, tile = model.codec.latent_shape(shape), model.codec.latent_shape(model.shape)[-2:]
    # a pixel of `low` lies in one tile or the other, and so does what the network sees as one
    least = max(1, latent[-1] // before[1]) if trained else multiple(model) // rate(model)
    whole = latent[-2], latent[-1]
    places = tiles(whole, (tile[0] * reach, tile[1] * reach), overlap=overlap, unit=least)

    def change(course: Course, rows: slice) -> Course:
        if not trained:
            course = begun(course, latents_of(model, resized(of_rows(unit, rows), wide)), strength)
        course = spaced(course, 1 / reach)
        if len(places) == 1:
            return course
        return replace(course, step=for_tiles(course.guided, course.condition, course.null, places, whole))

    def shown(rows: slice) -> Mapping[str, Tensor]:
        return {LOW: of_rows(unit, rows)} if trained else {}

    settings: dict[str, Any] = {"factor": factor, "strength": strength, "overlap": overlap, "reach": reach}
    settings |= {} if size is None else {"size": list(wide)}
    return Edit("upscale", settings, change, shown=shown, size=shape[1:])


def resized(unit: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures (B, C, H, W), or the frames of clips (B, C, T, H, W), bicubic, of another size."""
    if unit.ndim == 4:
        return enlarged(unit, size)
    frames = enlarged(unit.transpose(1, 2).flatten(0, 1), size)
    return frames.unflatten(0, (len(unit), -1)).transpose(1, 2)
