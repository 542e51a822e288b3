"""LoRA files: their contents, other formats, and models with LoRAs in their weights."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, ClassVar, Literal, Self

from unveil.tasks.fields import CatalogName, Lora, ModelName, Name, info
from unveil.tasks.task import Task, TaskContext, TaskResult

LoraName = Annotated[Name, CatalogName("lora")]
PEFT = "peft"  # the format that is a folder


class LoraInspect(Task):
    """Show what a LoRA file contains, by its keys.

    Example: unveil lora inspect style.safetensors --model runs/dit-fashion
    """

    name: ClassVar[str] = "lora-inspect"
    section: ClassVar[str] = "Models"
    arguments: ClassVar[tuple[str, ...]] = ("lora",)
    common: ClassVar[tuple[str, ...]] = ()
    makes: ClassVar[str] = "text"
    group: ClassVar[str] = "LoRA"

    lora: Annotated[LoraName, info("LoRA file, peft folder, or run.", title="LoRA", metavar="LORA")]
    model: Annotated[
        ModelName | None,
        info("Model whose modules are compared with those of the LoRA.", flags=["--model", "-m"]),
    ] = None

    def run(self, context: TaskContext) -> TaskResult:
        """Read the file."""
        from unveil.tasks.lora_run import inspect_lora

        return inspect_lora(self, context)


class LoraConvert(Task):
    """Convert a LoRA to another format; the model names the target modules.

    Example: unveil lora convert runs/dit-fashion runs/lora-style style.safetensors --format kohya
    """

    name: ClassVar[str] = "lora-convert"
    section: ClassVar[str] = "Models"
    arguments: ClassVar[tuple[str, ...]] = ("model", "lora", "output")
    common: ClassVar[tuple[str, ...]] = ("force",)
    makes: ClassVar[str] = "model"
    separate_process: ClassVar[bool] = True
    group: ClassVar[str] = "LoRA"

    model: Annotated[ModelName, info("Bundled model, or a folder: a saved model or a run.", metavar="MODEL")]
    lora: Annotated[LoraName, info("LoRA file, peft folder, or run.", title="LoRA", metavar="LORA")]
    output: Annotated[
        Annotated[Name, CatalogName("new_lora")],
        info("Output file; for peft a folder; on a server the name of the new LoRA.", metavar="OUT"),
    ]
    format: Annotated[
        Literal["peft", "diffusers", "diffusers-old", "kohya", "cloneofsimo", "unveil"],
        info("Output format: peft, diffusers, diffusers-old, kohya, cloneofsimo or unveil.", metavar="FORMAT"),
    ] = "diffusers"

    def for_server(self) -> Self:
        """The task with the suffix of a file, where the format is a file."""
        if self.format == PEFT or PurePath(self.output).suffix:
            return self
        return self.model_copy(update={"output": f"{self.output}.safetensors"})

    def run(self, context: TaskContext) -> TaskResult:
        """Convert the file."""
        from unveil.tasks.lora_run import convert_lora

        return convert_lora(self, context)


class LoraMerge(Task):
    """Merge LoRAs into the weights of a model.

    Example: unveil lora merge runs/dit-fashion runs/lora-style:0.8 -o striped
    """

    name: ClassVar[str] = "lora-merge"
    section: ClassVar[str] = "Models"
    arguments: ClassVar[tuple[str, ...]] = ("model", "lora")
    common: ClassVar[tuple[str, ...]] = ("force",)
    makes: ClassVar[str] = "model"
    separate_process: ClassVar[bool] = True
    group: ClassVar[str] = "LoRA"

    model: Annotated[ModelName, info("Bundled model, or a folder: a saved model or a run.", metavar="MODEL")]
    lora: Annotated[
        tuple[Lora, ...],
        info(
            "LoRA as FILE or FILE:WEIGHT; several add up.",
            title="LoRA",
            metavar="LORA...",
            min_length=1,
            max_length=8,
        ),
    ]
    output: Annotated[
        Annotated[Name, CatalogName("new_model")],
        info("Output folder of the merged model; on a server the name of the new model.", flags=["--out", "-o"]),
    ]

    def run(self, context: TaskContext) -> TaskResult:
        """Merge the weights, and save the model."""
        from unveil.tasks.lora_run import merge_loras

        return merge_loras(self, context)
