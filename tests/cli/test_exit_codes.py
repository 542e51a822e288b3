"""What a command says of warnings."""

from __future__ import annotations

import logging
import warnings

import pytest
import typer

from unveil.cli.exit_codes import guarded, outcome
from unveil.errors import PromptTruncated


def warning(category: type[Warning]) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    def run() -> None:
        warnings.simplefilter("default")
        warnings.warn("two words too many", category, stacklevel=1)

    return app


def test_what_a_prompt_loses_is_one_line_for_the_user(capsys: pytest.CaptureFixture[str]):
    shown = warnings.showwarning
    with warnings.catch_warnings():
        assert guarded(warning(PromptTruncated), []) == 0
    assert capsys.readouterr().err == "warning: two words too many\n"
    assert warnings.showwarning is shown


def test_other_warnings_are_shown_as_before(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    seen: list[object] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: seen.append(str(message)))
    with warnings.catch_warnings():
        assert guarded(warning(UserWarning), []) == 0
    assert seen == ["two words too many"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("arguments", "within"), [(["--quiet"], logging.ERROR), ([], logging.INFO)])
def test_what_is_logged_is_heard_after_a_command_as_before_it(arguments: list[str], within: int):
    app, logger, seen = typer.Typer(), logging.getLogger("unveil"), []

    @app.command()
    def run(quiet: bool = False) -> None:
        seen.append(logger.level)

    before = logger.level
    assert guarded(app, arguments) == 0
    assert seen == [within]
    assert logger.level == before


@pytest.mark.parametrize("said", ["DefaultCPUAllocator: can't allocate memory", "MPS backend out of memory", ""])
def test_memory_that_runs_out_is_no_fault_of_ours(said: str):
    code, told = outcome(RuntimeError(said) if said else MemoryError())
    assert code == 5
    assert "lower the batch" in told
    assert outcome(RuntimeError("another"))[0] == 1
