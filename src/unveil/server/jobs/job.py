"""A job, and how many of them there may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from unveil.types import RecipeError

State = Literal["queued", "running", "completed", "failed", "cancelled"]
STATES: tuple[State, ...] = ("queued", "running", "completed", "failed", "cancelled")
Fault = Literal["asked", "room", "server"]  # what was asked for, a place that is full, or unveil
ENDED: tuple[State, ...] = ("completed", "failed", "cancelled")


class Job(NamedTuple):
    """Something that takes long, as it stands.

    Attributes:
        id: names it, and the folder of what it makes.
        kind: what is done. request: with what.
        owner: whose turn it takes.
        cost: how much work it is, in a unit of its kind; times are foretold from it.
        submitted, started, ended: seconds since 1970; started is that of its last attempt.
        attempts: how often it was taken.
        worker: who has it, or had it last.
        done, total: its progress; a total of 0 is not known.
        outputs: names of files in its folder.
        said: what a person should know of it, such as words that the model does not know.
        error: why it failed. fault: whose fault that was.
        stopping: whether it was cancelled while it ran.
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
    done: int = 0
    total: int = 0
    outputs: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    error: str | None = None
    fault: Fault | None = None
    stopping: bool = False


@dataclass(frozen=True)
class Limits:
    """How much a queue holds.

    Attributes:
        waiting: jobs that wait, all together.
        each: jobs of one owner that wait or run.
        attempts: how often a job is taken that kills its worker.
        lease: seconds without a sign of life after which a worker counts as dead.
    """

    waiting: int = 32
    each: int = 8
    attempts: int = 2
    lease: float = 15.0

    def __post_init__(self) -> None:
        """Raises RecipeError for a limit that lets nothing through."""
        for name in ("waiting", "each", "attempts"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} = {getattr(self, name)}: at least 1")
        if not self.lease > 0:
            raise RecipeError(f"lease = {self.lease}: must be above 0 seconds")
