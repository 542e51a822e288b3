"""Pictures and clips made larger: by a model that was trained to, or by any other from a plain enlargement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from unveil.conditioning.tiled_denoising import OVERLAP, for_tiles, tiles
from unveil.core.inverse import low_frequency
from unveil.core.sampling_run import SamplingRun
from unveil.data.low_res import LOW, bicubic_upsample
from unveil.errors import RecipeError
from unveil.generation.img2img import check_strength, start_from
from unveil.generation.position_scaling import scale_positions
from unveil.generation.task_spec import TaskSpec, input_to_unit, latents_of, select_rows
from unveil.model import Model
from unveil.model.shapes import ending, size_multiple, vae_scale_factor

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
    faithful: bool = False,
) -> TaskSpec:
    """Pictures or clips with `factor` times as many pixels a side.

    A model with a condition `low` draws them from noise, given the picture. Any other begins at the bicubic
    enlargement, as `img2img` does. What is larger than the model's own pictures is drawn in tiles of their size, whose
    estimates are averaged at every step; of clips, each tile has all frames.

    Args:
        pictures: (N, C, H, W), of a model of clips (N, C, T, H, W), uint8 or in [-1, 1]; one for all results, or one
            each.
        factor: at least 1; of a model with `low`, the one that it was trained with.
        size: height and width of the results, in the place of a factor.
        strength: of the edit after a plain enlargement, in [0, 1].
        overlap: of neighbouring tiles, as a share of their side, in [0, 1).
        reach: how many of the model's own sides a tile has; its tokens lie so much closer, so that they are where
            those of the model's own pictures are. For networks that read places (`Condition.places`).
        faithful: the results have the large forms of the pictures, whatever a tile may take itself for; see
            `core.inverse.ilvr`. Of models that were not trained to enlarge.

    Raises:
        RecipeError: a factor below 1, or a strength or an overlap outside its range.

    Source: Dhariwal & Nichol 2021 (arXiv:2105.05233) for the condition; Meng et al. 2021 (arXiv:2108.01073); the
    tiles: Bar-Tal et al. 2023 (arXiv:2302.08113); faithful: Choi et al. 2021 (arXiv:2108.02938).
    """
    check_strength(strength)
    unit = input_to_unit(pictures, model.shape[0], "H, W" if len(model.shape) == 3 else "T, H, W")
    before = unit.shape[-2], unit.shape[-1]
    wide = _larger(before, factor) if size is None else (size[0], size[1])
    trained = LOW in model.conditioners
    latent, tile = (model.autoencoder.latent_shape(ending(model.shape, end))[-2:] for end in (wide, ()))
    # a pixel of `low` lies in one tile or the other, and so does what the network sees as one
    least = max(1, latent[-1] // before[1]) if trained else size_multiple(model) // vae_scale_factor(model)
    whole = latent[0], latent[1]
    places = tiles(whole, (tile[0] * reach, tile[1] * reach), overlap=overlap, unit=least)

    def change(course: SamplingRun, rows: slice) -> SamplingRun:
        known = None if trained else latents_of(model, resized(select_rows(unit, rows), wide))
        course = scale_positions(course if known is None else start_from(course, known, strength), 1 / reach)
        if len(places) > 1:
            course = replace(course, step=for_tiles(course.guided, course.condition, course.null, places, whole))
        return _keeping(course, known, before, wide) if faithful and known is not None else course

    def shown(rows: slice) -> Mapping[str, Tensor]:
        return {LOW: select_rows(unit, rows)} if trained else {}

    settings: dict[str, Any] = {"factor": factor, "strength": strength, "overlap": overlap, "reach": reach}
    settings |= ({} if size is None else {"size": list(wide)}) | ({"faithful": True} if faithful else {})
    seen = min(wide[0], model.shape[-2] * reach), min(wide[1], model.shape[-1] * reach)
    return TaskSpec("upscale", settings, change, shown=shown, size=(*unit.shape[2:-2], *wide), seen=seen)


def _larger(size: tuple[int, int], factor: int) -> tuple[int, int]:
    if factor < 1:
        raise RecipeError(f"factor {factor}: at least 1, such as 2 or 4")
    return size[0] * factor, size[1] * factor


def _keeping(course: SamplingRun, known: Tensor, before: tuple[int, int], wide: tuple[int, int]) -> SamplingRun:
    """A course that keeps what `known` shows at the size before."""
    sides = zip(known.shape[-2:], before, wide, strict=True)
    low = [min(side, max(1, side * old // new)) for side, old, new in sides]
    return course.around(lambda step: low_frequency(step, known, low))


def resized(unit: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures (B, C, H, W), or the frames of clips (B, C, T, H, W), bicubic, of another size."""
    if unit.ndim == 4:
        return bicubic_upsample(unit, size)
    frames = bicubic_upsample(unit.transpose(1, 2).flatten(0, 1), size)
    return frames.unflatten(0, (len(unit), -1)).transpose(1, 2)
