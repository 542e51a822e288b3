"""Upload of a model."""

from __future__ import annotations

from typing import Annotated, ClassVar

from unveil.tasks.fields import ModelName, Name, info
from unveil.tasks.task import Task, TaskContext, TaskResult


class Push(Task):
    """Upload a model with its card to a hub, as a repository of your account.

    A run becomes a saved model with its EMA weights; of the run of a LoRA or a ControlNet only its weights are
    uploaded. The account is that of `hf auth login`.

    Example: unveil push runs/own-images me/my-photos --license cc-by-4.0
    """

    name: ClassVar[str] = "push"
    section: ClassVar[str] = "Models"
    arguments: ClassVar[tuple[str, ...]] = ("source", "repository")
    common: ClassVar[tuple[str, ...]] = ("force",)
    force_help: ClassVar[str] = "Add a commit to a repository that has weights already."
    makes: ClassVar[str] = "text"
    separate_process: ClassVar[bool] = True
    admin: ClassVar[str] = "uploads with the account of the server"
    group: ClassVar[str] = "Model"

    source: Annotated[ModelName, info("Run, saved model, folder of diffusers or .safetensors file.", metavar="RUN")]
    repository: Annotated[
        Name, info("Repository of the hub, OWNER/REPO, which is created.", title="Repository", metavar="OWNER/REPO")
    ]
    license: Annotated[
        Name | None,
        info("License of the model for its card, such as apache-2.0 or cc-by-4.0.", title="License", metavar="NAME"),
    ] = None
    public: Annotated[bool, info("Make a new repository public; private when left out.", title="Public")] = False

    def run(self, context: TaskContext) -> TaskResult:
        """Upload the model."""
        from unveil.tasks.push_run import push_model

        return push_model(self, context)
