"""Regeneration: a generated file once more, exactly, from its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import Field

from unveil.errors import DataError
from unveil.tasks import NAME, registry
from unveil.tasks.fields import CatalogName, ControlNet, FileInput, Lora, MediaFile, Name, Settings, info
from unveil.tasks.image_task import ClassifierFields
from unveil.tasks.task import Task, TaskContext, TaskResult


class Regenerate(ClassifierFields, Task):
    """Generate a file again, exactly, from its metadata.

    Inputs are looked for beside the file and in the current folder; they are recognised by their content. A video goes
    into the folder under its own name.

    Example: unveil regenerate samples/seed0_00000.png -o again.png
    """

    name: ClassVar[str] = "regenerate"
    section: ClassVar[str] = "Generate"
    group: ClassVar[str] = "Files"
    arguments: ClassVar[tuple[str, ...]] = ("source",)
    out: ClassVar[str] = "again"
    makes: ClassVar[str] = "media"

    source: Annotated[MediaFile, info("Generated image or video.", metavar="FILE")]
    model: Annotated[
        Annotated[Name, CatalogName("model")] | None,
        info("Model that generated the file, where the name in its metadata is not enough.", flags=["--model", "-m"]),
    ] = None
    lora: Annotated[
        tuple[Lora, ...],
        info("LoRA file or run, with its weight; repeat for several.", title="LoRA", metavar="FILE[:WEIGHT]"),
    ] = ()
    controlnet: Annotated[
        tuple[ControlNet, ...],
        info(
            "ControlNet of the file, where its name in the metadata is not enough.",
            title="ControlNet",
            metavar="[FILE=]IMAGE[:WEIGHT[:START-STOP]]",
        ),
    ] = ()
    inputs: Annotated[
        tuple[Annotated[Name, FileInput("media", folder=True)], ...],
        info("File or folder in which the inputs of the file are looked for; repeat for several.", flags=["--input"]),
    ] = ()
    file_settings: Annotated[
        Settings, info("Facts that a weights file does not state itself, by name.", advanced=True, option=False)
    ] = Field(default_factory=dict)

    def run(self, context: TaskContext) -> TaskResult:
        """Read the metadata, and let their task generate the file again."""
        from unveil.generation.image_output import read_generation_metadata

        file = context.path(self.source, FileInput("media"))
        facts = read_generation_metadata(file)
        recorded: Any = facts.get("task") or {NAME: "sample"}
        if isinstance(recorded, Mapping) and NAME not in recorded and "fps" in facts:
            raise DataError(
                f"{file}: a video of a former version, whose metadata do not state how to generate it again; generate "
                "a new one"
            )
        task = registry.parse(recorded, f"{file}: its metadata")
        places = [*context.places, *(context.path(name, FileInput("media")) for name in self.inputs)]
        return task.regenerate(replace(context, places=places), facts, self)
