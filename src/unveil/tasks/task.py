"""Base class of tasks, whose fields are the options of its command, the body of its request and its form.

The same class is the Python call, the queued job, and the metadata in the files that it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from inspect import get_annotations
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self, TypeVar, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from unveil.errors import DataError
from unveil.io.console import Console
from unveil.io.validation import validated
from unveil.tasks import NAME
from unveil.tasks.fields import CatalogName, Fields, FileInput

if TYPE_CHECKING:
    from unveil.generation.generate import ModelSource
    from unveil.generation.model_loading import ModelOptions
    from unveil.model import Model
    from unveil.tasks.regenerate import Regenerate


WORDS = "..."  # in `Task.arguments`: settings as KEY=VALUE, and a prompt


class TaskResult(NamedTuple):
    """Result of a task: facts for programs, a text for a person, and the exit code of the command."""

    facts: dict[str, Any]
    text: str
    exit_code: int = 0


class Reference(NamedTuple):
    """A field's value that names a file, a model or the like.

    Attributes:
        path: Keys and indices of the value in the task.
        value: What it names.
        mark: Kind of the reference.
    """

    path: tuple[str | int, ...]
    value: str
    mark: FileInput | CatalogName


class Workload(NamedTuple):
    """Facts of the model and of the inputs of a task, on which its cost depends besides its fields.

    Attributes:
        shape: Shape of the model's samples, channels first.
        nfe: Network evaluations of one sample, given the jump length of RePaint and how often it samples each stretch.
        inputs: (frames, height, width) of each input file, by field.
    """

    shape: tuple[int, ...]
    nfe: Callable[[int, int], float]
    inputs: Mapping[str, tuple[int, int, int]]


class Task(Fields):
    """A task. A subclass states its fields, and what is done with them in `run`.

    Class attributes:
        name: Name of the task: of its command, its route and its job.
        section: Heading under which help lists it.
        arguments: Fields that are positional on the command line, in order; "..." stands for KEY=VALUE and a prompt.
        out: Default of the option --out; none: the task writes no file.
        out_required: The command line has to name the output; `out` is its name on a server.
        out_optional: The task has a default place for its files, where the command line names none.
        out_help: Help of the option --out, where it is not that of all tasks.
        force_help: Help of the option --force, where it is not that of all tasks.
        common: Options for the device and for overwriting files, which the task has besides --json and --quiet.
        makes: What its files are.
        served: Why a server does not offer it; empty: it does.
        admin: Why a server with keys takes it only with the key of an admin, besides names of new models; empty: with
            any key.
        separate_process: A server runs it in a separate process, whose output is the log of the job and which a
            cancellation interrupts as Ctrl-C does.
    """

    name: ClassVar[str] = ""
    section: ClassVar[str] = "More"
    arguments: ClassVar[tuple[str, ...]] = ()
    out: ClassVar[str] = ""
    out_required: ClassVar[bool] = False
    out_optional: ClassVar[bool] = False
    out_help: ClassVar[str] = ""
    force_help: ClassVar[str] = ""
    common: ClassVar[tuple[str, ...]] = ("device", "force")
    makes: ClassVar[str] = "files"
    served: ClassVar[str] = ""
    admin: ClassVar[str] = ""
    separate_process: ClassVar[bool] = False

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "") -> Any:
        """The task of plain values, such as those of a request or of metadata.

        Raises:
            RecipeError: A value that is unknown, missing or out of its range; the message names all.
        """
        task = validated(cls, dict(values), where or cls.name)
        task.check()
        return task

    @property
    def file_name(self) -> str:
        """Name of the file on a server; empty: the files go into a folder."""
        return self.out if PurePath(self.out).suffix else ""

    def check(self) -> None:
        """Check what fields must be together, as far as that is possible without the model.

        Raises:
            RecipeError: Names the fields and the remedy.
        """

    def cost(self, load: Workload) -> float:
        """Work in network evaluations of a megapixel; 0 is work that is not limited."""
        del load
        return 0.0

    def run(self, context: TaskContext) -> TaskResult:
        """Do the work.

        Raises:
            Error: It cannot be done.
        """
        raise NotImplementedError

    def regenerate(self, context: TaskContext, facts: Mapping[str, Any], regeneration: Regenerate) -> TaskResult:
        """Generate one result again, from its metadata, of which this task is a part.

        Args:
            context: As of `run`.
            facts: Metadata of the file.
            regeneration: Where the model, its adapters and the classifier are now.

        Raises:
            DataError: Files of this task cannot be generated again.
        """
        del context, facts, regeneration
        raise DataError(f"files of {self.name} cannot be generated again from their metadata")

    def references(self) -> Iterator[Reference]:
        """Every value that names a file, a model or the like."""
        yield from _references(self, ())

    def metadata(self) -> dict[str, Any]:
        """The task for the metadata of a file: its name and the fields that were set, without the folders of files."""
        return {NAME: self.name, **self.values_with(lambda name: PurePath(name.value).name or name.value)}

    def values_with(self, rename: Callable[[Reference], str]) -> dict[str, Any]:
        """The plain values of the fields that were set, in which other names are in the place of references."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        for reference in self.references():
            *path, last = reference.path
            part: Any = values
            for key in path:
                part = part[key] if not isinstance(part, dict) or key in part else None
                if part is None:
                    break
            if part is not None and (not isinstance(part, dict) or last in part):
                part[last] = rename(reference)
        return values

    def for_server(self) -> Self:
        """The task as a server runs it, once its names are paths: with the values that a server sets itself."""
        return self


