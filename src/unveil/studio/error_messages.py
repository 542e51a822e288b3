"""What went wrong, in the words of the page: the service tells it in English, and a page of another language leads in.

What kind of fault it was is said in the page's own language; the rest names files, settings and numbers as they are.
"""

from __future__ import annotations

from unveil.server.jobs.job import Job
from unveil.server.jobs.job_types import OverBudget
from unveil.studio.i18n import Said, Say
from unveil.types import DataError, Error, OutOfResources, OutputError, QueueFull, WeightsError


def told(problem: Error, say: Say) -> str:
    """An error, as the page tells it."""
    if problem.args and isinstance(problem.args[0], Said):
        return str(problem)
    kinds: list[tuple[type[Error], str]] = [
        (OverBudget, say("It is more work than one job may be.")),
        (QueueFull, say("As many jobs wait as may; come again later.")),
        (WeightsError, say("There is no such model, or its file cannot be used.")),
        (DataError, say("A picture, a clip or a folder is not there or cannot be read.")),
        (OutputError, say("It cannot be written there, or something of this name is there already.")),
        (OutOfResources, say("The server lacks memory or space on the disk.")),
        (Error, say("It cannot be done as it was asked for.")),
    ]
    return _led(next(words for kind, words in kinds if isinstance(problem, kind)), str(problem), say)


def why(job: Job, say: Say) -> str:
    """Why a job failed, as the page tells it; empty where nobody knows."""
    kinds = {
        "asked": say("It cannot be done as it was asked for."),
        "room": say("The server lacks memory or space on the disk."),
        "server": say("The server failed, and not what was asked for."),
    }
    return _led(kinds[job.fault], job.error, say) if job.error and job.fault else job.error or ""


def _led(kind: str, reason: str, say: Say) -> str:
    """A reason in English, which needs nothing before it on a page in English."""
    return reason if say.language == "en" else say("{kind} The reason: {reason}", kind=kind, reason=reason)
