"""The queue: a table on disk of all that takes long. It outlives those who fill it and those who work on it.

    queued --take--> running --complete--> completed
      ^  |              |----fail--------> failed
      |  '--cancel------|----------------> cancelled
      '---- its worker died, and it may be tried again

A job is of the worker that took it for as long as that one shows that it lives (`beat`); a word of anyone else about
it counts for nothing. Owners take turns, who has waited longest for one comes next, and each one's jobs are in order.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from unveil.io.files import FULL
from unveil.server.jobs import sqlite_store
from unveil.server.jobs.fair_share import UNKNOWN_S, Paces, in_turn, paces
from unveil.server.jobs.job import ENDED, STATES, Fault, Job, Limits, State
from unveil.server.jobs.sqlite_store import Part, Sought
from unveil.types import Error, OutOfResources, OutputError, QueueFull, RecipeError

FILE = "jobs.sqlite3"
DAMAGED = 6  # exit code of a worker that cannot read it
RECENT = 200  # jobs that were completed last, from which times are foretold
Word = Literal["go on", "stop", "not yours"]  # what a worker hears when it shows that it lives


class Damaged(Error):
    """The table of jobs cannot be read."""

    exit_code = DAMAGED


class Place(NamedTuple):
    """A job's place in the queue: how many are taken before it, and seconds until it is taken, as others took."""

    ahead: int
    seconds: float


