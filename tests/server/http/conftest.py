"""A server on a free port of this machine, with one worker thread: with the real models, or with fast fakes."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("fastapi")

import torch
import uvicorn

from unveil.io.images import png
from unveil.server.http.api import BUDGET, ExtendApp, api
from unveil.server.http.connection import ConnectionLimits, ConnectionPool, IdleTimeoutProtocol
from unveil.server.http.middleware import App, SecurityPolicy
from unveil.server.http.server import bind_socket
from unveil.server.jobs.job_table import ALL_JOBS, QueueLimits
from unveil.server.jobs.job_types import job_handlers
from unveil.server.jobs.outputs import JobOutputs
from unveil.server.jobs.owners import OwnerData, Quota
from unveil.server.jobs.queue import Queue
from unveil.server.jobs.service import Service
from unveil.server.jobs.task_job import task_kinds
from unveil.server.jobs.worker import JobHandler, JobProgress, Worker
from unveil.server.jobs.worker_main import MADE

KEY, OTHER = "sesame-sesame-sesame", "barley-barley-barley"
Many = QueueLimits(waiting=100, each=100)


class FakeWorkerPool:
    """A fake pool of worker processes."""

    devices = ("cpu",)
    lanes = (ALL_JOBS,)
    damaged = False

    def names(self) -> list[str]:
        return ["cpu-0"]


def waited_for(work: Coroutine[Any, Any, None], seconds: float = 10) -> None:
    """Runs it to its end in a separate thread: while a browser is open, this one has a loop of Playwright's."""

    async def bounded() -> None:
        await asyncio.wait_for(work, seconds)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, bounded()).result()


def quick(request: Mapping[str, Any], folder: Path, report: JobProgress) -> None:
    """Write the requested number of images, coloured by the seed, in the requested steps of a millisecond."""
    steps, seed = int(request.get("steps", 1)), int(request.get("seed", 0))
    for step in range(steps):
        report.step(step, steps)
        if step % 200 == 10:
            report.preview(png(torch.zeros(3, 8, 8, dtype=torch.uint8)))
        time.sleep(0.001)
    for number in range(int(request.get("count", 1))):
        shade = torch.full((3, 8, 8), seed % 256, dtype=torch.uint8)
        (folder / f"seed{seed}_{number:05d}.png").write_bytes(png(shade))


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server(NamedTuple):
    port: int
    service: Service

    def ask(
        self,
        method: str,
        path: str,
        given: Any = None,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        key: str | None = None,
    ) -> Answer:
        """Send one request on a new connection."""
        sent = dict(headers or {})
        if given is not None:
            body = json.dumps(given).encode()
            sent.setdefault("content-type", "application/json")
        if key is not None:
            sent["authorization"] = f"Bearer {key}"
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            line.request(method, path, body, sent)
            found = line.getresponse()
            return Answer(found.status, {k.lower(): v for k, v in found.getheaders()}, found.read())
        finally:
            line.close()

    def until(self, id: str, *states: str, key: str | None = None) -> dict[str, Any]:
        """Wait until a job is in one of these states; return it."""
        end = time.monotonic() + 60
        while True:
            job = self.ask("GET", f"/v1/jobs/{id}", key=key).json
            if job["status"] in states:
                return job
            assert time.monotonic() < end, job
            time.sleep(0.02)


@contextmanager
def server(
    folder: Path,
    rules: SecurityPolicy | None = None,
    limits: QueueLimits = Many,
    work: Mapping[str, JobHandler] | None = None,
    budget: float = BUDGET,
    workers: int = 1,
    extend: ExtendApp | None = None,
    before: Callable[[App, SecurityPolicy], App] | None = None,
    quota: Quota | None = None,
    connections: ConnectionLimits | None = None,
) -> Iterator[Server]:
    queue, results = Queue(folder, limits), JobOutputs(folder / MADE)
    rules, owners = rules or SecurityPolicy(), OwnerData(folder, quota)
    admins = rules.admins if rules.keys else None
    service = Service(queue, results, FakeWorkerPool(), owners, (), admins)  # type: ignore[arg-type]
    bound = bind_socket("127.0.0.1", 0)
    app = api(service, rules, budget, extend)
    app = app if before is None else before(app, rules)
    lifespan: Any = "off" if extend is None else "on"
    protocol = partial(IdleTimeoutProtocol, pool=ConnectionPool(connections))
    config = uvicorn.Config(
        app, http=protocol, lifespan=lifespan, log_config=None, access_log=False, timeout_graceful_shutdown=5
    )  # type: ignore[arg-type]
    running = uvicorn.Server(config)
    done = work if work is not None else dict.fromkeys(task_kinds(), quick)
    over = threading.Event()
    threads = [threading.Thread(target=running.run, kwargs={"sockets": [bound]})]
    threads += [
        threading.Thread(target=Worker(f"w{n}", queue, results, done).run, args=(over.is_set,)) for n in range(workers)
    ]
    for thread in threads:
        thread.start()
    while not running.started:
        time.sleep(0.01)
    try:
        yield Server(bound.getsockname()[1], service)
    finally:
        over.set()
        for job in queue.jobs("running"):
            queue.cancel(job.id)
        running.should_exit = True
        for thread in threads:
            thread.join()
        queue.close()
        owners.close()
        bound.close()


Begin = Callable[..., Server]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Start servers, which stop with the test."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda **how: stack.enter_context(server(tmp_path / "service", **how))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the bundled models."""
    folder = tmp_path_factory.mktemp("service")
    with server(folder, work=job_handlers(folder, "cpu")) as found:
        yield found
