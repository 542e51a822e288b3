"""A worker runs queued jobs, stops on request, and generates nothing twice, whichever process dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from unveil.errors import OutOfResources, RecipeError
from unveil.server.jobs.job_table import QueueLimits
from unveil.server.jobs.outputs import JobOutputs
from unveil.server.jobs.queue import Queue
from unveil.server.jobs.worker import PREVIEWS, JobHandler, JobProgress, Worker


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path, QueueLimits(lease=0.4))


@pytest.fixture
def results(tmp_path):
    return JobOutputs(tmp_path / "made")


def draw(request, folder: Path, report: JobProgress) -> None:
    """Run ten steps and write a file with the prompt."""
    for step in range(10):
        report.step(step + 1, 10)
    (folder / "0.txt").write_text(request["prompt"])


def worker(queue: Queue, results: JobOutputs, name: str = "w", **kinds: JobHandler) -> Worker:
    return Worker(name, queue, results, kinds or {"image": draw})


def submit(queue: Queue, prompt: str = "a red ring", kind: str = "image") -> str:
    return queue.submit(kind, {"prompt": prompt}).id


def until(met: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.01)


def test_queued_jobs_run_in_order_and_their_outputs_can_be_read(queue, results):
    ids = [submit(queue, word) for word in "abc"]
    own = worker(queue, results)
    assert [own.run_next() for _ in range(4)] == [True, True, True, False]
    assert [queue.get(id).state for id in ids] == ["completed"] * 3
    assert [results.file(id, "0.txt").read_text() for id in ids] == ["a", "b", "c"]
    ended = [queue.get(id).ended for id in ids]
    assert ended == sorted(ended)


def test_a_failed_job_has_its_error_and_the_next_one_runs(queue, results):
    def fails(request, folder, report):
        (folder / "half.txt").write_text("half")
        raise RecipeError("steps = -1: at least 1")

    def breaks(request, folder, report):
        raise ZeroDivisionError("division by zero")

    def finds_no_room(request, folder, report):
        raise OutOfResources("a disk: full; free some space")

    own = worker(queue, results, image=draw, wrong=fails, broken=breaks, large=finds_no_room)
    kinds = ("wrong", "broken", "nothing", "large", "image")
    wrong, broken, nobody, large, good = (submit(queue, kind=kind) for kind in kinds)
    for _ in range(5):
        assert own.run_next()
    assert queue.get(wrong).error == "steps = -1: at least 1"
    assert queue.get(broken).error == "unexpected ZeroDivisionError: division by zero; this is a fault of unveil"
    assert "nothing: unknown type of job; this worker runs broken, image, large, wrong" in queue.get(nobody).error
    assert [queue.get(id).state for id in (wrong, broken, nobody, large, good)] == ["failed"] * 4 + ["completed"]
    faults = [queue.get(id).error_source for id in (wrong, broken, nobody, large, good)]
    assert faults == ["request", "server", "request", "resources", None]
    assert [one.id for one in results.all()] == [good]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(lambda: bytearray(1 << 60), id="python"),
        pytest.param(lambda: torch.empty(1 << 50), id="CPU"),
        pytest.param(lambda: torch.OutOfMemoryError("CUDA out of memory."), id="a graphics card"),
    ],
)
def test_a_job_without_memory_has_its_error_and_the_next_one_runs(queue, results, more):
    def too_much(request, folder, report):
        raise more()

    own = worker(queue, results, image=draw, large=too_much)
    large, good = submit(queue, kind="large"), submit(queue)
    assert own.run_next()
    assert own.run_next()
    assert queue.get(large).error.startswith("out of memory; request fewer or smaller images")
    assert queue.get(large).error_source == "resources"
    assert queue.get(good).state == "completed"


def test_a_cancelled_job_stops_at_its_next_step_and_leaves_nothing(queue, results):
    made, go = [], threading.Event()

    def slow(request, folder, report):
        (folder / "0.txt").write_text("half")
        for step in range(1000):
            report.step(step, 1000)
            made.append(step)
            if step == 2:
                go.set()
                until(lambda: queue.get(id).cancelling)

    id = submit(queue)
    own = threading.Thread(target=worker(queue, results, image=slow).run_next)
    own.start()
    go.wait()
    queue.cancel(id)
    own.join()
    assert made == [0, 1, 2]
    assert queue.get(id).state == "cancelled"
    assert list(results.folder.iterdir()) == []


def test_progress_and_previews_are_visible_to_others(queue, results):
    seen, preview = threading.Event(), queue.folder / PREVIEWS

    def slow(request, folder, report):
        report.step(3, 16)
        report.preview(b"image")
        seen.wait()

    id = submit(queue)
    own = threading.Thread(target=worker(queue, results, image=slow).run_next)
    own.start()
    try:
        until(lambda: (preview / f"{id}.png").exists())
        assert (queue.get(id).completed_steps, queue.get(id).total_steps) == (3, 16)
    finally:
        seen.set()
        own.join()
    assert list(preview.iterdir()) == []


def test_a_worker_that_loads_for_long_keeps_its_job(tmp_path, results):
    queue, loaded = Queue(tmp_path, QueueLimits(lease=2.0)), threading.Event()

    def loads(request, folder, report):
        loaded.wait()

    id = submit(queue)
    own = threading.Thread(target=worker(queue, results, image=loads).run_next)
    own.start()
    until(lambda: queue.get(id).state == "running")
    time.sleep(4.0)  # longer than the lease
    taken = queue.reclaim()
    loaded.set()
    own.join()
    assert taken == []
    assert queue.get(id).state == "completed"


def test_a_worker_whose_job_was_given_to_another_stops_and_changes_nothing(queue, results):
    def taken_away(request, folder, report):
        (folder / "0.txt").write_text("late")
        queue.reclaim("slow")
        assert queue.claim("next").id == id
        until(lambda: not report.step(1, 10))  # raises once it has heard of it
        pytest.fail("it was not stopped")

    id = submit(queue)
    worker(queue, results, "slow", image=taken_away).run_next()
    assert (queue.get(id).state, queue.get(id).worker) == ("running", "next")
    assert results.read(id) is None


def test_outputs_of_a_dead_worker_are_not_generated_again(queue, results):
    id = submit(queue)
    job = queue.claim("dead")
    with results.writing(job) as folder:
        (folder / "0.txt").write_text("made")
    queue.reclaim("dead")

    def again(request, folder, report):
        pytest.fail("it is there")

    assert worker(queue, results, image=again).run_next()
    assert (queue.get(id).state, queue.get(id).outputs) == ("completed", ("0.txt",))
    assert results.file(id, "0.txt").read_text() == "made"


_CHILD = """
import os, sys, time
from pathlib import Path
from unveil.server.jobs.queue import Queue
from unveil.server.jobs.outputs import JobOutputs
from unveil.server.jobs.worker import Worker

