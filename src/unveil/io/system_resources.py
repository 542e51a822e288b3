"""Free memory and free disk space of this machine."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60  # limits of version 1 above this stand for none
# folder of a hierarchy, its files of the limit and the use, and the cache in the use that the kernel gives back
_V1 = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("", "memory.max", "memory.current", "inactive_file")


def total_memory() -> int:
    """Return the bytes of memory of this machine; 0: unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 0


def free_memory() -> int:
    """Return the bytes of memory that this process can still take, without swap; 0: unknown.

    The limits of control groups, such as those of a container, count. Systems other than Linux state no free memory;
    all of it is returned there.
    """
    counts = [count for count in (_available(), *_left_in_cgroups()) if count is not None]
    return max(min(counts), 1) if counts else total_memory()


def free_disk(folder: Path) -> int | None:
    """Return the free bytes of the disk of a folder, which need not exist; None: unknown."""
    try:
        return shutil.disk_usage(existing_folder(folder)).free
    except OSError:  # a file system that does not tell
        return None


def existing_folder(folder: Path) -> Path:
    """Return a folder, or its nearest parent that exists."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())


def _available() -> int | None:
    """Return the memory that Linux states as available; None elsewhere."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _left_in_cgroups() -> list[int]:
    """Return what is left in each control group of this process that has a limit."""
    try:
        groups = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return []
    left: list[int] = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        kind = _V1 if controllers else _V2
        top = _CGROUPS / kind[0]
        group = top / path.lstrip("/")
        for folder in dict.fromkeys((group, *group.parents, top)):
            if folder.is_relative_to(top) and (count := _left_in(folder, *kind[1:])) is not None:
                left.append(count)
    return left


def _left_in(folder: Path, limit: str, use: str, cache: str) -> int | None:
    with suppress(OSError, ValueError):
        most = int((folder / limit).read_text("ascii"))  # "max" stands for no limit in version 2
        if most < _NO_LIMIT:
            lines = (folder / "memory.stat").read_text("ascii").splitlines()
            given_back = next((int(line.split()[1]) for line in lines if line.startswith(f"{cache} ")), 0)
            return max(0, most - int((folder / use).read_text("ascii")) + given_back)
    return None
