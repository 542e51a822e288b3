"""Replacement of files and folders in one step: after a crash, a path has its old content or its new content.

New content is written beside its final path, under a temporary name. A file is then renamed. A folder cannot be renamed
onto another folder, so the two names are exchanged by one system call. A file system without this call needs two
renames; if a process is killed between them, `recover` moves the old content back when the path is next used.

A temporary name ends with its writer (process ID, start time, boot and PID namespace), a random number, and `.part`
for content to be removed or `.before` for old content that may have to be moved back.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

_TEMPORARY = re.compile(
    r"\.(?P<label>.+)\.(?P<pid>\d+)-(?P<started>\d+)-(?P<system>[0-9a-f]{8})-[0-9a-f]{8}\.(?P<kind>part|before)"
)
_MAX_LABEL = 180  # bytes of a name, so that the temporary name has less than 255
_DIGEST = re.compile(r"~[0-9a-f]{32}")  # label of a longer name
QUIET_SECONDS = 3600.0  # after which the content of a writer that cannot be seen is abandoned
_SWEEP_SECONDS = 600.0  # between two sweeps of one folder by one process
_WAIT_SECONDS = 1.0  # for a running process between its two renames
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.ENOTSUP}
_AT_FDCWD, _EXCHANGE = -100, 2  # renameat2 and renamex_np have the same number for an exchange
_last_sweeps: dict[tuple[int, str], float] = {}  # by process and folder


class _Writer(NamedTuple):
    """A process, also after its ID was given to another one.

    Attributes:
        started: Start time in clock ticks since boot; 0 if the system does not tell.
        system: Hash of the boot and the PID namespace.
    """

    pid: int
    started: int
    system: str


# ---------------------------------------------------------------------- replacing


def temporary_path(path: Path, kind: Literal["part", "before"] = "part") -> Path:
    """Return a new name in the folder of `path`; a rename is atomic only within one file system."""
    pid, started, system = _this_process()
    return path.with_name(f".{_label(path.name)}.{pid}-{started}-{system}-{secrets.token_hex(4)}.{kind}")


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file or folder its final name, after its content is on the disk; what is there is replaced.

    Raises:
        OSError: The system's error; `path` has its old content.
    """
    sync(temporary)
    if not os.path.lexists(path) or not (_is_folder(temporary) or _is_folder(path)):
        os.rename(temporary, path)
        sync_names(path.parent)
    elif exchange(temporary, path):
        sync_names(path.parent)
        remove(temporary)
    else:
        _rename_twice(temporary, path)


def exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two files or folders in one step; return False if the file system cannot.

    Raises:
        OSError: The system's error, such as a missing file.
    """
    call = _exchange_call()
    number = errno.ENOSYS if call is None else call(os.fsencode(first), os.fsencode(second))
    if number == 0:
        return True
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(first), None, str(second))


def discard(path: Path) -> None:
    """Remove a file or folder so that a half-removed one is never under its name.

    Raises:
        OSError: It cannot be renamed.
    """
    dropped = temporary_path(path)
    os.rename(path, dropped)
    remove(dropped)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder as far as possible; nothing happens if it is missing."""
    if _is_folder(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or every file and name in a folder, is on the disk.

    Raises:
        OSError: The system's error, such as a full disk.
    """
    if path.is_symlink():
        return
    if path.is_dir():
        for child in path.iterdir():
            sync(child)
        sync_names(path)
    elif path.is_file():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_names(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, if the system allows opening folders."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _rename_twice(temporary: Path, path: Path) -> None:
    before = temporary_path(path, "before")
    os.rename(path, before)
    try:
        os.rename(temporary, path)
    except BaseException:
        if not os.path.lexists(path):
            os.rename(before, path)
        raise
    sync_names(path.parent)
    remove(before)


# ---------------------------------------------------------------------- after a crash


def recover(path: Path) -> None:
    """Move the old content of `path` back if a process was killed between two renames; call it before a look-up.

    If a running process is between the two renames, wait up to a second for it.
    """
    if os.path.lexists(path) or not path.name:
        return
    label = _label(path.name)
    waits_until = time.monotonic() + _WAIT_SECONDS
    for candidate, match in _temporaries(path.parent):
        if match["kind"] != "before" or match["label"] != label:
            continue
        while _is_in_use(candidate, match) and candidate.exists() and time.monotonic() < waits_until:
            time.sleep(0.01)
        if not os.path.lexists(path):
            with suppress(OSError):  # another process was faster, or the folder is read-only
                os.rename(candidate, path)


def sweep(folder: Path, *, exclusive: bool = False) -> list[Path]:
    """Remove what killed writers have left in a folder, and return what was removed.

    Old content whose new content was never published is moved back. Temporary names of running writers stay.

    Args:
        exclusive: True if the caller holds a lock, so that no other process writes in the folder.
    """
    removed: list[Path] = []
    for path, match in _temporaries(folder):
        if not exclusive and _is_in_use(path, match):
            continue
        final = folder / match["label"]
        if match["kind"] == "before" and _DIGEST.fullmatch(match["label"]):
            continue  # only a look-up has the name that this is the digest of
        if match["kind"] == "before" and not os.path.lexists(final):
            with suppress(OSError):
                os.rename(path, final)
            continue
        remove(path)
        removed.append(path)
    return removed


def sweep_sometimes(folder: Path) -> None:
    """Sweep a folder unless this process did so in the last ten minutes; for every writer, before it writes."""
    key, now = (os.getpid(), str(folder.absolute())), time.monotonic()
    if now - _last_sweeps.get(key, -_SWEEP_SECONDS) >= _SWEEP_SECONDS:
        _last_sweeps[key] = now
        sweep(folder)


def _temporaries(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    """Yield the temporary names in a folder, in order; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name.startswith("."))
    except OSError:
        return
    for name in names:
        if match := _TEMPORARY.fullmatch(name):
            yield folder / name, match


