"""Commands and their options. The modules that run them are imported when a command runs.

This module does not import torch, so that help is printed at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import getdoc
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.models import CommandInfo

import unveil
from unveil.cli.foreign_names import (
    ANSWERED_COMMANDS,
    ANSWERED_OPTIONS,
    COMMAND_ALIASES,
    FORMER_COMMANDS,
    FORMER_OPTIONS,
    OPTION_ALIASES,
)
from unveil.errors import RecipeError
from unveil.io.console import run_with_exit_code
from unveil.tasks import registry

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
    assert isinstance(command, TaskCommand)
    copied.callback = _not_run
    if info.name in words:
        copied.callback = command.build()
        copied.help = getdoc(copied.callback)
    return copied


def _not_run() -> None:
    """Raise an error: commands that are only listed never run."""
    raise AssertionError("a command that was not typed")


# Commands in the order of help, by workflow
SECTIONS = {
    "Generate": ("sample", "video", "variations", "interpolate", "regenerate"),
    "Edit images": ("img2img", "inpaint", "outpaint", "upscale", "invert", "preprocess"),
    "Train": ("train", "recipes", "data", "caption"),
    "Evaluate": ("evaluate", "analyze", "reproduce"),
    "Models": ("get", "push", "inspect", "convert", "merge", "rename", "delete", "lora", "translate"),
    "Serve": ("studio", "serve"),
    "First steps": ("demo",),
}


class _CommandsByWorkflow(TyperGroup):
    """Group whose help lists the commands by the sections of `SECTIONS`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = formatter.width - 6 - max(map(len, self.commands))
        sections = {title: list(names) for title, names in SECTIONS.items()}
        listed = {name for names in sections.values() for name in names}
        for name in registry.entries():
            if name not in listed and name in self.commands:
                sections.setdefault(registry.entry_of(name).section, []).append(name)
        for title, names in sections.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(width)) for name in names])


app = typer.Typer(
    name="unveil",
    cls=_CommandsByWorkflow,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would double the time of help
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Diffusion models of images and video: generate, edit, train, evaluate.\n\n"
    'Example: unveil sample "a large blue square on green" -o square.png\n\n'
    "Example: unveil train ddpm-digits, then unveil sample runs/ddpm-digits --label 3 -n 8\n\n"
    "Every command takes --debug, which shows the traceback of an error, and --verbose, which lists every warning.\n\n"
    "Exit codes: 0 done, 1 failed, 2 usage, recipe or existing output, 3 non-finite numbers, 4 data, 5 resources, "
    "130 interrupted, 143 terminated.",
)
# Sub-command of a group that runs if no sub-command is typed
DEFAULT_SUBCOMMANDS = {"inspect": "model", "video": "generate"}
data_app = typer.Typer(no_args_is_help=True, help="Check, show and cache training data.")
video_app = typer.Typer(
    no_args_is_help=True,
    help="Generate, extend, join and edit videos.\n\n"
    'Example: unveil video "a small red circle moves left" -o out.mp4\n\n'
    "`unveil video PROMPT` runs `unveil video generate`.",
)
inspect_app = typer.Typer(
    no_args_is_help=True, help="Inspect a checkpoint, the models folder or a noise schedule; list the samplers."
)
lora_app = typer.Typer(
    no_args_is_help=True, help="Inspect LoRA files, convert them to other formats, merge them into a model."
)
analyze_app = typer.Typer(
    no_args_is_help=True,
    help="Compare samplers, guidance scales, restoration methods or ViT sizes; benchmark video models.",
)
recipes_app = typer.Typer(no_args_is_help=True, help="List, show and cite the bundled recipes.")
preprocess_app = typer.Typer(
    no_args_is_help=True, help="Make control images for ControlNets: edges, lines, scribbles, segments, masks, boxes."
)
app.add_typer(data_app, name="data")
app.add_typer(preprocess_app, name="preprocess")
app.add_typer(inspect_app, name="inspect")
app.add_typer(recipes_app, name="recipes")
app.add_typer(analyze_app, name="analyze")
app.add_typer(lora_app, name="lora")
app.add_typer(video_app, name="video")


