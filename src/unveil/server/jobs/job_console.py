"""Console of a job: forwards progress and warnings to the job instead of a terminal."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from unveil.errors import PromptTruncated
from unveil.io.console import Console, Progress
from unveil.server.jobs.worker import JobProgress


@dataclass(frozen=True)
class JobConsole(Console):
    """Console that reports progress and warnings to a job."""

    job: JobProgress | None = None

    def say(self, text: str) -> None:
        """Ignore text meant for a terminal; the output files are the result."""

    def warn(self, text: str) -> None:
        """Add a warning to the messages of the job."""
        if self.job is not None:
            self.job.add_message(text)

    def result(self, facts: Mapping[str, Any], text: str) -> None:
        """Ignore the result; the output files are the result."""

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Progress]:
        """Count steps for the job; each step checks for cancellation."""
        yield _Steps(what, total, self.job)


class _Steps(Progress):
    """Progress counter that reports to a job."""

    def __init__(self, what: str, total: int, job: JobProgress | None) -> None:
        super().__init__(what, total, shown=False, terminal=False)
        self._job = job

    def advance(self, by: int = 1) -> None:
        super().advance(by)
        if self._job is not None:
            self._job.step(self._done, self._total)


@contextmanager
def job_console(job: JobProgress) -> Iterator[JobConsole]:
    """Open a console for a job; PromptTruncated warnings become messages of the job, others are shown as before."""
    with warnings.catch_warnings():
        showwarning = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
            if issubclass(category, PromptTruncated):
                job.add_message(str(message))
            else:
                showwarning(message, category, *place, **rest)

        warnings.showwarning = show
        warnings.simplefilter("always", PromptTruncated)
        yield JobConsole(job=job)
