"""A disk whose space a test controls, on any machine."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from unveil.server.jobs import job_table


class Disk:
    """Whether the queue finds its disk full: then no change gets there, and whoever reads sees what was before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full, begun = False, dict[int, int]()

        def execute(table: sqlite3.Connection, statement: str, *given: Any) -> sqlite3.Cursor:
            if statement.startswith("BEGIN"):
                begun[id(table)] = table.total_changes
            changed = statement == "COMMIT" and begun[id(table)] != table.total_changes
            if self.full and (changed or statement.startswith("CREATE TABLE room")):
                problem = sqlite3.OperationalError("database or disk is full")
                problem.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise problem
            return sqlite3.Connection.execute(table, statement, *given)

        monkeypatch.setattr(job_table._Connection, "execute", execute, raising=False)


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Limit the size of files of this process; writing more fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
