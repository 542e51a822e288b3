"""Exit codes and the output of warnings."""

from __future__ import annotations

import logging
import warnings

import pytest
import typer

from tests.cli.conftest import Cli
from unveil.errors import PromptTruncated
from unveil.io.console import Console, exit_code_and_message, run_with_exit_code


def warning(category: type[Warning]) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    def run() -> None:
        warnings.simplefilter("default")
        warnings.warn("two words too many", category, stacklevel=1)

    return app


def test_a_truncated_prompt_is_reported_in_one_line(capsys: pytest.CaptureFixture[str]):
    shown = warnings.showwarning
    with warnings.catch_warnings():
        assert run_with_exit_code(warning(PromptTruncated), []) == 0
    assert capsys.readouterr().err == "warning: two words too many\n"
    assert warnings.showwarning is shown


@pytest.mark.parametrize("words", [[], ["--verbose"], ["--debug"]])
def test_warnings_for_programmers_are_shown_only_on_request(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    seen: list[object] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: seen.append(str(message)))
    with warnings.catch_warnings():
        assert run_with_exit_code(warning(UserWarning), words) == 0
    assert seen == (["two words too many"] if words else [])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("way", ["warnings", "console", "log"])
def test_each_warning_is_printed_once_and_a_group_is_counted(way: str, capsys: pytest.CaptureFixture[str]):
    app = typer.Typer()

    @app.command()
    def run() -> None:
        warnings.simplefilter("always")
        for number in [*range(12), 0, 1]:
            if way == "warnings":
                warnings.warn(f"prompt {number} is long", PromptTruncated, stacklevel=1)
            elif way == "console":
                Console().warn(f"prompt {number} is long")
            else:
                logging.getLogger("unveil.test").warning("prompt %d is long", number)
        Console().warn("another kind")

    with warnings.catch_warnings():
        assert run_with_exit_code(app, []) == 0
        short = capsys.readouterr().err.lower().splitlines()
        assert run_with_exit_code(app, ["--verbose"]) == 0
        full = capsys.readouterr().err.lower().splitlines()
    lines = [f"warning: prompt {number} is long" for number in range(12)]
    more = "warning: 9 more of the same kind; --verbose lists them"
    assert short == [*lines[:3], "warning: another kind", more]
    assert full == [*lines, "warning: another kind"]


@pytest.mark.parametrize(("arguments", "within"), [(["--quiet"], logging.ERROR), ([], logging.INFO)])
def test_logging_is_restored_after_a_command(arguments: list[str], within: int):
    app, logger, seen = typer.Typer(), logging.getLogger("unveil"), []

    @app.command()
    def run(quiet: bool = False) -> None:
        seen.append(logger.level)

    before = logger.level
    assert run_with_exit_code(app, arguments) == 0
    assert seen == [within]
    assert logger.level == before


@pytest.mark.parametrize("message", ["DefaultCPUAllocator: can't allocate memory", "MPS backend out of memory", ""])
def test_running_out_of_memory_is_not_an_internal_error(message: str):
    code, output = exit_code_and_message(RuntimeError(message) if message else MemoryError())
    assert code == 5
    assert "lower the batch" in output
    assert exit_code_and_message(RuntimeError("another"))[0] == 1


@pytest.mark.parametrize("words", [["recipes"], ["video"], []], ids=["recipes", "video", "alone"])
def test_a_group_without_a_command_prints_its_help(cli: Cli, words: list[str]):
    shown = cli(*words)
    assert shown.code == 2
    assert shown.err.startswith(" ".join(["Usage: unveil", *words]))
    assert "show what is possible" not in shown.err
    assert shown.out == ""
