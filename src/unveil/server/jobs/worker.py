"""One who works on the queue: takes a job, shows that it lives, hears when it is to stop, and puts down what it made.

A job is `completed` when its files are on the disk, and not before. A worker that dies between the two is followed by
one that finds the files and makes nothing twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unveil.io.files import write_atomically
from unveil.server.jobs.command_process import CHILDREN
from unveil.server.jobs.job import Fault, Job
from unveil.server.jobs.outputs import Results
from unveil.server.jobs.queue import Queue
from unveil.types import OUR_FAULT, Cancelled, Error, OutOfResources, out_of_memory

EVERY_S = 0.5  # between two words on progress, which wait for the disk
IDLE_S = 0.05  # between two looks at an empty queue
FULL_S = 0.5  # between two tries to write into it, while the disk is full
PREVIEWS, LOGS = "previews", "log"
MEMORY = "out of memory; ask for fewer or smaller pictures, or for a shorter or smaller clip"
SAID = 50  # lines that are kept of what is told of a job
log = logging.getLogger(__name__)


class Broken(Error):
    """Work that failed by no fault of what was asked for."""


class Interrupted(Error):
    """Work that somebody ended who did not cancel its job, which waits again."""


class Report:
    """What the work on a job tells, and what it hears.

    Args:
        queue: that the job is of.
        job: the job.
        worker: who has it.
        over: whether the worker was told to end.
    """

    def __init__(self, queue: Queue, job: Job, worker: str, over: Callable[[], bool] = lambda: False) -> None:
        self._queue, self._job, self._worker = queue, job, worker
        self._preview = queue.folder / PREVIEWS / f"{job.id}.png"
        self.over = over
        self._told = float("-inf")
        self.lost = False  # the job is another's by now
        self.said: list[str] = []

    def step(self, done: int, total: int) -> None:
        """A step was made, of so many in all, or of 0 where that is not known.

        Raises:
            Cancelled: the job was cancelled, or is another worker's by now.
        """
        now = time.monotonic()
        if now - self._told >= EVERY_S:
            self._told = now
            self.beat(done, total)
        self.check()

    def check(self) -> None:
        """Whether to go on.

        Raises:
            Cancelled: as `step`.
        """
        if self.lost or self._queue.stops(self._job.id):
            raise Cancelled("cancelled")

    def beat(self, done: int | None = None, total: int | None = None) -> None:
        """A sign of life."""
        if self._queue.beat(self._job.id, self._worker, done, total) == "not yours":
            self.lost = True

    def say(self, text: str) -> None:
        """Something that a person should know of what is made; said twice, it is told once."""
        if text not in self.said and len(self.said) < SAID:
            self.said.append(text)

    @property
    def preview_file(self) -> Path:
        """Where a picture of what is on its way is shown, PNG."""
        return self._preview

    @property
    def log_file(self) -> Path:
        """Where what its command says is kept, however the job ends."""
        return log_of(self._queue.folder, self._job.id)

    @property
    def note_file(self) -> Path:
        """Where it is said which process its command is."""
        return self._queue.folder / CHILDREN / f"{self._job.id}.json"

    def preview(self, png: bytes) -> None:
        """Shows a picture of what is on its way."""
        write_atomically(self._preview, png)

    def forget_preview(self) -> None:
        """Takes it away."""
        self._preview.unlink(missing_ok=True)


def log_of(folder: Path, id: str) -> Path:
    """Where what a job's command says is kept, in the folder of the queue."""
    return folder / LOGS / f"{id}.txt"


# the request of a job, the folder for its files, and what hears how it goes
Work = Callable[[Mapping[str, Any], Path, Report], object]


class Worker:
    """Works on the jobs of a queue, one after the other.

    Args:
        name: who it is; no two have the same.
        queue: where jobs come from.
        results: where what they make goes.
        kinds: what is done, by the kind of a job.
    """

    def __init__(self, name: str, queue: Queue, results: Results, kinds: Mapping[str, Work]) -> None:
        self.name, self.queue, self.results, self.kinds = name, queue, results, kinds
        self._over: Callable[[], bool] = lambda: False

    def run(self, over: Callable[[], bool]) -> None:
        """Works until it is over, which is asked between two jobs, and by work that can be gone on with."""
        self._over = over
        while not over():
            try:
                if not self.one():
                    time.sleep(IDLE_S)
            except OutOfResources:  # what waits goes on waiting until it can be written whose it is
                time.sleep(FULL_S)

    def one(self) -> bool:
        """Does the job whose turn it is; False: there is none."""
        job = self.queue.take(self.name)
        if job is None:
            return False
        report = Report(self.queue, job, self.name, self._over)
        pulse = _Pulse(report, self.queue.limits.lease / 4)
        try:
            report.forget_preview()  # of a worker that died of this job; an edit writes over none
            end = self._done(job, report)
        finally:
            pulse.end()
            report.forget_preview()
        while True:  # the last thing: who sees that a job has ended finds nothing of it on its way
            try:
                end()
                return True
            except OutOfResources as problem:
                log.warning("job %s has ended, which cannot be written: %s", job.id, problem)
                time.sleep(FULL_S)

    def _done(self, job: Job, report: Report) -> Callable[[], object]:
        """Does a job; how it ends."""
        queue, id, own = self.queue, job.id, self.name
        fault: Fault
        try:
            made = self._made(job, report)
            return lambda: queue.complete(id, own, made.outputs, made.said)
        except Cancelled:
            return lambda: queue.stopped(id, own)
        except Interrupted as problem:
            told = str(problem)
            # the end of a server is no fault of its jobs
            return lambda: queue.reclaim(own, told, counts=not self._over())
        except Error as problem:
            why, fault = str(problem), _fault(problem)
        except Exception as problem:
            why, fault = _unexpected(id, problem)
        return lambda: queue.fail(id, own, why, fault)

    def _made(self, job: Job, report: Report) -> Job:
        """The record of a job whose files are on the disk."""
        done = self.results.read(job.id)
        if done is None:  # or somebody made it, and died before saying so
            work = self.kinds.get(job.kind)
            if work is None:
                raise Error(f"{job.kind}: nobody here knows how that is done; known: {', '.join(sorted(self.kinds))}")
            with self.results.writing(job, report.said) as folder:
                work(job.request, folder, report)
                report.check()
            done = self.results.read(job.id)
        assert done is not None
        return done


def _fault(problem: Error) -> Fault:
    """Whose fault an error is."""
    return "room" if isinstance(problem, OutOfResources) else "server" if isinstance(problem, Broken) else "asked"


def _unexpected(id: str, problem: Exception) -> tuple[str, Fault]:
    """What is said of an error that nobody foresaw, and whose fault it is."""
    if out_of_memory(problem):
        log.warning("job %s: %s", id, problem)
        return MEMORY, _fault(OutOfResources(MEMORY))
    log.error("job %s", id, exc_info=problem)
    return f"unexpected {type(problem).__name__}: {problem}; {OUR_FAULT}", "server"


class _Pulse:
    """Shows that a worker lives while it does something long that does not count steps."""

    def __init__(self, report: Report, every: float) -> None:
        self._report, self._every, self._end = report, every, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """No sign any more."""
        self._end.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._end.wait(self._every):
            try:
                self._report.beat()
            except Exception:  # the disk may be full for a while; the lease is longer than that
                log.exception("no sign of life")
