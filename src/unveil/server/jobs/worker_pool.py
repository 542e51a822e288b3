"""Those who work: a process for each device, started again when it dies, its job given back to the queue."""

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

from unveil.server.jobs.command_process import CHILDREN, SAVING_S, runs_below
from unveil.server.jobs.queue import DAMAGED, Queue
from unveil.server.jobs.sqlite_store import is_damage
from unveil.server.jobs.worker import LOGS
from unveil.types import OutOfResources

SOUND_S = 10.0  # who lived for so long was sound: the next one starts at once
LONGEST_S = 30.0  # between two starts of what dies at once
TOLD, LINES = 2_000, 10  # bytes and lines at the end of a worker's log that are told of its death
LOG_BYTES = 1 << 20  # of a worker's log, of which a part is kept when it is longer
log = logging.getLogger(__name__)
# the arguments of a worker's process: folder, name, device
Command = Callable[[Path, str, str], list[str]]


def command(folder: Path, name: str, device: str) -> list[str]:
    """What starts a worker."""
    return [sys.executable, "-m", "unveil.server.jobs.worker_main", str(folder), name, device]


class _Place(NamedTuple):
    """A device, and who works on it."""

    device: str
    name: str
    process: subprocess.Popen[bytes]
    begun: float


class Crew:
    """Keeps one worker alive on each device, from `start` to `stop`.

    Args:
        queue: that they work on.
        devices: such as "cpu" or "cuda:0".
        start: what starts one.

    `damaged` says that the table of jobs cannot be read any more, so that nobody works until the next start mends it.
    """

    def __init__(self, queue: Queue, devices: Sequence[str], start: Command = command) -> None:
        self.queue, self.devices, self._command = queue, list(devices), start
        self._places: list[_Place] = []
        self._waits = dict.fromkeys(self.devices, 0.0)  # seconds before the next start
        self._due = dict.fromkeys(self.devices, 0.0)
        self._over = threading.Event()
        self._full = False  # the disk
        self.damaged = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts them, and watches them from a thread of its own."""
        self.look()
        self._thread = threading.Thread(target=self._watch, name="crew", daemon=True)
        self._thread.start()

    def stop(self, seconds: float = 5.0) -> None:
        """Ends them: each after its job if that takes no longer than this, or else at once; its job waits again.

        A command is waited for while it saves what it has.
        """
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        for place in self._places:
            place.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + seconds
        for place in self._places:
            if self._saves(place):
                log.info("worker %s: its command saves what it has", place.name)
            while place.process.poll() is None and time.monotonic() < end + self._saves(place):
                time.sleep(0.05)
            place.process.kill()
            place.process.wait()
            _close(place)
        self._places.clear()
        with suppress(OutOfResources, sqlite3.DatabaseError):  # the next start does it
            self.queue.recover()

    def _saves(self, place: _Place) -> float:
        """Seconds more for one whose command has to save what it has."""
        return SAVING_S if runs_below(self.queue.folder / CHILDREN, place.process.pid) else 0.0

    def names(self) -> list[str]:
        """Who works now."""
        return [place.name for place in self._places]

    def look(self) -> None:
        """Buries the dead, and starts whom there is a place for."""
        for place in [one for one in self._places if one.process.poll() is not None]:
            self._places.remove(place)
            _close(place)
            self._bury(place)
        for place in self._places:
            _shorten(self._log_of(place.device))
        silent = self._silent()
        for place in [one for one in self._places if one.name in silent]:
            log.warning("worker %s gave no sign of life and is killed", place.name)
            place.process.kill()
        now = time.monotonic()
        for device in self.devices:
            if device not in {place.device for place in self._places} and now >= self._due[device]:
                self._places.append(self._begin(device))

    def _silent(self) -> set[str | None]:
        """Those who gave no sign of life, and whose jobs were taken back; on a full disk nobody can give one."""
        try:
            if self._full:
                self.queue.spare()
            self._full = False
            return {job.worker for job in self.queue.reclaim()}
        except OutOfResources:
            self._full = True
            return set()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            try:
                self.look()
            except Exception as problem:  # a full disk now is none for ever
                damage = isinstance(problem, sqlite3.DatabaseError) and is_damage(problem)
                if not (damage and self.damaged):  # which is told once
                    log.exception("workers")
                self.damaged = self.damaged or damage

    def _begin(self, device: str) -> _Place:
        name = f"{device}-{secrets.token_hex(4)}"
        file = self._log_of(device)
        file.parent.mkdir(parents=True, exist_ok=True)
        _shorten(file)
        with file.open("ab") as out:  # behind what the one before it said, which may be why that one died
            out.write(_head(name))
            out.flush()
            process = subprocess.Popen(
                self._command(self.queue.folder, name, device), stdin=subprocess.PIPE, stdout=out, stderr=out
            )
        return _Place(device, name, process, time.monotonic())

    def _bury(self, place: _Place) -> None:
        code = place.process.returncode
        why = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        last = self._last_words(place)
        if code == DAMAGED and not self.damaged:
            self.damaged = True
            log.error("%s", last or "the table of jobs is damaged")
        sound = time.monotonic() - place.begun >= SOUND_S
        self._waits[place.device] = 0.0 if sound else min(max(2 * self._waits[place.device], 0.25), LONGEST_S)
        self._due[place.device] = time.monotonic() + self._waits[place.device]
        for job in self.queue.reclaim(place.name, f"its worker was {why}" + (f": {last}" if last else "")):
            log.warning("worker %s %s; job %s is %s", place.name, why, job.id, job.state)

    def _log_of(self, device: str) -> Path:
        return self.queue.folder / LOGS / f"{device.replace(':', '-')}.log"

    def _last_words(self, place: _Place) -> str:
        """The last lines that a worker wrote."""
        try:
            told = _tail(self._log_of(place.device), TOLD).rpartition(_head(place.name))[2]
        except OSError:
            return ""
        return "\n".join(told.decode("utf-8", "replace").strip().splitlines()[-LINES:])


def _head(name: str) -> bytes:
    """The line of a log with which a worker begins."""
    return f"-- {name}\n".encode()


def _tail(file: Path, most: int) -> bytes:
    with file.open("rb") as found:
        found.seek(max(0, found.seek(0, os.SEEK_END) - most))
        return found.read()


def _shorten(file: Path) -> None:
    """Leaves the end of a log that has grown too long; who writes it goes on behind that."""
    with suppress(OSError):
        if file.stat().st_size > LOG_BYTES:
            last = _tail(file, LOG_BYTES // 4)
            with file.open("ab") as kept:
                kept.truncate(0)
                kept.write(last)


def _close(place: _Place) -> None:
    if place.process.stdin is not None:
        place.process.stdin.close()