def _label(name: str) -> str:
    raw = os.fsencode(name)
    return name if len(raw) <= _MAX_LABEL else f"~{hashlib.sha256(raw).hexdigest()[:32]}"


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


# ---------------------------------------------------------------------- processes


def _is_in_use(path: Path, match: re.Match[str]) -> bool:
    """Return True if the writer of a temporary name may still run.

    A writer of this system runs if its ID belongs to a process of the same start time. One of another boot, host or
    container cannot be seen: its content is in use until it is older than this boot, or unchanged for an hour.
    """
    writer = _Writer(int(match["pid"]), int(match["started"]), match["system"])
    if writer.system == _this_process().system:
        return _runs(writer)
    changed = _last_change(path)
    return changed > _boot_time() and time.time() - changed < QUIET_SECONDS


def _runs(writer: _Writer) -> bool:
    try:
        os.kill(writer.pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # it belongs to another user
    status = process_status(writer.pid)
    if status is None:
        return True
    state, started = status
    return state not in "ZX" and started == writer.started


def _this_process() -> _Writer:
    return _writer_of(os.getpid())


@cache
def _writer_of(pid: int) -> _Writer:
    status = process_status(pid)
    return _Writer(pid, 0 if status is None else status[1], _system())


def process_status(pid: int) -> tuple[str, int] | None:
    """Return the state and the start time of a process from /proc; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        fields = text[text.rindex(")") + 2 :].split()  # a name may contain spaces and parentheses
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _system() -> str:
    """Return a hash of the boot and the PID namespace, in which a process ID has one meaning."""
    facts = platform.node()
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        facts = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return hashlib.sha256(facts.encode()).hexdigest()[:8]


@cache
def _boot_time() -> float:
    """Return the time of this boot in seconds since 1970; 0 if the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/stat").read_text("utf-8").splitlines()
        return float([line for line in lines if line.startswith("btime ")][0].split()[1])  # noqa: RUF015 - an IndexError
    return 0.0


def _last_change(path: Path) -> float:
    """Return the time of the newest change of a file, or of anything in a folder."""
    newest = 0.0
    for place in (path, *(path.rglob("*") if _is_folder(path) else ())):
        with suppress(OSError):
            newest = max(newest, place.lstat().st_mtime)
    return newest


@cache
def _exchange_call() -> Callable[[bytes, bytes], int] | None:
    """Return a function of two paths that exchanges them and returns 0 or an error number; None if there is none."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            swap = library.renamex_np
            swap.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint]
            return lambda first, second: ctypes.get_errno() if swap(first, second, _EXCHANGE) else 0
        rename = library.renameat2
    except (OSError, AttributeError, TypeError):  # no such function in the C library, or no C library
        return None
    rename.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return lambda first, second: ctypes.get_errno() if rename(_AT_FDCWD, first, _AT_FDCWD, second, _EXCHANGE) else 0
