"""Lock that lets only one server use a state folder; the error of a second server has the address of the first.

The folder and all in it are private to the user of the server, since they contain prompts and results of all keys.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unveil.errors import OutputError
from unveil.io.locks import lock_holder, lock_pid

FILE = ".server"
PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600


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
        folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        handle = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
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
            f"{folder}: {_holder(handle)} serves this folder; use that one, or choose another folder with --state-dir"
        ) from problem


def _holder(handle: int) -> str:
    """Describe the holder of the lock: as it recorded itself in the file or, without its record, as the system does."""
    pid = lock_pid(handle)
    try:
        record = json.loads(os.pread(handle, 4096, 0))
        if pid in (None, record["pid"]):
            return f"{record['address']} (process {record['pid']})"
    except (ValueError, KeyError, TypeError):  # it is starting or ending, or is another program
        pass
    return lock_holder(handle)


@contextmanager
def private_files(folder: Path) -> Iterator[None]:
    """Let this process and its children create files that no other user can read, and make those of a folder so.

    Args:
        folder: Folder of the process, which exists. If other users can enter it, it is of an earlier version.

    Raises:
        OutputError: The rights of the folder cannot be changed.
    """
    before = os.umask(0o777 & ~PRIVATE_FOLDER)
    try:
        if folder.stat().st_mode & 0o077:
            _make_private(folder)
        yield
    finally:
        os.umask(before)


def _make_private(folder: Path) -> None:
    """Take the rights of all other users away."""
    try:
        for path in (folder, *folder.rglob("*")):
            if not path.is_symlink():
                with suppress(FileNotFoundError):
                    path.chmod(path.stat().st_mode & PRIVATE_FOLDER)
    except PermissionError as problem:
        raise OutputError(
            f"{folder}: other users can read it, and its rights cannot be changed; choose another folder"
        ) from problem
