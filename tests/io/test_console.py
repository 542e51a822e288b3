"""Texts of files reach a terminal without the characters that control it."""

from __future__ import annotations

import json
import logging

import pytest

from unveil.errors import DataError
from unveil.io.console import Console, PrintableFormatter, one_line, printable, run_with_exit_code

HOSTILE = "a\x1b]0;title\x07\x1b[2J\r\x7f\x9b31m\u202egpj.exe\u2066\ud800\tz"
SHOWN = r"a\x1b]0;title\x07\x1b[2J\x0d\x7f\x9b31m\u202egpj.exe\u2066\ud800" + "\tz"


def test_control_characters_become_escapes_and_other_characters_stay():
    assert printable(HOSTILE) == SHOWN
    assert printable("Gr\u00fc\u00dfe, \u7ea2\u8272\n\t") == "Gr\u00fc\u00dfe, \u7ea2\u8272\n\t"
    assert one_line("name\nerror: no\tspace") == r"name\nerror: no\tspace"


def test_results_notes_and_warnings_are_escaped(capsys: pytest.CaptureFixture[str]):
    console = Console()
    console.say(HOSTILE)
    console.warn(HOSTILE)
    console.result({"text": HOSTILE}, HOSTILE)
    printed = capsys.readouterr()
    assert printed.out == f"{SHOWN}\n{SHOWN}\n"
    assert printed.err == f"warning: {SHOWN}\n"


def test_json_is_escaped_and_read_back_as_it_was(capsys: pytest.CaptureFixture[str]):
    Console(as_json=True).result({HOSTILE: ["\u7ea2", "\n"]}, "")
    out = capsys.readouterr().out
    assert printable(out) == out
    assert "\u7ea2" in out
    assert json.loads(out) == {HOSTILE: ["\u7ea2", "\n"]}


@pytest.mark.parametrize("as_json", [False, True])
def test_errors_and_progress_are_escaped(capsys: pytest.CaptureFixture[str], as_json: bool):
    def fail(**_: object) -> int:
        with Console().progress(HOSTILE, 3) as counter:
            counter._next = 0
            counter.advance()
        raise DataError(HOSTILE)

    assert run_with_exit_code(fail, ["--json"] if as_json else []) == DataError("").exit_code
    printed = capsys.readouterr()
    assert printed.err.endswith(f"error: {SHOWN}\n")
    assert printable(printed.err + printed.out) == printed.err + printed.out
    if as_json:
        assert json.loads(printed.out)["error"] == HOSTILE


def test_a_line_of_a_log_is_escaped_and_cannot_begin_another_record():
    record = logging.LogRecord("unveil", logging.WARNING, "", 1, "%s", (HOSTILE + "\nERROR: false",), None)
    assert PrintableFormatter("%(levelname)s: %(message)s").format(record) == f"WARNING: {SHOWN}\n  ERROR: false"


def test_the_log_of_a_command_is_escaped(capsys: pytest.CaptureFixture[str]):
    def work(**_: object) -> int:
        logging.getLogger("unveil").warning("copied %s", HOSTILE)
        return 0

    assert run_with_exit_code(work, []) == 0
    assert capsys.readouterr().err == f"WARNING: copied {SHOWN}\n"
