"""Conversion of weights between formats."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from unveil.tasks.fields import CatalogName, ModelName, Name, RecipeChanges, RecipeName, info
from unveil.tasks.task import Task, TaskContext, TaskResult


class Convert(Task):
    """Convert weights between the native format and those of other projects, or a run to a saved model.

    Stable Diffusion is converted between a single file (ldm), a diffusers folder (diffusers) and the native format; a
    ControlNet, or the run of one, to a single file or a diffusers folder.

    A .pt, .pth or .ckpt file, which could run code, is read in a sandbox that accepts tensors only.

    Example: unveil convert cifar10_uncond_50M_500K.pt cifar --recipe iddpm-cifar10
    """

    name: ClassVar[str] = "convert"
    section: ClassVar[str] = "Models"
    arguments: ClassVar[tuple[str, ...]] = ("source", "output")
    common: ClassVar[tuple[str, ...]] = ("force",)
    makes: ClassVar[str] = "model"
    separate_process: ClassVar[bool] = True
    group: ClassVar[str] = "Model"

    source: Annotated[ModelName, info("Weights file of another project, or model folder.", metavar="SOURCE")]
    output: Annotated[
        Annotated[Name, CatalogName("new_model")],
        info("Output folder, or .safetensors file; on a server the name of the new model.", metavar="OUT"),
    ]
    format: Annotated[
        Name,
        info("Format of the file that is not native: openai, ddpm, edm, score-sde, dit, diffusers, ldm; or ours."),
    ] = "openai"
    recipe: Annotated[
        RecipeName | None, info("Recipe of the model in the weights file, for the native format.", advanced=True)
    ] = None
    settings: Annotated[
        RecipeChanges,
        info(
            "Change of the recipe, or fact of the file as file.KEY=VALUE; may repeat.",
            title="Changes of the recipe",
            flags=["--set"],
            advanced=True,
        ),
    ] = Field(default_factory=dict)
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "int8"],
        info(
            "Number format: float32, bfloat16, float16; int8 with --format ours.",
            title="Number format",
            metavar="DTYPE",
        ),
    ] = "float32"

    def check(self) -> None:
        """Check that the format exists."""
        from unveil.checkpoints.registry import get_format

        get_format(self.format)

    def for_server(self) -> Self:
        """The task with the ending of a file, where the format is that of one."""
        from unveil.checkpoints.registry import get_format

        endings = get_format(self.format).endings
        if not endings or PurePath(self.output).suffix in endings:
            return self
        return self.model_copy(update={"output": f"{self.output}.safetensors"})

    def run(self, context: TaskContext) -> TaskResult:
        """Convert the weights."""
        from unveil.tasks.convert_run import convert_weights

        return convert_weights(self, context)
