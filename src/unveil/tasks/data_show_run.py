"""The work of `tasks.data_show.DataShow`: a grid of the first images of a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from unveil import data
from unveil.errors import RecipeError
from unveil.io.files import refuse_overwrite, write_atomically
from unveil.io.images import frame_rows, make_grid, png
from unveil.model.config import SequenceRecipe, load_recipe
from unveil.tasks.task import TaskContext, TaskResult

if TYPE_CHECKING:
    from unveil.tasks.data_show import DataShow


def show_data(task: DataShow, context: TaskContext) -> TaskResult:
    """Write a grid of the first images of a data set; videos are rows of frames.

    Raises:
        RecipeError: The data are not images, or have several shapes; or the output is not a .png file.
        OutputError: The output exists.
    """
    out = context.output.path
    if out.suffix.lower() != ".png":
        raise RecipeError(f"--out {out}: must end in .png")
    if task.num_images < 1:
        raise RecipeError(f"--num-images {task.num_images}: at least 1")
    refuse_overwrite(out, context.output.force)
    recipe = load_recipe(task.recipe, task.settings)
    if isinstance(recipe, SequenceRecipe):
        raise RecipeError(f"{recipe.name}: its data are pairs of texts, not images")
    items = data.open(recipe.data.build(), data.check_split(task.split))
    if isinstance(items, data.Latents):
        raise RecipeError(f"{recipe.name}: its data are latents, not images; `unveil data check` reads them")
    images = [items[number]["pixels"] for number in range(min(task.num_images, len(items)))]
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise RecipeError(
            f"{recipe.name}: items of shapes {', '.join(map(str, sorted(shapes)[:3]))} and so on do not fit a grid; "
            "give data one size and one length"
        )
    pixels = torch.stack(images)
    write_atomically(out, png(make_grid(pixels) if pixels.ndim == 4 else frame_rows(pixels)))
    facts: dict[str, Any] = {"items": len(items), "shape": list(pixels.shape[1:])}
    facts |= {"classes": items.classes, "sheet": str(out)}
    return TaskResult(facts, f"{len(items)} items of shape {tuple(pixels.shape[1:])}: {len(pixels)} of them in {out}")