def _task_command(name: str, command_name: str) -> Callable[[], Command]:
    def build() -> Command:
        from unveil.cli.task_command import command_of

        return command_of(registry.task_class(name), command_name)

    return build


def command_words(task: str) -> tuple[str, ...]:
    """Return the words of the command of a task.

    If the name of a task begins with the name of a group, its command belongs to the group.
    """
    groups = (str(info.name) for info in app.registered_groups)
    group = next((name for name in groups if task.startswith(f"{name}-")), None)
    return (task,) if group is None else (group, task.removeprefix(f"{group}-"))


def _add_task(task: str) -> None:
    *groups, name = command_words(task)
    inner = [info.typer_instance for info in app.registered_groups if info.name in groups]
    home = app if not inner or inner[0] is None else inner[0]
    home.command(name, help=registry.entry_of(task).summary)(
        TaskCommand(_task_command(task, " ".join([*groups, name])))
    )


for name in registry.entries():
    _add_task(name)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"unveil {unveil.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    del version


def command_tree() -> dict[str, tuple[str, ...]]:
    """Return the names of all commands, each with the names of its sub-commands."""
    tree: dict[str, tuple[str, ...]] = {str(info.name): () for info in app.registered_commands}
    for group in app.registered_groups:
        assert group.typer_instance is not None
        inner = group.typer_instance.registered_commands
        tree[str(group.name)] = tuple(str(info.name) for info in inner)
    return tree


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code."""

    def run_resolved(args: Sequence[str], **settings: Any) -> Any:
        words = resolve_command(args, command_tree(), DEFAULT_SUBCOMMANDS)
        root = typer.main.get_command(with_options(app, words))
        return root(args=resolve_options(words, root, all_commands), **settings)

    return run_with_exit_code(run_resolved, list(arguments))


def all_commands() -> Any:
    """Return click's tree of all commands with all their options."""
    return typer.main.get_command(with_options(app, ALL_COMMANDS))


Tree = Mapping[str, Sequence[str]]  # names of commands, each with the names of its sub-commands
HELP = ("-h", "--help")
MAX_LISTED = 10  # names in an error
MISTYPED = 0.8  # similarity of a word to a command from which on it is taken for a typing error
_SIDES = ("--width", "--height")


def resolve_command(words: Sequence[str], tree: Tree, default: Mapping[str, str]) -> list[str]:
    """Return the words of a command line with the current names of commands.

    Args:
        words: Words of the command line.
        tree: Names of all commands.
        default: Sub-command of a group that runs if the name of the group is not followed by a sub-command.

    Raises:
        RecipeError: The command does not exist; the message names the right one.
    """
    rest = list(words)
    if not rest or rest[0].startswith("-"):
        return rest
    typed = rest[0].lower().replace("_", "-")
    if rest[0] not in tree:
        rest = [*COMMAND_ALIASES.get(typed, (typed if typed in tree else rest[0],)), *rest[1:]]
    for length in (2, 1):
        key = tuple(rest[:length])
        if key in FORMER_COMMANDS:
            current = (*FORMER_COMMANDS[key], *rest[length : length + 1])
            if current in ANSWERED_COMMANDS:
                raise RecipeError(f"unveil {' '.join(rest[: length + 1])}: {ANSWERED_COMMANDS[current]}")
            raise RecipeError(f"`unveil {' '.join(key)}` is now `{_renamed(key, rest, tree)}`")
        if key in ANSWERED_COMMANDS and not (length == 1 and key[0] in tree):
            raise RecipeError(f"unveil {' '.join(key)}: there is no such command; {ANSWERED_COMMANDS[key]}")
    group, *others = rest
    if group not in tree:
        raise RecipeError(_unknown_command(group, tree))
    if tree[group] and others and others[0] not in (*tree[group], *HELP):
        if group not in default:
            raise RecipeError(_unknown_subcommand(group, others[0], tree))
        if (meant := _mistyped(others[0], tree[group])) is not None:
            raise RecipeError(
                f"unveil {group} {others[0]}: there is no such command; nearest: {meant}; if {others[0]!r} is meant, "
                f"use `unveil {group} {default[group]} {others[0]}`"
            )
        rest.insert(1, default[group])
    return rest


