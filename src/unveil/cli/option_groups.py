"""Groups of options: a parameter of a command whose type is a dataclass stands for one option per field.

So commands share options as they share types, and each states only what is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, getdoc, signature
from typing import Any, get_type_hints

import typer
from typer.models import CommandInfo

Command = Callable[..., None]


class TaskCommand:
    """Stands for the command of a task, whose class is imported only when the command is named.

    Args:
        build: Makes the command's function.
    """

    def __init__(self, build: Callable[[], Command]) -> None:
        self.build = build

    def __call__(self) -> None:
        """Never called: the function that `build` makes takes its place."""
        raise AssertionError("a command that was not built")


class _Every(tuple[str, ...]):
    """Words that name every command."""

    def __contains__(self, word: object) -> bool:
        return True


EVERY = _Every()


def with_options(app: typer.Typer, words: Sequence[str]) -> typer.Typer:
    """The app as `words` need it: the commands that they name, spread, and of the others what a list of them shows.

    A start costs mostly what is read of options, and of all commands at most one is run.
    """
    made = copy(app)
    made.registered_commands = [_asked(info, words) for info in app.registered_commands]
    made.registered_groups = [copy(group) for group in app.registered_groups]
    for group in made.registered_groups:
        assert group.typer_instance is not None
        group.typer_instance = with_options(group.typer_instance, words if group.name in words else ())
    return made


def _asked(info: CommandInfo, words: Sequence[str]) -> CommandInfo:
    """A command with its options where it is named, and with none elsewhere."""
    command, made = info.callback, copy(info)
    assert command is not None
    made.name = info.name or command.__name__.replace("_", "-")
    if isinstance(command, TaskCommand) and made.name in words:
        made.callback = command.build()
        made.help = getdoc(made.callback)
        return made
    made.help = info.help or getdoc(command)
    made.callback = spread(command) if made.name in words else _unasked
    return made


def _unasked() -> None:
    """Stands in a list of commands for one that is not run."""
    raise AssertionError("a command that was not asked for")


def spread(command: Command) -> Command:
    """The command as typer reads it: in the place of each group its fields, which may be groups themselves.

    What an option is by default is what it is in the group that the parameter is by default, or in a fresh one.

    Raises:
        ValueError: two options of one name.
    """
    own, hints = signature(command).parameters, get_type_hints(command, include_extras=True)
    options = [option for name, one in own.items() for option in _options(name, hints[name], one.default)]

    @wraps(command)
    def typed(**given: Any) -> None:
        command(**{name: _filled(hints[name], name, given) for name in own})

    typed.__signature__ = Signature(options)  # type: ignore[attr-defined]
    typed.__annotations__ = {option.name: option.annotation for option in options}
    return typed


def flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a command by their names, those of groups among them."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        found |= flat(vars(value)) if is_dataclass(value) else {name: value}
    return found


def _options(name: str, kind: Any, default: Any) -> Iterator[Parameter]:
    """The options that a parameter or a field stands for."""
    if not is_dataclass(kind):
        yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        return
    assert isinstance(kind, type)
    hints, group = get_type_hints(kind, include_extras=True), kind() if default is Parameter.empty else default
    for one in fields(kind):
        yield from _options(one.name, hints[one.name], getattr(group, one.name))


def _filled(kind: Any, name: str, given: Mapping[str, Any]) -> Any:
    """The value of a parameter or a field, of what was typed."""
    if not is_dataclass(kind):
        return given[name]
    assert isinstance(kind, type)
    hints = get_type_hints(kind, include_extras=True)
    return kind(**{one.name: _filled(hints[one.name], one.name, given) for one in fields(kind)})
