"""Training of a model."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from unveil.tasks.fields import CatalogName, Name, RecipeChanges, RecipeName, info
from unveil.tasks.task import Task, TaskContext, TaskResult


class Train(Task):
    """Train a model by a recipe, or on a folder of images or videos; the same command again resumes the run.

    Example: unveil train ddpm-digits train.steps=300 -o runs/first

    Example: unveil train ./photos
    """

    name: ClassVar[str] = "train"
    section: ClassVar[str] = "Train"
    arguments: ClassVar[tuple[str, ...]] = ("recipe", "settings")
    force_help: ClassVar[str] = "Delete an existing run and start over."
    makes: ClassVar[str] = "model"
    separate_process: ClassVar[bool] = True
    group: ClassVar[str] = "Training"

    recipe: Annotated[
        RecipeName,
        info(
            "Bundled recipe, YAML file or run folder; or at once a folder of images or videos to train on.",
            metavar="RECIPE|FOLDER",
        ),
    ]
    settings: Annotated[
        RecipeChanges, info("Changes of the recipe, such as train.steps=100.", title="Changes of the recipe")
    ] = Field(default_factory=dict)
    run_name: Annotated[
        Annotated[Name, CatalogName("new_run")] | None,
        info(
            "Output folder of the run; runs/RECIPE when left out. On a server the name of the run.",
            flags=["--output-dir", "-o"],
            metavar="FOLDER",
        ),
    ] = None
    folder: Annotated[
        Annotated[Name, CatalogName("folder")] | None,
        info("Folder of the data; the recipe's own data when left out.", title="Data", option=False),
    ] = None
    quick: Annotated[bool, info("Run a smoke test of seconds that shows that everything works.")] = False
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        info(
            "Number format: float32, bfloat16 or float16; the recipe's when left out.",
            title="Number format",
            metavar="DTYPE",
            advanced=True,
        ),
    ] = None
    dry_run: Annotated[bool, info("Measure one step and estimate shapes, memory, disk and time.", advanced=True)] = (
        False
    )
    print_config: Annotated[bool, info("Print the whole recipe and stop.", title="Print the recipe", advanced=True)] = (
        False
    )

    def run(self, context: TaskContext) -> TaskResult:
        """Train, or resume the run."""
        from unveil.tasks.train_run import train_model

        return train_model(self, context)
