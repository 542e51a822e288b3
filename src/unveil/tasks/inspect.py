"""Inspection of checkpoints, of the models folder, of noise schedules and of samplers."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from unveil.errors import RecipeError
from unveil.tasks.fields import CatalogName, FileFacts, Name, RecipeChanges, Settings, info
from unveil.tasks.task import Task, TaskContext, TaskResult


class InspectModel(Task):
    """Show what a checkpoint contains, from its headers only; or the size and cost of an architecture.

    For a single-file latent diffusion model also how many of its tensors are matched, and which are not.

    Example: unveil inspect model runs/ddpm-digits, or unveil inspect dit-xl-2
    """

    name: ClassVar[str] = "inspect-model"
    section: ClassVar[str] = "Models"
    arguments: ClassVar[tuple[str, ...]] = ("model", "file")
    common: ClassVar[tuple[str, ...]] = ()
    makes: ClassVar[str] = "text"
    group: ClassVar[str] = "Model"

    model: Annotated[
        Annotated[Name, CatalogName("model_or_architecture")],
        info("Model folder, run, .safetensors file, or an architecture such as dit-xl-2.", metavar="MODEL"),
    ]
    file: Annotated[
        Settings,
        FileFacts(),
        info(
            "Facts that the keys of a weights file do not tell, such as file.heads=8.",
            metavar="[file.KEY=VALUE]...",
            advanced=True,
            max_length=50,
        ),
    ] = Field(default_factory=dict)
    list_tensors: Annotated[bool, info("List every tensor.")] = False
    size: Annotated[
        int | None, info("Side of the input of an architecture, in pixels or latents.", ge=1, le=65_536, advanced=True)
    ] = None
    batch_size: Annotated[int, info("Batch size that memory is estimated for.", ge=1, le=65_536, advanced=True)] = 8

    def run(self, context: TaskContext) -> TaskResult:
        """Read the headers."""
        from unveil.tasks.inspect_run import inspect_model

        return inspect_model(self, context)


class InspectModels(Task):
    """List the models folder, $UNVEIL_MODELS or ./models, with the format of each file.

    Its checkpoints/, loras/ and controlnets/ are searched wherever a model, a LoRA or a ControlNet is named.

    Example: unveil inspect models
    """

    name: ClassVar[str] = "inspect-models"
    section: ClassVar[str] = "Models"
    common: ClassVar[tuple[str, ...]] = ()
    makes: ClassVar[str] = "text"
    served: ClassVar[str] = "it prints paths of the machine; GET /v1/models lists the models by their names"

    def run(self, context: TaskContext) -> TaskResult:
        """List the folder."""
        from unveil.tasks.inspect_run import inspect_models

        del context
        return inspect_models()


class InspectSchedule(Task):
    """Plot a noise schedule: alpha-bar, the ratio of the two betas and the variational bound, per timestep.

    Example: unveil inspect schedule ddpm-digits process.beta_schedule=linear
    """

    name: ClassVar[str] = "inspect-schedule"
    section: ClassVar[str] = "Models"
    arguments: ClassVar[tuple[str, ...]] = ("source", "settings")
    common: ClassVar[tuple[str, ...]] = ("force",)
    out: ClassVar[str] = "schedule.png"
    out_help: ClassVar[str] = "Output .png file."
    makes: ClassVar[str] = "plot"
    group: ClassVar[str] = "Noise schedule"

    source: Annotated[
        Annotated[Name, CatalogName("recipe_or_model")],
        info(
            "Recipe, or model whose variational bound is measured.",
            title="Recipe or model",
            metavar="RECIPE_OR_MODEL",
        ),
    ]
    settings: Annotated[
        RecipeChanges, info("Changes of the recipe, such as train.steps=100.", title="Changes of the recipe")
    ] = Field(default_factory=dict)
    rows: Annotated[int, info("Number of rows of the table.", le=1000)] = 11
    num_images: Annotated[
        int,
        info(
            "Number of held-out images that the bound is measured on.",
            title="Number of images",
            flags=["--num-images", "-n"],
            le=10_000,
        ),
    ] = 32

    def check(self) -> None:
        """Check the numbers of rows and images."""
        if self.rows < 2 or self.num_images < 1:
            raise RecipeError(f"--rows {self.rows}, --num-images {self.num_images}: must be at least 2 and 1")

    def run(self, context: TaskContext) -> TaskResult:
        """Plot the schedule."""
        from unveil.tasks.noise_schedule import plot_schedule

        return plot_schedule(self, context)


class InspectSamplers(Task):
    """List every sampler with its order, noise, network evaluations per step and settings.

    Example: unveil inspect samplers
    """

    name: ClassVar[str] = "inspect-samplers"
    section: ClassVar[str] = "Models"
    common: ClassVar[tuple[str, ...]] = ()
    makes: ClassVar[str] = "text"

    def run(self, context: TaskContext) -> TaskResult:
        """List the samplers."""
        from unveil.tasks.inspect_run import inspect_samplers

        del context
        return inspect_samplers()
