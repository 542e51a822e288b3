"""Progress of this process for whoever started it, besides what a terminal shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[int, int], object]
_listeners: list[Listener] = []


def report_progress(completed: int, total: int) -> None:
    """Tell all listeners the completed steps and their total, 0 if unknown."""
    for listener in _listeners:
        listener(completed, total)


@contextmanager
def progress_listener(listener: Listener) -> Iterator[None]:
    """Call a function with the progress of every counter of this process until the block ends."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
