"""Whose turn it is, and how long the others wait."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from unveil.server.jobs.job import Job

KNOWN = 20  # jobs of a kind that ended last, from whose time that of others is told
UNKNOWN_S = 30.0  # for a job of which nothing is known yet


def in_turn(waiting: Sequence[Job], last: Mapping[str, int]) -> list[Job]:
    """Jobs that wait in the order in which they are taken: owners take turns, and each one's are in their order.

    Args:
        waiting: in the order in which they were put in.
        last: when each owner had a turn last; who had none comes first.
    """
    turns = dict(last)
    newest = max(turns.values(), default=0)
    left, ordered = list(waiting), list[Job]()
    while left:
        job = min(left, key=lambda one: turns.get(one.owner, -1))  # the first of equals, which was put in first
        newest += 1
        turns[job.owner] = newest
        left.remove(job)
        ordered.append(job)
    return ordered


class Paces(NamedTuple):
    """Seconds that a unit of cost takes: by kind of job, and of all."""

    kinds: dict[str, float]
    all: float | None

    def seconds(self, job: Job) -> float:
        """What a job takes from its beginning."""
        pace = self.kinds.get(job.kind, self.all)
        return UNKNOWN_S if pace is None else pace * job.cost

    def left(self, job: Job, now: float) -> float:
        """What is left of one that runs, from its own progress where it shows some."""
        spent = max(now - (job.started or now), 0.0)
        if job.total and job.done:
            return spent * (job.total - job.done) / job.done
        return max(self.seconds(job) - spent, 0.0)


def paces(completed: Iterable[Job]) -> Paces:
    """The paces of jobs that were completed, in the order of their ends."""
    found: dict[str, list[float]] = defaultdict(list)
    for job in completed:
        if job.started is not None and job.ended is not None and job.cost > 0:
            found[job.kind].append(max(job.ended - job.started, 0.0) / job.cost)
    kinds = {kind: median(every[-KNOWN:]) for kind, every in found.items()}
    return Paces(kinds, median(kinds.values()) if kinds else None)
