"""One server for a folder: a second one is told where the first one is."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unveil.types import OutputError

FILE = ".server"


@contextmanager
def held(folder: Path, address: str) -> Iterator[None]:
    """Holds a folder for this process; the hold ends with it, whatever ends it.

    Args:
        folder: made if it is not there.
        address: where this process answers, which others are told.

    Raises:
        NotWritable: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as problem:
        raise OutputError(f"{folder}: cannot be written ({problem.strerror}); choose another folder") from problem
    try:
        _lock(folder, handle, fcntl.LOCK_EX)
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"pid": os.getpid(), "address": address}).encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def refuse_held(folder: Path) -> None:
    """Looks whether a folder is held, and writes nothing.

    Raises:
        NotWritable: another process holds it.
    """
    try:
        handle = os.open(folder / FILE, os.O_RDONLY)
    except OSError:  # nobody has held it yet; or nobody can, which `held` says
        return
    try:
        _lock(folder, handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)


def _lock(folder: Path, handle: int, kind: int) -> None:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError as problem:
        raise OutputError(
            f"{folder}: {_told(handle)} serves this folder; use that one, or choose another folder"
        ) from problem


def _told(handle: int) -> str:
    """Who holds the folder, as far as the file says."""
    try:
        said = json.loads(os.pread(handle, 4096, 0))
        return f"{said['address']} (process {said['pid']})"
    except (ValueError, KeyError, TypeError):
        return "another process"
