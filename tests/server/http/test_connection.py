"""Connections: malformed requests, and bodies of many parts."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import h11
import pytest

from tests.server.http.conftest import KEY, Server, server
from tests.server.http.test_middleware import form
from unveil.errors import RecipeError
from unveil.server.http.connection import MAX_EVENTS, BoundedConnection, ConnectionLimits, ConnectionPool
from unveil.server.http.middleware import App, Receive, Scope, SecurityPolicy, Send

POST = "POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
CHUNKED = f"{POST}transfer-encoding: chunked\r\n\r\n".encode()
GET = b"GET /v1/jobs HTTP/1.1\r\nhost: localhost\r\n"
IMAGES, VIDEOS, JOBS = "/v1/images/generations", "/v1/videos", "/v1/jobs"
FORM = b"content-type: multipart/form-data; boundary=x\r\n"
RING = b'{"prompt": "a ring", "seed": 7}'


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("service"), before=Threaded) as started:
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


@pytest.mark.parametrize("path", [IMAGES, JOBS, "/health"])
def test_a_connection_is_closed_where_the_length_of_a_body_is_ambiguous(running: Server, path: str):
    """The second request would be one that a proxy takes for a part of the first."""
    start = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n".encode()
    chunked, length = b"transfer-encoding: chunked\r\n", b"content-length: 5\r\n"
    for headers in (chunked + length, length + chunked, length + b"Transfer-Encoding: Chunked\r\n"):
        received = answers(running, start + headers + b"\r\n0\r\n\r\n" + GET + b"\r\n")
        assert statuses(received) == [400], headers
        assert b"connection: close" in received.lower()
    old = start.replace(b"HTTP/1.1", b"HTTP/1.0") + chunked + b"connection: keep-alive\r\n\r\n0\r\n\r\n"
    assert statuses(answers(running, old + GET + b"\r\n")) == [400]


# -- bodies that are small and take long --------------------------------------------------------------------------


class Threaded:
    """Notes the thread of the event loop."""

    loop: ClassVar[int] = 0

    def __init__(self, app: App, rules: SecurityPolicy) -> None:
        del rules
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        Threaded.loop = threading.get_ident()
        await self.app(scope, receive, send)


LISTS = {"keyframes": [{}] * 2400, "lora": [{}] * 2400}


def form_body(**fields: object) -> tuple[dict[str, str], bytes]:
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    return form(*((name, "", text.encode()) for name, text in texts.items()))


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="CPU times of threads are read")
@pytest.mark.parametrize("path", [IMAGES, VIDEOS, JOBS, "/v1/tasks/video-generate", "/v1/videos/edits"])
def test_a_body_is_validated_outside_of_the_event_loop(running: Server, path: str):
    """The thread of the loop takes little CPU time; the smallest of several times."""
    running.ask("GET", "/health")
    clock, took = time.pthread_getcpuclockid(Threaded.loop), list[float]()
    values = {"kind": "video-generate", "request": LISTS} if path == JOBS else LISTS
    while len(took) < 8 and (not took or min(took) > 0.005):
        begun = time.clock_gettime(clock)
        assert running.ask("POST", path, values).status in (400, 422)
        took.append(time.clock_gettime(clock) - begun)
    assert min(took) < 0.012


@pytest.mark.parametrize("path", [IMAGES, VIDEOS, JOBS, "/v1/tasks/sample"])
@pytest.mark.parametrize(
    "text",
    [
        '{"controls": [' + "{}," * 59_000 + "{}]}",
        '{"keyframes": [' + "[]," * 59_000 + "[]]}",
        "{" + ",".join(f'"{number}":1' for number in range(20_000)) + "}",
        '{"prompt": "a", "seed": [' + "1," * 10_000 + "1]}",
    ],
)
def test_json_of_too_many_entries_is_refused_before_it_is_parsed(running: Server, path: str, text: str):
    kind = {"content-type": "application/json"}
    answer = running.ask("POST", path, headers=kind, body=text.encode())
    assert (answer.status, answer.json["error"]["code"]) == (422, "too_many_entries")
    headers, body = form_body(lora="1", settings=text[: 64 << 10])
    if path != JOBS:
        answer = running.ask("POST", path.replace("generations", "edits"), headers=headers, body=body)
        assert (answer.status, answer.json["error"]["code"]) == (422, "too_many_entries")


def test_a_prompt_may_have_any_number_of_commas(running: Server):
    answer = running.ask("POST", IMAGES, {"prompt": "a, [b]: {c}, " * 700 + '"' * 500 + ", " * 200, "seed": 1})
    assert answer.status == 200
    headers, body = form_body(video=", " * 9000, prompt="a, " * 3000)
    assert running.ask("POST", VIDEOS, headers=headers, body=body).json["error"]["code"] != "too_many_entries"


@pytest.mark.parametrize("fields", [{"lora": "[" * 40 + "]" * 40}, {"lora": '["', "sampling": " " + '{"a":' * 40}])
def test_a_field_of_a_form_is_not_nested_deeper_than_json(running: Server, fields: dict[str, str]):
    headers, body = form_body(**fields)
    answer = running.ask("POST", VIDEOS, headers=headers, body=body)
    assert (answer.status, answer.json["error"]["code"]) == (422, "too_deep")
    many = {f"a{number}": [0] * 4000 for number in range(3)}  # together more than one body may have
    headers, body = form_body(**many)
    answer = running.ask("POST", VIDEOS, headers=headers, body=body)
    assert (answer.status, answer.json["error"]["code"]) == (422, "too_many_entries")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_json_is_utf_8(running: Server, encoding: str):
    """In other encodings brackets have other bytes, which are not counted."""
    for text in ("[" * 500 + "]" * 500, '{"prompt": "a ring", "seed": 1}'):
        body = text.encode(encoding)
        answer = running.ask("POST", IMAGES, headers={"content-type": "application/json"}, body=body)
        assert (answer.status, answer.json["error"]["message"]) == (422, "JSON must be encoded as UTF-8")
    body = b"\xef\xbb\xbf" + RING  # a byte-order mark of UTF-8
    assert running.ask("POST", IMAGES, headers={"content-type": "application/json"}, body=body).status == 200


# -- limits of connections ----------------------------------------------------------------------------------------

KEYED = SecurityPolicy({"me": KEY})
HALF = b"GET /health HTTP/1.1\r\nhost: local"


def test_half_open_requests_of_one_client_keep_no_other_out(tmp_path: Path):
    """More of them than connections are allowed; each further connection takes the place of the oldest."""
    with (
        server(tmp_path / "service", KEYED, connections=ConnectionLimits(total=20)) as started,
        ExitStack() as stack,
    ):
        slow = stack.enter_context(
            closing(http.client.HTTPConnection("127.0.0.1", started.port, timeout=10))
        )  # an admitted request, which is not complete
        slow.request("POST", JOBS, headers={"authorization": f"Bearer {KEY}", "content-type": "application/json",
                                            "content-length": "2"})  # fmt: skip
        time.sleep(0.2)
        lines = list[socket.socket]()
        for number in range(50):
            line = stack.enter_context(socket.create_connection(("127.0.0.1", started.port), timeout=10))
            line.sendall((HALF, POST.encode()[:-10], b"", CHUNKED)[number % 4])
            lines.append(line)
        assert started.ask("GET", "/health").status == 200
        assert started.ask("GET", JOBS, key=KEY).status == 200
        with suppress(ConnectionResetError):
            assert lines[0].recv(1) == b""  # the oldest was closed
        slow.send(b"{}")
        assert slow.getresponse().status == 422


def test_no_connection_of_an_admitted_request_is_closed_for_another(tmp_path: Path):
    with server(tmp_path / "service", KEYED, connections=ConnectionLimits(total=3)) as started, ExitStack() as stack:
        head = CHUNKED.replace(b"\r\n\r\n", f"\r\nauthorization: Bearer {KEY}\r\n\r\n".encode())
        lines = [socket.create_connection(("127.0.0.1", started.port), timeout=10) for _ in range(3)]
        for line in lines:
            stack.enter_context(line)
            line.sendall(head)
        time.sleep(0.2)
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            started.ask("GET", "/health")
        for line in lines:
            line.sendall(in_chunks(RING, 10))
            assert line.recv(100).startswith(b"HTTP/1.1 200")
        assert started.ask("GET", "/health").status == 200


class Connection(NamedTuple):
    """A connection of a pool, which may wait."""

    number: int
    is_waiting: bool
    closed: list[int]

    @property
    def transport(self) -> Any:
        return self

    def abort(self) -> None:
        self.closed.append(self.number)

    def __hash__(self) -> int:
        return self.number


def added(limits: ConnectionLimits, *connections: tuple[str, bool]) -> tuple[list[bool], list[int]]:
    """Add connections of an address that wait or not; return which are accepted, and which are closed for others."""
    pool, closed = ConnectionPool(limits), list[int]()
    accepted = [
        pool.add(cast(Any, Connection(number, waits, closed)), address)
        for number, (address, waits) in enumerate(connections)
    ]
    return accepted, closed


@pytest.mark.parametrize(
    ("addresses", "limit"),
    [
        (["192.0.2.1"] * 5, 2),
        (["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::ffff", "2001:db8:0:0:1::"], 2),  # one network
    ],
)
def test_an_address_has_a_limited_number_of_connections(addresses: list[str], limit: int):
    limits = ConnectionLimits(total=100, each=limit)
    assert added(limits, *((address, True) for address in addresses)) == ([True] * 5, [0, 1, 2])
    assert added(limits, *((address, False) for address in addresses)) == ([True, True, False, False, False], [])
    others = [f"192.0.2.{number}" for number in range(10)] + [f"2001:db8:{number}::1" for number in range(10)]
    assert added(limits, *((address, False) for address in others)) == ([True] * 20, [])
    trusted = ConnectionLimits(total=100, each=limit, proxies=("192.0.2.0/24", "2001:db8::/32"))
    for proxy in (*addresses, "127.0.0.1", "::1"):
        assert added(trusted, *[(proxy, False)] * 5) == ([True] * 5, [])


def test_the_address_with_most_connections_gives_way():
    flood, others = [("192.0.2.1", True)] * 6, [("192.0.2.2", True), ("192.0.2.3", False)]
    limits = ConnectionLimits(total=8, each=7)
    assert added(limits, *others, *flood, ("192.0.2.4", True), ("192.0.2.5", True)) == ([True] * 10, [2, 3])


@pytest.mark.parametrize("proxy", ["", "example.org", "10.0.0.0/40", "1.2.3"])
def test_a_proxy_is_an_address_or_a_network(proxy: str):
    with pytest.raises(RecipeError, match="must be an address or a network"):
        ConnectionLimits(proxies=(proxy,))
