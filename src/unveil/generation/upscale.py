"""Upscaling of images and videos: by a super-resolution model, or by any other from a bicubic enlargement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from unveil.conditioning.tiled_denoising import OVERLAP, denoise_in_tiles, tiles
from unveil.core.inverse import low_frequency
from unveil.core.samplers.loop import SamplingRun
from unveil.data.tensor_dataset import LOW, bicubic_upsample
from unveil.errors import RecipeError
from unveil.generation.generate import TaskSpec, encode_latents, input_to_unit, select_rows
from unveil.generation.img2img import check_strength, start_from
from unveil.generation.position_scaling import scale_positions
from unveil.model import Model
from unveil.model.model import with_last_dims
from unveil.model.shapes import size_multiple, vae_scale_factor

STRENGTH = 0.3  # default strength after a bicubic enlargement


def upscale(
    model: Model,
    images: Tensor,
    *,
    factor: int = 4,
    size: Sequence[int] | None = None,
    strength: float = STRENGTH,
    overlap: float = OVERLAP,
    reach: int = 1,
    faithful: bool = False,
) -> TaskSpec:
    """Enlarge images or videos to `factor` times as many pixels a side.

    A model with a condition `low` generates them from noise, conditioned on the small image. Any other begins at the
    bicubic enlargement, as `img2img` does. Results larger than the model's own images are computed in tiles of that
    size, whose estimates are averaged at every step; a tile of a video has all frames.

    Args:
        model: Model.
        images: (N, C, H, W), of a video model (N, C, T, H, W), uint8 or in [-1, 1]; one for all results, or one each.
        factor: Factor, at least 1; of a model with `low`, the one that it was trained with.
        size: Height and width of the results, in place of a factor.
        strength: Strength after a bicubic enlargement, in [0, 1].
        overlap: Overlap of neighbouring tiles, as a share of their side, in [0, 1).
        reach: Side of a tile, as a multiple of the model's; its tokens are that much closer, so that they cover the
            positions of the model's own images. For networks that read positions (`Condition.positions`).
        faithful: Keep the low frequencies of the images in the results, see `core.inverse.ilvr`. For models that were
            not trained to upscale.

    Raises:
        RecipeError: A factor below 1, or a strength or an overlap outside its range.

    Source: Dhariwal & Nichol 2021 (arXiv:2105.05233) for the condition; Meng et al. 2021 (arXiv:2108.01073); the
    tiles: Bar-Tal et al. 2023 (arXiv:2302.08113); faithful: Choi et al. 2021 (arXiv:2108.02938).
    """
    check_strength(strength)
    unit = input_to_unit(images, model.shape[0], "H, W" if len(model.shape) == 3 else "T, H, W")
    before = unit.shape[-2], unit.shape[-1]
    wide = _larger(before, factor) if size is None else (size[0], size[1])
    trained = LOW in model.conditioners
    latent, tile = (model.autoencoder.latent_shape(with_last_dims(model.shape, end))[-2:] for end in (wide, ()))
    # tiles begin at whole pixels of `low`, or at whole tokens
    unit_latents = max(1, latent[-1] // before[1]) if trained else size_multiple(model) // vae_scale_factor(model)
    whole = latent[0], latent[1]
    places = tiles(whole, (tile[0] * reach, tile[1] * reach), overlap=overlap, unit=unit_latents)

    def change(run: SamplingRun, rows: slice) -> SamplingRun:
        latents = None if trained else encode_latents(model, resized(select_rows(unit, rows), wide))
        run = scale_positions(run if latents is None else start_from(run, latents, strength), 1 / reach)
        if len(places) > 1:
            run = replace(
                run, denoiser=denoise_in_tiles(run.make_guided_denoiser, run.condition, run.null, places, whole)
            )
        return _faithful(run, latents, before, wide) if faithful and latents is not None else run

    settings: dict[str, Any] = {"factor": factor, "strength": strength, "overlap": overlap, "reach": reach}
    settings |= ({} if size is None else {"size": list(wide)}) | ({"faithful": True} if faithful else {})
    tile_size = min(wide[0], model.shape[-2] * reach), min(wide[1], model.shape[-1] * reach)
    edit = TaskSpec("upscale", settings, change, size=(*unit.shape[2:-2], *wide), tile_size=tile_size)
    return replace(edit, image_conditions=lambda rows: {LOW: select_rows(unit, rows)}) if trained else edit


def _larger(size: tuple[int, int], factor: int) -> tuple[int, int]:
    if factor < 1:
        raise RecipeError(f"factor {factor}: at least 1, such as 2 or 4")
    return size[0] * factor, size[1] * factor


def _faithful(run: SamplingRun, latents: Tensor, before: tuple[int, int], wide: tuple[int, int]) -> SamplingRun:
    """Return a run that keeps the low frequencies of the latents, up to the size before the upscaling."""
    sides = zip(latents.shape[-2:], before, wide, strict=True)
    low = [min(side, max(1, side * old // new)) for side, old, new in sides]
    return run.wrap_denoiser(lambda step: low_frequency(step, latents, low))


def resized(unit: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images (B, C, H, W), or videos (B, C, T, H, W) frame by frame, resized with bicubic interpolation."""
    if unit.ndim == 4:
        return bicubic_upsample(unit, size)
    frames = bicubic_upsample(unit.transpose(1, 2).flatten(0, 1), size)
    return frames.unflatten(0, (len(unit), -1)).transpose(1, 2)
