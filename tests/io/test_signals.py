"""A signal ends a command also where a library swallows its exception."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from unveil.io.console import Console, Terminated, check_signal, pending_signal, signals_raised
from unveil.train.signals import INTERRUPTED, TERMINATED, Stop

CODES = [(signal.SIGINT, INTERRUPTED, KeyboardInterrupt), (signal.SIGTERM, TERMINATED, Terminated)]
# A finder of modules that sends a signal to its own process, and swallows the exception as a library would.
HOOK = """
import os, signal, sys

class Finder:
    sent = False

    def find_spec(self, name, path=None, target=None):
        if name == "torch" and not Finder.sent:
            Finder.sent = True
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except BaseException:
                pass

sys.meta_path.insert(0, Finder())
"""


def swallowed(number: int) -> None:
    """Send a signal to this process, and swallow its exception."""
    try:
        os.kill(os.getpid(), number)
    except BaseException:  # as some libraries do while they are imported
        return
    pytest.fail("the signal raised nothing")


@pytest.mark.parametrize(("number", "code", "error"), CODES)
def test_a_swallowed_signal_is_raised_again(number: int, code: int, error: type[BaseException]):
    del code
    before = signal.getsignal(number)
    with signals_raised():
        swallowed(number)
        assert pending_signal() == number
        with pytest.raises(error), Console(quiet=True).progress("steps", 3) as progress:
            progress.advance()
    assert pending_signal() is None
    assert signal.getsignal(number) is before
    check_signal()


@pytest.mark.parametrize(("number", "code", "error"), CODES)
def test_training_stops_after_a_signal_that_came_before_it(number: int, code: int, error: type[BaseException]):
    del error
    with signals_raised():
        swallowed(number)
        with Stop() as stop:
            assert stop.code == code
    with Stop() as stop:
        assert stop.code is None


@pytest.mark.slow
def test_a_command_that_is_interrupted_while_it_imports_ends(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "unveil", "train", "ddpm-digits", "--quick", "train.steps=20000"]
    ended = subprocess.run(
        [*command, "-o", str(tmp_path / "run")],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == INTERRUPTED, ended.stderr
    assert "stopped by Ctrl-C at step" in ended.stderr