class Queue:
    """The jobs of a folder; any number of processes and threads may hold one.

    Args:
        folder: where its table lies; made if it is not there.
        limits: of what it takes.
        clock: seconds that never go back, the same for all processes of a machine; leases are reckoned in it.
        mends: whether a table that is damaged is moved aside, which is for who knows that no other holds it; `damaged`
            is its new place then, and `restore` brings back what can be had.

    While the disk is full, whatever changes the table raises OutOfResources and changes nothing.

    Raises:
        NotWritable: the folder cannot be written.
        RecipeError: the table was made by a later version.
        Damaged: it is, and is not to be mended here.
    """

    def __init__(
        self,
        folder: Path,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        mends: bool = True,
    ) -> None:
        self.folder, self.limits, self._clock = folder, limits or Limits(), clock
        self.file = folder / FILE
        self._own = threading.local()
        self.damaged: Path | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._prepare()
            except sqlite3.DatabaseError as problem:
                if not sqlite_store.is_damage(problem):
                    raise
                self.close()
                if not mends:
                    raise Damaged(
                        f"{self.file}: is damaged ({problem}); start the server again, which moves it aside and lists "
                        "again what was made"
                    ) from problem
                self.damaged = sqlite_store.set_aside(self.file)
                self._prepare()
        except (OSError, sqlite3.DatabaseError) as problem:
            raise OutputError(f"{self.file}: cannot be written ({problem}); choose another folder") from problem

    def submit(self, kind: str, request: Mapping[str, Any], *, owner: str = "", cost: float = 1.0) -> Job:
        """Puts a job at the end; when this returns it is on the disk.

        Raises:
            Busy: as many wait as may, all together or of this owner; says after how many seconds to come again.
        """
        job = Job(secrets.token_hex(8), kind, dict(request), owner, cost, submitted=time.time())
        with self._change() as table:
            self._refuse_full(table, owner)
            sqlite_store.insert(table, job)
        return job

    def refuse_full(self, owner: str, coming: Mapping[str, int] | None = None) -> None:
        """Looks whether `submit` would refuse a job, and writes nothing.

        Args:
            owner: of the job.
            coming: jobs that owners are about to put in. It is read after the table: one that has come in between is
                counted by neither, and refused by `submit` then, but none is counted by both.

        Raises:
            Busy: as `submit`.
        """
        self._refuse_full(self._table, owner, coming)

    def take(self, worker: str) -> Job | None:
        """The job whose turn it is, which is this worker's from now on; None: nothing waits."""
        if self._table.execute("SELECT 1 FROM jobs WHERE state = 'queued' LIMIT 1").fetchone() is None:
            return None  # who has nothing to do asks often, and holds up nobody who writes
        with self._change() as table:
            turns = in_turn(sqlite_store.rows(table, "state = 'queued'"), sqlite_store.last_turns(table))
            if not turns:
                return None
            table.execute(
                "UPDATE jobs SET state = 'running', worker = ?, lease = ?, started = ?, turn = ?, attempts = attempts"
                " + 1, done = 0, total = 0 WHERE id = ?",
                (worker, self._clock() + self.limits.lease, time.time(), sqlite_store.next_turn(table), turns[0].id),
            )
            return sqlite_store.rows(table, "id = ?", turns[0].id)[0]

    def beat(self, id: str, worker: str, done: int | None = None, total: int | None = None) -> Word:
        """A sign of life of a job's worker, and how far it is; what it hears."""
        with self._change() as table:
            table.execute(
                "UPDATE jobs SET lease = ?, done = coalesce(?, done), total = coalesce(?, total)"
                " WHERE id = ? AND worker = ? AND state = 'running'",
                (self._clock() + self.limits.lease, done, total, id, worker),
            )
            own = sqlite_store.rows(table, "id = ? AND worker = ? AND state = 'running'", id, worker)
            return "not yours" if not own else "stop" if own[0].stopping else "go on"

    def stops(self, id: str) -> bool:
        """Whether a job that runs was asked to end; a look that waits for nobody."""
        found = self._table.execute("SELECT stopping FROM jobs WHERE id = ?", (id,)).fetchone()
        return bool(found and found[0])

    def complete(self, id: str, worker: str, outputs: Sequence[str], said: Sequence[str] = ()) -> bool:
        """Ends a job whose files are on the disk; False: it is not this worker's any more."""
        return self._end(id, worker, "completed", outputs=outputs, said=said)

    def fail(self, id: str, worker: str, error: str, fault: Fault = "asked") -> bool:
        """Ends a job that cannot be done; False: it is not this worker's any more."""
        return self._end(id, worker, "failed", error=error, fault=fault)

    def stopped(self, id: str, worker: str) -> bool:
        """Ends a job that was cancelled while it ran; False: it is not this worker's any more."""
        return self._end(id, worker, "cancelled")

    def cancel(self, id: str) -> Job | None:
        """Asks for the end of a job: one that waits is over at once, one that runs hears it with its next beat.

        Returns it as it stands then; None: there is no such job. A job that has ended stays as it is.
        """
        with self._change() as table:
            table.execute(
                "UPDATE jobs SET state = 'cancelled', ended = ? WHERE id = ? AND state = 'queued'", (time.time(), id)
            )
            table.execute("UPDATE jobs SET stopping = 1 WHERE id = ? AND state = 'running'", (id,))
            return next(iter(sqlite_store.rows(table, "id = ?", id)), None)

    def reclaim(
        self, worker: str | None = None, why: str = "its worker gave no sign of life", *, counts: bool = True
    ) -> list[Job]:
        """Takes back the jobs of a dead worker; None: of all whose lease is over.

        Each waits again, in its old place, or has failed where it was tried as often as may, or is cancelled where
        that was asked for. Returns them as they stand then.

        Args:
            worker: who had them.
            why: they come back, which is told of those that have failed.
            counts: whether it was an attempt.
        """
        with self._change() as table:
            if worker is None:
                lost = sqlite_store.rows(table, "state = 'running' AND lease < ?", self._clock())
            else:
                lost = sqlite_store.rows(table, "state = 'running' AND worker = ?", worker)
            return [self._back(table, job, job.attempts - (not counts), why) for job in lost]

    def spare(self) -> None:
        """Gives all that runs a new lease: nobody could show that he lives while the disk was full."""
        with self._change() as table:
            table.execute("UPDATE jobs SET lease = ? WHERE state = 'running'", (self._clock() + self.limits.lease,))

    def recover(self) -> list[Job]:
        """Takes back all that runs, for who begins anew and knows that no worker is left.

        The end of a server is no fault of its jobs: it does not count as an attempt.
        """
        with self._change() as table:
            lost = sqlite_store.rows(table, "state = 'running'")
            return [self._back(table, job, job.attempts - 1, "the server ended") for job in lost]

    def take_room(self) -> None:
        """Takes room on the disk beforehand, so that jobs are taken, end and are deleted while it is full.

        Until the last who holds the table closes it, or some hundred jobs are put in that are not deleted.
        """
        with self._told():
            sqlite_store.take_room(self._table)

    def restore(self, jobs: Sequence[Job]) -> int:
        """Writes jobs that are known from elsewhere, such as the files that they made; those in the table stay."""
        with self._change() as table:
            known = {job.id for job in sqlite_store.rows(table)}
            missing = [job for job in jobs if job.id not in known]
            for job in missing:
                sqlite_store.insert(table, job)
        return len(missing)

    def forget(self, id: str) -> bool:
        """Removes a job that has ended; False: there is none, or it has not."""
        with self._change() as table:
            ended = ", ".join(f"'{state}'" for state in ENDED)
            return table.execute(f"DELETE FROM jobs WHERE id = ? AND state IN ({ended})", (id,)).rowcount > 0

    def get(self, id: str) -> Job | None:
        """A job as it stands; None: there is no such one."""
        return next(iter(sqlite_store.rows(self._table, "id = ?", id)), None)

    def jobs(self, state: State | None = None, owner: str | None = None) -> list[Job]:
        """Those in a state, of an owner, in the order in which they were put in."""
        return [
            job
            for job in (
                sqlite_store.rows(self._table) if state is None else sqlite_store.rows(self._table, "state = ?", state)
            )
            if owner is None or job.owner == owner
        ]

    def page(self, part: Part) -> tuple[list[Job], bool]:
        """A part of an owner's jobs, and whether there are more behind it; no others are read.

        Raises:
            MediaError: the owner has no such job to begin behind.
        """
        return sqlite_store.page(self._table, part)

    def sought(self, what: Sought, begin: int, most: int) -> tuple[list[Job], int]:
        """Completed jobs, the newest first, from the one at `begin` on, and how many there are of all."""
        return sqlite_store.sought(self._table, what, begin, most)

    def counts(self, owner: str | None = None) -> dict[State, int]:
        """How many jobs of an owner, or of all, are in each state."""
        asked = "SELECT state, count(*) FROM jobs WHERE ?1 IS NULL OR owner = ?1 GROUP BY state"
        return dict.fromkeys(STATES, 0) | dict(self._table.execute(asked, (owner,)).fetchall())

    def places(self, workers: int = 1) -> dict[str, Place]:
        """The places of all jobs that wait, in the order in which they are taken.

        Args:
            workers: how many work on the queue.
        """
        pace, now = self._paces(), time.time()
        before, found = sum(pace.left(job, now) for job in self.jobs("running")), dict[str, Place]()
        for job in in_turn(self.jobs("queued"), sqlite_store.last_turns(self._table)):
            found[job.id] = Place(len(found), before / max(workers, 1))
            before += pace.seconds(job)
        return found

    def close(self) -> None:
        """Closes what this thread holds open."""
        table: sqlite3.Connection | None = getattr(self._own, "table", None)
        self._own.table = None
        if table is not None:
            table.close()

    @property
    def _table(self) -> sqlite3.Connection:
        """This thread's own connection: SQLite's may not be shared."""
        table: sqlite3.Connection | None = getattr(self._own, "table", None)
        if table is None:
            table = self._own.table = sqlite_store.connect(self.file)
        return table

    def _prepare(self) -> None:
        """Makes the table, or looks whether it is whole.

        Raises:
            RecipeError: a later version made it.
        """
        with self._change() as table:
            found = table.execute("PRAGMA user_version").fetchone()[0]
            if found > sqlite_store.VERSION:
                raise RecipeError(f"{self.file}: made by a later version of unveil; use that one, or another folder")
            for statement in sqlite_store.SCHEMA:
                table.execute(statement)
            if found < sqlite_store.VERSION:  # a table that is there is not written, which a full disk does not let
                sqlite_store.widen(table)
                table.execute(f"PRAGMA user_version = {sqlite_store.VERSION}")
        said = self._table.execute("PRAGMA quick_check").fetchone()[0]
        if said != "ok":
            raise sqlite3.DatabaseError(said)

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """A change that happens whole or not at all, and is on the disk at its end."""
        table = self._table
        table.execute("BEGIN IMMEDIATE")
        try:
            with self._told():
                yield table
                table.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                table.execute("ROLLBACK")
            raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Says of a full disk that it is that."""
        try:
            yield
        except sqlite3.OperationalError as problem:
            if getattr(problem, "sqlite_errorcode", None) != sqlite3.SQLITE_FULL:
                raise
            raise OutOfResources(f"{self.file}: {FULL}; free some space") from problem

    def _refuse_full(self, table: sqlite3.Connection, owner: str, coming: Mapping[str, int] | None = None) -> None:
        waiting = sqlite_store.count(table, "state = 'queued'")
        mine = sqlite_store.count(table, "state IN ('queued', 'running') AND owner = ?", owner)
        others = dict(coming or {})
        if waiting + sum(others.values()) >= self.limits.waiting:
            raise QueueFull(f"{waiting} jobs wait, which is as many as may; come again later", self._until_next())
        if mine + others.get(owner, 0) >= self.limits.each:
            told = f"{mine} jobs of yours wait or run, which is as many as may; come again later"
            raise QueueFull(told, self._until_next())

    def _end(
        self,
        id: str,
        worker: str,
        state: State,
        *,
        outputs: Sequence[str] = (),
        said: Sequence[str] = (),
        error: str | None = None,
        fault: Fault | None = None,
    ) -> bool:
        with self._change() as table:
            done = table.execute(
                "UPDATE jobs SET state = ?, outputs = ?, said = ?, error = ?, fault = ?, ended = ?, lease = NULL"
                " WHERE id = ? AND worker = ? AND state = 'running'",
                (state, json.dumps(list(outputs)), json.dumps(list(said)), error, fault, time.time(), id, worker),
            )
            return done.rowcount > 0

    def _back(self, table: sqlite3.Connection, job: Job, attempts: int, why: str) -> Job:
        """A job whose worker is gone, as it stands after so many attempts that count."""
        again = not job.stopping and attempts < self.limits.attempts
        state: State = "queued" if again else "cancelled" if job.stopping else "failed"
        table.execute(
            "UPDATE jobs SET state = ?, lease = NULL, attempts = ?, error = ?, fault = ?, ended = ?,"
            " turn = CASE WHEN ? THEN NULL ELSE turn END WHERE id = ?",
            (
                state,
                attempts,
                f"{why}; tried {attempts} times" if state == "failed" else None,
                "server" if state == "failed" else None,
                None if again else time.time(),
                again,
                job.id,
            ),
        )
        return sqlite_store.rows(table, "id = ?", job.id)[0]

    def _paces(self) -> Paces:
        return paces(sqlite_store.latest(self._table, RECENT))

    def _until_next(self) -> float:
        """Seconds until a place will be free: what is left of the job that runs."""
        pace, now = self._paces(), time.time()
        return max(1.0, min((pace.left(job, now) for job in self.jobs("running")), default=UNKNOWN_S))
