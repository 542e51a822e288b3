"""Tasks as child processes: order, reports, output, termination, and processes that a dead worker left behind.

A note on disk records each process and its worker. If a worker is killed, its child saves a checkpoint and ends. The
note lets the next worker wait for that, since two processes must not train in the same folder.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from unveil.io.files import explained, write_atomically
from unveil.io.staging import process_status

PROGRAM = (sys.executable, "-m", "unveil.server.jobs.task_main")
CHILDREN = "children"  # subfolder of notes in the state folder
SAVING_S = 120.0  # time for a child to save and end after a signal
_POLL_S = 0.1


class ChildError(NamedTuple):
    """The error of a task in a child process.

    Attributes:
        code: Exit code, as those of the command line.
        kind: Class of the error.
        message: What is wrong.
        remedy: Part of the message that states what to do; empty: none.
        source: What caused it: request, resources or server.
    """

    code: int
    kind: str
    message: str
    remedy: str
    source: str


class ChildProcess:
    """A running task, whose output goes to a log file and whose reports are read as JSON lines.

    Args:
        order: The task and its surroundings, see `task_main.run_order`.
        log: File to which the output is appended.
        note: File that records the process while it runs.

    Raises:
        OutputError, OutOfResources: The log cannot be written.
    """

    def __init__(self, order: Mapping[str, Any], log: Path, note: Path) -> None:
        self._progress, self._lock, self._note = (0, 0), threading.Lock(), note
        self._error: ChildError | None = None
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            self._log = log.open("ab", buffering=0)
        except OSError as problem:
            raise explained(log, problem) from problem
        (read_end, write_end), (read_reports, write_reports) = os.pipe(), os.pipe()
        self._process = subprocess.Popen(
            [*PROGRAM, str(write_reports)],
            stdin=subprocess.PIPE,
            stdout=write_end,
            stderr=subprocess.STDOUT,
            # with copies of the reading ends the child gets no SIGPIPE if the worker is killed
            pass_fds=(read_end, read_reports, write_reports),
            start_new_session=True,  # signals to the worker's process group do not reach it
            preexec_fn=_prepare,
        )
        os.close(write_end)
        os.close(write_reports)
        self._readers = [
            threading.Thread(target=read, args=(end,), daemon=True)
            for read, end in ((self._copy_output, read_end), (self._read_reports, read_reports))
        ]
        for reader in self._readers:
            reader.start()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already
            self._process.stdin.write(json.dumps(order).encode())
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        with suppress(OSError, RuntimeError):  # a full disk; the child can run without the note
            worker_pid, pid = os.getpid(), self._process.pid
            record = {
                "pid": pid,
                "born": _start_time(pid),
                "parent": worker_pid,
                "parent_born": _start_time(worker_pid),
            }
            write_atomically(note, json.dumps(record))

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGTERM)
        self._process.wait()
        self._join_readers()
        self._log.close()
        with suppress(OSError):
            self._note.unlink(missing_ok=True)

    def ended(self, seconds: float) -> int | None:
        """Wait up to this many seconds; return the exit code, or None if the child still runs."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def progress(self) -> tuple[int, int]:
        """Return the completed and total steps; 0 if unknown."""
        with self._lock:
            return self._progress

    def error(self) -> ChildError | None:
        """Return the reported error of a child that has ended; None without one."""
        self._join_readers()
        return self._error

    def _join_readers(self) -> None:
        for reader in self._readers:
            reader.join()

    def end(self, number: signal.Signals, seconds: float = SAVING_S) -> None:
        """Send a signal, and kill the whole process group if the child does not end in time."""
        if self._process.poll() is not None:
            return
        self._process.send_signal(number)
        if self.ended(seconds) is None:
            _kill(self._process.pid)

    def _copy_output(self, read_end: int) -> None:
        with open(read_end, "rb") as output:
            for line in output:
                with suppress(OSError):  # on a full disk keep reading, or the child would block for ever
                    self._log.write(line)

    def _read_reports(self, read_end: int) -> None:
        with open(read_end, "rb") as reports:
            for line in reports:
                with suppress(ValueError, TypeError, KeyError):  # incomplete, if the child was killed
                    report = json.loads(line)
                    if "progress" in report:
                        completed, total = report["progress"]
                        with self._lock:
                            self._progress = int(completed), int(total)
                    if "error" in report:
                        self._error = ChildError(**report["error"])


def end_orphans(notes: Path, check: Callable[[], None], seconds: float = SAVING_S) -> None:
    """End children whose worker is dead, and wait until they have saved.

    Args:
        notes: Folder of notes.
        check: Called while waiting; may raise.
        seconds: Time for all of them together; those that remain are killed.
    """
    end = time.monotonic() + seconds
    for note, record in _notes(notes):
        if _is_alive(record["parent"], record["parent_born"]):
            continue
        if _is_alive(record["pid"], record["born"]):
            with suppress(ProcessLookupError):
                os.kill(record["pid"], signal.SIGTERM)
        while _is_alive(record["pid"], record["born"]):
            check()
            if time.monotonic() > end:
                _kill(record["pid"])
            time.sleep(_POLL_S)
        note.unlink(missing_ok=True)


def has_running_child(notes: Path, worker: int) -> bool:
    """Return True if the worker with this process id has a running child."""
    return any(record["parent"] == worker and _is_alive(record["pid"], record["born"]) for _, record in _notes(notes))


def _notes(folder: Path) -> list[tuple[Path, dict[str, int]]]:
    records: list[tuple[Path, dict[str, int]]] = []
    for note in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):  # deleted meanwhile, or incomplete
            fields = json.loads(note.read_text("utf-8"))
            records.append((note, {key: int(fields[key]) for key in ("pid", "born", "parent", "parent_born")}))
    return records


def _is_alive(process: int, born: int) -> bool:
    """Return True if the process id still belongs to the same process; ids are reused."""
    return _start_time(process) == born


def _start_time(process: int) -> int | None:
    """Return the start time of a process in clock ticks; None if it has ended or the system does not report it."""
    status = process_status(process)
    return None if status is None or status[0] in "ZX" else status[1]


def _kill(leader: int) -> None:
    """Kill the process group of a child."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _prepare() -> None:
    """Prepare a new child: SIGINT ends it, and the end of its parent does, where the system supports that.

    A server that a shell started in the background ignores SIGINT, and a child would lose a signal that arrives before
    its own handler is installed.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of Linux
    except (OSError, AttributeError):
        return
