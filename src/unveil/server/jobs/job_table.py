"""Jobs, the limits of their queue, and the database table that stores them."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from unveil.errors import DataError, RecipeError
from unveil.server.jobs.job_migration import FORMER_ERROR_SOURCES, FORMER_FIELDS, FORMER_KINDS, migrate_job

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


class Lane(NamedTuple):
    """Jobs that wait for each other and not for those of another lane.

    Attributes:
        name: Name of the lane.
        kinds: Types of jobs.
        is_rest: The lane has the jobs of all other types.
    """

    name: str
    kinds: tuple[str, ...]
    is_rest: bool

    def contains(self, kind: str) -> bool:
        """Return True if jobs of a type belong to this lane."""
        return (kind in self.kinds) != self.is_rest


ALL_JOBS = Lane("all", (), True)


@dataclass(frozen=True)
class QueueLimits:
    """Limits of the queue.

    Attributes:
        waiting: Maximum number of queued jobs.
        each: Maximum number of queued and running jobs of one owner.
        attempts: Number of attempts for a job that kills its worker.
        lease: Seconds without a heartbeat after which a worker counts as dead.
        seconds: Maximum duration of a job in seconds; 0: unlimited.
    """

    waiting: int = 32
    each: int = 8
    attempts: int = 2
    lease: float = 15.0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Raise RecipeError for a limit that admits nothing."""
        for name in ("waiting", "each", "attempts"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} = {getattr(self, name)}: must be at least 1")
        if not self.lease > 0:
            raise RecipeError(f"lease = {self.lease}: must be above 0 seconds")


VERSION = 5  # of the schema
# turn numbers the claims; lease is the time, by the queue's clock, until which a worker counts as alive
_COLUMNS = {
    "number": "INTEGER PRIMARY KEY AUTOINCREMENT",
    "id": "TEXT NOT NULL UNIQUE",
    "kind": "TEXT NOT NULL",
    "request": "TEXT NOT NULL",
    "owner": "TEXT NOT NULL",
    "cost": "REAL NOT NULL",
    "state": "TEXT NOT NULL",
    "submitted": "REAL NOT NULL",
    "started": "REAL",
    "ended": "REAL",
    "attempts": "INTEGER NOT NULL",
    "worker": "TEXT",
    "completed_steps": "INTEGER NOT NULL",
    "total_steps": "INTEGER NOT NULL",
    "outputs": "TEXT NOT NULL",
    "messages": "TEXT NOT NULL",
    "error": "TEXT",
    "error_source": "TEXT",
    "cancelling": "INTEGER NOT NULL",
    "turn": "INTEGER",
    "lease": "REAL",
}
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS jobs (" + ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items()) + ")",
    "CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, number)",
    "CREATE INDEX IF NOT EXISTS jobs_by_owner ON jobs (owner, turn)",
)
_FIELDS = ", ".join(Job._fields)
_JSON = ("request", "outputs", "messages")
_BUSY_S = 10.0  # time for which a transaction waits for another
_PAGES = 128  # of the write-ahead log before a checkpoint; a transaction writes about 4
_ROOM = 1 << 20  # bytes, 256 pages


class _Connection(sqlite3.Connection):
    """Connection that is closed when its thread ends."""

    def __del__(self) -> None:
        with suppress(sqlite3.ProgrammingError):  # the file could not be opened
            self.close()


def connect(file: Path) -> sqlite3.Connection:
    """Open a connection with durable commits and readers that never wait."""
    # the garbage collector closes it, perhaps in another thread than the one that used it
    table = sqlite3.connect(file, timeout=_BUSY_S, isolation_level=None, factory=_Connection, check_same_thread=False)
    table.execute("PRAGMA journal_mode = WAL")
    table.execute("PRAGMA synchronous = FULL")
    table.execute(f"PRAGMA wal_autocheckpoint = {_PAGES}")
    table.create_function("folded", 1, str.casefold, deterministic=True)  # SQLite's own lower handles only ASCII
    return table


