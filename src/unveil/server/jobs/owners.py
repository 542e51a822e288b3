"""Data of each owner of a server: uploads and runs, the disk space that they use, and what it may be.

An owner is the name of an API key. A server without keys has one owner, "", whose data lie in the state folder itself.
The data of each key lie in a separate folder, whose name is computed from the name of the key.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from unveil.errors import OutOfResources, QueueFull, RecipeError
from unveil.io.files import write_atomically
from unveil.server.jobs.catalog import RUNS, Catalog
from unveil.server.jobs.job_table import Job
from unveil.server.jobs.outputs import FOLDER, ReaderPool, UploadStore, names_in

OWNERS = "owners"  # subfolder of the state folder
KEY_NAME = "key-name.txt"  # file in the folder of an owner
USAGE_S = 10.0  # time for which a measurement of the disk space is used again
RETRY_S = 2.0  # after which a refused request may be repeated
ALONE = 32  # of the 40 threads that handle requests
ACTIVE = 4  # owners whose files are decoded at the same time, which bounds the processes


class QuotaExceeded(OutOfResources):
    """The data of an owner have reached the maximum number of bytes."""


class TooManyFiles(QueueFull):
    """The data of an owner have reached the maximum number of files."""


class DiskUsage(NamedTuple):
    """Number of bytes and of files on the disk."""

    bytes: int = 0
    files: int = 0

    def __add__(self, other: object) -> DiskUsage:
        assert isinstance(other, DiskUsage)
        return DiskUsage(self.bytes + other.bytes, self.files + other.files)


@dataclass(frozen=True)
class Quota:
    """Limits of one owner.

    Attributes:
        bytes: Maximum size of uploads, runs and outputs together.
        files: Maximum number of their files.
        waiting: Maximum number of uploads that are decoded or wait for it at the same time.
    """

    bytes: int = 16 << 30
    files: int = 50_000
    waiting: int = 8

    def __post_init__(self) -> None:
        """Raise RecipeError for a limit that admits nothing."""
        for name in ("bytes", "files", "waiting"):
            if getattr(self, name) < 1:
                raise RecipeError(f"quota: {name} = {getattr(self, name)}: must be at least 1")


class Turns:
    """Lets each owner do one thing at a time, and a few owners at the same time.

    Threads of one owner wait for each other, and do not delay those of other owners.

    Args:
        waiting: Maximum number of threads of one owner of a server with keys, the active one included. A server
            without keys has one owner, who may use most of the threads that handle requests.
    """

    def __init__(self, waiting: int) -> None:
        self._most = waiting
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(ACTIVE)
        self._counts: dict[str, int] = {}
        self._active: dict[str, threading.Lock] = {}

    @contextmanager
    def turn(self, owner: str) -> Iterator[None]:
        """Wait for the turn of this owner, and hold it during the block.

        Raises:
            QueueFull: As many threads of this owner are active or wait as may.
        """
        with self._lock:
            count = self._counts.get(owner, 0)
            if count >= (self._most if owner else ALONE):
                raise QueueFull(f"{count} of your files are being read, the maximum; send this one later", RETRY_S)
            self._counts[owner] = count + 1
            active = self._active.setdefault(owner, threading.Lock())
        try:
            with active, self._slots:
                yield
        finally:
            with self._lock:
                self._counts[owner] -= 1
                if not self._counts[owner]:
                    del self._counts[owner], self._active[owner]


class OwnerData:
    """Uploads and runs of all owners of a state folder.

    Args:
        folder: State folder.
        quota: Limits of each owner of a server with keys.
    """

    def __init__(self, folder: Path, quota: Quota | None = None) -> None:
        self._folder, self.quota = folder, quota or Quota()
        self.turns = Turns(self.quota.waiting)
        self._readers = ReaderPool()
        self._stores: dict[str, UploadStore] = {}
        self._temporary: dict[str, set[Path]] = {}
        self._measured: dict[str, tuple[float, DiskUsage]] = {}
        self._lock = threading.Lock()

    def folder(self, owner: str) -> Path:
        """Return the folder of an owner, which may be missing."""
        if not owner:
            return self._folder
        return self._folder / OWNERS / hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def catalog(self, owner: str | None) -> Catalog:
        """Return the names that an owner may use; None: those that all owners may use."""
        return Catalog(None if owner is None else self.folder(owner) / RUNS)

    def uploads(self, owner: str) -> UploadStore:
        """Return the uploaded files of an owner."""
        with self._lock:
            if owner not in self._stores:
                self._stores[owner] = UploadStore(self.folder(owner) / FOLDER, self._readers)
            return self._stores[owner]

    def name_folder(self, owner: str) -> None:
        """Write the name of a key into the folder of its data, for those who look at the disk."""
        path = self.folder(owner) / KEY_NAME
        if owner and not path.exists():
            write_atomically(path, f"{owner}\n")

    def add_temporary(self, owner: str, folder: Path) -> None:
        """Note a folder of temporary files that an owner may read, and whose size counts for the quota."""
        with self._lock:
            self._temporary.setdefault(owner, set()).add(folder)

    def is_temporary(self, owner: str, folder: Path) -> bool:
        """Return True if an owner may read this folder of temporary files."""
        with self._lock:
            return folder in self._temporary.get(owner, ())

    def adopt(self, jobs: Iterable[Job]) -> None:
        """Move data of earlier versions, which had no owner, to the owner of the first job that names them."""
        shared, runs = self.uploads(""), self._folder / RUNS
        for job in jobs:
            if not job.owner:
                continue
            for name in sorted(names_in(job.request)):
                if (shared.folder / name).is_file():
                    self.uploads(job.owner).adopt(name, shared)
            run = job.request.get("run_name")
            if isinstance(run, str) and run == Path(run).name and (runs / run / "checkpoints").is_dir():
                target = self.folder(job.owner) / RUNS / run
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.rename(runs / run, target)

    def sweep(self, jobs: Iterable[Job], older: float) -> None:
        """Delete uploads older than this many seconds to which no job of their owner refers."""
        used: dict[str, set[str]] = {"": set()}
        for job in jobs:
            used.setdefault(job.owner, set()).update(names_in(job.request))
        for owner, names in used.items():
            self.uploads(owner).sweep(names, older)
        with self._lock:
            for temporary in self._temporary.values():
                temporary.difference_update([folder for folder in temporary if not folder.exists()])
        folders = {self.folder(owner) for owner in used}
        for folder in self._other_folders():
            if folder not in folders:  # of owners without jobs
                UploadStore(folder / FOLDER).sweep((), older)

    def usage(self, owner: str, outputs: Callable[[], Iterable[Path]]) -> DiskUsage:
        """Measure the disk space of an owner; the result is at most ten seconds old.

        Args:
            owner: The owner.
            outputs: Returns the output folders of the owner's jobs.
        """
        now = time.monotonic()
        with self._lock:
            measured, usage = self._measured.get(owner, (float("-inf"), DiskUsage()))
        if now - measured < USAGE_S:
            return usage
        usage = DiskUsage()
        with self._lock:
            temporary = list(self._temporary.get(owner, ()))
        for folder in (self.folder(owner) / FOLDER, self.folder(owner) / RUNS, *temporary, *outputs()):
            usage += disk_usage(folder)
        with self._lock:
            self._measured[owner] = now, usage
        return usage

    def count_file(self, owner: str, size: int) -> None:
        """Add a new file to the measured disk space of an owner."""
        with self._lock:
            if owner in self._measured:
                measured, usage = self._measured[owner]
                self._measured[owner] = measured, usage + DiskUsage(size, 1)

    def forget_usage(self, owner: str) -> None:
        """Measure the disk space again at the next request, after files were deleted."""
        with self._lock:
            self._measured.pop(owner, None)

    def check_quota(self, owner: str, usage: DiskUsage, coming: int = 0) -> None:
        """Check that an owner may store more.

        Args:
            owner: The owner.
            usage: Present use of the disk.
            coming: Size of a file to be stored, in bytes.

        Raises:
            QuotaExceeded: The bytes are used up.
            TooManyFiles: The number of files is used up.
        """
        remedy = "delete jobs that you no longer need, or ask for a larger quota"
        if usage.bytes + coming > self.quota.bytes:
            raise QuotaExceeded(
                f"the key {owner!r} uses {_size(usage.bytes)} of {_size(self.quota.bytes)} on the server's disk"
                + (f", and this needs {_size(coming)} more" if coming else "")
                + f"; {remedy}"
            )
        if usage.files >= self.quota.files:
            raise TooManyFiles(
                f"the key {owner!r} has {usage.files} files on the server's disk, the maximum; {remedy}", USAGE_S
            )

    def close(self) -> None:
        """End the processes that probe videos."""
        self._readers.close()

    def _other_folders(self) -> list[Path]:
        top = self._folder / OWNERS
        return sorted(top.iterdir()) if top.is_dir() else []


def disk_usage(folder: Path) -> DiskUsage:
    """Measure a folder; links are not followed, and files that vanish meanwhile are not counted."""
    total, count = 0, 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_size
                count += 1
    return DiskUsage(total, count)


def _size(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1024:.3g} KiB"
