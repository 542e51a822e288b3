"""Service behind the studio and the HTTP interface: queue, outputs and workers of one state folder.

A restart recovers the previous state: queued jobs stay queued, running jobs are queued again. If the job database is
corrupt, empty or missing, completed jobs are restored from their output folders.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from unveil.errors import OutOfResources, OutputError
from unveil.io import staging
from unveil.server.jobs.catalog import Catalog
from unveil.server.jobs.folder_lock import folder_lock, private_files
from unveil.server.jobs.job_table import ALL_JOBS, ENDED, Job, QueueLimits
from unveil.server.jobs.job_types import job_cost
from unveil.server.jobs.outputs import LOG, RETENTION_S, JobOutputs, UploadedFile, UploadStore
from unveil.server.jobs.owners import DiskUsage, OwnerData, Quota
from unveil.server.jobs.queue import Queue, QueuePosition
from unveil.server.jobs.task_job import lanes
from unveil.server.jobs.worker import LOGS, PREVIEWS, WorkerPool, log_path
from unveil.server.jobs.worker_main import MADE

if TYPE_CHECKING:
    from unveil.server.jobs.job_delay import JobDelay

LARGE_COST = 100.0  # megapixel evaluations from which the duration of an image or a video is estimated
SWEEP_S = 3600.0  # interval between two clean-ups
LOG_BYTES = 1 << 18  # of a command's log that are returned
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """Components that a server and its clients share.

    Attributes:
        queue: Queue of all jobs.
        results: Output folders.
        workers: Worker processes.
        owners: Uploads and runs of each owner.
        messages: Warnings from the start, such as a corrupt database.
        admins: Owners that may change models, which all owners share; None: all owners.
        retention: Seconds after which a job that has ended is deleted with its outputs; None: never.
    """

    queue: Queue
    results: JobOutputs
    workers: WorkerPool
    owners: OwnerData
    messages: tuple[str, ...] = ()
    admins: frozenset[str] | None = None
    retention: float | None = None

    def catalog(self, owner: str | None = "") -> Catalog:
        """Return the names that requests of an owner may use; None: those that all owners may use."""
        return self.owners.catalog(owner)

    def uploads(self, owner: str = "") -> UploadStore:
        """Return the uploaded files of an owner."""
        return self.owners.uploads(owner)

    def is_admin(self, owner: str) -> bool:
        """Return True if an owner may change models."""
        return self.admins is None or owner in self.admins

    def store_upload(self, content: bytes | IO[bytes], owner: str = "") -> UploadedFile:
        """Check a file and store it for an owner.

        Args:
            content: The content, or an open file.
            owner: The owner.

        Raises:
            DataError: Not a supported image or video, damaged, or over a limit.
            QueueFull: Too many uploads of this owner are being read, or the owner has too many files.
            OutOfResources: The owner's quota is used up, or the disk is full.
            OutputError: It cannot be stored.
        """
        size = len(content) if isinstance(content, bytes) else content.seek(0, os.SEEK_END)
        self.check_quota(owner, size)
        with self.owners.turns.turn(owner):
            upload = self.uploads(owner).store(content)
        self.owners.name_folder(owner)
        self.owners.count_file(owner, size)
        return upload

    def cost(self, kind: str, request: Mapping[str, Any], owner: str = "", budget: float | None = None) -> float:
        """Check that an owner may submit a request, and return its cost in network evaluations of a megapixel.

        Raises:
            RecipeError, WeightsError, DataError: The request is not possible.
            AdminRequired: The request would change a model, and the owner may not.
            JobTooLarge: The cost exceeds the budget.
            QueueFull, OutOfResources: The owner's quota is used up.
        """
        cost = job_cost(kind, request, self.catalog(owner), self.uploads(owner), budget, is_admin=self.is_admin(owner))
        self.check_quota(owner)
        return cost

    def usage(self, owner: str) -> DiskUsage:
        """Measure the disk space of an owner: uploads, runs and outputs; the result is at most ten seconds old."""
        return self.owners.usage(
            owner, lambda: [self.results.folder_of(job.id) for job in self.queue.jobs(owner=owner)]
        )

    def check_quota(self, owner: str, coming: int = 0) -> None:
        """Check that an owner may store a file of `coming` bytes; a server without keys has no limit.

        Raises:
            QueueFull: The owner has too many files.
            OutOfResources: The owner's bytes are used up.
        """
        if owner:
            self.owners.check_quota(owner, self.usage(owner), coming)

    def submit(self, kind: str, request: Mapping[str, Any], owner: str = "", cost: float = 1.0) -> Job:
        """Append a job to the queue.

        Raises:
            QueueFull: The queue is full.
            OutputError: The database is corrupt, so that no worker would claim the job.
        """
        if self.workers.damaged:
            raise OutputError(f"{self.queue.file}: is damaged; restart the server, which moves it aside")
        return self.queue.submit(kind, request, owner=owner, cost=cost)

    def positions(self) -> dict[str, QueuePosition]:
        """Return the positions of all queued jobs in the order in which they will start."""
        return self.queue.positions(len(self.workers.devices), self.workers.lanes)

    def delay(self, job: Job) -> JobDelay | None:
        """Estimate for how long a job, submitted or not yet, would keep others waiting; None for short jobs."""
        if job.cost < LARGE_COST and not lanes()[1].contains(job.kind):
            return None
        from unveil.server.jobs.job_delay import job_delay  # not needed for single images

        return job_delay(job, self.queue, self.workers.lanes, len(self.workers.devices))

    def preview(self, id: str) -> bytes | None:
        """Return the preview image of a running job as PNG; None if there is none.

        Raises:
            DataError: Not a valid job id.
        """
        try:
            return (self.queue.folder / PREVIEWS / f"{self.results.folder_of(id).name}.png").read_bytes()
        except FileNotFoundError:
            return None

    def log(self, id: str) -> bytes:
        """Return the end of the log of a job's command; empty if it printed nothing.

        Raises:
            DataError: Not a valid job id.
        """
        place = self.results.folder_of(id) / LOG  # for jobs of earlier versions
        for path in (log_path(self.queue.folder, id), place):
            with suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES))
                return file.read()
        return b""

    def delete(self, id: str) -> bool:
        """Delete a job that has ended, its outputs and its log; return False if it is missing or has not ended.

        Raises:
            DataError: Not a valid job id.
        """
        self.results.folder_of(id)
        job = self.queue.get(id)
        if job is None or not self.queue.forget(id):
            return False
        self.results.remove(id)
        self.owners.forget_usage(job.owner)
        log_path(self.queue.folder, id).unlink(missing_ok=True)
        return True

    def sweep(self) -> None:
        """Delete unused files while the server runs.

        These are jobs that ended longer ago than the retention period, uploads that are old and that no job refers to,
        temporary folders of dead workers, and logs of deleted jobs. Runs are never deleted.
        """
        if self.retention is not None:
            limit = time.time() - self.retention
            for job in self.queue.jobs():
                if job.state in ENDED and job.ended is not None and job.ended < limit:
                    self.delete(job.id)
        # listed before the jobs: each belongs to a job that was started by then
        logs = list((self.queue.folder / LOGS).glob("*.txt"))
        jobs = self.queue.jobs()
        staging.sweep(self.results.folder)
        self.owners.sweep(jobs, RETENTION_S)
        ids = {job.id for job in jobs}
        for path in logs:
            if path.stem not in ids:
                path.unlink(missing_ok=True)


@contextmanager
def serving(
    folder: Path,
    address: str,
    devices: Sequence[str] = ("auto",),
    limits: QueueLimits | None = None,
    *,
    quota: Quota | None = None,
    admins: frozenset[str] | None = None,
    retention: float | None = None,
    has_lanes: bool = True,
) -> Iterator[Service]:
    """Run the service of a state folder for the duration of the block; its files are private to this user.

    Args:
        folder: State folder; created if missing.
        address: Address of the server, for its clients.
        devices: Devices, with one worker each.
        limits: Limits of the queue.
        quota: Limits of each owner of a server with keys.
        admins: Owners that may change models; None: all.
        retention: Seconds after which a job that has ended is deleted; None: never.
        has_lanes: Run short jobs beside a long one, such as a training, on the same device.

    Raises:
        OutputError: Another server uses the folder, or it cannot be written.
        RecipeError: A later version wrote the database.
    """
    with folder_lock(folder, address), private_files(folder):
        queue, results = Queue(folder, limits), JobOutputs(folder / MADE)
        results.sweep()
        owners = OwnerData(folder, quota)
        for preview in (folder / PREVIEWS).glob("*.png"):
            preview.unlink(missing_ok=True)
        messages = _restore_jobs(queue, results)
        for job in queue.recover():
            log.info("job %s was running when the server ended; it is %s", job.id, job.state)
        with suppress(OutOfResources):  # the disk is already full
            queue.reserve_disk()
        owners.adopt(queue.jobs())
        workers = WorkerPool(queue, devices, lanes=lanes() if has_lanes else (ALL_JOBS,))
        service = Service(queue, results, workers, owners, messages, admins, retention)
        service.sweep()
        over = threading.Event()
        sweeper = threading.Thread(target=_sweep_again, args=(service, over), name="sweeper", daemon=True)
        sweeper.start()
        workers.start()
        try:
            yield service
        finally:
            over.set()
            workers.stop()
            sweeper.join()
            owners.close()
            queue.close()


def _restore_jobs(queue: Queue, results: JobOutputs) -> tuple[str, ...]:
    """Restore completed jobs from their output folders if the database is empty or lost; return a warning."""
    if queue.damaged is None and any(queue.counts().values()):
        return ()
    count = queue.restore(results.all())
    if queue.damaged is None and not count:
        return ()
    what = "contained no job" if queue.damaged is None else f"was damaged and is now {queue.damaged.name}"
    return (
        f"{queue.file.name} {what}; {count} completed jobs were restored from their files, and queued jobs are lost",
    )


def _sweep_again(service: Service, over: threading.Event) -> None:
    """Clean up at intervals, for a server that runs for months."""
    while not over.wait(SWEEP_S):
        try:
            service.sweep()
        except (OSError, sqlite3.Error, OutOfResources):
            log.exception("sweep")
    service.queue.close()