def migrate(table: sqlite3.Connection) -> None:
    """Bring a table of an earlier version up to date: names of its columns, values, and columns that it lacks."""
    present = {row[1] for row in table.execute("PRAGMA table_info(jobs)")}
    for former, name in FORMER_FIELDS.items():
        if former in present and name not in present:
            table.execute(f"ALTER TABLE jobs RENAME COLUMN {former} TO {name}")
            present.add(name)
    for name, kind in _COLUMNS.items():
        if name not in present:
            table.execute(f"ALTER TABLE jobs ADD COLUMN {name} {kind}")
    for former, source in FORMER_ERROR_SOURCES.items():
        table.execute("UPDATE jobs SET error_source = ? WHERE error_source = ?", (source, former))
    kinds = ", ".join("?" * len(FORMER_KINDS))
    for number, kind, request in table.execute(
        f"SELECT number, kind, request FROM jobs WHERE kind IN ({kinds})", FORMER_KINDS
    ).fetchall():
        task, values = migrate_job(kind, json.loads(request))
        table.execute("UPDATE jobs SET kind = ?, request = ? WHERE number = ?", (task, json.dumps(values), number))


def reserve_disk(table: sqlite3.Connection) -> None:
    """Reserve disk space for later changes: pages of the write-ahead log, and free pages of the database."""
    away = "DROP TABLE IF EXISTS room"  # left by a process that was killed in between
    for statement in (away, f"CREATE TABLE room AS SELECT zeroblob({_ROOM}) AS bytes", away):
        table.execute(statement)
        table.execute("PRAGMA wal_checkpoint(RESTART)")


def is_damage(problem: sqlite3.DatabaseError) -> bool:
    """Return True if a file is not a database or is corrupt, rather than temporarily not accessible."""
    return type(problem) is sqlite3.DatabaseError


