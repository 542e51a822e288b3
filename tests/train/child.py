"""Runs of the tiny model in processes of their own: `python -m tests.train.child FOLDER` prints one JSON object.

`python -m tests.train.child FOLDER TRIALS` kills one of four processes at a random moment in each trial.
`python -m tests.train.child FOLDER twice` sends a run Ctrl-C twice.

One process imports everything, and each run is a fork of it: importing Lightning takes longer than all the runs.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401 - before the forks
import torch

from tests.train import loop_numbers, tiny
from unveil.core.objective import DiffusionLoss, LossOutput
from unveil.core.timestep_sampling import SecondMoment
from unveil.errors import Error
from unveil.train import peers
from unveil.train.classifier import fit_classifier
from unveil.train.seq2seq import fit_sequence

LEAVING = "then leaving"  # what a run says when a signal arrives


class Slow(DiffusionLoss):
    """The objective, with time to send a signal."""

    def __call__(self, denoiser: Any, x0: Any, condition: Any, streams: Any, step: int) -> LossOutput:
        print("step", step, file=sys.stderr, flush=True)
        time.sleep(0.1)
        return super().__call__(denoiser, x0, condition, streams, step)


def slow(run: Path) -> None:
    """A run that is sent signals, with a data worker that gets them too."""
    tiny.fit(run, objective=Slow(), steps=2000, grad_accum_steps=1, num_workers=1)


def short(run: Path, objective: DiffusionLoss | None = None) -> None:
    """A run whose losses are compared; dropout is keyed by the process, so it is left out."""
    torch.nn.Dropout.forward = lambda self, x: x  # type: ignore[method-assign]
    objective = objective or DiffusionLoss(time=SecondMoment(tiny.STEPS, history=1))
    tiny.fit(run, objective=objective, grad_accum_steps=2, steps=10, save_every=5)


class Lethal(DiffusionLoss):
    """The objective, in which one process is killed at a step; another one then waits elsewhere, if it is `stuck`."""

    victim: int = -1
    stuck: bool = False

    def __call__(self, denoiser: Any, x0: Any, condition: Any, streams: Any, step: int) -> LossOutput:
        if step == 7 and self.victim >= 0:
            if os.environ["RANK"] == str(self.victim):
                os.kill(os.getpid(), signal.SIGKILL)
            if self.stuck:
                time.sleep(300)
        return super().__call__(denoiser, x0, condition, streams, step)


def killed(run: Path, victim: int, stuck: bool = False) -> None:
    """The run `short` with a process that is killed in its 8th step; a victim below 0: with none."""
    objective = Lethal(time=SecondMoment(tiny.STEPS, history=1))
    object.__setattr__(objective, "victim", victim)
    object.__setattr__(objective, "stuck", stuck)
    peers.GRACE_S = 1.0 if stuck else peers.GRACE_S
    short(run, objective)


def paced(run: Path) -> None:
    """A run of 12 steps that each take some time."""
    tiny.fit(run, objective=Slow(time=SecondMoment(tiny.STEPS, history=1)), grad_accum_steps=1, save_every=4)


def sequence(run: Path) -> None:
    """A run of a sequence model without dropout, whose losses are compared."""
    fit_sequence(loop_numbers.sequence_recipe(steps=6, dropout=0.0), run=run)


def classifier(run: Path) -> None:
    """A run of a classifier without a normalisation over the batch, whose losses are compared."""
    config = replace(loop_numbers.CLASSIFIERS["noisy"], epochs=1, batch_size=200)
    fit_classifier(config, *loop_numbers.parts(), run=run, recorded={"name": "noisy"})


def forked(work: Callable[[Path], None], run: Path, stderr: Path, **environment: str) -> int:
    """Start a process, the first of its group, that works in a run and writes stderr to a file; return its number."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    os.environ |= environment
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    try:
        work(run)
        code = 0
    except Error as problem:
        print(problem, file=sys.stderr, flush=True)
        code = problem.exit_code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 99
    os._exit(code)


