"""Workers of the queue, and the pool of their processes.

A worker claims jobs, sends heartbeats, reacts to cancellation and stores the outputs.

A job is `completed` only when its files are on disk. If a worker dies in between, the next one finds the files and does
not repeat the work.
"""

from __future__ import annotations

import ctypes
import logging
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from unveil.errors import OUR_FAULT, Cancelled, Error, OutOfResources, PromptTruncated, out_of_memory
from unveil.io import sandbox
from unveil.io.console import Console, Progress
from unveil.io.files import write_atomically
from unveil.server.jobs.child_process import CHILDREN, SAVING_S, has_running_child
from unveil.server.jobs.job_table import ALL_JOBS, ErrorSource, Job, Lane, is_damage
from unveil.server.jobs.outputs import JobOutputs
from unveil.server.jobs.queue import DAMAGED, Queue

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
    def owner(self) -> str:
        """Owner of the job."""
        return self._job.owner

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
        lane: Jobs that it claims.
    """

    def __init__(
        self, name: str, queue: Queue, results: JobOutputs, kinds: Mapping[str, JobHandler], lane: Lane = ALL_JOBS
    ) -> None:
        self.name, self.queue, self.results, self.handlers, self._lane = name, queue, results, kinds, lane
        self._over: Callable[[], bool] = lambda: False

    def run(self, over: Callable[[], bool]) -> None:
        """Run jobs until `over` returns True; it is called between jobs, and by work that can be resumed."""
        self._over = over
        while not over():
            try:
                if self.run_next():
                    _release_memory()
                else:
                    time.sleep(IDLE_S)
            except OutOfResources:  # jobs stay queued until a claim can be written
                time.sleep(FULL_S)

    def run_next(self) -> bool:
        """Run the next job; return False if none is queued."""
        job = self.queue.claim(self.name, self._lane)
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


def _release_memory() -> None:
    """Return freed memory to the system: that of graphics cards, and that of glibc, which keeps more with each job."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError, TypeError):  # no such function in the C library, or no C library
        ctypes.CDLL(None).malloc_trim(0)


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


@dataclass(frozen=True)
class JobConsole(Console):
    """Console that reports progress and warnings to a job."""

    job: JobProgress | None = None

    def say(self, text: str) -> None:
        """Ignore text meant for a terminal; the output files are the result."""

    def note(self, text: str) -> None:
        """Add a note to the messages of the job."""
        self.warn(text)

    def warn(self, text: str) -> None:
        """Add a warning to the messages of the job."""
        if self.job is not None:
            self.job.add_message(text)

    def result(self, facts: Mapping[str, Any], text: str) -> None:
        """Ignore the result; the output files are the result."""

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Progress]:
        """Count steps for the job; each step checks for cancellation."""
        yield _Steps(what, total, self.job)


class _Steps(Progress):
    """Progress counter that reports to a job."""

    def __init__(self, what: str, total: int, job: JobProgress | None) -> None:
        super().__init__(what, total, shown=False, terminal=False)
        self._job = job

    def advance(self, by: int = 1) -> None:
        super().advance(by)
        if self._job is not None:
            self._job.step(self._done, self._total)


@contextmanager
def job_console(job: JobProgress) -> Iterator[JobConsole]:
    """Open a console for a job; PromptTruncated warnings become messages of the job, others are shown as before."""
    with warnings.catch_warnings():
        showwarning = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
            if issubclass(category, PromptTruncated):
                job.add_message(str(message))
            else:
                showwarning(message, category, *place, **rest)

        warnings.showwarning = show
        warnings.simplefilter("always", PromptTruncated)
        yield JobConsole(job=job)