def quarantine(file: Path) -> Path:
    """Rename a corrupt database and its write-ahead log; return the new path."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    place = file.with_name(f"{file.stem}.damaged-{stamp}{file.suffix}")
    number = 1
    while place.exists():
        number += 1
        place = file.with_name(f"{file.stem}.damaged-{stamp}-{number}{file.suffix}")
    for end in ("", "-wal", "-shm"):
        part = file.with_name(file.name + end)
        if part.exists():
            part.rename(place.with_name(place.name + end))
    return place


def rows(table: sqlite3.Connection, where: str = "1", *values: object) -> list[Job]:
    """Select jobs in order of submission."""
    cursor = table.execute(f"SELECT {_FIELDS} FROM jobs WHERE {where} ORDER BY number", values)
    return [_job(*row) for row in cursor]


class PageQuery(NamedTuple):
    """One page of an owner's list of jobs.

    Attributes:
        owner: Owner of the jobs.
        limit: Maximum number of jobs.
        after: Start after this job of the owner; None: at the beginning.
        newest: Newest first instead of oldest first.
        state: Filter; None: any.
        kinds: Types of jobs; empty: all.
    """

    owner: str
    limit: int
    after: str | None = None
    newest: bool = True
    state: State | None = None
    kinds: tuple[str, ...] = ()


def page(table: sqlite3.Connection, query: PageQuery) -> tuple[list[Job], bool]:
    """Return one page of jobs, and whether more follow.

    Raises:
        DataError: The owner has no such job to start after.
    """
    filters = {"owner": query.owner, "state": query.state}
    conditions: dict[str, object] = {f"{name} = ?": value for name, value in filters.items() if value is not None}
    if query.kinds:  # a list in JSON, as one value
        conditions["kind IN (SELECT value FROM json_each(?))"] = json.dumps(query.kinds)
    if query.after is not None:
        where = "SELECT number FROM jobs WHERE id = ? AND owner = ?"
        behind = table.execute(where, (query.after, query.owner)).fetchone()
        if behind is None:
            raise DataError(f"after: {query.after[:80]!r} is not a job of this list")
        conditions[f"number {'<' if query.newest else '>'} ?"] = behind[0]
    order = f"ORDER BY number {'DESC' if query.newest else 'ASC'} LIMIT ?"
    select = f"SELECT {_FIELDS} FROM jobs WHERE {' AND '.join(conditions)} {order}"
    jobs = [_job(*row) for row in table.execute(select, (*conditions.values(), query.limit + 1))]
    return jobs[: query.limit], len(jobs) > query.limit


class SearchQuery(NamedTuple):
    """Full-text search of completed jobs.

    Attributes:
        words: Substrings that must all occur, case-insensitive.
        keys: Keys of the request whose values are searched.
        kinds: Types of jobs.
        owner: Owner of the jobs; None: all owners.
    """

    words: tuple[str, ...]
    keys: tuple[str, ...]
    kinds: tuple[str, ...]
    owner: str | None = None


def search(table: sqlite3.Connection, query: SearchQuery, begin: int, limit: int) -> tuple[list[Job], int]:
    """Return up to `limit` matching jobs, newest first, and the number of all matches; no other rows are parsed."""
    text = " || ' ' || ".join("coalesce(json_extract(request, ?), '')" for _ in query.keys) if query.words else "''"
    paths = [f"$.{key}" for key in query.keys] if query.words else []
    template = "SELECT number, folded({}) AS text FROM jobs WHERE state = 'completed' AND kind IN ({}){}"
    selected = template.format(text, ", ".join("?" * len(query.kinds)), "" if query.owner is None else " AND owner = ?")
    values: list[object] = [*paths, *query.kinds, *(() if query.owner is None else (query.owner,))]
    having = " AND ".join(["1", *("instr(text, ?)" for _ in query.words)])
    values += [word.casefold() for word in query.words]
    matches = table.execute(f"SELECT number FROM ({selected}) WHERE {having} ORDER BY number DESC", values).fetchall()
    numbers = [row[0] for row in matches[begin : begin + limit]]
    return rows(table, f"number IN ({', '.join('?' * len(numbers))})", *numbers)[::-1], len(matches)


def latest(table: sqlite3.Connection, limit: int) -> list[Job]:
    """Return the most recently completed jobs in the order of their ends."""
    last = f"SELECT {_FIELDS} FROM jobs WHERE state = 'completed' ORDER BY ended DESC LIMIT ?"
    return [_job(*row) for row in table.execute(last, (limit,)).fetchall()][::-1]


def insert(table: sqlite3.Connection, job: Job) -> None:
    """Insert a new job at the end."""
    lists: dict[str, Any] = {name: json.dumps(getattr(job, name)) for name in _JSON}
    row = job._replace(**lists)
    table.execute(f"INSERT INTO jobs ({_FIELDS}) VALUES ({', '.join('?' * len(row))})", row)


def count(table: sqlite3.Connection, where: str, *values: object) -> int:
    """Count the matching jobs."""
    return table.execute(f"SELECT count(*) FROM jobs WHERE {where}", values).fetchone()[0]


def last_turns(table: sqlite3.Connection) -> dict[str, int]:
    """Return the last turn of each owner."""
    return dict(table.execute("SELECT owner, max(turn) FROM jobs WHERE turn IS NOT NULL GROUP BY owner").fetchall())


def next_turn(table: sqlite3.Connection) -> int:
    """Return the number of the next turn."""
    return table.execute("SELECT coalesce(max(turn), 0) + 1 FROM jobs").fetchone()[0]


def _job(*row: object) -> Job:
    job = Job(*row)  # type: ignore[arg-type]
    read: dict[str, Any] = {name: json.loads(getattr(job, name)) for name in _JSON}
    read |= {name: tuple(read[name]) for name in ("outputs", "messages")}
    return job._replace(**read, cancelling=bool(job.cancelling))