def ended(child: int) -> int:
    """The exit code of a process, once it has one."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def signalled(folder: Path, name: str, number: int, times: int = 1) -> dict[str, Any]:
    """Sends a signal to a run that is under way, and to its workers, as a terminal does; what came of it."""
    stderr = folder / f"{name}.txt"
    child = forked(slow, folder / name, stderr)
    text = ""
    for sent in range(times + 1):  # wait for the run to be under way, then for its answer to each signal
        while ("step 3" if sent == 0 else LEAVING) not in text:
            time.sleep(0.01)
            text = stderr.read_text() if stderr.exists() else ""
        if sent < times:
            begun = time.monotonic()
            os.killpg(child, number)
    code = ended(child)
    return {"code": code, "seconds": time.monotonic() - begun, "stderr": stderr.read_text()}


def together(
    folder: Path,
    runs: list[str],
    work: Callable[[Path], None] = short,
    during: Callable[[list[int]], object] = lambda ranks: None,
) -> list[int]:
    """The exit codes of runs in processes that train together, with torchrun's environment.

    Args:
        during: Function of the numbers of the processes that is called once they have started.
    """
    world = len(runs)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
    ranks = [
        forked(work, folder / run, folder / f"{run}-rank{rank}.txt", RANK=str(rank), LOCAL_RANK=str(rank), **shared)
        for rank, run in enumerate(runs)
    ]
    during(ranks)
    return [ended(child) for child in ranks]


def with_a_kill(folder: Path, name: str, work: Callable[[Path], None]) -> dict[str, Any]:
    """The exit codes of a run of two processes in which one is killed, and the seconds until both have ended."""
    died = 0.0

    def wait(ranks: list[int]) -> None:
        nonlocal died
        while not died:  # without reaping one, so that `ended` still has its code
            if any(os.waitid(os.P_PID, rank, os.WEXITED | os.WNOHANG | os.WNOWAIT) for rank in ranks):
                died = time.monotonic()
            time.sleep(0.01)

    codes = together(folder, [name] * 2, work, wait)
    return {"codes": codes, "seconds": time.monotonic() - died}


def random_kills(folder: Path, trials: int) -> list[dict[str, Any]]:
    """Kill one of four processes at a random moment, and start all again; what came of each trial.

    The run `folder/whole` is without a kill.
    """
    choose = random.Random(0)
    assert together(folder, ["whole"] * 4, paced) == [0] * 4
    lives = []
    for trial in range(trials):
        name, victim, delay = f"trial{trial}", choose.randrange(4), choose.uniform(0, 1.2)
        died = 0.0

        def kill(ranks: list[int], victim: int = victim, delay: float = delay, name: str = name) -> None:
            nonlocal died
            stderr = folder / f"{name}-rank{victim}.txt"
            while not stderr.exists() or "step 0" not in stderr.read_text():
                time.sleep(0.01)
            time.sleep(delay)
            died = time.monotonic()
            os.kill(ranks[victim], signal.SIGKILL)

        codes = together(folder, [name] * 4, paced, kill)
        seconds = time.monotonic() - died
        lives.append({"victim": victim, "codes": codes, "seconds": seconds, "again": None})
        lives[-1]["again"] = together(folder, [name] * 4, paced)
    return lives


def main(folder: Path) -> None:
    """Every scenario."""
    torch.set_num_threads(1)
    results = {
        "term": signalled(folder, "term", signal.SIGTERM),
        "int": signalled(folder, "int", signal.SIGINT),
        "twice": signalled(folder, "twice", signal.SIGINT, times=2),
        "one": [ended(forked(short, folder / "world1", folder / "alone.txt"))],
        "two": together(folder, ["world2", "world2"]),
    }
    results["killed"] = [with_a_kill(folder, f"killed{rank}", partial(killed, victim=rank)) for rank in (0, 1)]
    results["again"] = [together(folder, [f"killed{rank}"] * 2, partial(killed, victim=-1)) for rank in (0, 1)]
    results["stuck"] = with_a_kill(folder, "stuck", partial(killed, victim=1, stuck=True))
    for work in (sequence, classifier):
        name = work.__name__
        results[name] = [ended(forked(work, folder / f"{name}1", folder / f"{name}.txt"))]
        results[name] += together(folder, [f"{name}2"] * 2, work)
    shutil.copytree(folder / "world1", folder / "half")
    shutil.rmtree(folder / "half" / "checkpoints" / "step_000010")
    results["apart"] = together(folder, ["half", "new"])
    print(json.dumps(results))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        torch.set_num_threads(1)
        place, what = Path(sys.argv[1]), sys.argv[2]
        twice = what == "twice"
        print(json.dumps(signalled(place, what, signal.SIGINT, times=2) if twice else random_kills(place, int(what))))
    else:
        main(Path(sys.argv[1]))
