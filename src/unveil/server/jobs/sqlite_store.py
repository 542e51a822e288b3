"""The table of jobs on disk: how it is opened, read and written, and what becomes of a damaged one."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path
from typing import Any, NamedTuple

from unveil.server.jobs.job import Job, State
from unveil.types import DataError

VERSION = 2  # of the columns
# turn counts the jobs that were taken; lease is the time, by the queue's clock, until which a worker counts as alive
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
    "done": "INTEGER NOT NULL",
    "total": "INTEGER NOT NULL",
    "outputs": "TEXT NOT NULL",
    "said": "TEXT NOT NULL",
    "error": "TEXT",
    "fault": "TEXT",
    "stopping": "INTEGER NOT NULL",
    "turn": "INTEGER",
    "lease": "REAL",
}
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS jobs (" + ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items()) + ")",
    "CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, number)",
    "CREATE INDEX IF NOT EXISTS jobs_by_owner ON jobs (owner, turn)",
)
_FIELDS = ", ".join(Job._fields)
_JSON = ("request", "outputs", "said")
_BUSY_S = 10.0  # that a change waits for another one
_PAGES = 128  # of the log of changes, which then begins anew; a change is some 4
_ROOM = 1 << 20  # bytes, 256 pages


class _Connection(sqlite3.Connection):
    """One that is closed with the thread that it belongs to."""

    def __del__(self) -> None:
        self.close()


def connect(file: Path) -> sqlite3.Connection:
    """A connection in which a change is on the disk once it is made, and readers wait for nobody."""
    # whoever collects it closes it, which may be another thread than the one that used it
    table = sqlite3.connect(file, timeout=_BUSY_S, isolation_level=None, factory=_Connection, check_same_thread=False)
    table.execute("PRAGMA journal_mode = WAL")
    table.execute("PRAGMA synchronous = FULL")
    table.execute(f"PRAGMA wal_autocheckpoint = {_PAGES}")
    table.create_function("folded", 1, str.casefold, deterministic=True)  # SQLite's own lower knows ASCII alone
    return table


def widen(table: sqlite3.Connection) -> None:
    """Gives a table of an earlier version the columns that it lacks."""
    there = {row[1] for row in table.execute("PRAGMA table_info(jobs)")}
    for name, kind in _COLUMNS.items():
        if name not in there:
            table.execute(f"ALTER TABLE jobs ADD COLUMN {name} {kind}")


def take_room(table: sqlite3.Connection) -> None:
    """Takes room on the disk that changes find when it is full: pages of the log, and free ones of the table."""
    away = "DROP TABLE IF EXISTS room"  # who was killed in between has left it
    for statement in (away, f"CREATE TABLE room AS SELECT zeroblob({_ROOM}) AS bytes", away):
        table.execute(statement)
        table.execute("PRAGMA wal_checkpoint(RESTART)")


def is_damage(problem: sqlite3.DatabaseError) -> bool:
    """Whether a file is no table or a broken one, as opposed to one that cannot be opened or written now."""
    return type(problem) is sqlite3.DatabaseError


def set_aside(file: Path) -> Path:
    """Renames a damaged table with what belongs to it; its new place."""
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
    """Jobs in the order in which they were put in."""
    found = table.execute(f"SELECT {_FIELDS} FROM jobs WHERE {where} ORDER BY number", values)
    return [_job(*row) for row in found]


class Part(NamedTuple):
    """Which part of the list of an owner's jobs is meant.

    Attributes:
        owner: whose they are.
        most: of them.
        after: begins behind this job of the owner; None: at the beginning.
        newest: first, or last.
        state, kind: of those that are meant; None: any.
    """

    owner: str
    most: int
    after: str | None = None
    newest: bool = True
    state: State | None = None
    kind: str | None = None


def page(table: sqlite3.Connection, part: Part) -> tuple[list[Job], bool]:
    """A part of the jobs, and whether there are more behind it.

    Raises:
        MediaError: the owner has no such job to begin behind.
    """
    given = {"owner": part.owner, "state": part.state, "kind": part.kind}
    meant: dict[str, object] = {f"{name} = ?": value for name, value in given.items() if value is not None}
    if part.after is not None:
        where = "SELECT number FROM jobs WHERE id = ? AND owner = ?"
        behind = table.execute(where, (part.after, part.owner)).fetchone()
        if behind is None:
            raise DataError(f"after: {part.after[:80]!r} is none of them")
        meant[f"number {'<' if part.newest else '>'} ?"] = behind[0]
    order = f"ORDER BY number {'DESC' if part.newest else 'ASC'} LIMIT ?"
    asked = f"SELECT {_FIELDS} FROM jobs WHERE {' AND '.join(meant)} {order}"
    found = [_job(*row) for row in table.execute(asked, (*meant.values(), part.most + 1))]
    return found[: part.most], len(found) > part.most


class Sought(NamedTuple):
    """Which completed jobs are looked for.

    Attributes:
        words: that must all be in what is said, in letters of any size.
        said: keys of the request, whose values are looked through.
        kinds: of jobs.
        owner: whose; None: everybody's.
    """

    words: tuple[str, ...]
    said: tuple[str, ...]
    kinds: tuple[str, ...]
    owner: str | None = None


def sought(table: sqlite3.Connection, what: Sought, begin: int, most: int) -> tuple[list[Job], int]:
    """At most so many of the jobs, the newest first, and how many there are of all; no others are read."""
    text = " || ' ' || ".join("coalesce(json_extract(request, ?), '')" for _ in what.said) if what.words else "''"
    places = [f"$.{key}" for key in what.said] if what.words else []
    each = "SELECT number, folded({}) AS text FROM jobs WHERE state = 'completed' AND kind IN ({}){}"
    asked = each.format(text, ", ".join("?" * len(what.kinds)), "" if what.owner is None else " AND owner = ?")
    values: list[object] = [*places, *what.kinds, *(() if what.owner is None else (what.owner,))]
    having = " AND ".join(["1", *("instr(text, ?)" for _ in what.words)])
    values += [word.casefold() for word in what.words]
    every = table.execute(f"SELECT number FROM ({asked}) WHERE {having} ORDER BY number DESC", values).fetchall()
    numbers = [row[0] for row in every[begin : begin + most]]
    return rows(table, f"number IN ({', '.join('?' * len(numbers))})", *numbers)[::-1], len(every)


def latest(table: sqlite3.Connection, most: int) -> list[Job]:
    """The jobs that were completed last, in the order of their ends."""
    last = f"SELECT {_FIELDS} FROM jobs WHERE state = 'completed' ORDER BY ended DESC LIMIT ?"
    return [_job(*row) for row in table.execute(last, (most,)).fetchall()][::-1]


def insert(table: sqlite3.Connection, job: Job) -> None:
    """Writes a new job behind all others."""
    lists: dict[str, Any] = {name: json.dumps(getattr(job, name)) for name in _JSON}
    row = job._replace(**lists)
    table.execute(f"INSERT INTO jobs ({_FIELDS}) VALUES ({', '.join('?' * len(row))})", row)


def count(table: sqlite3.Connection, where: str, *values: object) -> int:
    """How many jobs there are."""
    return table.execute(f"SELECT count(*) FROM jobs WHERE {where}", values).fetchone()[0]


def last_turns(table: sqlite3.Connection) -> dict[str, int]:
    """When each owner had a turn last."""
    return dict(table.execute("SELECT owner, max(turn) FROM jobs WHERE turn IS NOT NULL GROUP BY owner").fetchall())


def next_turn(table: sqlite3.Connection) -> int:
    """The number of the turn that comes."""
    return table.execute("SELECT coalesce(max(turn), 0) + 1 FROM jobs").fetchone()[0]


def _job(*row: object) -> Job:
    job = Job(*row)  # type: ignore[arg-type]
    read: dict[str, Any] = {name: json.loads(getattr(job, name)) for name in _JSON}
    read |= {name: tuple(read[name]) for name in ("outputs", "said")}
    return job._replace(**read, stopping=bool(job.stopping))
