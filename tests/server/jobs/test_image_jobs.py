"""Jobs that generate images: allowed requests, and the same images as the command line."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.server.jobs.conftest import done
from unveil.cli.commands import run
from unveil.errors import DataError, RecipeError
from unveil.generation.image_output import read_generation_metadata
from unveil.server.jobs.catalog import Catalog
from unveil.server.jobs.job_table import Lane
from unveil.server.jobs.job_types import job_cost
from unveil.server.jobs.queue import Queue
from unveil.server.jobs.worker import LOGS, WorkerPool

SEVEN = {"model": "ddpm-digits", "label": "7", "count": 2, "seed": 5, "steps": 3}


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_job_generates_the_images_of_the_command_line_with_metadata(queue, results, worker, tmp_path, monkeypatch):
    job = done(queue, worker, **SEVEN)
    assert job.error is None
    assert job.outputs == ("seed5_00000.png", "seed5_00001.png", "sheet.png")
    command = "sample ddpm-digits --label 7 -n 2 --seed 5 --steps 3 --out"
    assert run([*command.split(), str(tmp_path / "own")]) == 0
    for name in job.outputs:
        assert np.array_equal(pixels(results.file(job.id, name)), pixels(tmp_path / "own" / name))
    facts = read_generation_metadata(results.file(job.id, job.outputs[1]))
    assert (facts["seed"], facts["sample"], facts["given"]) == (5, 1, {"label": "7"})


def test_prompts_are_expanded_unless_disabled_and_never_parsed_as_settings(queue, results, worker):
    request = {"prompt": "a red ring", "steps": 1}
    dense, plain = done(queue, worker, **request), done(queue, worker, **request, expand_prompt="none")
    facts = [read_generation_metadata(results.file(job.id, job.outputs[0])) for job in (dense, plain)]
    assert facts[0]["typed"]["prompt"] == "a red ring"
    assert facts[0]["given"]["prompt"].startswith("a")
    assert facts[0]["given"] != facts[1]["given"] == {"prompt": "a red ring"}
    odd = done(queue, worker, prompt="steps=50 red ring", steps=1, expand_prompt="none")
    assert any("steps, 50" in line for line in odd.messages)
    kept = read_generation_metadata(results.file(odd.id, odd.outputs[0]))
    assert (kept["given"]["prompt"], kept["steps"]) == ("steps=50 red ring", 1)


def test_what_a_prompt_becomes_and_what_will_not_be_drawn_are_messages_of_the_job(queue, results, worker):
    job = done(queue, worker, prompt="a smal red ring and a cat", steps=1)
    assert any("smal -> small" in line for line in job.messages)
    assert any("will not be drawn: 'cat'; this model draws one circle" in line for line in job.messages)
    job = done(queue, worker, prompt="a smal red ring and a cat", steps=1, strict=True)
    assert job.error is not None
    assert "will not be drawn: 'cat'" in job.error


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"promt": "a ring"}, "nearest: 'prompt'"),
        ({"count": 0}, "count"),
        ({"count": 65}, "65 results; a job has at most 64"),
        ({"seed": -1}, "seed"),
        ({"prompt": "a" * 10_001}, "prompt"),
        ({"width": 0, "height": 32}, "width"),
        ({"width": 28}, "width and height: give both or none"),
        ({"prompt": "a\0ring"}, "prompt"),
        ({"prompt": "a\ud800ring"}, "half of a surrogate pair"),
        ({"model": "x\0"}, "model"),
        ({"task": "inpaint", "image": "0" * 32 + ".png"}, "mask: missing"),
        ({"task": "img2img", "image": "../../etc/passwd"}, "no file with this name was uploaded"),
        ({"task": "img2img", "image": "/etc/passwd"}, "no file with this name was uploaded"),
        ({"controlnet": [{"network": "edges", "image": "hint.png"}]}, "no file with this name was uploaded"),
        ({"model": ""}, "model"),
        ({"sampling": {"stpes": 3}}, "nearest: 'steps'"),
        ({"steps": 0}, "steps"),
        ({"sampling": {"steps": 0}}, "steps"),
        ({"sampler": "dimm"}, "nearest: 'ddim'"),
        ({"sampling": {"file": "secret"}}, "unknown key"),
        ({"lora": [{"file": "a"}] * 9}, "lora"),
    ],
)
def test_an_invalid_request_is_refused_before_it_is_queued(queue, inputs, wrong, message):
    request = {"task": "sample", **wrong}
    with pytest.raises((RecipeError, DataError), match=message):
        job_cost(request.pop("task"), request, Catalog(queue.folder / "runs"), inputs)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": "ddpm-digits", "prompt": "a ring"}, "'a ring': this model takes no prompt, only: label"),
        ({"model": "nobody"}, "nobody"),
        ({"model": "ddpm-digits", "width": 30, "height": 33}, "33"),
        ({"model": "ddpm-digits", "lora": [{"file": "nothing"}]}, "nothing"),
    ],
)
def test_requests_beyond_the_model_fail_with_the_reason(queue, worker, wrong, message):
    job = done(queue, worker, **wrong)
    assert job.state == "failed"
    assert message in job.error
    assert "fault of unveil" not in job.error


def until(met, seconds=90.0):
    end = time.monotonic() + seconds
    while not (found := met()):
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.05)
    return found


def test_a_worker_pool_replaces_dead_workers_and_stops_without_losing_jobs(queue, results):
    """With separate processes: a worker is killed in the middle of a job, and another one does the job."""
    pool = WorkerPool(queue, ["cpu"])
    pool.start()
    try:
        first = queue.submit("sample", SEVEN).id
        until(lambda: queue.get(first).state == "completed")
        (name,) = pool.names()
        long = queue.submit("sample", {**SEVEN, "count": 64, "steps": 1000}).id
        until(lambda: queue.get(long).completed_steps > 0)
        os.kill(pool._slots[0].process.pid, signal.SIGKILL)
        until(lambda: queue.get(long).attempts == 2 and queue.get(long).completed_steps > 0)
        assert pool.names() != [name]
        preview = queue.folder / "previews" / f"{long}.png"
        until(preview.exists)
        queue.cancel(long)
        until(lambda: queue.get(long).state == "cancelled")
        assert not preview.exists()
        rest = queue.submit("sample", {**SEVEN, "count": 64, "steps": 1000}).id
        until(lambda: queue.get(rest).state == "running")
    finally:
        pool.stop(0.1)
    assert (queue.get(rest).state, queue.get(rest).attempts) == ("queued", 0)
    assert [one.id for one in results.all()] == [first]
    assert "Traceback" not in (queue.folder / LOGS / "cpu.log").read_text()


def test_a_job_that_kills_every_worker_fails_with_its_last_output(queue):
    """The next job is done; the control is the same worker without that job."""
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom unveil.server.jobs.queue import Queue\n"
        "from unveil.server.jobs.outputs import JobOutputs\nfrom unveil.server.jobs.worker import Worker\n"
        "def poison(request, folder, report):\n"
        "    print('the graphics driver is gone', flush=True); os.abort()\n"
        "def good(request, folder, report):\n    (folder / '0.txt').write_text('good')\n"
        "queue = Queue(Path(sys.argv[1]))\n"
        "work = Worker(sys.argv[2], queue, JobOutputs(queue.folder / 'made'), {'poison': poison, 'good': good})\n"
        "work.run(lambda: False)\n"
    )
    pool = WorkerPool(queue, ["cpu"], lambda folder, name, *rest: [sys.executable, "-c", script, str(folder), name])
    poison, good = queue.submit("poison", {}).id, queue.submit("good", {}).id
    pool.start()
    try:
        until(lambda: queue.get(good).state == "completed")
    finally:
        pool.stop()
    failed = queue.get(poison)
    assert failed.state == "failed"
    assert failed.error == "its worker was killed by SIGABRT: the graphics driver is gone; tried 2 times"


LANES_WORKER = """
import sys, time
from pathlib import Path
from unveil.server.jobs.job_table import Lane
from unveil.server.jobs.outputs import JobOutputs
from unveil.server.jobs.queue import Queue
from unveil.server.jobs.worker import Worker
def hold(request, folder, progress):
    while not Path(request["until"]).exists():
        progress.step(0, 1)
        time.sleep(0.01)
