"""Download of a published model."""

from __future__ import annotations

from typing import Annotated, ClassVar

from unveil.tasks.fields import Name, Names, info
from unveil.tasks.task import Task, TaskContext, TaskResult


class Get(Task):
    """Download a model of a hub into the models folder, after showing its license and what it takes.

    Only weights as safetensors, their settings and vocabularies are taken, and every file is compared with the hash
    that the hub states. `unveil sample` then finds the model by the same name.

    Example: unveil get sd-turbo

    Example: unveil get stable-diffusion-v1-5/stable-diffusion-v1-5 --file "*emaonly.safetensors"
    """

    name: ClassVar[str] = "get"
    section: ClassVar[str] = "Models"
    arguments: ClassVar[tuple[str, ...]] = ("repository",)
    common: ClassVar[tuple[str, ...]] = ("force",)
    makes: ClassVar[str] = "model"
    separate_process: ClassVar[bool] = True
    admin: ClassVar[str] = "adds a model that all keys share"
    group: ClassVar[str] = "Model"

    repository: Annotated[
        Name,
        info(
            "Short name of a published model, such as sd-turbo, or OWNER/REPO of the hub; with @REVISION a branch, tag "
            "or commit.",
            title="Published model",
            metavar="NAME|OWNER/REPO[@REVISION]",
        ),
    ]
    files: Annotated[
        Names,
        info(
            "File of the repository by its name, with * and ?; repeat for several; what the model needs when left out.",
            title="Files",
            flags=["--file"],
            metavar="PATTERN",
            advanced=True,
        ),
    ] = ()
    accept_license: Annotated[bool, info("Accept the license of the model.", title="Accept the license")] = False
    dry_run: Annotated[
        bool,
        info("Show license, size, memory and time, without downloading the weights.", title="Only show", advanced=True),
    ] = False

    def run(self, context: TaskContext) -> TaskResult:
        """Download the model."""
        from unveil.tasks.get_run import get_model

        return get_model(self, context)
