"""Options that several commands share, and groups of options: one dataclass of options as a parameter of a command."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, getdoc, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.models import CommandInfo

from unveil.io.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]
Device = Annotated[str, typer.Option(help="Device to compute on: auto, cpu, cuda or mps.", metavar="DEVICE")]
Dtype = Annotated[
    str, typer.Option(help="Number format of the network: float32, bfloat16 or float16.", metavar="DTYPE")
]
FromMetadata = Annotated[
    Path | None,
    typer.Option(
        "--from-metadata",
        help="Generated file that is generated once more, exactly, from its metadata.",
        metavar="FILE",
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Output folder or file.")]
VideoOut = Annotated[
    Path,
    typer.Option(
        "--out", "-o", help="Output .mp4, .webm, .gif, .webp or .apng file; without a suffix, a folder of PNG."
    ),
]
OutFolder = Annotated[
    Path | None, typer.Option("--out", "-o", help="Output folder of the page; the run's folder when left out.")
]
Preview = Annotated[
    Path | None, typer.Option(help=".png file that shows the predicted image while it is sampled.", metavar="FILE")
]
PreviewEvery = Annotated[int, typer.Option("--preview-every", help="Number of steps from one preview to the next.")]
Metadata = Annotated[
    bool, typer.Option("--metadata/--no-metadata", help="Write the generation settings into each file.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Change of the recipe, such as evaluate.samples=100; may repeat.")
]
Quick = Annotated[bool, typer.Option("--quick", help="Run a smoke test of seconds that shows that everything works.")]
RecipeName = Annotated[str, typer.Argument(help="Bundled recipe, YAML file or run folder.", metavar="RECIPE")]
ModelName = Annotated[
    str, typer.Argument(help="Bundled model, or a folder: a saved model or a run; -m works too.", metavar="MODEL")
]
FeatureWeights = Annotated[
    Path | None,
    typer.Option("--feature-weights", help="Weights of the feature network: published Inception, or a classifier."),
]


@dataclass(frozen=True)
class ReportOptions:
    """Options for the output of a command, and for overwriting files."""

    force: Force = False
    as_json: AsJson = False
    quiet: Quiet = False

    @property
    def console(self) -> Console:
        """The console of these options."""
        return Console(self.as_json, self.quiet)


# ------------------------------------------------------------------------------------------------- groups of options

Command = Callable[..., None]


class TaskCommand:
    """Placeholder for the command of a task, whose class is imported only when the command is typed.

    Args:
        build: Function that makes the command.
    """

    def __init__(self, build: Callable[[], Command]) -> None:
        self.build = build

    def __call__(self) -> None:
        """Raise an error: the function that `build` returns is called instead."""
        raise AssertionError("a command that was not built")


class _AllCommands(tuple[str, ...]):
    """Words of a command line that contain the name of every command."""

    def __contains__(self, word: object) -> bool:
        return True


ALL_COMMANDS = _AllCommands()


def with_options(app: typer.Typer, words: Sequence[str]) -> typer.Typer:
    """Return a copy of the app in which the commands among `words` have their options, and the others only their help.

    Reading options takes most of the start-up time, and a command line runs at most one command.
    """
    copied = copy(app)
    copied.registered_commands = [_with_options(info, words) for info in app.registered_commands]
    copied.registered_groups = [copy(group) for group in app.registered_groups]
    for group in copied.registered_groups:
        assert group.typer_instance is not None
        group.typer_instance = with_options(group.typer_instance, words if group.name in words else ())
    return copied


def _with_options(info: CommandInfo, words: Sequence[str]) -> CommandInfo:
    """Return a command with its options if `words` contain its name, and without options otherwise."""
    command, copied = info.callback, copy(info)
    assert command is not None
    copied.name = info.name or command.__name__.replace("_", "-")
    if isinstance(command, TaskCommand) and copied.name in words:
        copied.callback = command.build()
        copied.help = getdoc(copied.callback)
        return copied
    copied.help = info.help or getdoc(command)
    copied.callback = expand_groups(command) if copied.name in words else _not_run
    return copied


def _not_run() -> None:
    """Raise an error: commands that are only listed never run."""
    raise AssertionError("a command that was not typed")


def expand_groups(command: Command) -> Command:
    """Return the command with one option for each field of its parameters that are dataclasses.

    A field may be a dataclass itself. The default of an option is the value in the default of its parameter, or in a
    new object of the dataclass.

    Raises:
        ValueError: Two options have the same name.
    """
    parameters, hints = signature(command).parameters, get_type_hints(command, include_extras=True)
    options = [option for name, item in parameters.items() for option in _options(name, hints[name], item.default)]

    @wraps(command)
    def expanded(**typed: Any) -> None:
        command(**{name: _value(hints[name], name, typed) for name in parameters})

    expanded.__signature__ = Signature(options)  # type: ignore[attr-defined]
    expanded.__annotations__ = {option.name: option.annotation for option in options}
    return expanded


def _options(name: str, annotation: Any, default: Any) -> Iterator[Parameter]:
    """Yield the options of a parameter, or of a field of a group."""
    if not is_dataclass(annotation):
        yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        return
    assert isinstance(annotation, type)
    hints = get_type_hints(annotation, include_extras=True)
    group = annotation() if default is Parameter.empty else default
    for item in fields(annotation):
        yield from _options(item.name, hints[item.name], getattr(group, item.name))


def _value(annotation: Any, name: str, typed: Mapping[str, Any]) -> Any:
    """Return the value of a parameter, or of a field of a group, from the values of the options."""
    if not is_dataclass(annotation):
        return typed[name]
    assert isinstance(annotation, type)
    hints = get_type_hints(annotation, include_extras=True)
    return annotation(**{item.name: _value(hints[item.name], item.name, typed) for item in fields(annotation)})
