"""Kills a writer at each of its file operations, and looks at what is under its path afterwards.

`python tests/model/kill_points.py SCENARIO SYSTEM EVERY FOLDER` prints one JSON list with an entry for each kill. A
separate process, so that each writer is a cheap fork of one that has torch and the package loaded already. SYSTEM is
`exchange`, or `renames` for a file system that cannot exchange names. Every EVERY-th operation is a kill point.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from tests.train import tiny
from unveil.checkpoints import conversion
from unveil.data import cache
from unveil.errors import Error
from unveil.io import staging
from unveil.io.files import read_header, refuse_overwrite
from unveil.model import checkpoint_store
from unveil.train import callbacks
from unveil.train.run_folder import RunFolder

# Audit events of the operations that change names; content is written between them, and before a sync
EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}
OLD, NEW = b"old", b"new content"


class Scenario(NamedTuple):
    """A writer, and its look-up.

    Attributes:
        prepare: Function of a folder that writes the old content.
        write: Function of the folder that is killed.
        state: Function of the folder that returns "old" or "new", or what else is there.
    """

    prepare: Callable[[Path], object]
    write: Callable[[Path], object]
    state: Callable[[Path], str]


def watch_operations(on_operation: Callable[[str], object]) -> None:
    """Call a function before each file operation of the main thread; the only way back is the end of the process.

    The thread that writes TensorBoard's event files is left out: how its operations fall between the others differs
    from run to run, so a number would not name the same moment twice.
    """
    real_fsync, real_exchange = os.fsync, staging.exchange
    main_thread = threading.main_thread()

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_CREAT | os.O_TRUNC)
        if (event in EVENTS or opens) and threading.current_thread() is main_thread:
            on_operation(event)

    def fsync(handle: int) -> None:
        on_operation("fsync")
        real_fsync(handle)

    def exchange(first: Path, second: Path) -> bool:
        on_operation("exchange")
        return real_exchange(first, second)

    os.fsync, staging.exchange = fsync, exchange
    sys.addaudithook(audit)


def forked(work: Callable[[], object]) -> int:
    """Return the exit code of a function in a fork, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def operations(write: Callable[[], object], place: Path) -> list[str]:
    """Return the names of the file operations of a writer, in order."""
    log = os.open(place, os.O_CREAT | os.O_RDWR)

    def counted() -> None:
        watch_operations(lambda name: os.write(log, f"{name}\n".encode()))
        write()

    assert forked(counted) == 0
    os.close(log)
    return place.read_text().splitlines()


def killed_at(write: Callable[[], object], number: int) -> int:
    """Run a writer in a fork that is killed before its operation of this number; return its end."""
    left = number

    def on_operation(_: str) -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def run() -> None:
        watch_operations(on_operation)
        write()

    return forked(run)


# ---------------------------------------------------------------------- scenarios


def store_content(step: int) -> dict[str, checkpoint_store.Content]:
    tensors = {"weight": torch.full((4, 3), float(step))}
    return {"denoiser.safetensors": tensors, "ema/denoiser.safetensors": tensors, "state.json": {"step": step}}


def save_store(folder: Path, step: int) -> None:
    checkpoint_store.save(folder / "model", store_content(step), step=step, replace=True)


def state_of_store(folder: Path) -> str:
    try:
        return {1: "old", 2: "new"}[checkpoint_store.verify(folder / "model").step]
    except Error as problem:
        return str(problem)


def convert(folder: Path, dtype: torch.dtype) -> None:
    refuse_overwrite(folder / "model", force=True)
    conversion.convert(Path("ddpm-digits"), folder / "model", dtype=dtype)


def state_of_conversion(folder: Path) -> str:
    try:
        checkpoint_store.verify(folder / "model")
    except Error as problem:
        return str(problem)
    types = {entry.dtype for entry in read_header(folder / "model" / "denoiser.safetensors").tensors.values()}
    return "old" if "F16" in types else "new"