def _renamed(key: tuple[str, ...], rest: Sequence[str], tree: Tree) -> str:
    new = FORMER_COMMANDS[key]
    follows = rest[len(key) : len(key) + 1]
    return " ".join(["unveil", *new, *(word for word in follows if word in tree.get(" ".join(new), ()))])


def _unknown_command(name: str, tree: Tree) -> str:
    if " " in name or not name.isascii():
        return f'this is not a command; for a prompt use `unveil sample "{name}"` or `unveil video "{name}"`'
    if os.path.exists(name):
        return f"{name}: is a path, not a command; for a model use `unveil sample {name}`, or `unveil inspect {name}`"
    groups = [group for group, names in tree.items() if name in names]
    if groups:
        return f"unveil {name}: there is no such command; use `unveil {groups[0]} {name}`"
    names = [*tree, *COMMAND_ALIASES, *(words[0] for words in ANSWERED_COMMANDS)]
    close = get_close_matches(name, names, n=3, cutoff=0.6)
    nearest = list(
        dict.fromkeys(COMMAND_ALIASES.get(word, (word,))[0] for word in close if word in (*tree, *COMMAND_ALIASES))
    )
    hint = f"nearest: {', '.join(nearest)}; " if nearest else ""
    return f"unveil {name}: there is no such command; {hint}`unveil --help` lists all"


def _mistyped(word: str, names: Sequence[str]) -> str | None:
    """Return the sub-command that a word resembles; None for a path, a text of several words, or any other word."""
    if not word.isascii() or not word.replace("-", "").isalpha() or os.path.exists(word):
        return None
    return next(iter(get_close_matches(word.lower(), names, n=1, cutoff=MISTYPED)), None)


def _unknown_subcommand(group: str, name: str, tree: Tree) -> str:
    close = get_close_matches(name, tree[group], n=3, cutoff=0.5) or list(tree[group])[:MAX_LISTED]
    return f"unveil {group} {name}: there is no such command; there are: {', '.join(close)}"


@dataclass
class _Line:
    """Words after the name of a command: options with their values, and values of arguments.

    Attributes:
        options: Options with their values, as typed.
        values: Values of arguments, in order.
        named: Values of arguments that were typed as options, by the position of the argument.
        sides: Values of --width and --height for a command that has --size.
        last: Words after "--".
    """

    options: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    named: dict[int, str] = field(default_factory=dict)
    sides: dict[str, str] = field(default_factory=dict)
    last: list[str] = field(default_factory=list)

    def words(self) -> list[str]:
        """Return the words in an order that click reads: options, then values."""
        values = list(self.values)
        for position, value in sorted(self.named.items()):
            values.insert(min(position, len(values)), value)
        dashed = ["--"] if self.last or any(value.startswith("-") and not _is_number(value) for value in values) else []
        return [*self.options, *dashed, *values, *self.last]


