"""A job and the limits of the queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from unveil.errors import RecipeError

State = Literal["queued", "running", "completed", "failed", "cancelled"]
STATES: tuple[State, ...] = ("queued", "running", "completed", "failed", "cancelled")
ErrorSource = Literal["request", "resources", "server"]  # resources: memory or disk space
ENDED: tuple[State, ...] = ("completed", "failed", "cancelled")


class Job(NamedTuple):
    """A job and its current state.

    Attributes:
        id: Identifier, also the name of the output folder.
        kind: Type of job.
        request: Parameters, in the form of its type.
        owner: Name of the API key that submitted it.
        cost: Amount of work, in a unit of its type; durations are estimated from it.
        submitted, started, ended: Seconds since 1970; `started` belongs to the last attempt.
        attempts: Number of attempts.
        worker: Worker that runs it or ran it last.
        completed_steps, total_steps: Progress; a total of 0 is unknown.
        outputs: Names of the files in its folder.
        messages: Messages for the user, such as prompt words that the model does not know.
        error: Reason of a failure.
        error_source: Source of the error.
        cancelling: True if it was cancelled while it was running.
    """

    id: str
    kind: str
    request: dict[str, Any]
    owner: str = ""
    cost: float = 1.0
    state: State = "queued"
    submitted: float = 0.0
    started: float | None = None
    ended: float | None = None
    attempts: int = 0
    worker: str | None = None
    completed_steps: int = 0
    total_steps: int = 0
    outputs: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    error: str | None = None
    error_source: ErrorSource | None = None
    cancelling: bool = False


@dataclass(frozen=True)
class QueueLimits:
    """Limits of the queue.

    Attributes:
        waiting: Maximum number of queued jobs.
        each: Maximum number of queued and running jobs of one owner.
        attempts: Number of attempts for a job that kills its worker.
        lease: Seconds without a heartbeat after which a worker counts as dead.
    """

    waiting: int = 32
    each: int = 8
    attempts: int = 2
    lease: float = 15.0

    def __post_init__(self) -> None:
        """Raise RecipeError for a limit that admits nothing."""
        for name in ("waiting", "each", "attempts"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} = {getattr(self, name)}: must be at least 1")
        if not self.lease > 0:
            raise RecipeError(f"lease = {self.lease}: must be above 0 seconds")
