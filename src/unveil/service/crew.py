"""Those who work: a process for each device, started again when it dies, its job given back to the queue."""

from __future__ import annotations

import logging
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from unveil.service.queue import Queue
from unveil.types import OutOfResources

LOGS = "log"
SOUND_S = 10.0  # who lived for so long was sound: the next one starts at once
LONGEST_S = 30.0  # between two starts of what dies at once
TOLD = 2_000  # bytes at the end of a worker's log that are told of its death
log = logging.getLogger(__name__)
# the arguments of a worker's process: folder, name, device
Command = Callable[[Path, str, str], list[str]]


def command(folder: Path, name: str, device: str) -> list[str]:
    """What starts a worker."""
    return [sys.executable, "-m", "unveil.service.process", str(folder), name, device]


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
    """

    def __init__(self, queue: Queue, devices: Sequence[str], start: Command = command) -> None:
        self.queue, self.devices, self._command = queue, list(devices), start
        self._places: list[_Place] = []
        self._waits = dict.fromkeys(self.devices, 0.0)  # seconds before the next start
        self._due = dict.fromkeys(self.devices, 0.0)
        self._over = threading.Event()
        self._full = False  # the disk
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts them, and watches them from a thread of its own."""
        self.look()
        self._thread = threading.Thread(target=self._watch, name="crew", daemon=True)
        self._thread.start()

    def stop(self, seconds: float = 5.0) -> None:
        """Ends them: each after its job if that takes no longer than this, or else at once; its job waits again."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        for place in self._places:
            place.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + seconds
        for place in self._places:
            try:
                place.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                place.process.kill()
                place.process.wait()
            _close(place)
        self._places.clear()
        with suppress(OutOfResources):  # the next start does it
            self.queue.recover()

    def names(self) -> list[str]:
        """Who works now."""
        return [place.name for place in self._places]

    def look(self) -> None:
        """Buries the dead, and starts whom there is a place for."""
        for place in [one for one in self._places if one.process.poll() is not None]:
            self._places.remove(place)
            _close(place)
            self._bury(place)
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
            except Exception:  # a full disk now is none for ever
                log.exception("workers")

    def _begin(self, device: str) -> _Place:
        name = f"{device}-{secrets.token_hex(4)}"
        folder = self.queue.folder / LOGS
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{device.replace(':', '-')}.log").open("wb") as out:
            process = subprocess.Popen(
                self._command(self.queue.folder, name, device), stdin=subprocess.PIPE, stdout=out, stderr=out
            )
        return _Place(device, name, process, time.monotonic())

    def _bury(self, place: _Place) -> None:
        code = place.process.returncode
        why = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        last = self._last_words(place.device)
        for job in self.queue.reclaim(place.name, f"its worker was {why}" + (f": {last}" if last else "")):
            log.warning("worker %s %s; job %s is %s", place.name, why, job.id, job.state)
        sound = time.monotonic() - place.begun >= SOUND_S
        self._waits[place.device] = 0.0 if sound else min(max(2 * self._waits[place.device], 0.25), LONGEST_S)
        self._due[place.device] = time.monotonic() + self._waits[place.device]

    def _last_words(self, device: str) -> str:
        """The last line of a worker's log."""
        file = self.queue.folder / LOGS / f"{device.replace(':', '-')}.log"
        try:
            lines = file.read_bytes()[-TOLD:].decode("utf-8", "replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1].strip() if lines else ""


def _close(place: _Place) -> None:
    if place.process.stdin is not None:
        place.process.stdin.close()
