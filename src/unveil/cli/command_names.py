"""Replacement of aliases on a command line, and errors that name the right command or option for a wrong one.

The tables are in `foreign_names`. This module does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from unveil.cli.foreign_names import (
    ANSWERED_COMMANDS,
    ANSWERED_OPTIONS,
    COMMAND_ALIASES,
    FORMER_COMMANDS,
    FORMER_OPTIONS,
    OPTION_ALIASES,
)
from unveil.errors import RecipeError

Tree = Mapping[str, Sequence[str]]  # names of commands, each with the names of its sub-commands
HELP = ("-h", "--help")
MAX_LISTED = 10  # names in an error
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
