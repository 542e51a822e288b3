"""The whole of it behind the browser and the HTTP interface: a folder's queue, results and workers, held by one server.

What was there before is found again: jobs that waited wait, what ran is run anew, and where the table of jobs is
damaged, empty or gone, what was made is listed again from the files.
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

from unveil.server.jobs.catalog import RUNS, Catalog
from unveil.server.jobs.command_job import LOG
from unveil.server.jobs.folder_lock import held
from unveil.server.jobs.job import Job, Limits
from unveil.server.jobs.outputs import Results
from unveil.server.jobs.queue import Queue
from unveil.server.jobs.uploads import FOLDER, Inputs, names_in
from unveil.server.jobs.worker import LOGS, PREVIEWS, log_of
from unveil.server.jobs.worker_main import MADE
from unveil.server.jobs.worker_pool import Crew
from unveil.types import OutOfResources, OutputError

SWEEP_S = 3600.0  # between two looks for what nobody needs any more
LOG_BYTES = 1 << 18  # of what a command said that are shown
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """What a server and its clients share.

    Attributes:
        queue: of all jobs. results: what they made. crew: who works.
        catalog: the names that requests may say. inputs: files that were sent.
        said: what a person should know of the start, such as a damaged table.
    """

    queue: Queue
    results: Results
    crew: Crew
    catalog: Catalog
    inputs: Inputs
    said: tuple[str, ...] = ()

    def submit(self, kind: str, request: Mapping[str, Any], owner: str = "", cost: float = 1.0) -> Job:
        """Puts a job at the end of the queue.

        Raises:
            Busy: as many wait as may.
            NotWritable: the table of jobs is damaged, so that nobody would take it.
        """
        if self.crew.damaged:
            raise OutputError(f"{self.queue.file}: is damaged; start the server again, which moves it aside")
        return self.queue.submit(kind, request, owner=owner, cost=cost)

    def preview(self, id: str) -> bytes | None:
        """The picture of what is on its way, PNG; None: there is none.

        Raises:
            MediaError: no name that a job could have.
        """
        try:
            return (self.queue.folder / PREVIEWS / f"{self.results.of(id).name}.png").read_bytes()
        except FileNotFoundError:
            return None

    def log(self, id: str) -> bytes:
        """The end of what a job's command says, or said until it ended however it did; empty where it said nothing.

        Raises:
            MediaError: no name that a job could have.
        """
        place = self.results.of(id) / LOG  # of those that an earlier version ended
        for path in (log_of(self.queue.folder, id), place):
            with suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES))
                return file.read()
        return b""

    def delete(self, id: str) -> bool:
        """Deletes a job that has ended and what it made and said; False: there is none, or it has not.

        Raises:
            MediaError: no name that a job could have.
        """
        self.results.of(id)
        if not self.queue.forget(id):
            return False
        self.results.remove(id)
        log_of(self.queue.folder, id).unlink(missing_ok=True)
        return True

    def sweep(self) -> None:
        """Deletes what nobody needs any more, while others work.

        Files that were sent long ago and that no job speaks of, what workers who died left half-way, and logs of jobs
        that are no more.
        """
        # before the jobs: what of them is found here was begun by then
        logs, parts = list((self.queue.folder / LOGS).glob("*.txt")), self.results.parts()
        jobs = self.queue.jobs()
        running = {job.id for job in jobs if job.state == "running"}
        for part in parts:
            if part.name.split(".")[1] not in running:
                shutil.rmtree(part, ignore_errors=True)
        self.inputs.sweep(set().union(*(names_in(job.request) for job in jobs)))
        known = {job.id for job in jobs}
        for path in logs:
            if path.stem not in known:
                path.unlink(missing_ok=True)


@contextmanager
def serving(
    folder: Path, address: str, devices: Sequence[str] = ("auto",), limits: Limits | None = None
) -> Iterator[Service]:
    """A service on a folder, until the end of the block.

    Args:
        folder: where everything lies; made if it is not there.
        address: where its clients find it.
        devices: one worker each.
        limits: of the queue.

    Raises:
        NotWritable: another server has the folder, or it cannot be written.
        RecipeError: its table was made by a later version.
    """
    with held(folder, address):
        queue, results = Queue(folder, limits), Results(folder / MADE)
        results.sweep()
        inputs = Inputs(folder / FOLDER)
        for preview in (folder / PREVIEWS).glob("*.png"):
            preview.unlink(missing_ok=True)
        said = _restored(queue, results)
        for job in queue.recover():
            log.info("job %s was running when the server ended; it is %s", job.id, job.state)
        with suppress(OutOfResources):  # the disk is full already
            queue.take_room()
        crew = Crew(queue, devices)
        service = Service(queue, results, crew, Catalog(folder / RUNS), inputs, said)
        service.sweep()
        over = threading.Event()
        sweeper = threading.Thread(target=_sweep_again, args=(service, over), name="sweeper", daemon=True)
        sweeper.start()
        crew.start()
        try:
            yield service
        finally:
            over.set()
            crew.stop()
            sweeper.join()
            inputs.close()
            queue.close()


def _restored(queue: Queue, results: Results) -> tuple[str, ...]:
    """Lists again what was made where the table of jobs holds none, as one that was lost; what is to be said of it."""
    if queue.damaged is None and any(queue.counts().values()):
        return ()
    count = queue.restore(results.all())
    if queue.damaged is None and not count:
        return ()
    what = "held no job" if queue.damaged is None else f"was damaged and is now {queue.damaged.name}"
    return (
        f"{queue.file.name} {what}; {count} completed jobs are listed again from their files, and those that waited "
        "are lost",
    )


def _sweep_again(service: Service, over: threading.Event) -> None:
    """Sweeps now and then, for a server that runs for months."""
    while not over.wait(SWEEP_S):
        try:
            service.sweep()
        except (OSError, sqlite3.Error, OutOfResources):
            log.exception("sweep")
    service.queue.close()
