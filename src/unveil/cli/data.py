"""`unveil data show`: the images that a recipe trains on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from unveil import data
from unveil.errors import RecipeError
from unveil.io.console import Console
from unveil.io.files import refuse_overwrite, write_atomically
from unveil.io.images import frame_rows, make_grid, png
from unveil.model.config import SequenceRecipe, load_recipe


@dataclass(frozen=True)
class ShownImages:
    """Number and split of the images of a recipe."""

    recipe: str
    overrides: tuple[str, ...] = ()
    count: int = 64
    split: str = "train"


def show(shown: ShownImages, out: Path, force: bool, console: Console) -> None:
    """Write a sheet of the first images of a data set."""
    if out.suffix.lower() != ".png":
        raise RecipeError(f"--out {out}: must end in .png")
    if shown.count < 1:
        raise RecipeError(f"--num-images {shown.count}: at least 1")
    refuse_overwrite(out, force)
    recipe = load_recipe(shown.recipe, shown.overrides)
    if isinstance(recipe, SequenceRecipe):
        raise RecipeError(f"{recipe.name}: its data are pairs of texts, not images")
    items = data.open(recipe.data.build(), data.check_split(shown.split))
    if isinstance(items, data.Latents):
        raise RecipeError(f"{recipe.name}: its data are latents, not images; `unveil data check` reads them")
    images = [items[number]["pixels"] for number in range(min(shown.count, len(items)))]
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise RecipeError(
            f"{recipe.name}: items of shapes {', '.join(map(str, sorted(shapes)[:3]))} and so on do not fit a sheet; "
            "give data one size and one length"
        )
    pixels = torch.stack(images)
    write_atomically(out, png(make_grid(pixels) if pixels.ndim == 4 else frame_rows(pixels)))
    facts = {"items": len(items), "shape": list(pixels.shape[1:]), "classes": items.classes, "sheet": str(out)}
    console.result(facts, f"{len(items)} items of shape {tuple(pixels.shape[1:])}: {len(pixels)} of them in {out}")