def slow(request, folder, report):
    (folder / "0.txt").write_text(request["prompt"])
    for step in range(10000):
        report.step(step, 10000)
        print(step, flush=True)
        time.sleep(0.01)

queue = Queue(Path(sys.argv[1]))
Worker(f"child-{os.getpid()}", queue, JobOutputs(queue.folder / "made"), {"image": slow}).run(lambda: False)
"""


def test_a_killed_workers_job_is_done_by_the_next_one_and_once(queue, results):
    first, second = submit(queue, "a"), submit(queue, "b")
    command = [sys.executable, "-c", _CHILD, str(queue.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        child.stdout.readline()
        os.kill(child.pid, signal.SIGKILL)
    assert queue.get(first).state == "running"
    (job,) = queue.reclaim(f"child-{child.pid}", "killed by signal 9")
    assert (job.id, job.state) == (first, "queued")
    own = worker(queue, results)
    assert [own.run_next() for _ in range(3)] == [True, True, False]
    assert [(queue.get(id).state, queue.get(id).attempts) for id in (first, second)] == [
        ("completed", 2),
        ("completed", 1),
    ]
    assert [one.id for one in results.all()] == [first, second]
    assert not list(results.folder.glob(".*"))  # nothing of what the dead worker had begun
    assert [results.file(id, "0.txt").read_text() for id in (first, second)] == ["a", "b"]