class _Options:
    """Options and arguments of one command.

    Args:
        path: Words of the command.
        command: Command of click.
        all_commands: Function that builds all commands with all their options, for errors.
    """

    def __init__(self, path: Sequence[str], command: Any, all_commands: Callable[[], Any]) -> None:
        self.path, self._all_commands = list(path), all_commands
        self.accepted: dict[str, Any] = {}
        self.arguments: list[str] = []
        for param in command.params:
            if param.param_type_name == "argument":
                self.arguments.append(str(param.name).replace("_", "-"))
            else:
                self.accepted |= dict.fromkeys((*param.opts, *param.secondary_opts), param)

    @property
    def command_name(self) -> str:
        """The command as it is typed."""
        return " ".join(["unveil", *self.path])

    def resolve(self, name: str) -> tuple[str, str | None]:
        """Return the current name of an option, or of an argument without dashes, and a value that the name implies.

        Raises:
            RecipeError: The command has no such option; the message names the right one.
        """
        if name in self.accepted or name in HELP:
            return name, None
        plain = name.lower().replace("_", "-") if name.startswith("--") else name
        for target in (plain, *OPTION_ALIASES.get(plain, ())):
            option, _, value = target.partition("=")
            if option in self.accepted:
                return option, value or None
            if option.removeprefix("--") in self.arguments:
                return option.removeprefix("--"), value or None
            if option == "--prompt" and "--cond" in self.accepted:
                return "--cond", None
            if option in _SIDES and "--size" in self.accepted:
                return option, None
        raise RecipeError(self._unknown_option(name, plain))

    def _unknown_option(self, name: str, plain: str) -> str:
        for key in ((self.path[0], plain), (None, plain)):
            if key in ANSWERED_OPTIONS:
                return f"{name}: {ANSWERED_OPTIONS[key]}"
        targets = [option for option in FORMER_OPTIONS.get(plain, ()) if option.split()[0] in self.accepted]
        if plain == "--scale" and len(targets) > 1:
            return "--scale: use --factor for the upscaling factor, or --guidance-scale for guidance"
        if targets:
            return f"{name}: this option is now {' or '.join(targets)}"
        candidates = [plain, *OPTION_ALIASES.get(plain, ()), *FORMER_OPTIONS.get(plain, ())]
        others = [(path, set(candidates) & set(options)) for path, options in _options_of(self._all_commands(), [])]
        others = [(path, shared) for path, shared in others if shared]
        if others:
            option = next(name for name in candidates if any(name in shared for _, shared in others))
            listed = ", ".join(f"`unveil {path}`" for path, _ in others[:3])
            more = f" and {len(others) - 3} others" if len(others) > 3 else ""
            return f"{name}: `{self.command_name}` has no such option; {option} is an option of {listed}{more}"
        close = get_close_matches(plain, [option for option in self.accepted if option.startswith("--")], 3, 0.6)
        nearest = f"nearest: {', '.join(close)}" if close else f"`{self.command_name} --help` lists all"
        return f"{name}: `{self.command_name}` has no such option; {nearest}"


def resolve_options(words: Sequence[str], root: Any, all_commands: Callable[[], Any]) -> list[str]:
    """Return the words of a command line with the current names of options.

    Args:
        words: Words of the command line, with the current names of commands.
        root: Tree of click's commands, in which at least the command that runs has its options.
        all_commands: Function that returns the same tree with the options of all commands.

    Raises:
        RecipeError: The command has no such option; the message names the right one.
    """
    command, path, rest = root, [], list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest[0]]
        path.append(rest.pop(0))
    if not path or hasattr(command, "commands"):
        return list(words)
    options, line = _Options(path, command, all_commands), _Line()
    while rest:
        word = rest.pop(0)
        if word == "--":
            line.last = rest
            break
        if not word.startswith("-") or word == "-" or _is_number(word):
            line.values.append(word)
            continue
        _read_option(word, rest, options, line)
    if line.sides:
        missing = [side for side in _SIDES if side not in line.sides]
        if missing:
            raise RecipeError(f"{next(iter(line.sides))}: give {missing[0]} too, or both as --size WIDTHxHEIGHT")
        line.options.append(f"--size={line.sides['--width']}x{line.sides['--height']}")
    return [*path, *line.words()]


def _read_option(word: str, rest: list[str], options: _Options, line: _Line) -> None:
    """Read an option, and its value from the words that follow."""
    if not word.startswith("--") and word[:2] in options.accepted and len(word) > 2:
        line.options.append(word)  # -n4
        return
    name, equals, value = word.partition("=")
    target, implied = options.resolve(name)
    param = options.accepted.get(target)
    if implied is not None or (param is not None and param.is_flag) or target in HELP:
        line.options.append(target if implied is None else f"{target}={implied}")
        return
    if not equals:
        if not rest:
            raise RecipeError(f"{name}: needs a value; `{options.command_name} --help` describes it")
        value = rest.pop(0)
    if target in _SIDES and target not in options.accepted:
        line.sides[target] = value
    elif not target.startswith("-"):
        line.named[options.arguments.index(target)] = value
    elif target == "--cond" and name.lower() != "--cond":
        line.options.append(f"--cond=prompt={value}")
    elif target.startswith("--"):
        line.options.append(f"{target}={value}")
    else:
        line.options += [target, value]


def _options_of(command: Any, path: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the words of each command with its long options."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from _options_of(inner, [*path, name])
    if path and not hasattr(command, "commands"):
        yield " ".join(path), [opt for param in command.params for opt in param.opts if opt.startswith("--")]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
