"""Lock that lets only one server use a state folder; the error of a second server has the address of the first."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unveil.errors import OutputError

FILE = ".server"


@contextmanager
def folder_lock(folder: Path, address: str) -> Iterator[None]:
    """Lock a folder for this process; the lock ends with the process, however it ends.

    Args:
        folder: State folder; created if missing.
        address: Address of this server, shown to others that try to lock the folder.

    Raises:
        OutputError: Another process has locked the folder, or it cannot be written.
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


def check_unlocked(folder: Path) -> None:
    """Check that no other process has locked a folder; writes nothing.

    Raises:
        OutputError: Another process has locked it.
    """
    try:
        handle = os.open(folder / FILE, os.O_RDONLY)
    except OSError:  # not locked yet, or not accessible, which `folder_lock` reports
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
            f"{folder}: {_holder(handle)} serves this folder; use that one, or choose another folder"
        ) from problem


def _holder(handle: int) -> str:
    """Describe the holder of the lock, as recorded in the file."""
    try:
        holder = json.loads(os.pread(handle, 4096, 0))
        return f"{holder['address']} (process {holder['pid']})"
    except (ValueError, KeyError, TypeError):
        return "another process"