def _references(fields: BaseModel, path: tuple[str | int, ...]) -> Iterator[Reference]:
    for name, field in type(fields).model_fields.items():
        value = getattr(fields, name)
        mark = field_mark(field)
        if mark is not None and isinstance(value, str):
            yield Reference((*path, name), value, mark)
        elif isinstance(value, BaseModel):
            yield from _references(value, (*path, name))
        elif isinstance(value, tuple):
            for place, inner in enumerate(value):
                if isinstance(inner, BaseModel):
                    yield from _references(inner, (*path, name, place))
                elif mark is not None and isinstance(inner, str):
                    yield Reference((*path, name, place), inner, mark)


def _marks(annotation: Any) -> Iterator[Any]:
    """The metadata of annotated types inside an annotation, such as a union."""
    for inner in get_args(annotation):
        yield from getattr(inner, "__metadata__", ())
        yield from _marks(inner)


def _is_mark(value: object) -> bool:
    return isinstance(value, FileInput | CatalogName)


def mark_of(task: type[Task], name: str) -> FileInput | CatalogName | None:
    """The kind of reference that a field holds; None for other fields."""
    return field_mark(task.model_fields[name])


def field_mark(field: FieldInfo) -> FileInput | CatalogName | None:
    """The kind of reference that a field holds; None for other fields."""
    return next((mark for mark in (*field.metadata, *_marks(field.annotation)) if _is_mark(mark)), None)


Mark = TypeVar("Mark")


def find_mark(field: FieldInfo, kind: type[Mark]) -> Mark | None:
    """The mark of a class that a field has; None without one."""
    return next((mark for mark in (*field.metadata, *_marks(field.annotation)) if isinstance(mark, kind)), None)


def field_group(task: type[Task], name: str) -> str:
    """The heading of a field: that of the class that states it."""
    for base in task.__mro__:
        if name in get_annotations(base):
            return str(getattr(base, "group", ""))
    return ""


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
        confirmed: Long runs begin without a question.
    """

    output: TaskOutput
    console: Console = dataclass_field(default_factory=Console)
    device: str = "auto"
    resolver: Resolver = dataclass_field(default_factory=LocalPaths)
    opener: ModelOpener | None = None
    places: Sequence[Path] = ()
    on_preview: Callable[[bytes, int, int | None], object] | None = None
    confirmed: bool = False

    def path(self, value: str, mark: FileInput | CatalogName) -> Path:
        """The path that a field's value names."""
        return Path(self.resolver.path(value, mark))

    def open(self, options: ModelOptions, **how: Any) -> tuple[Model, ModelSource]:
        """Open a model with its adapters."""
        if self.opener is not None:
            return self.opener(options, self.console, **how)
        from unveil.generation.model_loading import open_for_generation

        return open_for_generation(options, self.console, **how)