def download(folder: Path) -> None:
    cache.urllib.request.urlopen = lambda url, timeout: io.BytesIO(NEW)
    digest = hashlib.md5(NEW, usedforsecurity=False).hexdigest()
    cache.download("http://localhost/file", folder / "data", digest)


def state_of_download(folder: Path) -> str:
    return {OLD: "old", NEW: "new"}.get((folder / "data").read_bytes(), "a part")


def train(folder: Path) -> None:
    tiny.fit(folder / "run", steps=3, save_every=1)


def steps_of(folder: Path) -> list[int]:
    """Return the steps of the checkpoints under their names, newest first."""
    return [int(path.name.rpartition("_")[2]) for path in checkpoint_store.checkpoints(folder / "run" / "checkpoints")]


def newest_valid(folder: Path) -> int:
    valid = checkpoint_store.latest_valid(folder / "run" / "checkpoints", lambda *_: None)
    return 0 if valid is None else checkpoint_store.verify(valid).step


def write_old_file(folder: Path) -> None:
    (folder / "data").write_bytes(OLD)


SCENARIOS = {
    "save": Scenario(lambda folder: save_store(folder, 1), lambda folder: save_store(folder, 2), state_of_store),
    "download": Scenario(write_old_file, download, state_of_download),
    "convert": Scenario(
        lambda folder: convert(folder, torch.float16),
        lambda folder: convert(folder, torch.float32),
        state_of_conversion,
    ),
}


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*") if path.name != ".lock")


def replacements(scenario: Scenario, every: int, parent: Path) -> list[dict[str, Any]]:
    """Kill a writer at its operations; after each kill look up, write again, and list what is left."""
    prepared = parent / "first"
    prepared.mkdir()
    scenario.prepare(prepared)
    names = operations(lambda: scenario.write(prepared), parent / "operations")
    lives = []
    for number in range(0, len(names) + 1, every):
        folder = parent / str(number)
        folder.mkdir()
        scenario.prepare(folder)
        end = killed_at(lambda folder=folder: scenario.write(folder), number)
        stale = leftovers(folder)
        state = scenario.state(folder)
        assert forked(lambda folder=folder: scenario.write(folder)) == 0  # the next writer, another process
        lives.append(
            {
                "at": names[number] if number < len(names) else "end",
                "end": end,
                "state": state,
                "stale": len(stale),
                "after": scenario.state(folder),
                "left": leftovers(folder),
            }
        )
    return lives


def trainings(every: int, parent: Path) -> list[dict[str, Any]]:
    """Kill a training at its operations; after each kill find the newest checkpoint, and start again."""
    names = operations(lambda: train(parent / "first"), parent / "operations")
    lives = []
    for number in range(0, len(names), every):
        folder = parent / str(number)
        end = killed_at(lambda folder=folder: train(folder), number)
        published, stale = steps_of(folder), leftovers(folder)
        valid = newest_valid(folder)
        recipe = folder / "run" / "recipe.yaml"
        if recipe.exists():
            RunFolder(folder / "run", yaml.safe_load(recipe.read_text())).close()
        lives.append(
            {
                "at": names[number],
                "end": end,
                "published": max(published, default=0),
                "valid": valid,
                "stale": len(stale),
                "left": leftovers(folder / "run" / "checkpoints"),
            }
        )
    return lives


def main(name: str, system: str, every: int, parent: Path) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    if system == "renames":
        staging._exchange_call = lambda: lambda first, second: errno.EINVAL
    if name == "train":
        callbacks.PLOT_S = 0.0  # plots at each step: with a clock, the operations of two runs would differ
        (parent / "warm").mkdir()
        train(parent / "warm")  # imports what training imports, once for all forks
        lives = trainings(every, parent)
    else:
        lives = replacements(SCENARIOS[name], every, parent)
    print(json.dumps(lives))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
