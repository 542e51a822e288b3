"""Pool of worker processes, one per device; a dead worker is restarted and its job queued again."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from unveil.errors import OutOfResources
from unveil.server.jobs.child_process import CHILDREN, SAVING_S, has_running_child
from unveil.server.jobs.queue import DAMAGED, Queue
from unveil.server.jobs.sqlite_store import is_damage
from unveil.server.jobs.worker import LOGS

STABLE_S = 10.0  # a worker that lived this long is restarted without delay
MAX_RESTART_S = 30.0  # maximum delay before restarting a worker that dies at once
LOG_TAIL, LOG_LINES = 2_000, 10  # bytes and lines of a worker's log that are quoted when it dies
LOG_BYTES = 1 << 20  # size above which a worker's log is truncated
log = logging.getLogger(__name__)
# arguments: state folder, name and device of the worker
WorkerCommand = Callable[[Path, str, str], list[str]]


def worker_command(folder: Path, name: str, device: str) -> list[str]:
    """Return the command line of a worker."""
    return [sys.executable, "-m", "unveil.server.jobs.worker_main", str(folder), name, device]


class _Slot(NamedTuple):
    """A device and its running worker."""

    device: str
    name: str
    process: subprocess.Popen[bytes]
    started: float


class WorkerPool:
    """Keeps one worker alive on each device, from `start` to `stop`.

    `damaged` is True once the job database is corrupt; no worker runs until the next start of the server repairs it.

    Args:
        queue: Queue of the jobs.
        devices: Devices, such as "cpu" or "cuda:0".
        start: Builds the command line of a worker.
    """

    def __init__(self, queue: Queue, devices: Sequence[str], start: WorkerCommand = worker_command) -> None:
        self.queue, self.devices, self._command = queue, list(devices), start
        self._places: list[_Slot] = []
        self._waits = dict.fromkeys(self.devices, 0.0)  # seconds until the next restart
        self._due = dict.fromkeys(self.devices, 0.0)
        self._over = threading.Event()
        self._full = False  # the disk is full
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
        for place in self._places:
            place.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + seconds
        for place in self._places:
            if self._saves(place):
                log.info("worker %s: waiting for its task to save", place.name)
            while place.process.poll() is None and time.monotonic() < end + self._saves(place):
                time.sleep(0.05)
            place.process.kill()
            place.process.wait()
            _close(place)
        self._places.clear()
        with suppress(OutOfResources, sqlite3.DatabaseError):  # the next start repeats it
            self.queue.recover()

    def _saves(self, place: _Slot) -> float:
        """Return the extra seconds for a worker whose task has to save."""
        return SAVING_S if has_running_child(self.queue.folder / CHILDREN, place.process.pid) else 0.0

    def names(self) -> list[str]:
        """Names of the running workers."""
        return [place.name for place in self._places]

    def check(self) -> None:
        """Clean up after dead workers, and start missing ones."""
        for place in [place for place in self._places if place.process.poll() is not None]:
            self._places.remove(place)
            _close(place)
            self._bury(place)
        for place in self._places:
            _shorten(self._log_of(place.device))
        silent = self._silent()
        for place in [place for place in self._places if place.name in silent]:
            log.warning("worker %s sent no heartbeat and is killed", place.name)
            place.process.kill()
        now = time.monotonic()
        for device in self.devices:
            if device not in {place.device for place in self._places} and now >= self._due[device]:
                self._places.append(self._begin(device))

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

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            try:
                self.check()
            except Exception as problem:  # such as a full disk, which is temporary
                damage = isinstance(problem, sqlite3.DatabaseError) and is_damage(problem)
                if not (damage and self.damaged):  # logged once
                    log.exception("workers")
                self.damaged = self.damaged or damage

    def _begin(self, device: str) -> _Slot:
        name = f"{device}-{secrets.token_hex(4)}"
        file = self._log_of(device)
        file.parent.mkdir(parents=True, exist_ok=True)
        _shorten(file)
        with file.open("ab") as out:  # keeps the output of the previous worker, which may explain its death
            out.write(_head(name))
            out.flush()
            process = subprocess.Popen(
                self._command(self.queue.folder, name, device), stdin=subprocess.PIPE, stdout=out, stderr=out
            )
        return _Slot(device, name, process, time.monotonic())

    def _bury(self, place: _Slot) -> None:
        code = place.process.returncode
        why = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        last = self._last_words(place)
        if code == DAMAGED and not self.damaged:
            self.damaged = True
            log.error("%s", last or "the table of jobs is damaged")
        stable = time.monotonic() - place.started >= STABLE_S
        self._waits[place.device] = 0.0 if stable else min(max(2 * self._waits[place.device], 0.25), MAX_RESTART_S)
        self._due[place.device] = time.monotonic() + self._waits[place.device]
        for job in self.queue.reclaim(place.name, f"its worker was {why}" + (f": {last}" if last else "")):
            log.warning("worker %s %s; job %s is %s", place.name, why, job.id, job.state)

    def _log_of(self, device: str) -> Path:
        return self.queue.folder / LOGS / f"{device.replace(':', '-')}.log"

    def _last_words(self, place: _Slot) -> str:
        """Return the last lines of a worker's log."""
        try:
            tail = _tail(self._log_of(place.device), LOG_TAIL).rpartition(_head(place.name))[2]
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


def _close(place: _Slot) -> None:
    if place.process.stdin is not None:
        place.process.stdin.close()
