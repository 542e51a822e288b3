"""A command as a process of its own: what it says, how far it is, how it is ended, and what a dead worker left of it.

A note of each says which process it is and whose. A worker that is killed leaves its command saving what it has; the
note lets the next one wait for that, since two that train in one folder do not go together.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from unveil.io.files import explained, write_atomically

PROGRAM = (sys.executable, "-m", "unveil")
CHILDREN = "children"  # the folder of notes in that of the queue
SAVING_S = 120.0  # that a command has to end after it was told to
_LOOK_S = 0.1
_COUNT = re.compile(r"(\d+)/(\d+)\b")


class Child:
    """A command that runs, its words going to a file and its progress being read from them.

    Args:
        words: of its command line.
        log: of what it says, behind what is there.
        note: of which process it is, for as long as it runs.

    Raises:
        NotWritable, OutOfResources: there is no place for its log.
    """

    def __init__(self, words: Sequence[str], log: Path, note: Path) -> None:
        self._done, self._lock, self._note = (0, 0), threading.Lock(), note
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            self._log = log.open("ab", buffering=0)
        except OSError as problem:
            raise explained(log, problem) from problem
        heard, said = os.pipe()
        self._process = subprocess.Popen(
            [*PROGRAM, *words],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            pass_fds=(heard,),  # its words have an end of their own, or it would die of them when the worker is killed
            start_new_session=True,  # what reaches the worker's group does not reach it
            preexec_fn=_ends_with_parent,
        )
        os.close(said)
        self._reader = threading.Thread(target=self._read, args=(heard,), daemon=True)
        self._reader.start()
        with suppress(OSError, RuntimeError):  # a full disk, on which it may run all the same
            mine, own = os.getpid(), self._process.pid
            told = {"pid": own, "born": _born(own), "parent": mine, "parent_born": _born(mine)}
            write_atomically(note, json.dumps(told))

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGTERM)
        self._process.wait()
        self._reader.join()
        self._log.close()
        with suppress(OSError):
            self._note.unlink(missing_ok=True)

    def ended(self, seconds: float) -> int | None:
        """Its exit code, if it ends within so many seconds."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def progress(self) -> tuple[int, int]:
        """Steps that are done, and all of them; 0 where that is not known."""
        with self._lock:
            return self._done

    def end(self, number: signal.Signals, seconds: float = SAVING_S) -> None:
        """Tells it to end by a signal, and kills it with all that it began if that takes longer than this."""
        if self._process.poll() is not None:
            return
        self._process.send_signal(number)
        if self.ended(seconds) is None:
            _kill(self._process.pid)

    def _read(self, heard: int) -> None:
        with open(heard, "rb") as out:
            for line in out:
                with suppress(OSError):  # on a full disk it is read on, or the command would wait for ever
                    self._log.write(line)
                if found := _COUNT.search(line.decode("utf-8", "replace")):
                    with self._lock:
                        self._done = int(found[1]), int(found[2])


def end_orphans(notes: Path, check: Callable[[], None], seconds: float = SAVING_S) -> None:
    """Ends commands whose worker is dead, and waits until they have saved what they have.

    Args:
        notes: the folder of notes.
        check: is called while it waits, and may raise.
        seconds: for all of them; who is there after that is killed.
    """
    end = time.monotonic() + seconds
    for note, told in _notes(notes):
        if _is_alive(told["parent"], told["parent_born"]):
            continue
        if _is_alive(told["pid"], told["born"]):
            with suppress(ProcessLookupError):
                os.kill(told["pid"], signal.SIGTERM)
        while _is_alive(told["pid"], told["born"]):
            check()
            if time.monotonic() > end:
                _kill(told["pid"])
            time.sleep(_LOOK_S)
        note.unlink(missing_ok=True)


def runs_below(notes: Path, worker: int) -> bool:
    """Whether a command of a worker runs, by the number of the worker's process."""
    return any(told["parent"] == worker and _is_alive(told["pid"], told["born"]) for _, told in _notes(notes))


def _notes(folder: Path) -> list[tuple[Path, dict[str, int]]]:
    found: list[tuple[Path, dict[str, int]]] = []
    for note in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):  # gone by now, or not whole
            said = json.loads(note.read_text("utf-8"))
            found.append((note, {key: int(said[key]) for key in ("pid", "born", "parent", "parent_born")}))
    return found


def _is_alive(process: int, born: int) -> bool:
    """Whether a process still is the one that began then: numbers of processes are given again."""
    return _born(process) == born


def _born(process: int) -> int | None:
    """When a process began, in a unit of the system's; None: it has ended, or the system does not say."""
    try:
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if words[0] in "ZX" else int(words[19])


def _kill(leader: int) -> None:
    """Kills a command and what it began, which have a group of their own."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _ends_with_parent() -> None:
    """Asks the system to end this process with its parent, where it can."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of Linux
    except (OSError, AttributeError):
        return
