"""Training data as training reads them: a grid of images, and the cache of their latents."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from unveil.tasks.fields import Name, RecipeChanges, RecipeName, info
from unveil.tasks.task import Task, TaskContext, TaskResult

Recipe = Annotated[RecipeName, info("Bundled recipe, YAML file or run folder.", metavar="RECIPE")]
Changes = Annotated[
    RecipeChanges, info("Changes of the recipe, such as train.steps=100.", title="Changes of the recipe")
]


class DataShow(Task):
    """Show the images that a recipe trains on, as training sees them.

    Example: unveil data show ddpm-digits -n 100
    """

    name: ClassVar[str] = "data-show"
    section: ClassVar[str] = "Train"
    arguments: ClassVar[tuple[str, ...]] = ("recipe", "settings")
    common: ClassVar[tuple[str, ...]] = ("force",)
    out: ClassVar[str] = "data.png"
    out_help: ClassVar[str] = "Output .png file."
    makes: ClassVar[str] = "plot"
    group: ClassVar[str] = "Data"

    recipe: Recipe
    settings: Changes = Field(default_factory=dict)
    num_images: Annotated[
        int, info("Number of images.", title="Number of images", flags=["--num-images", "-n"], le=4096)
    ] = 64
    split: Annotated[Name, info("Split of the data: train or held-out.")] = "train"

    def run(self, context: TaskContext) -> TaskResult:
        """Write the grid."""
        from unveil.tasks.data_show_run import show_data

        return show_data(self, context)


class CacheLatents(Task):
    """Encode the images of a recipe once, for training with train.cache_latents=true.

    After an interruption the same command encodes what is missing.

    Example: unveil data cache-latents my-latent-recipe.yaml --batch-size 64
    """

    name: ClassVar[str] = "data-cache-latents"
    section: ClassVar[str] = "Train"
    arguments: ClassVar[tuple[str, ...]] = ("recipe", "settings")
    common: ClassVar[tuple[str, ...]] = ("device",)
    makes: ClassVar[str] = "text"
    separate_process: ClassVar[bool] = True
    group: ClassVar[str] = "Data"

    recipe: Recipe
    settings: Changes = Field(default_factory=dict)
    batch_size: Annotated[int, info("Number of images that are encoded at once.", le=65_536)] = 32

    def run(self, context: TaskContext) -> TaskResult:
        """Encode the images."""
        from unveil.tasks.cache_latents_run import write_latents

        return write_latents(self, context)
