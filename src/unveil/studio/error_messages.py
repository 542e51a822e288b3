"""Error messages in the language of the page.

The kind of an error is translated; its details, with names of files, settings and numbers, stay in English.
"""

from __future__ import annotations

from unveil.errors import DataError, Error, OutOfResources, OutputError, QueueFull, WeightsError
from unveil.server.jobs.job_table import Job
from unveil.server.jobs.job_types import JobTooLarge
from unveil.studio.i18n import Localized, Translator


def error_text(problem: Error, tr: Translator) -> str:
    """Return the message of an error."""
    if problem.args and isinstance(problem.args[0], Localized):
        return str(problem)
    kinds: list[tuple[type[Error], str]] = [
        (JobTooLarge, tr("The job exceeds the cost limit.")),
        (QueueFull, tr("The queue is full; try again later.")),
        (WeightsError, tr("The model does not exist, or its file cannot be used.")),
        (DataError, tr("An image, a video or a folder is missing or cannot be read.")),
        (OutputError, tr("It cannot be written, or the name already exists.")),
        (OutOfResources, tr("The server is out of memory or disk space.")),
        (Error, tr("The request cannot be carried out.")),
    ]
    return _led(next(words for kind, words in kinds if isinstance(problem, kind)), str(problem), tr)


def failure_text(job: Job, tr: Translator) -> str:
    """Return the reason why a job failed; empty if it is unknown."""
    kinds = {
        "request": tr("The request cannot be carried out."),
        "resources": tr("The server is out of memory or disk space."),
        "server": tr("The server failed; the request is not the cause."),
    }
    return _led(kinds[job.error_source], job.error, tr) if job.error and job.error_source else job.error or ""


def _led(kind: str, reason: str, tr: Translator) -> str:
    """Prepend the translated kind to an English reason, except on the English page."""
    return reason if tr.language == "en" else tr("{kind} Reason: {reason}", kind=kind, reason=reason)
