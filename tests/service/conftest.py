"""A queue, what its jobs make, and a worker in this process."""

from __future__ import annotations

from typing import Any

import pytest

from unveil.service.inputs import FOLDER, Inputs
from unveil.service.job import Job, Limits
from unveil.service.kinds import kinds
from unveil.service.pictures import PICTURES
from unveil.service.process import MADE
from unveil.service.queue import Queue
from unveil.service.results import Results
from unveil.service.worker import Worker


@pytest.fixture
def queue(tmp_path) -> Queue:
    return Queue(tmp_path / "service", Limits(waiting=100, each=100))


@pytest.fixture
def results(queue: Queue) -> Results:
    return Results(queue.folder / MADE)


@pytest.fixture
def worker(queue: Queue, results: Results) -> Worker:
    return Worker("w", queue, results, kinds(queue.folder, "cpu"))


@pytest.fixture
def inputs(queue: Queue) -> Inputs:
    return Inputs(queue.folder / FOLDER)


def done(queue: Queue, worker: Worker, kind: str = PICTURES, **request: Any) -> Job:
    id = queue.submit(kind, request).id
    worker.one()
    job = queue.get(id)
    assert job is not None
    return job
