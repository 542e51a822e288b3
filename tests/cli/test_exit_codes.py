"""Exit codes and the output of warnings."""

from __future__ import annotations

import logging
import warnings

import pytest
import typer

from tests.cli.conftest import Cli
from unveil.errors import PromptTruncated
from unveil.io.console import exit_code_and_message, run_with_exit_code


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


def test_other_warnings_are_shown_as_before(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    seen: list[object] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: seen.append(str(message)))
    with warnings.catch_warnings():
        assert run_with_exit_code(warning(UserWarning), []) == 0
    assert seen == ["two words too many"]
    assert capsys.readouterr().err == ""


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
