"""Requests to stop a run before its last step: Ctrl-C, SIGTERM, or a time limit."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from unveil.io.console import pending_signal

INTERRUPTED, TERMINATED = 130, 143  # exit codes: 128 + the signal's number


class Stop:
    """Context that listens for signals; the first one requests a stop, a second Ctrl-C exits immediately.

    Args:
        minutes: Wall time in minutes after which the run should stop; None: no limit.
        answer: Text that is printed after a signal.
    """

    def __init__(self, minutes: float | None = None, answer: str = "saving a checkpoint, then leaving") -> None:
        self._answer = answer
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self._before: dict[int, Any] = {}
        self.code: int | None = None

    def __enter__(self) -> Stop:
        """Start listening; outside the main thread, where Python allows no handlers, only the time limit applies.

        A signal that came before, and whose exception was caught by a library, counts as the first one.
        """
        if (number := pending_signal()) is not None:
            self._on_signal(number, None)
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the former signal handlers."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Install the signal handlers (again: Lightning installs its handler when it starts)."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._on_signal)
            signal.signal(signal.SIGTERM, self._on_signal)

    def requests(self) -> list[float]:
        """Return the requests for interrupted, terminated and out of time, 1 for yes."""
        late = self._end is not None and time.monotonic() >= self._end
        return [float(self.code == INTERRUPTED), float(self.code == TERMINATED), float(late)]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self.code is not None:
            if sys.stderr.isatty():
                os.write(2, b"\033[?25h\n")  # the progress bar hides the cursor
            os._exit(INTERRUPTED)
        self.code = INTERRUPTED if number == signal.SIGINT else TERMINATED
        what = f"{self._answer}; Ctrl-C again leaves at once\n"
        os.write(2, f"\n{signal.Signals(number).name}: {what}".encode())


def ignore_in_worker(number: int) -> None:
    """Ignore signals in a data worker, which also receives a terminal's Ctrl-C; the main process stops it."""
    del number
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
