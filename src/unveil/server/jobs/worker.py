"""Worker of the queue: claims jobs, sends heartbeats, reacts to cancellation and stores the outputs.

A job is `completed` only when its files are on disk. If a worker dies in between, the next one finds the files and does
not repeat the work.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unveil.errors import OUR_FAULT, Cancelled, Error, OutOfResources, out_of_memory
from unveil.io.files import write_atomically
from unveil.server.jobs.child_process import CHILDREN
from unveil.server.jobs.job import ErrorSource, Job
from unveil.server.jobs.outputs import JobOutputs
from unveil.server.jobs.queue import Queue

PROGRESS_S = 0.5  # interval between progress updates, which wait for the disk
IDLE_S = 0.05  # polling interval of an empty queue
FULL_S = 0.5  # interval between write attempts while the disk is full
PREVIEWS, LOGS = "previews", "log"
MEMORY = "out of memory; request fewer or smaller images, or a shorter or smaller video"
MAX_MESSAGES = 50  # per job
log = logging.getLogger(__name__)


class WorkerFailure(Error):
    """A failure of the server that the request did not cause."""


class Interrupted(Error):
    """The work was stopped by something other than a cancellation; the job is queued again."""


class JobProgress:
    """Progress, messages and previews of a running job, and its cancellation.

    Args:
        queue: Queue of the job.
        job: The job.
        worker: Name of its worker.
        over: Returns True once the worker has to stop.
    """

    def __init__(self, queue: Queue, job: Job, worker: str, over: Callable[[], bool] = lambda: False) -> None:
        self._queue, self._job, self._worker = queue, job, worker
        self._preview = queue.folder / PREVIEWS / f"{job.id}.png"
        self.should_stop = over
        self._reported = float("-inf")
        self.lost = False  # another worker owns the job
        self.messages: list[str] = []

    def step(self, done: int, total: int) -> None:
        """Report a completed step, out of `total` steps or 0 if unknown.

        Raises:
            Cancelled: The job was cancelled, or another worker owns it.
        """
        now = time.monotonic()
        if now - self._reported >= PROGRESS_S:
            self._reported = now
            self.heartbeat(done, total)
        self.check()

    def check(self) -> None:
        """Check whether to continue.

        Raises:
            Cancelled: As `step`.
        """
        if self.lost or self._queue.cancel_requested(self._job.id):
            raise Cancelled("cancelled")

    def heartbeat(self, done: int | None = None, total: int | None = None) -> None:
        """Send a heartbeat."""
        if self._queue.heartbeat(self._job.id, self._worker, done, total) == "not yours":
            self.lost = True

    def add_message(self, text: str) -> None:
        """Add a message for the user; duplicates are ignored."""
        if text not in self.messages and len(self.messages) < MAX_MESSAGES:
            self.messages.append(text)

    @property
    def preview_file(self) -> Path:
        """Path of the preview image, PNG."""
        return self._preview

    @property
    def log_file(self) -> Path:
        """Path of the log of the job's command, kept however the job ends."""
        return log_path(self._queue.folder, self._job.id)

    @property
    def note_file(self) -> Path:
        """Path of the note on the command's process."""
        return self._queue.folder / CHILDREN / f"{self._job.id}.json"

    def preview(self, png: bytes) -> None:
        """Write a preview image."""
        write_atomically(self._preview, png)

    def forget_preview(self) -> None:
        """Delete the preview image."""
        self._preview.unlink(missing_ok=True)


def log_path(folder: Path, id: str) -> Path:
    """Return the path of the log of a job's command."""
    return folder / LOGS / f"{id}.txt"


# handler of one job type: takes the request, the folder for output files, and the progress
JobHandler = Callable[[Mapping[str, Any], Path, JobProgress], object]


class Worker:
    """Runs the jobs of a queue one after the other.

    Args:
        name: Unique name of the worker.
        queue: Queue of jobs.
        results: Output folders.
        kinds: Handler of each job type.
    """

    def __init__(self, name: str, queue: Queue, results: JobOutputs, kinds: Mapping[str, JobHandler]) -> None:
        self.name, self.queue, self.results, self.handlers = name, queue, results, kinds
        self._over: Callable[[], bool] = lambda: False

    def run(self, over: Callable[[], bool]) -> None:
        """Run jobs until `over` returns True; it is called between jobs, and by work that can be resumed."""
        self._over = over
        while not over():
            try:
                if not self.run_next():
                    time.sleep(IDLE_S)
            except OutOfResources:  # jobs stay queued until a claim can be written
                time.sleep(FULL_S)

    def run_next(self) -> bool:
        """Run the next job; return False if none is queued."""
        job = self.queue.claim(self.name)
        if job is None:
            return False
        progress = JobProgress(self.queue, job, self.name, self._over)
        pulse = _Pulse(progress, self.queue.limits.lease / 4)
        try:
            progress.forget_preview()  # of a worker that died in this job; edits write no new one
            end = self._done(job, progress)
        finally:
            pulse.end()
            progress.forget_preview()
        while True:  # last: no preview remains when the job is seen as ended
            try:
                end()
                return True
            except OutOfResources as problem:
                log.warning("job %s has ended, but this cannot be written: %s", job.id, problem)
                time.sleep(FULL_S)

    def _done(self, job: Job, progress: JobProgress) -> Callable[[], object]:
        """Run a job; return a function that records how it ended."""
        queue, id, name = self.queue, job.id, self.name
        source: ErrorSource
        try:
            finished = self._made(job, progress)
            return lambda: queue.complete(id, name, finished.outputs, finished.messages)
        except Cancelled:
            return lambda: queue.mark_cancelled(id, name)
        except Interrupted as problem:
            reason = str(problem)
            # the end of the server does not count as an attempt
            return lambda: queue.reclaim(name, reason, counts=not self._over())
        except Error as problem:
            message, source = str(problem), _error_source(problem)
        except Exception as problem:
            message, source = _unexpected(id, problem)
        return lambda: queue.fail(id, name, message, source)

    def _made(self, job: Job, progress: JobProgress) -> Job:
        """Run the handler and return the record of the outputs on disk."""
        done = self.results.read(job.id)
        if done is None:  # else a worker died after writing them
            work = self.handlers.get(job.kind)
            if work is None:
                raise Error(f"{job.kind}: unknown type of job; this worker runs {', '.join(sorted(self.handlers))}")
            with self.results.writing(job, progress.messages) as folder:
                work(job.request, folder, progress)
                progress.check()
            done = self.results.read(job.id)
        assert done is not None
        return done


def _error_source(problem: Error) -> ErrorSource:
    """Return the source of an error."""
    if isinstance(problem, OutOfResources):
        return "resources"
    return "server" if isinstance(problem, WorkerFailure) else "request"


def _unexpected(id: str, problem: Exception) -> tuple[str, ErrorSource]:
    """Return the message and the source of an unexpected error."""
    if out_of_memory(problem):
        log.warning("job %s: %s", id, problem)
        return MEMORY, _error_source(OutOfResources(MEMORY))
    log.error("job %s", id, exc_info=problem)
    return f"unexpected {type(problem).__name__}: {problem}; {OUR_FAULT}", "server"


class _Pulse:
    """Thread that sends heartbeats during long work without steps."""

    def __init__(self, report: JobProgress, every: float) -> None:
        self._report, self._every, self._end = report, every, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop sending heartbeats."""
        self._end.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._end.wait(self._every):
            try:
                self._report.heartbeat()
            except Exception:  # the disk may be full for a while; the lease is longer than that
                log.exception("no heartbeat")
