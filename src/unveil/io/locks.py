"""Locks of files that other processes hold."""

from __future__ import annotations

import os
from pathlib import Path


def lock_pid(handle: int) -> int | None:
    """Return the id of a process that holds a lock of an open file; None where the system does not tell.

    Args:
        handle: Descriptor of the file, whose lock (`flock`) another process holds.
    """
    try:
        locks = Path("/proc/locks").read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return None
    inode = str(os.fstat(handle).st_ino)  # some file systems state another device there than in `fstat`
    for line in locks.splitlines():  # number: FLOCK ADVISORY WRITE pid major:minor:inode start end
        words = line.split()
        if len(words) > 5 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode and int(words[4]) > 0:
            return int(words[4])
    return None


def lock_holder(handle: int) -> str:
    """Describe the process that holds a lock of an open file: with its id where the system tells it."""
    pid = lock_pid(handle)
    return "another process" if pid is None else f"another process ({pid})"
