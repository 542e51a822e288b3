"""Fair scheduling between owners, and estimated waiting times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from unveil.server.jobs.job import Job

RECENT = 20  # number of recently completed jobs per kind from which durations are estimated
DEFAULT_S = 30.0  # estimate if nothing is known about a kind of job


def fair_order(waiting: Sequence[Job], last: Mapping[str, int]) -> list[Job]:
    """Sort waiting jobs into the order in which they start: round-robin between owners, first in first out within one.

    Args:
        waiting: Waiting jobs in the order of submission.
        last: Turn that each owner had last; an owner without one comes first.
    """
    turns = dict(last)
    newest = max(turns.values(), default=0)
    left, ordered = list(waiting), list[Job]()
    while left:
        job = min(left, key=lambda job: turns.get(job.owner, -1))  # ties: the job submitted first
        newest += 1
        turns[job.owner] = newest
        left.remove(job)
        ordered.append(job)
    return ordered


class Throughput(NamedTuple):
    """Seconds per unit of cost, for each kind of job and over all kinds."""

    kinds: dict[str, float]
    all: float | None

    def seconds(self, job: Job) -> float:
        """Estimate the duration of a job."""
        pace = self.kinds.get(job.kind, self.all)
        return DEFAULT_S if pace is None else pace * job.cost

    def remaining(self, job: Job, now: float) -> float:
        """Estimate the remaining seconds of a running job, from its own progress if it reports any."""
        spent = max(now - (job.started or now), 0.0)
        if job.total_steps and job.completed_steps:
            return spent * (job.total_steps - job.completed_steps) / job.completed_steps
        return max(self.seconds(job) - spent, 0.0)


def throughput(completed: Iterable[Job]) -> Throughput:
    """Measure the throughput of completed jobs, given in the order of their ends."""
    samples: dict[str, list[float]] = defaultdict(list)
    for job in completed:
        if job.started is not None and job.ended is not None and job.cost > 0:
            samples[job.kind].append(max(job.ended - job.started, 0.0) / job.cost)
    kinds = {kind: median(ratios[-RECENT:]) for kind, ratios in samples.items()}
    return Throughput(kinds, median(kinds.values()) if kinds else None)