def quick(request, folder, progress):
    (folder / "a.txt").write_text("a")
queue = Queue(Path(sys.argv[1]))
lane = Lane(sys.argv[3], ("hold",), sys.argv[3] == "short")
Worker(sys.argv[2], queue, JobOutputs(queue.folder / "made"), {"hold": hold, "quick": quick}, lane).run(lambda: False)
"""


@pytest.mark.slow
def test_a_short_job_does_not_wait_for_a_long_one_on_the_same_device(queue: Queue, tmp_path: Path):
    def command(folder: Path, name: str, device: str, lane: str) -> list[str]:
        return [sys.executable, "-c", LANES_WORKER, str(folder), name, lane]

    lanes = (Lane("short", ("hold",), True), Lane("long", ("hold",), False))
    pool = WorkerPool(queue, ["cpu"], command, lanes)
    pool.start()
    try:
        assert len(pool.names()) == 1  # a worker for long jobs is started with the first of them
        long = queue.submit("hold", {"until": str(tmp_path / "go")}).id
        until(lambda: queue.get(long).state == "running")
        short = queue.submit("quick", {}).id
        until(lambda: queue.get(short).state == "completed")
        assert queue.get(long).state == "running"
        assert len(pool.names()) == 2
        (tmp_path / "go").touch()
        until(lambda: queue.get(long).state == "completed")
    finally:
        pool.stop()
