"""Clients that read their response slowly or not at all, and those that wait for one when the server is stopped."""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.server.http.conftest import Server, server
from unveil.errors import RecipeError
from unveil.server.http import connection
from unveil.server.http.connection import ConnectionLimits
from unveil.server.jobs.worker import JobProgress

LIMIT_S = 0.5
SIZE = 12 << 20  # more than the buffers of both systems hold
JOB = {"prompt": "a ring", "seed": 7}
HOST = "host: localhost\r\n"
JSON = f"{HOST}content-type: application/json\r\n"


def large(request: Mapping[str, Any], folder: Path, report: JobProgress) -> None:
    """A job with an output that is too large for the buffers of a connection."""
    del request, report
    (folder / "seed7_00000.png").write_bytes(os.urandom(SIZE))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("service")
    with server(folder, work={"sample": large}, connections=ConnectionLimits(reader_seconds=LIMIT_S)) as started:
        yield started


def opened(stack: ExitStack, port: int, sent: str) -> socket.socket:
    """A connection with a small buffer, on which a request was sent."""
    line = stack.enter_context(socket.socket())
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    line.settimeout(10)
    line.connect(("127.0.0.1", port))
    line.sendall(sent.encode())
    return line


def images() -> str:
    """A request of images, whose response is one message."""
    body = json.dumps(JOB)
    return f"POST /v1/images/generations HTTP/1.1\r\n{JSON}content-length: {len(body)}\r\n\r\n{body}"


def file_of(running: Server) -> str:
    """A request of a file, whose response is many messages."""
    job = running.ask("POST", "/v1/jobs", {"kind": "sample", "request": JOB}).json
    running.until(job["id"], "completed")
    return f"GET /v1/jobs/{job['id']}/files/seed7_00000.png HTTP/1.1\r\n{HOST}\r\n"


def is_reset(line: socket.socket, seconds: float) -> bool:
    """Return True if the other side closes a connection within a time; reads nothing."""
    poll = select.poll()
    poll.register(line, select.POLLERR | select.POLLHUP)
    return bool(poll.poll(1000 * seconds))


@pytest.mark.parametrize("kind", ["images", "file"])
def test_a_client_that_does_not_read_is_given_up(running: Server, kind: str):
    with ExitStack() as stack:
        line = opened(stack, running.port, images() if kind == "images" else file_of(running))
        assert line.recv(12) == b"HTTP/1.1 200"
        begun = time.monotonic()
        assert is_reset(line, 10)
        assert time.monotonic() - begun > 0.8 * LIMIT_S
    assert running.ask("GET", "/health").status == 200


@pytest.mark.parametrize("kind", ["images", "file"])
def test_a_client_that_reads_slowly_gets_its_response(running: Server, kind: str):
    """Control: it takes several times the limit."""
    with ExitStack() as stack:
        sent = (images() if kind == "images" else file_of(running)).replace(HOST, f"{HOST}connection: close\r\n")
        line, received, begun = opened(stack, running.port, sent), 0, time.monotonic()
        while part := line.recv(1 << 20, socket.MSG_WAITALL):
            received += len(part)
            time.sleep(4 * LIMIT_S / (SIZE >> 20))
        assert received > SIZE
        assert time.monotonic() - begun > 3 * LIMIT_S


def test_a_client_that_reads_too_little_is_given_up(running: Server):
    """A byte now and then does not hold a connection."""
    with ExitStack() as stack:
        line = opened(stack, running.port, file_of(running))
        end = time.monotonic() + 10
        while not is_reset(line, LIMIT_S / 4):
            assert time.monotonic() < end
            line.recv(1)


def test_the_limit_must_be_above_zero():
    with pytest.raises(RecipeError, match="must be above 0 seconds"):
        ConnectionLimits(reader_seconds=0.0)


# -- the end of the server ----------------------------------------------------------------------------------------


def received(line: socket.socket, found: list[bytes]) -> None:
    """Collect what a connection receives until it is closed."""
    while part := line.recv(1 << 16):
        found.append(part)


def test_streams_of_events_end_with_the_server(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The last chunk of an ended stream has no content; no task of the server is cut off."""
    found = list[bytes]()
    with ExitStack() as stack, caplog.at_level(logging.INFO):
        with server(tmp_path / "service", workers=0) as started:
            job = started.ask("POST", "/v1/jobs", {"kind": "sample", "request": JOB}).json
            line = opened(stack, started.port, f"GET /v1/jobs/{job['id']}/events HTTP/1.1\r\n{HOST}\r\n")
            thread = threading.Thread(target=received, args=(line, found))
            thread.start()
            while b"event: job" not in b"".join(found):
                time.sleep(0.01)
            begun = time.monotonic()
        thread.join(10)
        assert time.monotonic() - begun < 3
    assert b"".join(found).endswith(b"\r\n0\r\n\r\n")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]


def test_a_request_that_waits_for_a_job_is_answered_at_the_end_of_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connection, "GRACE_S", 0.2)
    found = list[bytes]()
    with ExitStack() as stack, caplog.at_level(logging.INFO):
        with server(tmp_path / "service", workers=0) as started:
            line = opened(stack, started.port, images())
            thread = threading.Thread(target=received, args=(line, found))
            thread.start()
            while not started.service.queue.jobs("queued"):
                time.sleep(0.01)
            (job,) = started.service.queue.jobs("queued")
        thread.join(10)
    head, _, body = b"".join(found).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503")
    assert json.loads(body)["error"]["message"] == (
        f"the server ends; job {job.id} is continued when it is started again"
    )
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
