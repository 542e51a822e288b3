"""Kills a process that saves in a loop, at random moments, and counts what can still be loaded.

`python tests/model/kill_harness.py ours|naive KILLS FOLDER` prints one JSON object. A separate process,
so that each saver is a cheap fork of one that has torch loaded already.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from unveil.io import staging
from unveil.io.files import read_tensors
from unveil.model import checkpoint_store

NUMBERS = 400_000  # 1.6 MB: long enough to be killed in
KEEP = 2


def state(step: int) -> dict[str, torch.Tensor]:
    """A state that knows its step in every number."""
    return {"weights": torch.full((NUMBERS // 2,), float(step)), "moments": torch.full((NUMBERS // 2,), float(step))}


def save_ours(folder: Path, step: int) -> None:
    content = {"train_state.safetensors": state(step), "train_state.json": {"step": step}}
    checkpoint_store.save(folder / checkpoint_store.step_name(step), content, kind="training", step=step)
    checkpoint_store.prune(folder, KEEP)


def load_ours(folder: Path) -> int | None:
    found = checkpoint_store.latest_valid(folder, lambda folder, problem: None)
    return None if found is None else _agreed(read_tensors(found / "train_state.safetensors"))


def save_naive(folder: Path, step: int) -> None:
    torch.save(state(step), folder / "last.pt")


def load_naive(folder: Path) -> int | None:
    try:
        return _agreed(torch.load(folder / "last.pt", weights_only=True))
    except Exception:
        return None


def kill_once(save, load, folder: Path, chance: random.Random) -> dict[str, int | None]:
    """One life: the first save is let through, then the process dies within the next few."""
    folder.mkdir()
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(readable)
        for step in range(1, 10_000):
            save(folder, step)
            os.write(writable, step.to_bytes(4, "little"))
        os._exit(0)
    os.close(writable)
    begun = time.monotonic()
    os.read(readable, 4)
    time.sleep(chance.random() * 4 * (time.monotonic() - begun))  # four saves' time from a moment between two
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    progress = b""
    while more := os.read(readable, 4096):
        progress += more
    os.close(readable)
    finished = 1 + len(progress) // 4
    stale = sum(path.name.startswith(".") for path in folder.iterdir())
    staging.sweep(folder)
    left = sum(path.name.startswith(".") for path in folder.iterdir())
    return {"finished": finished, "found": load(folder), "stale": stale, "left": left}


def _agreed(tensors: dict[str, torch.Tensor]) -> int | None:
    steps = {int(value) for tensor in tensors.values() for value in (tensor.min(), tensor.max())}
    return steps.pop() if len(steps) == 1 else None


def main(which: str, kills: int, parent: Path) -> None:
    torch.set_num_threads(1)
    save, load = (save_ours, load_ours) if which == "ours" else (save_naive, load_naive)
    chance = random.Random(0)
    warm = parent / f"{which}-warm"
    warm.mkdir()
    save(warm, 0)  # imports what the first save imports, once for all forks
    assert load(warm) == 0
    print(json.dumps([kill_once(save, load, parent / f"{which}{n}", chance) for n in range(kills)]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
