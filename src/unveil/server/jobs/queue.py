"""Persistent job queue: a table on disk that outlives its clients, its workers and the server.

    queued --claim--> running --complete--> completed
      ^  |               |----fail--------> failed
      |  '--cancel-------|----------------> cancelled
      '---- its worker died, and attempts are left

A job belongs to the worker that claimed it as long as that worker sends heartbeats; calls of other workers about it
have no effect. Owners take turns (round-robin); the jobs of one owner run in order of submission.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from unveil.errors import Error, OutOfResources, OutputError, QueueFull, RecipeError
from unveil.io.files import FULL
from unveil.server.jobs import job_table
from unveil.server.jobs.job_table import (
    ALL_JOBS,
    ENDED,
    STATES,
    ErrorSource,
    Job,
    Lane,
    PageQuery,
    QueueLimits,
    SearchQuery,
    State,
)

FILE = "jobs.sqlite3"
DAMAGED = 6  # exit code of a worker that cannot read the table
RECENT = 200  # recently completed jobs from which durations are estimated
HeartbeatReply = Literal["go on", "stop", "not yours"]


class QueueCorrupted(Error):
    """The job database is corrupt."""

    exit_code = DAMAGED


class QueuePosition(NamedTuple):
    """Position in the queue: the number of jobs ahead, and the estimated seconds until the start."""

    ahead: int
    seconds: float


class Queue:
    """Job queue of a state folder; any number of processes and threads may open it.

    While the disk is full or another program keeps the table locked, changes raise OutOfResources and have no effect.

    Args:
        folder: Folder of the database; created if missing.
        limits: Limits of the queue.
        clock: Monotonic clock shared by all processes of the machine; used for leases.
        mends: Move a corrupt database aside; only for a process that has no others beside it. `damaged` is then its
            new path, and `restore` adds the jobs that can be recovered.

    Raises:
        OutputError: The folder cannot be written.
        RecipeError: A later version wrote the database.
        QueueCorrupted: The database is corrupt and `mends` is false.
    """

    def __init__(
        self,
        folder: Path,
        limits: QueueLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        mends: bool = True,
    ) -> None:
        self.folder, self.limits, self._clock = folder, limits or QueueLimits(), clock
        self.file = folder / FILE
        self._own = threading.local()
        self.damaged: Path | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._prepare()
            except sqlite3.DatabaseError as problem:
                if not job_table.is_damage(problem):
                    raise
                self.close()
                if not mends:
                    raise QueueCorrupted(
                        f"{self.file}: is damaged ({problem}); restart the server, which moves it aside and restores "
                        "the completed jobs"
                    ) from problem
                self.damaged = job_table.quarantine(self.file)
                self._prepare()
        except (OSError, sqlite3.DatabaseError) as problem:
            raise OutputError(f"{self.file}: cannot be written ({problem}); choose another folder") from problem

    def submit(self, kind: str, request: Mapping[str, Any], *, owner: str = "", cost: float = 1.0) -> Job:
        """Append a job; it is on disk when this returns.

        Raises:
            QueueFull: The queue is full, for all or for this owner; its `seconds` say when to retry.
        """
        job = Job(secrets.token_hex(8), kind, dict(request), owner, cost, submitted=time.time())
        with self._change() as table:
            self._refuse_full(table, owner)
            job_table.insert(table, job)
        return job

    def check_capacity(self, owner: str, coming: Mapping[str, int] | None = None) -> None:
        """Check that `submit` would accept a job; writes nothing.

        Args:
            owner: Owner of the job.
            coming: Number of jobs of each owner that are about to be submitted. It is read after the table: a job
                submitted in between is not counted, and `submit` refuses it then, but no job is counted twice.

        Raises:
            QueueFull: As `submit`.
        """
        self._refuse_full(self._table, owner, coming)

    def has_queued(self, lane: Lane = ALL_JOBS) -> bool:
        """Return True if a job of a lane is queued; reads without waiting for writers."""
        kinds = self._table.execute("SELECT DISTINCT kind FROM jobs WHERE state = 'queued'")
        return any(lane.contains(kind) for (kind,) in kinds)

    def claim(self, worker: str, lane: Lane = ALL_JOBS) -> Job | None:
        """Claim the next job of a lane for a worker; None if no such job is queued."""
        if not self.has_queued(lane):
            return None  # idle workers poll often and must not block writers
        with self._change() as table:
            queued = [job for job in job_table.rows(table, "state = 'queued'") if lane.contains(job.kind)]
            turns = fair_order(queued, job_table.last_turns(table))
            if not turns:
                return None
            table.execute(
                "UPDATE jobs SET state = 'running', worker = ?, lease = ?, started = ?, turn = ?, attempts = attempts"
                " + 1, completed_steps = 0, total_steps = 0 WHERE id = ?",
                (worker, self._clock() + self.limits.lease, time.time(), job_table.next_turn(table), turns[0].id),
            )
            return job_table.rows(table, "id = ?", turns[0].id)[0]

    def heartbeat(self, id: str, worker: str, done: int | None = None, total: int | None = None) -> HeartbeatReply:
        """Extend the lease of a running job and record its progress; the reply tells the worker what to do."""
        with self._change() as table:
            table.execute(
                "UPDATE jobs SET lease = ?, completed_steps = coalesce(?, completed_steps),"
                " total_steps = coalesce(?, total_steps)"
                " WHERE id = ? AND worker = ? AND state = 'running'",
                (self._clock() + self.limits.lease, done, total, id, worker),
            )
            mine = job_table.rows(table, "id = ? AND worker = ? AND state = 'running'", id, worker)
            return "not yours" if not mine else "stop" if mine[0].cancelling else "go on"

    def cancel_requested(self, id: str) -> bool:
        """Return True if a running job was cancelled; reads without waiting for writers."""
        row = self._table.execute("SELECT cancelling FROM jobs WHERE id = ?", (id,)).fetchone()
        return bool(row and row[0])

    def complete(self, id: str, worker: str, outputs: Sequence[str], messages: Sequence[str] = ()) -> bool:
        """Complete a job whose files are on disk; return False if the worker no longer owns it."""
        return self._end(id, worker, "completed", outputs=outputs, messages=messages)

    def fail(self, id: str, worker: str, error: str, source: ErrorSource = "request") -> bool:
        """Mark a job as failed; return False if the worker no longer owns it."""
        return self._end(id, worker, "failed", error=error, source=source)

    def mark_cancelled(self, id: str, worker: str) -> bool:
        """Mark a running job as cancelled, or failed if it took too long; return False if the worker lost it."""
        job = self.get(id)
        if job is not None and job.error is not None:
            return self._end(id, worker, "failed", error=job.error, source=job.error_source)
        return self._end(id, worker, "cancelled")

    def stop_overdue(self, grace: float) -> list[str]:
        """Stop the jobs that run longer than they may; return the workers that do not stop theirs.

        Args:
            grace: Seconds for a worker to stop a job, such as to save a checkpoint.
        """
        limit, now = self.limits.seconds, time.time()
        overdue = [job for job in self.jobs("running") if limit and now - (job.started or now) > limit]
        if new := [job for job in overdue if job.error is None and not job.cancelling]:
            message = (
                f"took longer than the maximum of {limit / 60:g} minutes; request less, or raise --max-job-minutes"
            )
            with self._change() as table:
                for job in new:
                    table.execute(
                        "UPDATE jobs SET cancelling = 1, error = ?, error_source = 'request'"
                        " WHERE id = ? AND state = 'running' AND cancelling = 0",
                        (message, job.id),
                    )
        return [job.worker for job in overdue if job.worker and now - (job.started or now) > limit + grace]

    def cancel(self, id: str) -> Job | None:
        """Cancel a job: a queued one at once, a running one with its next heartbeat.

        Returns the job after the change, or None if it does not exist. A job that has ended is not changed.
        """
        with self._change() as table:
            table.execute(
                "UPDATE jobs SET state = 'cancelled', ended = ? WHERE id = ? AND state = 'queued'", (time.time(), id)
            )
            table.execute("UPDATE jobs SET cancelling = 1 WHERE id = ? AND state = 'running'", (id,))
            return next(iter(job_table.rows(table, "id = ?", id)), None)

    def reclaim(
        self, worker: str | None = None, why: str = "its worker sent no heartbeat", *, counts: bool = True
    ) -> list[Job]:
        """Take back the jobs of a dead worker, or of all workers whose lease has expired; return them as changed.

        Each is queued again at its old position, failed if no attempt is left, or cancelled if that was requested.

        Args:
            worker: Dead worker; None: all with an expired lease.
            why: Reason, part of the error of failed jobs.
            counts: Count the run as an attempt.
        """
        with self._change() as table:
            if worker is None:
                lost = job_table.rows(table, "state = 'running' AND lease < ?", self._clock())
            else:
                lost = job_table.rows(table, "state = 'running' AND worker = ?", worker)
            return [self._back(table, job, job.attempts - (not counts), why) for job in lost]

    def renew_leases(self) -> None:
        """Renew the leases of all running jobs: workers could not send heartbeats while the disk was full."""
        with self._change() as table:
            table.execute("UPDATE jobs SET lease = ? WHERE state = 'running'", (self._clock() + self.limits.lease,))

    def recover(self) -> list[Job]:
        """Queue all running jobs again, at the start of a server whose workers are all gone.

        The end of a server does not count as an attempt.
        """
        with self._change() as table:
            lost = job_table.rows(table, "state = 'running'")
            return [self._back(table, job, job.attempts - 1, "the server ended") for job in lost]

    def reserve_disk(self) -> None:
        """Reserve disk space so that jobs can be claimed, ended and deleted while the disk is full.

        It lasts until the last connection is closed, or until some hundred jobs were added that are not deleted.
        """
        with self._disk_errors():
            job_table.reserve_disk(self._table)

    def restore(self, jobs: Sequence[Job]) -> int:
        """Insert jobs known from their output records; existing jobs are not changed. Return the number inserted."""
        with self._change() as table:
            ids = {job.id for job in job_table.rows(table)}
            missing = [job for job in jobs if job.id not in ids]
            for job in missing:
                job_table.insert(table, job)
        return len(missing)

    def forget(self, id: str) -> bool:
        """Delete a job that has ended; return False if it does not exist or has not ended."""
        with self._change() as table:
            ended = ", ".join(f"'{state}'" for state in ENDED)
            return table.execute(f"DELETE FROM jobs WHERE id = ? AND state IN ({ended})", (id,)).rowcount > 0

    def get(self, id: str) -> Job | None:
        """Return a job in its current state; None if it does not exist."""
        return next(iter(job_table.rows(self._table, "id = ?", id)), None)

    def jobs(self, state: State | None = None, owner: str | None = None) -> list[Job]:
        """List the jobs of a state and an owner in order of submission."""
        return [
            job
            for job in (
                job_table.rows(self._table) if state is None else job_table.rows(self._table, "state = ?", state)
            )
            if owner is None or job.owner == owner
        ]

    def page(self, part: PageQuery) -> tuple[list[Job], bool]:
        """Return one page of an owner's jobs, and whether more follow; no other rows are read.

        Raises:
            DataError: The owner has no such job to start after.
        """
        return job_table.page(self._table, part)

    def search(self, query: SearchQuery, start: int, limit: int) -> tuple[list[Job], int]:
        """Return completed jobs, newest first, from index `start` on, and the number of all matches."""
        return job_table.search(self._table, query, start, limit)

    def counts(self, owner: str | None = None) -> dict[State, int]:
        """Count the jobs in each state, of one owner or of all."""
        query = "SELECT state, count(*) FROM jobs WHERE ?1 IS NULL OR owner = ?1 GROUP BY state"
        return dict.fromkeys(STATES, 0) | dict(self._table.execute(query, (owner,)).fetchall())

    def positions(self, workers: int = 1, lanes: Sequence[Lane] = (ALL_JOBS,)) -> dict[str, QueuePosition]:
        """Return the positions of all queued jobs in their lanes, in the order in which they will start.

        Args:
            workers: Number of workers of each lane.
            lanes: Lanes of the workers.
        """
        pace, now = self._paces(), time.time()
        ordered = fair_order(self.jobs("queued"), job_table.last_turns(self._table))
        running, positions = self.jobs("running"), dict[str, QueuePosition]()
        for lane in lanes:
            before = sum(pace.remaining(job, now) for job in running if lane.contains(job.kind))
            for ahead, job in enumerate(job for job in ordered if lane.contains(job.kind)):
                positions[job.id] = QueuePosition(ahead, before / max(workers, 1))
                before += pace.seconds(job)
        return {job.id: positions[job.id] for job in ordered if job.id in positions}

    def next_jobs(self, new: Job) -> list[Job]:
        """Return the queued jobs in the order in which they will start, with a job that may not be submitted yet."""
        queued = [job for job in self.jobs("queued") if job.id != new.id]
        return fair_order([*queued, new], job_table.last_turns(self._table))

    def completed(self) -> list[Job]:
        """Return the most recently completed jobs in the order of their ends."""
        return job_table.latest(self._table, RECENT)

    def close(self) -> None:
        """Close this thread's connection."""
        table: sqlite3.Connection | None = getattr(self._own, "table", None)
        self._own.table = None
        if table is not None:
            table.close()

    @property
    def _table(self) -> sqlite3.Connection:
        """This thread's connection; SQLite connections must not be shared between threads."""
        table: sqlite3.Connection | None = getattr(self._own, "table", None)
        if table is None:
            table = self._own.table = job_table.connect(self.file)
        return table

    def _prepare(self) -> None:
        """Create the table, or check its integrity.

        Raises:
            RecipeError: A later version wrote it.
        """
        with self._change() as table:
            version = table.execute("PRAGMA user_version").fetchone()[0]
            if version > job_table.VERSION:
                raise RecipeError(f"{self.file}: written by a later version of unveil; use that, or another folder")
            for statement in job_table.SCHEMA:
                table.execute(statement)
            if version < job_table.VERSION:  # an existing table is not written, which would fail on a full disk
                job_table.migrate(table)
                table.execute(f"PRAGMA user_version = {job_table.VERSION}")
        verdict = self._table.execute("PRAGMA quick_check").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """Run a transaction, which is atomic and on disk when the block ends."""
        table = self._table
        with self._disk_errors():
            table.execute("BEGIN IMMEDIATE")
        try:
            with self._disk_errors():
                yield table
                table.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                table.execute("ROLLBACK")
            raise

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Raise OutOfResources if the disk is full, or if another program keeps the table locked."""
        try:
            yield
        except sqlite3.OperationalError as problem:
            code = getattr(problem, "sqlite_errorcode", None)
            if code == sqlite3.SQLITE_BUSY:
                raise OutOfResources(f"{self.file}: another program keeps it locked; end that one") from problem
            if code != sqlite3.SQLITE_FULL:
                raise
            raise OutOfResources(f"{self.file}: {FULL}; free some space") from problem

    def _refuse_full(self, table: sqlite3.Connection, owner: str, coming: Mapping[str, int] | None = None) -> None:
        waiting = job_table.count(table, "state = 'queued'")
        mine = job_table.count(table, "state IN ('queued', 'running') AND owner = ?", owner)
        others = dict(coming or {})
        if waiting + sum(others.values()) >= self.limits.waiting:
            raise QueueFull(f"{waiting} jobs are queued, the maximum; try again later", self._until_next())
        if mine + others.get(owner, 0) >= self.limits.each:
            message = f"{mine} of your jobs are queued or running, the maximum; try again later"
            raise QueueFull(message, self._until_next())

    def _end(
        self,
        id: str,
        worker: str,
        state: State,
        *,
        outputs: Sequence[str] = (),
        messages: Sequence[str] = (),
        error: str | None = None,
        source: ErrorSource | None = None,
    ) -> bool:
        with self._change() as table:
            done = table.execute(
                "UPDATE jobs SET state = ?, outputs = ?, messages = ?, error = ?, error_source = ?, ended = ?,"
                " lease = NULL WHERE id = ? AND worker = ? AND state = 'running'",
                (state, json.dumps(list(outputs)), json.dumps(list(messages)), error, source, time.time(), id, worker),
            )
            return done.rowcount > 0

    def _back(self, table: sqlite3.Connection, job: Job, attempts: int, why: str) -> Job:
        """Requeue, fail or cancel a job whose worker is gone."""
        again = not job.cancelling and attempts < self.limits.attempts
        late = job.cancelling and job.error is not None  # it took too long
        state: State = "queued" if again else "cancelled" if job.cancelling and not late else "failed"
        table.execute(
            "UPDATE jobs SET state = ?, lease = NULL, attempts = ?, error = ?, error_source = ?, ended = ?,"
            " turn = CASE WHEN ? THEN NULL ELSE turn END WHERE id = ?",
            (
                state,
                attempts,
                job.error if late else f"{why}; tried {attempts} times" if state == "failed" else None,
                job.error_source if late else "server" if state == "failed" else None,
                None if again else time.time(),
                again,
                job.id,
            ),
        )
        return job_table.rows(table, "id = ?", job.id)[0]

    def _paces(self) -> Throughput:
        return throughput(job_table.latest(self._table, RECENT))

    def _until_next(self) -> float:
        """Estimate the seconds until a running job ends."""
        pace, now = self._paces(), time.time()
        return max(1.0, min((pace.remaining(job, now) for job in self.jobs("running")), default=DEFAULT_S))


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
