"""A parameter whose type is a dataclass becomes a group of options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import pytest
import typer

from unveil.cli.exit_codes import guarded
from unveil.cli.option_groups import Command, flat, spread, with_options


@dataclass(frozen=True)
class Loud:
    volume: Annotated[int, typer.Option(help="In decibels.")] = 60


@dataclass(frozen=True)
class Message:
    words: Annotated[list[str] | None, typer.Option("--word", "-w", help="Words of the message.")] = None
    loud: Loud = field(default_factory=Loud)


def app(command: Command) -> typer.Typer:
    made = typer.Typer(rich_markup_mode=None, add_completion=False)
    made.command()(spread(command))
    return made


def test_a_group_is_typed_as_its_options_and_read_as_one_value(capsys: pytest.CaptureFixture[str]):
    heard = []

    def say(*, to: str = "all", message: Message, times: int = 1) -> None:
        """Say it.

        Example: say you
        """
        heard.append((to, message, times))

    assert guarded(app(say), ["--to", "you", "-w", "a", "--word", "b", "--volume", "70", "--times", "2"]) == 0
    assert heard == [("you", Message(["a", "b"], Loud(70)), 2)]
    assert flat({"to": "you", "spoken": Message(["a"])}) == {"to": "you", "words": ["a"], "volume": 60}
    assert guarded(app(say), ["--to", "you", "--volume", "loud"]) == 2
    capsys.readouterr()
    assert guarded(app(say), ["--help"]) == 0
    page = capsys.readouterr().out
    assert page.index("--to") < page.index("--word") < page.index("--volume") < page.index("--times")
    assert "In decibels.  [default: 60]" in page


def test_a_default_of_the_group_is_that_of_its_options():
    heard = []

    def whisper(*, message: Message = Message(loud=Loud(20))) -> None:
        heard.append(message)

    assert guarded(app(whisper), []) == 0
    assert heard == [Message(loud=Loud(20))]


def test_two_options_of_one_name_are_refused():
    def shout(*, volume: int, loud: Loud) -> None: ...

    with pytest.raises(ValueError, match="duplicate parameter name: 'volume'"):
        spread(shout)


def test_the_options_of_a_command_are_read_when_it_is_named(capsys: pytest.CaptureFixture[str]):
    """So a list of many commands costs little."""
    printed: list[str] = []

    def of_nothing(*, way: Missing = None) -> None:  # type: ignore[name-defined]  # noqa: F821
        """Never read."""

    def say(*, to: str = "all") -> None:
        """Say it."""
        printed.append(to)

    made, group = typer.Typer(rich_markup_mode=None, add_completion=False), typer.Typer()
    made.command()(of_nothing)
    group.command("so")(say)
    made.add_typer(group, name="say")
    assert guarded(with_options(made, ["--help"]), ["--help"]) == 0
    assert "of-nothing  Never read." in capsys.readouterr().out
    assert guarded(with_options(made, ["say", "so", "--to", "you"]), ["say", "so", "--to", "you"]) == 0
    assert printed == ["you"]
    with pytest.raises(NameError, match="Missing"):
        with_options(made, ["of-nothing"])
