"""A parameter whose type is a dataclass is one option for each field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import pytest
import typer

from unveil.cli.commands import Command, expand_groups, with_options
from unveil.io.console import run_with_exit_code


@dataclass(frozen=True)
class Levels:
    volume: Annotated[int, typer.Option(help="Volume in decibels.")] = 60


@dataclass(frozen=True)
class Search:
    words: Annotated[list[str] | None, typer.Option("--word", "-w", help="Word to look for.")] = None
    levels: Levels = field(default_factory=Levels)


def app(command: Command) -> typer.Typer:
    app_ = typer.Typer(rich_markup_mode=None, add_completion=False)
    app_.command()(expand_groups(command))
    return app_


def test_a_group_is_typed_as_its_options_and_read_as_one_value(capsys: pytest.CaptureFixture[str]):
    calls = []

    def print_words(*, to: str = "all", search: Search, times: int = 1) -> None:
        """Print words.

        Example: print you
        """
        calls.append((to, search, times))

    assert (
        run_with_exit_code(
            app(print_words), ["--to", "you", "-w", "a", "--word", "b", "--volume", "70", "--times", "2"]
        )
        == 0
    )
    assert calls == [("you", Search(["a", "b"], Levels(70)), 2)]
    assert run_with_exit_code(app(print_words), ["--to", "you", "--volume", "loud"]) == 2
    capsys.readouterr()
    assert run_with_exit_code(app(print_words), ["--help"]) == 0
    page = capsys.readouterr().out
    assert page.index("--to") < page.index("--word") < page.index("--volume") < page.index("--times")
    assert "Volume in decibels.  [default: 60]" in page


def test_a_default_of_the_group_is_that_of_its_options():
    calls = []

    def print_quietly(*, search: Search = Search(levels=Levels(20))) -> None:
        calls.append(search)

    assert run_with_exit_code(app(print_quietly), []) == 0
    assert calls == [Search(levels=Levels(20))]


def test_two_options_of_one_name_are_refused():
    def print_twice(*, volume: int, loud: Levels) -> None: ...

    with pytest.raises(ValueError, match="duplicate parameter name: 'volume'"):
        expand_groups(print_twice)


def test_the_options_of_a_command_are_read_when_it_is_named(capsys: pytest.CaptureFixture[str]):
    """A list of many commands reads no options."""
    receivers: list[str] = []

    def no_options(*, unit: Missing = None) -> None:  # type: ignore[name-defined]  # noqa: F821
        """Never read."""

    def print_words(*, to: str = "all") -> None:
        """Print words."""
        receivers.append(to)

    app_, group = typer.Typer(rich_markup_mode=None, add_completion=False), typer.Typer()
    app_.command()(no_options)
    group.command("words")(print_words)
    app_.add_typer(group, name="print")
    assert run_with_exit_code(with_options(app_, ["--help"]), ["--help"]) == 0
    assert "no-options  Never read." in capsys.readouterr().out
    assert (
        run_with_exit_code(with_options(app_, ["print", "words", "--to", "you"]), ["print", "words", "--to", "you"])
        == 0
    )
    assert receivers == ["you"]
    with pytest.raises(NameError, match="Missing"):
        with_options(app_, ["no-options"])