LOOK_S = 1.0  # interval at which the durations of jobs are checked
STOP_S = 30.0  # time for a worker to stop a job, in addition to that for saving
STABLE_S = 10.0  # a worker that lived this long is restarted without delay
MAX_RESTART_S = 30.0  # maximum delay before restarting a worker that dies at once
LOG_TAIL, LOG_LINES = 2_000, 10  # bytes and lines of a worker's log that are quoted when it dies
LOG_BYTES = 1 << 20  # size above which a worker's log is truncated
log = logging.getLogger(__name__)
# arguments: state folder, name, device and lane of the worker
WorkerCommand = Callable[[Path, str, str, str], list[str]]


def worker_command(folder: Path, name: str, device: str, lane: str) -> list[str]:
    """Return the command line of a worker."""
    return [sys.executable, "-m", "unveil.server.jobs.worker_main", str(folder), name, device, lane]


class _Place(NamedTuple):
    """Where a worker runs: a device, and the jobs that it claims."""

    device: str
    lane: Lane


class _Slot(NamedTuple):
    """A running worker."""

    place: _Place
    name: str
    process: subprocess.Popen[bytes]
    started: float


class WorkerPool:
    """Keeps one worker alive on each device for each lane, from `start` to `stop`.

    A worker of a lane is started with the first job of the lane, that of the first lane at once.

    `damaged` is True once the job database is corrupt; no worker runs until the next start of the server repairs it.

    Args:
        queue: Queue of the jobs.
        devices: Devices, such as "cpu" or "cuda:0".
        start: Builds the command line of a worker.
        lanes: Lanes of the jobs.
    """

    def __init__(
        self,
        queue: Queue,
        devices: Sequence[str],
        start: WorkerCommand = worker_command,
        lanes: Sequence[Lane] = (ALL_JOBS,),
    ) -> None:
        self.queue, self.devices, self.lanes, self._command = queue, list(devices), tuple(lanes), start
        self._slots: list[_Slot] = []
        places = [_Place(device, lane) for lane in lanes for device in self.devices]
        self._waits = dict.fromkeys(places, 0.0)  # seconds until the next restart
        self._due = dict.fromkeys(places, 0.0)
        self._over = threading.Event()
        self._full = False  # the disk is full
        self._looked = float("-inf")  # when overdue jobs were looked for
        self.damaged = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the workers, and a thread that watches them."""
        self.check()
        self._thread = threading.Thread(target=self._watch, name="worker-pool", daemon=True)
        self._thread.start()

    def stop(self, seconds: float = 5.0) -> None:
        """Stop the workers: each after its job, or by force after this many seconds; its job is then queued again.

        Tasks in processes of their own get more time to save a checkpoint.
        """
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        for slot in self._slots:
            slot.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + seconds
        for slot in self._slots:
            if self._saves(slot):
                log.info("worker %s: waiting for its task to save", slot.name)
            while slot.process.poll() is None and time.monotonic() < end + self._saves(slot):
                time.sleep(0.05)
            slot.process.kill()
            slot.process.wait()
            _close(slot)
        self._slots.clear()
        with suppress(OutOfResources, sqlite3.DatabaseError):  # the next start repeats it
            self.queue.recover()

    def _saves(self, slot: _Slot) -> float:
        """Return the extra seconds for a worker whose task has to save."""
        return SAVING_S if has_running_child(self.queue.folder / CHILDREN, slot.process.pid) else 0.0

    def names(self) -> list[str]:
        """Names of the running workers."""
        return [slot.name for slot in self._slots]

    def check(self) -> None:
        """Clean up after dead workers, and start missing ones."""
        for slot in [slot for slot in self._slots if slot.process.poll() is not None]:
            self._slots.remove(slot)
            _close(slot)
            self._bury(slot)
        for slot in self._slots:
            _shorten(self._log_of(slot.place))
        silent, late = self._silent(), self._late()
        for slot in [slot for slot in self._slots if slot.name in silent or slot.name in late]:
            reason = "sent no heartbeat" if slot.name in silent else "did not stop a job that took too long"
            log.warning("worker %s %s and is killed", slot.name, reason)
            slot.process.kill()
        now = time.monotonic()
        for place in self._due:
            if place in {slot.place for slot in self._slots} or now < self._due[place]:
                continue
            if place.lane == self.lanes[0] or self.queue.has_queued(place.lane):
                self._slots.append(self._begin(place))

    def _silent(self) -> set[str | None]:
        """Reclaim jobs with expired leases and return their workers; on a full disk leases are renewed instead."""
        try:
            if self._full:
                self.queue.renew_leases()
            self._full = False
            return {job.worker for job in self.queue.reclaim()}
        except OutOfResources:
            self._full = True
            return set()

    def _late(self) -> list[str]:
        """Stop jobs that take too long; return the workers that do not do so."""
        now = time.monotonic()
        if not self.queue.limits.seconds or self._full or now < self._looked + LOOK_S:
            return []
        self._looked = now
        with suppress(OutOfResources):
            return self.queue.stop_overdue(SAVING_S + STOP_S)
        return []

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            try:
                self.check()
            except Exception as problem:  # such as a full disk, which is temporary
                damage = isinstance(problem, sqlite3.DatabaseError) and is_damage(problem)
                if not (damage and self.damaged):  # logged once
                    log.exception("workers")
                self.damaged = self.damaged or damage

    def _begin(self, place: _Place) -> _Slot:
        name = f"{place.device}-{secrets.token_hex(4)}"
        file = self._log_of(place)
        file.parent.mkdir(parents=True, exist_ok=True)
        _shorten(file)
        with file.open("ab") as out:  # keeps the output of the previous worker, which may explain its death
            out.write(_head(name))
            out.flush()
            process = subprocess.Popen(
                self._command(self.queue.folder, name, place.device, place.lane.name),
                env=sandbox.compute_environment(),  # not the server's keys, nor other secrets of its environment
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
            )
        return _Slot(place, name, process, time.monotonic())

    def _bury(self, slot: _Slot) -> None:
        code = slot.process.returncode
        why = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        last = self._last_words(slot)
        if code == DAMAGED and not self.damaged:
            self.damaged = True
            log.error("%s", last or "the table of jobs is damaged")
        stable = time.monotonic() - slot.started >= STABLE_S
        self._waits[slot.place] = 0.0 if stable else min(max(2 * self._waits[slot.place], 0.25), MAX_RESTART_S)
        self._due[slot.place] = time.monotonic() + self._waits[slot.place]
        for job in self.queue.reclaim(slot.name, f"its worker was {why}" + (f": {last}" if last else "")):
            log.warning("worker %s %s; job %s is %s", slot.name, why, job.id, job.state)

    def _log_of(self, place: _Place) -> Path:
        lane = "" if place.lane == self.lanes[0] else f".{place.lane.name}"
        return self.queue.folder / LOGS / f"{place.device.replace(':', '-')}{lane}.log"

    def _last_words(self, slot: _Slot) -> str:
        """Return the last lines of a worker's log."""
        try:
            tail = _tail(self._log_of(slot.place), LOG_TAIL).rpartition(_head(slot.name))[2]
        except OSError:
            return ""
        return "\n".join(tail.decode("utf-8", "replace").strip().splitlines()[-LOG_LINES:])


def _head(name: str) -> bytes:
    """Return the log line that marks the start of a worker."""
    return f"-- {name}\n".encode()


def _tail(file: Path, limit: int) -> bytes:
    with file.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - limit))
        return log.read()


def _shorten(file: Path) -> None:
    """Keep only the end of a log that has grown too long; its writer appends to it."""
    with suppress(OSError):
        if file.stat().st_size > LOG_BYTES:
            last = _tail(file, LOG_BYTES // 4)
            with file.open("ab") as out:
                out.truncate(0)
                out.write(last)


def _close(slot: _Slot) -> None:
    if slot.process.stdin is not None:
        slot.process.stdin.close()
