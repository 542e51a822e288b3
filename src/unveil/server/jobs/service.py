"""Service behind the studio and the HTTP interface: queue, outputs and workers of one state folder.

A restart recovers the previous state: queued jobs stay queued, running jobs are queued again. If the job database is
corrupt, empty or missing, completed jobs are restored from their output folders.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unveil.errors import OutOfResources, OutputError
from unveil.server.jobs.catalog import RUNS, Catalog
from unveil.server.jobs.folder_lock import folder_lock, private_files
from unveil.server.jobs.job_table import Job, QueueLimits
from unveil.server.jobs.outputs import FOLDER, LOG, JobOutputs, UploadStore, names_in
from unveil.server.jobs.queue import Queue
from unveil.server.jobs.worker import LOGS, PREVIEWS, WorkerPool, log_path
from unveil.server.jobs.worker_main import MADE

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
        catalog: Names that requests may use.
        inputs: Uploaded files.
        messages: Warnings from the start, such as a corrupt database.
    """

    queue: Queue
    results: JobOutputs
    workers: WorkerPool
    catalog: Catalog
    inputs: UploadStore
    messages: tuple[str, ...] = ()

    def submit(self, kind: str, request: Mapping[str, Any], owner: str = "", cost: float = 1.0) -> Job:
        """Append a job to the queue.

        Raises:
            QueueFull: The queue is full.
            OutputError: The database is corrupt, so that no worker would claim the job.
        """
        if self.workers.damaged:
            raise OutputError(f"{self.queue.file}: is damaged; restart the server, which moves it aside")
        return self.queue.submit(kind, request, owner=owner, cost=cost)

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
        if not self.queue.forget(id):
            return False
        self.results.remove(id)
        log_path(self.queue.folder, id).unlink(missing_ok=True)
        return True

    def sweep(self) -> None:
        """Delete unused files while the server runs.

        These are uploads that are old and that no job refers to, temporary folders of dead workers, and logs of
        deleted jobs.
        """
        # listed before the jobs: each belongs to a job that was started by then
        logs, parts = list((self.queue.folder / LOGS).glob("*.txt")), self.results.parts()
        jobs = self.queue.jobs()
        running = {job.id for job in jobs if job.state == "running"}
        for part in parts:
            if part.name.split(".")[1] not in running:
                shutil.rmtree(part, ignore_errors=True)
        self.inputs.sweep(set().union(*(names_in(job.request) for job in jobs)))
        ids = {job.id for job in jobs}
        for path in logs:
            if path.stem not in ids:
                path.unlink(missing_ok=True)


@contextmanager
def serving(
    folder: Path, address: str, devices: Sequence[str] = ("auto",), limits: QueueLimits | None = None
) -> Iterator[Service]:
    """Run the service of a state folder for the duration of the block; its files are private to this user.

    Args:
        folder: State folder; created if missing.
        address: Address of the server, for its clients.
        devices: Devices, with one worker each.
        limits: Limits of the queue.

    Raises:
        OutputError: Another server uses the folder, or it cannot be written.
        RecipeError: A later version wrote the database.
    """
    with folder_lock(folder, address), private_files(folder):
        queue, results = Queue(folder, limits), JobOutputs(folder / MADE)
        results.sweep()
        inputs = UploadStore(folder / FOLDER)
        for preview in (folder / PREVIEWS).glob("*.png"):
            preview.unlink(missing_ok=True)
        messages = _restore_jobs(queue, results)
        for job in queue.recover():
            log.info("job %s was running when the server ended; it is %s", job.id, job.state)
        with suppress(OutOfResources):  # the disk is already full
            queue.reserve_disk()
        workers = WorkerPool(queue, devices)
        service = Service(queue, results, workers, Catalog(folder / RUNS), inputs, messages)
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
            inputs.close()
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
