"""The warning that others wait for a job: its estimated duration, and who waits."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from unveil.server.jobs.job_delay import JobDelay, job_delay
from unveil.server.jobs.job_table import ALL_JOBS, Job, Lane
from unveil.server.jobs.queue import Queue

LANES = (Lane("interactive", ("train", "evaluate"), True), Lane("long", ("train", "evaluate"), False))
DIGITS = {"recipe": "ddpm-digits", "run_name": "mine", "settings": {"train.steps": 5000}}
NEW = Job("", "train", DIGITS)


def completed(kind: str, seconds: float, steps: int = 0, cost: float = 1.0) -> Job:
    """A completed job that took this time."""
    ended = time.time()
    return Job(f"{kind}{seconds}", kind, {}, "", cost, "completed", ended, ended - seconds, ended, 1, "w", steps, steps)


def test_a_training_of_unknown_duration_has_a_warning(queue: Queue):
    delay = job_delay(NEW, queue, LANES, 1)
    assert delay == JobDelay(None, 0, False)
    assert delay.warning == "other long jobs, such as trainings, wait until this one ends (its duration is unknown)"
    assert job_delay(NEW, queue, (ALL_JOBS,), 1) == JobDelay(None, 0, True)


def test_the_duration_of_a_training_is_estimated_from_its_steps(queue: Queue):
    queue.restore([completed("train", 200.0, 100), completed("train", 500.0, 250), completed("evaluate", 9.0)])
    delay = job_delay(NEW, queue, LANES, 1)
    assert delay is not None
    assert delay.seconds == pytest.approx(10_000)
    assert "(about 2 h 46 min)" in delay.warning
    short = NEW._replace(request=DIGITS | {"settings": {"train.steps": 20, "train.warmup": 0}})
    assert job_delay(short, queue, LANES, 1) is None
    # without a recipe, the earlier ones took 350 s in the median
    assert job_delay(Job("", "train", {}), queue, LANES, 1) == JobDelay(pytest.approx(350), 0, False)
    assert job_delay(Job("", "train", {"recipe": "ddpm-digits", "settings": {"train.steps": "x"}}), queue, LANES, 1)


def test_an_image_that_takes_long_has_a_warning_by_its_cost(queue: Queue):
    queue.restore([completed("sample", 10.0, cost=2.0)])
    assert job_delay(Job("", "sample", {}, cost=4.0), queue, LANES, 1) is None
    assert job_delay(Job("", "sample", {}, cost=40.0), queue, LANES, 1) == JobDelay(pytest.approx(200), 0, True)


def test_there_is_no_warning_while_a_worker_is_left_for_others(queue: Queue):
    assert job_delay(NEW, queue, LANES, 2) is None
    queue.submit("sample", {})  # of another lane
    assert job_delay(NEW, queue, LANES, 2) is None
    queue.submit("evaluate", {})
    assert job_delay(NEW, queue, LANES, 2) == JobDelay(None, 0, False)
    assert queue.claim("w", LANES[1]) is not None
    assert job_delay(NEW, queue, LANES, 2) == JobDelay(None, 0, False)


def test_queued_jobs_that_start_after_it_are_counted(queue: Queue):
    """Owners take turns, so that the second job of another owner is after it."""
    for owner in ("one", "one", "one"):
        queue.submit("evaluate", {}, owner=owner)
    queue.submit("sample", {}, owner="one")
    job = queue.submit("train", DIGITS, owner="two")
    delay = job_delay(job, queue, LANES, 1)
    assert delay == JobDelay(None, 2, False)
    assert delay.warning.endswith("; 2 queued jobs start after it")


def test_the_response_to_a_submission_has_the_warning(tmp_path: Path):
    from tests.server.http.conftest import server

    with server(tmp_path / "service", workers=0) as started:
        for path, body in (("/v1/jobs", {"kind": "train", "request": DIGITS}), ("/v1/tasks/train", DIGITS)):
            (warning,) = started.ask("POST", path, body).json["warnings"]
            assert warning.startswith("all other jobs, also images and videos, wait until this one ends")
        image = {"kind": "sample", "request": {"prompt": "a ring"}}
        assert started.ask("POST", "/v1/jobs", image).json["warnings"] == []
        started.service.queue.restore([completed("video-generate", 600.0), completed("sample", 600.0)])
        large = {"prompt": "a ring", "seed": 1, "n": 64, "steps": 1000, "size": "64x64", "wait": False}
        answer = started.ask("POST", "/v1/images/generations", large)
        assert answer.status == 202
        assert "wait until this one ends" in answer.json["warnings"][0]
        video = {"prompt": "a ring moves", "steps": 2000, "size": "64x64"}
        assert "wait until this one ends" in started.ask("POST", "/v1/videos", video).json["warnings"][0]
