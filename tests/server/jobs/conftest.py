"""A queue, what its jobs make, and a worker in this process."""

from __future__ import annotations

from typing import Any

import pytest

from unveil.server.jobs.job_table import Job, QueueLimits
from unveil.server.jobs.job_types import job_handlers
from unveil.server.jobs.outputs import FOLDER, JobOutputs, UploadStore
from unveil.server.jobs.queue import Queue
from unveil.server.jobs.worker import Worker
from unveil.server.jobs.worker_main import MADE


@pytest.fixture
def queue(tmp_path) -> Queue:
    return Queue(tmp_path / "service", QueueLimits(waiting=100, each=100))


@pytest.fixture
def results(queue: Queue) -> JobOutputs:
    return JobOutputs(queue.folder / MADE)


@pytest.fixture
def worker(queue: Queue, results: JobOutputs) -> Worker:
    return Worker("w", queue, results, job_handlers(queue.folder, "cpu"))


@pytest.fixture
def inputs(queue: Queue) -> UploadStore:
    return UploadStore(queue.folder / FOLDER)


def done(queue: Queue, worker: Worker, kind: str = "sample", **request: Any) -> Job:
    id = queue.submit(kind, request).id
    worker.run_next()
    job = queue.get(id)
    assert job is not None
    return job
