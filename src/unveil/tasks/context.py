"""Context of a running task: resolver of names, output, console and device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from unveil.io.console import Console
from unveil.tasks.fields import CatalogName, FileInput

if TYPE_CHECKING:
    from unveil.generation.generate import ModelSource
    from unveil.generation.model_loading import ModelOptions
    from unveil.model import Model


class Resolver(Protocol):
    """Turns the names in a task into paths."""

    def path(self, value: str, mark: FileInput | CatalogName) -> str:
        """The path, or the name of a bundled model.

        Raises:
            DataError, WeightsError: There is nothing of this name.
        """
        ...


class LocalPaths:
    """The resolver of a command line and of Python: names are paths."""

    def path(self, value: str, mark: FileInput | CatalogName) -> str:
        """The value as it is; `model_folder` looks up names of the models folder."""
        del mark
        return value


class ModelOpener(Protocol):
    """Opens a model with its adapters, such as `model_loading.open_for_generation` or a cache of it."""

    def __call__(self, options: ModelOptions, console: Console, **how: Any) -> tuple[Model, ModelSource]:
        """As `model_loading.open_for_generation`."""
        ...


@dataclass(frozen=True)
class TaskOutput:
    """Output of a task.

    Attributes:
        path: Folder, or one file.
        metadata: Write the task into each file.
        force: Overwrite files that exist.
        preview: File that shows the prediction on the way; with `preview_every`, the number of steps between two.
        mark: Prefix of the names of files in a folder.
        chosen: The path was chosen; else a task with a default place takes that.
    """

    path: Path
    metadata: bool = True
    force: bool = False
    preview: Path | None = None
    preview_every: int = 5
    mark: str = ""
    chosen: bool = True


@dataclass(frozen=True)
class TaskContext:
    """Context of a running task.

    Attributes:
        output: Where files go.
        console: Shows progress, messages and warnings.
        device: Device to compute on: auto, cpu, cuda or mps.
        resolver: Turns names into paths.
        opener: Opens models; None: `model_loading.open_for_generation`.
        places: Files and folders where the inputs of a regenerated file may lie.
        on_preview: Called with a PNG of the prediction on the way, and the completed and total steps.
        argv: Command line, for tasks that record it.
    """

    output: TaskOutput
    console: Console = field(default_factory=Console)
    device: str = "auto"
    resolver: Resolver = field(default_factory=LocalPaths)
    opener: ModelOpener | None = None
    places: Sequence[Path] = ()
    on_preview: Callable[[bytes, int, int | None], object] | None = None

    def path(self, value: str, mark: FileInput | CatalogName) -> Path:
        """The path that a field's value names."""
        return Path(self.resolver.path(value, mark))

    def open(self, options: ModelOptions, **how: Any) -> tuple[Model, ModelSource]:
        """Open a model with its adapters."""
        if self.opener is not None:
            return self.opener(options, self.console, **how)
        from unveil.generation.model_loading import open_for_generation

        return open_for_generation(options, self.console, **how)
