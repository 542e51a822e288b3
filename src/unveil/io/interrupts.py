"""Ctrl-C and SIGTERM as exceptions, also where a library swallows them.

Some libraries catch every exception while they are imported, and Python ignores exceptions in finalizers, so that a
KeyboardInterrupt can be lost. The signal is recorded; `check` raises it again at the next point where work can stop.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_pending: int | None = None  # the last signal whose exception has not reached the end of `listening`


class Terminated(BaseException):
    """SIGTERM, as an exception that unwinds like Ctrl-C does."""


@contextmanager
def listening() -> Iterator[None]:
    """Turn SIGINT into KeyboardInterrupt and SIGTERM into Terminated, and record them, until the block ends.

    Outside the main thread, where Python allows no signal handlers, nothing changes.
    """
    global _pending
    try:
        before = {number: signal.signal(number, _on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        _pending = None
        for number, handler in before.items():
            signal.signal(number, handler)


def pending() -> int | None:
    """Return the number of a recorded signal that has not ended the command; None without one."""
    return _pending


def check() -> None:
    """Raise the exception of a recorded signal again.

    Raises:
        KeyboardInterrupt: SIGINT was received.
        Terminated: SIGTERM was received.
    """
    if _pending is not None:
        _raise(_pending)


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _pending
    del frame
    _pending = number
    _raise(number)


def _raise(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated
