"""Changes of the models folder: other names of its models, and their deletion."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, ClassVar

from unveil.tasks.fields import CatalogName, ModelName, Name, info
from unveil.tasks.task import Task, TaskContext, TaskResult


class RenameModel(Task):
    """Rename a model of the models folder.

    Example: unveil rename stabilityai/sd-turbo fast
    """

    name: ClassVar[str] = "rename"
    section: ClassVar[str] = "Models"
    arguments: ClassVar[tuple[str, ...]] = ("source", "output")
    common: ClassVar[tuple[str, ...]] = ()
    makes: ClassVar[str] = "text"
    admin: ClassVar[str] = "changes a model that all keys share"
    group: ClassVar[str] = "Model"

    source: Annotated[ModelName, info("Model of the models folder.", metavar="NAME")]
    output: Annotated[Annotated[Name, CatalogName("new_model")], info("New name of the model.", metavar="NEW")]

    def run(self, context: TaskContext) -> TaskResult:
        """Rename the model.

        Raises:
            WeightsError: The models folder has no model of this name.
            OutputError: There is a model of the new name, or the folder cannot be written.
        """
        from unveil.model import model_folder

        source = model_folder.own_model(context.path(self.source, CatalogName("model")))
        new = PurePath(context.path(self.output, CatalogName("new_model"))).name
        renamed = model_folder.rename_model(source, new)
        return TaskResult({"from": str(source.path), "path": str(renamed)}, f"{source.name}: is {renamed} now")


class DeleteModel(Task):
    """Delete a model of the models folder.

    Example: unveil delete stabilityai/sd-turbo
    """

    name: ClassVar[str] = "delete"
    section: ClassVar[str] = "Models"
    arguments: ClassVar[tuple[str, ...]] = ("source",)
    common: ClassVar[tuple[str, ...]] = ()
    makes: ClassVar[str] = "text"
    admin: ClassVar[str] = "deletes a model that all keys share"
    group: ClassVar[str] = "Model"

    source: Annotated[ModelName, info("Model of the models folder.", metavar="NAME")]
    yes: Annotated[bool, info("Delete without a question, which a server does not ask.", title="Delete it")] = False

    def run(self, context: TaskContext) -> TaskResult:
        """Delete the model.

        Raises:
            RecipeError: It was not confirmed.
            WeightsError: The models folder has no model of this name.
            OutputError: The folder has other things than a model, or cannot be written.
        """
        from unveil.errors import RecipeError
        from unveil.model import model_folder

        source = model_folder.own_model(context.path(self.source, CatalogName("model")))
        if not self.yes and not context.console.ask(f"Delete {source.path}?"):
            raise RecipeError(f"{source.path}: was not deleted; confirm with --yes")
        model_folder.delete_model(source)
        return TaskResult({"path": str(source.path)}, f"{source.path}: deleted")
