"""What the work of a job says, and to whom: to whoever asks for the job, in the place of a terminal."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from unveil.cli.console import Console, Progress
from unveil.server.jobs.worker import Report
from unveil.types import PromptTruncated


@dataclass(frozen=True)
class Desk(Console):
    """A console whose progress is the job's, and whose warnings are told of it."""

    report: Report | None = None

    def say(self, text: str) -> None:
        """What a person would see at once, the result being told by the files."""

    def warn(self, text: str) -> None:
        """What a person should know of what is made."""
        if self.report is not None:
            self.report.say(text)

    def result(self, facts: Mapping[str, Any], text: str) -> None:
        """The files are the result."""

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Progress]:
        """Counts for the job; each step hears whether it was cancelled."""
        yield _Steps(what, total, self.report)


class _Steps(Progress):
    """A counter that tells a job's report."""

    def __init__(self, what: str, total: int, report: Report | None) -> None:
        super().__init__(what, total, shown=False, terminal=False)
        self._report = report

    def advance(self, by: int = 1) -> None:
        super().advance(by)
        if self._report is not None:
            self._report.step(self._done, self._total)


@contextmanager
def heard(report: Report) -> Iterator[Desk]:
    """A desk for a job; warnings that are meant for a user are told of the job, others shown as before."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
            if issubclass(category, PromptTruncated):
                report.say(str(message))
            else:
                others(message, category, *place, **rest)

        warnings.showwarning = show
        warnings.simplefilter("always", PromptTruncated)
        yield Desk(report=report)
