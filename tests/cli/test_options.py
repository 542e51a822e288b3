"""Only the command that is typed has its options."""

from __future__ import annotations

import pytest
import typer

from unveil.cli.commands import Command, TaskCommand, with_options
from unveil.io.console import run_with_exit_code


def test_the_options_of_a_command_are_read_when_it_is_named(capsys: pytest.CaptureFixture[str]):
    """A list of many commands reads no options."""
    receivers: list[str] = []

    def missing() -> Command:
        raise ImportError("no task of this command")

    def words() -> Command:
        def print_words(*, to: str = "all") -> None:
            """Print words.

            Example: print words --to you
            """
            receivers.append(to)

        return print_words

    app_, group = typer.Typer(rich_markup_mode=None, add_completion=False), typer.Typer()
    app_.command("no-options", help="Never read.")(TaskCommand(missing))
    group.command("words", help="Print words.")(TaskCommand(words))
    app_.add_typer(group, name="print")
    assert run_with_exit_code(with_options(app_, ["--help"]), ["--help"]) == 0
    assert "no-options  Never read." in capsys.readouterr().out
    assert run_with_exit_code(with_options(app_, ["print", "--help"]), ["print", "--help"]) == 0
    assert "words  Print words." in capsys.readouterr().out
    named = ["print", "words", "--help"]
    assert run_with_exit_code(with_options(app_, named), named) == 0
    assert "Example: print words --to you" in capsys.readouterr().out
    named = ["print", "words", "--to", "you"]
    assert run_with_exit_code(with_options(app_, named), named) == 0
    assert receivers == ["you"]
    with pytest.raises(ImportError, match="no task of this command"):
        with_options(app_, ["no-options"])
