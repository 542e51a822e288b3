"""`unveil data`: pictures, clips or latents, before they train a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from unveil import data
from unveil.data.folder_index import FolderConfig
from unveil.data.video_folder import has_videos
from unveil.errors import RecipeError, did_you_mean
from unveil.io.console import Console
from unveil.io.files import refuse_overwrite, write_atomically
from unveil.io.images import frame_rows, make_grid, png
from unveil.model.config import SequenceRecipe, load_recipe

FITS = ("crop", "pad", "stretch", "aspect")
RULES = ("none", "nearest", "shown")


@dataclass(frozen=True)
class Shown:
    """Which pictures of which recipe."""

    recipe: str
    overrides: tuple[str, ...] = ()
    count: int = 64
    part: str = "train"


@dataclass(frozen=True)
class InTime:
    """How clips are used: see `data.VideoFolderConfig`."""

    frames: int = 16
    fps: float | None = None
    resample: str = "none"
    stride: int | None = None


def check(path: Path, size: int | None, fit: str, clips: InTime, console: Console) -> None:
    """Reports on a folder of pictures or clips, or on a file of latents; changes nothing in it.

    Args:
        path: a folder that holds a video, or GIFs and no pictures, is one of clips.
        size: side in pixels; None is 64 for pictures, and the own size of clips.
        fit: one of `FITS`.
        clips: how clips are used.
        console: what says how it goes.
    """
    if fit not in FITS:
        raise RecipeError(f"fit {fit!r}: must be one of {', '.join(FITS)}{did_you_mean(fit, FITS)}")
    rule = clips.resample
    if rule not in RULES:
        raise RecipeError(f"resample {rule!r}: must be one of {', '.join(RULES)}{did_you_mean(rule, RULES)}")
    if path.is_file() or path.suffix == ".safetensors":
        with console.progress("latent", 0) as progress:
            found = data.check_latents(path, progress.reach)
        console.result(found.to_dict(), found.to_text())
        return
    if path.is_dir() and has_videos(path):
        given: dict[str, Any] = asdict(clips) | {"fit": fit}
        moving = data.VideoFolderConfig(str(path), size or "native", **given)
        with console.progress("decoding video", 0) as progress:
            report = data.check_videos(moving, progress.reach)
        console.result(report.to_dict(), report.to_text())
        return
    if fit == "aspect":
        raise RecipeError("--resize-mode aspect: is for videos; images are cropped, padded or stretched")
    config = FolderConfig(str(path), size or 64, fit=fit)  # pyright: ignore[reportArgumentType] - checked above
    with console.progress("decoding image", 0) as progress:
        report = data.check_images(config, progress.reach)
    console.result(report.to_dict(), report.to_text())


def show(shown: Shown, out: Path, force: bool, console: Console) -> None:
    """Draws the first pictures of a data set."""
    if out.suffix.lower() != ".png":
        raise RecipeError(f"--out {out}: must end in .png")
    if shown.count < 1:
        raise RecipeError(f"--num-images {shown.count}: at least 1")
    refuse_overwrite(out, force)
    recipe = load_recipe(shown.recipe, shown.overrides)
    if isinstance(recipe, SequenceRecipe):
        raise RecipeError(f"{recipe.name}: its data are pairs of texts, not images")
    found = data.open(recipe.data.build(), data.check_split(shown.part))
    if isinstance(found, data.Latents):
        raise RecipeError(f"{recipe.name}: its data are latents, not images; `unveil data check` reads them")
    drawn = [found[i]["pixels"] for i in range(min(shown.count, len(found)))]
    shapes = {tuple(one.shape) for one in drawn}
    if len(shapes) > 1:
        raise RecipeError(
            f"{recipe.name}: items of shapes {', '.join(map(str, sorted(shapes)[:3]))} and so on fit no sheet; give "
            "data one size and one length"
        )
    pixels = torch.stack(drawn)
    write_atomically(out, png(make_grid(pixels) if pixels.ndim == 4 else frame_rows(pixels)))
    facts = {"items": len(found), "shape": list(pixels.shape[1:]), "classes": found.classes, "sheet": str(out)}
    console.result(facts, f"{len(found)} items of shape {tuple(pixels.shape[1:])}: {len(pixels)} of them in {out}")
