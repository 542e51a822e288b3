"""How long a job would keep others waiting, which is reported before or when it is submitted.

Imported only for jobs that may take long: requests of single images need none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from unveil.errors import Error
from unveil.io.console import duration
from unveil.model.config import load_recipe, recipe_names
from unveil.server.jobs.job_table import Job, Lane
from unveil.server.jobs.queue import Queue, throughput

SHORT_S = 60.0  # a job that ends within this time causes no warning


class JobDelay(NamedTuple):
    """What other jobs have to wait for.

    Attributes:
        seconds: Estimated duration of the job; None: no job of its type was completed yet.
        after: Number of queued jobs that start after it.
        is_shared: Images and videos wait as well, and not only other long jobs.
    """

    seconds: float | None
    after: int
    is_shared: bool

    @property
    def warning(self) -> str:
        """The delay as a text."""
        who = "all other jobs, also images and videos," if self.is_shared else "other long jobs, such as trainings,"
        time = "its duration is unknown" if self.seconds is None else f"about {duration(self.seconds)}"
        queued = f"; {self.after} queued jobs start after it" if self.after else ""
        return f"{who} wait until this one ends ({time}){queued}"


def job_delay(job: Job, queue: Queue, lanes: Sequence[Lane], workers: int) -> JobDelay | None:
    """Estimate for how long a job, queued or not yet submitted, keeps others of its lane waiting.

    Args:
        job: The job.
        queue: Its queue.
        lanes: Lanes of the queue, the first one that of images and videos.
        workers: Number of workers of each lane.

    Returns:
        None if the job is short, or if a worker of its lane is left for others.
    """
    lane = next(lane for lane in lanes if lane.contains(job.kind))
    running = [other for other in queue.jobs("running") if lane.contains(other.kind) and other.id != job.id]
    queued = [other for other in queue.next_jobs(job) if lane.contains(other.kind)]
    seconds = expected_seconds(job, queue.completed())
    if (seconds is not None and seconds < SHORT_S) or len(running) + len(queued) < workers:
        return None
    return JobDelay(seconds, len(queued) - 1 - queued.index(job), lane is lanes[0])


def expected_seconds(job: Job, completed: Sequence[Job]) -> float | None:
    """Estimate the duration of a job from completed ones of its type: by its steps if its recipe states them.

    Args:
        job: The job.
        completed: Completed jobs.

    Returns:
        None if no job of its type was completed.
    """
    former = [other for other in completed if other.kind == job.kind]
    steps = _recipe_steps(job)
    per_step = [
        (other.ended - other.started) / other.total_steps
        for other in former
        if other.total_steps and other.started is not None and other.ended is not None
    ]
    if steps and per_step:
        return steps * median(per_step)
    pace = throughput(former).all
    return None if pace is None else pace * job.cost


def _recipe_steps(job: Job) -> int | None:
    """The training steps that the recipe of a job states; None for other jobs."""
    name, folder = job.request.get("recipe"), job.request.get("folder")
    if name not in recipe_names():
        return None
    data: dict[str, Any] = {} if folder is None else {"data.path": folder}
    try:
        recipe = load_recipe(name, {**data, **job.request.get("settings", {})}, small=bool(job.request.get("quick")))
    except Error:
        return None
    return getattr(getattr(recipe, "train", None), "steps", None)
