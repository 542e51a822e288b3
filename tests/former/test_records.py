"""Jobs, studies and claims of the time before the renames are listed, done and shown; see README.md."""

from __future__ import annotations

import json
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from tests.former.command import FILES, unveil
from unveil.reproduce.claim_page import page
from unveil.server.jobs.job_migration import FORMER_ERROR_SOURCES
from unveil.server.jobs.job_types import job_handlers
from unveil.server.jobs.outputs import JobOutputs
from unveil.server.jobs.owners import OwnerData
from unveil.server.jobs.queue import Queue
from unveil.server.jobs.worker import Worker
from unveil.server.jobs.worker_main import MADE

JOBS: dict[str, Any] = json.loads((FILES / "jobs.json").read_text())
NEEDS_WHAT_IS_NOT_THERE = ("waits-convert", "waits-caption")


def with_state(*states: str) -> list[str]:
    return [name for name, job in JOBS.items() if job["state"] in states]


@pytest.fixture(scope="module")
def queue(files: Path):
    opened = Queue(files / "service")
    yield opened
    opened.close()


def test_every_job_is_listed_in_its_state(queue):
    listed = {job.id: job for job in queue.jobs()}
    assert {id: job.state for id, job in listed.items()} == {job["id"]: job["state"] for job in JOBS.values()}
    for job in JOBS.values():
        assert list(listed[job["id"]].outputs) == job["outputs"]
        assert listed[job["id"]].error == job["error"]
        assert list(listed[job["id"]].messages) == job["said"]
        assert listed[job["id"]].error_source == FORMER_ERROR_SOURCES.get(job["fault"], job["fault"])


def test_what_jobs_made_is_listed_from_their_folders(files):
    made = {job.id: list(job.outputs) for job in JobOutputs(files / "service" / MADE).all()}
    assert made == {job["id"]: job["outputs"] for job in JOBS.values() if job["state"] == "completed"}


@pytest.mark.slow
def test_jobs_that_waited_or_ran_are_done_or_say_why_not(queue, files):
    queue.recover()
    with chdir(files):
        OwnerData(Path("service")).adopt(queue.jobs())
        worker = Worker("now", queue, JobOutputs(Path("service") / MADE), job_handlers(Path("service"), "cpu"))
        while worker.run_next():
            pass
    found = {name: queue.get(JOBS[name]["id"]) for name in with_state("queued", "running")}
    for name, job in found.items():
        if name in NEEDS_WHAT_IS_NOT_THERE:
            assert (job.state, bool(job.error)) == ("failed", True), name
        elif name == "stopping":
            assert job.state == "cancelled"
        else:
            assert (job.state, job.error) == ("completed", None), name


@pytest.mark.parametrize("name", ["ddim-steps"])
def test_the_page_of_a_claim_is_made_from_its_record(name):
    record = json.loads((FILES / "claims" / f"{name}.json").read_text())
    shown = page(record)
    assert record["claim"][1:] in shown
    assert record["verdict"] in shown


@pytest.mark.slow
def test_a_study_is_shown_beside_one_of_then(files):
    words = ("--only", "loop", "--quick", "--compare-with", "studies/video.json", "--out", "beside", "--quiet")
    unveil("analyze", "video-tasks", "playground-video", *words, folder=files)
    assert (files / "beside" / "video.json").exists()
