"""Connections: malformed requests, and bodies of many parts."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator

import h11
import pytest

from tests.server.http.conftest import Server, server
from unveil.server.http.connection import MAX_EVENTS, BoundedConnection

POST = "POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
CHUNKED = f"{POST}transfer-encoding: chunked\r\n\r\n".encode()
GET = b"GET /v1/jobs HTTP/1.1\r\nhost: localhost\r\n"
FORM = b"content-type: multipart/form-data; boundary=x\r\n"
RING = b'{"prompt": "a ring", "seed": 7}'


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("service")) as started:
        yield started


def in_chunks(body: bytes, size: int) -> bytes:
    """A body in chunks of a size."""
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def answers(server: Server, *sent: bytes, wait: float = 0.0) -> bytes:
    """Send bytes in several parts; return what the server answers until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
        received = b""
        try:
            for part in sent:
                line.sendall(part)
                time.sleep(wait)
            while part := line.recv(1 << 16):
                received += part
        except ConnectionError:
            pass
        return received


def statuses(received: bytes) -> list[int]:
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


def test_a_body_of_many_parts_and_the_requests_behind_it_are_answered_in_order(running: Server):
    """The parts are parsed in turns with other connections; nothing of them is lost."""
    spaces = b" " * 300
    first = CHUNKED + in_chunks(RING + spaces, 1)
    second = CHUNKED + in_chunks(b"[]" + spaces, 2)
    last = GET + b"connection: close\r\n\r\n"
    received = answers(running, first + second + last)
    assert statuses(received) == [200, 422, 200]
    assert b'"b64_json":"' in received
    assert statuses(answers(running, *(bytes([byte]) for byte in first[:-310]), first[-310:] + last)) == [200, 200]


def test_others_are_answered_while_a_body_of_many_parts_is_parsed(running: Server):
    """The body is complete only after the answer to the other request."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as line:
        line.sendall(CHUNKED + b"1\r\n \r\n" * 30_000)
        assert running.ask("GET", "/health").status == 200
        line.sendall(in_chunks(RING, 5))
        assert line.recv(100).startswith(b"HTTP/1.1 200")


def test_a_parser_pauses_before_a_body_and_within_one_of_many_parts():
    parser = BoundedConnection(h11.SERVER)
    parser.receive_data(CHUNKED + in_chunks(b" " * 1000, 1))
    turns = [0]
    while turns[-1] is not None:
        parser.events_left = MAX_EVENTS
        count = 0
        while (event := parser.next_event()) is not h11.NEED_DATA and not isinstance(event, h11.EndOfMessage):
            count += 1
        turns.append(count if event is h11.NEED_DATA else None)
    assert turns[1:-1] == [1, *[MAX_EVENTS] * (1000 // MAX_EVENTS)]  # first the head


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ([CHUNKED, b"x\r\n"], [400]),
        ([CHUNKED + b"1\r\n[\r\nx\r\n"], [400]),
        ([CHUNKED + b"1\r\n[x"], [400]),
        ([GET + b"transfer-encoding: chunked\r\n\r\nx\r\n"], [415]),
        # an answer was sent before the malformed part arrives
        ([GET + FORM + b"transfer-encoding: chunked\r\n\r\n", b"x\r\n"], [200]),
        ([GET + b"\r\n", b"\x16\x03\x01"], [200, 400]),
        ([GET + b"\r\n" + b"GET\r\n\r\n"], [200, 400]),
        ([GET + b"a: b\x00\r\n\r\n"], [400]),
        ([b"\r\n" + GET + b"\r\n"], [400]),
    ],
)
def test_a_malformed_request_is_refused_without_a_traceback(
    running: Server, caplog: pytest.LogCaptureFixture, sent: list[bytes], expected: list[int]
):
    with caplog.at_level(logging.INFO):
        received = answers(running, *sent, wait=0.1)
        assert running.ask("GET", "/health").status == 200
    assert statuses(received) == expected
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
