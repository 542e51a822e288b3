"""Clients behind a trusted proxy: which one a request is of, and the connections of each."""

from __future__ import annotations

import http.client
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.server.http.conftest import KEY, Server, server
from unveil.server.http.connection import PROXY_FACTOR, ConnectionLimits, Peer
from unveil.server.http.middleware import SecurityPolicy

PROXY, INNER, CLIENT = "10.0.0.5", "10.0.0.6", "192.0.2.1"
LIMITS = ConnectionLimits(total=100, each=2, proxies=("10.0.0.0/24", "2001:db8:f::5"))
JOBS = "/v1/jobs"
AUTHORIZATION = {"authorization": f"Bearer {KEY}"}


def counted(*headers: tuple[str, str], peer: str = PROXY) -> Peer:
    """Whose connection one from a peer is, with a request of these headers."""
    sent = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return LIMITS.client(LIMITS.peer(peer), sent)


@pytest.mark.parametrize(
    ("header", "client"),
    [
        (("X-Forwarded-For", CLIENT), CLIENT),
        (("X-Forwarded-For", f"{CLIENT}:4711"), CLIENT),
        (("X-Forwarded-For", f"198.51.100.7, {CLIENT}"), CLIENT),  # the client itself sent the first
        (("X-Forwarded-For", f"{CLIENT}, {INNER}"), CLIENT),  # of two proxies
        (("X-Forwarded-For", f"198.51.100.7,{CLIENT} ,\t{INNER},10.0.0.7"), CLIENT),
        (("X-Forwarded-For", f"x' OR 1=1, , unknown, {CLIENT}"), CLIENT),  # what is at the left is not believed
        (("X-Forwarded-For", f"{PROXY}, {CLIENT}"), CLIENT),  # one that poses as the proxy
        (("X-Forwarded-For", f"::ffff:{CLIENT}"), CLIENT),
        (("X-Forwarded-For", "2001:db8::1"), "2001:db8::/64"),
        (("X-Forwarded-For", "[2001:db8::9]:443"), "2001:db8::/64"),
        (("X-Forwarded-For", f"{CLIENT}, 2001:db8:f::5"), CLIENT),
        (("X-Forwarded-For", "127.0.0.1"), "127.0.0.1"),  # not this machine, which has no limit
        (("Forwarded", f"for={CLIENT}"), CLIENT),
        (("Forwarded", f"For={CLIENT};proto=http;by=203.0.113.43"), CLIENT),
        (("Forwarded", f'for="{CLIENT}:4711"'), CLIENT),
        (("Forwarded", 'for="[2001:db8::1]:4711"; proto=https'), "2001:db8::/64"),
        (("Forwarded", f"for=198.51.100.7, for={CLIENT}, for={INNER}"), CLIENT),
        (("Forwarded", f'for="x, for={CLIENT}'), CLIENT),  # a quote that the client left open
    ],
)
def test_a_client_is_the_right_most_address_that_is_not_trusted(header: tuple[str, str], client: str):
    assert counted(header) == Peer(client)
    assert counted(header, peer=f"::ffff:{PROXY}") == Peer(client)  # the same proxy at an IPv6 socket
    for other in ("203.0.113.9", "::ffff:203.0.113.9"):  # one that is not trusted
        assert counted(header, peer=other) == Peer("203.0.113.9")
    assert counted(header, peer="127.0.0.1") == Peer("")


@pytest.mark.parametrize(
    "value",
    [
        "", " ", ",", "unknown", "_hidden", "example.org", "192.0.2", "192.0.2.1.", "192.0.2.256", "192.0.2.01",
        "192.0.2.1/24", "192.0.2.1 192.0.2.2", "192.0.2.1:", "192.0.2.1:123456", "192.0.2.1\x00", "3221225985",
        "[192.0.2.1", "192.0.2.1]", "[]", "::1::", ":::", "fe80::1%eth0", "1" * 5000, "[" * 5000, "192.0.2.1,", INNER,
        f"{PROXY}, {INNER}", f"{CLIENT}, unknown", f"{CLIENT}, unknown, {INNER}", "\u00b2.0.2.1", "\uff11.2.3.4",
    ],
)  # fmt: skip
def test_a_malformed_value_counts_for_the_proxy(value: str):
    sent = value.encode("utf-8").decode("latin-1")
    proxy = Peer(PROXY, is_proxy=True)
    assert counted(("X-Forwarded-For", sent)) == proxy
    assert counted(("Forwarded", f"for={sent}")) == proxy
    assert counted(("Forwarded", f'for="{sent}"')) == proxy


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("X-Real-IP", CLIENT)],
        [("Forwarded", CLIENT)],
        [("Forwarded", "by=192.0.2.1;proto=http")],
        [("Forwarded", "for=192.0.2.1;for=192.0.2.2")],
        [("Forwarded", 'for="192.0.2.1')],
        [("Forwarded", "for=192.0.2.1;")],
        [("Forwarded", "for = 192.0.2.1")],
        [("Forwarded", "for=192.0.2.1;" + "a=b;" * 2000)],
        [("X-Forwarded-For", CLIENT), ("Forwarded", "for=198.51.100.7")],  # the client sent one of them
        [("X-Forwarded-For", CLIENT), ("Forwarded", "unknown")],
        [("X-Forwarded-For", CLIENT), ("X-Forwarded-For", "unknown")],
    ],
)
def test_a_header_that_names_no_client_counts_for_the_proxy(headers: list[tuple[str, str]]):
    assert counted(*headers) == Peer(PROXY, is_proxy=True)


def test_repeated_headers_are_one_list():
    assert counted(("X-Forwarded-For", "198.51.100.7"), ("X-Forwarded-For", CLIENT)) == Peer(CLIENT)
    assert counted(("X-Forwarded-For", CLIENT), ("Forwarded", f"for={CLIENT}")) == Peer(CLIENT)


# -- a server behind a proxy on this machine ----------------------------------------------------------------------

BEHIND = ConnectionLimits(total=100, each=2, proxies=("127.0.0.1",))


def opened(started: Server, stack: ExitStack, **headers: str) -> http.client.HTTPConnection:
    """Send the head of an admitted request, whose body does not arrive."""
    line = http.client.HTTPConnection("127.0.0.1", started.port, timeout=10)
    stack.callback(line.close)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    kind = {"content-type": "application/json", "content-length": "2", "expect": "100-continue"}
    line.request("POST", JOBS, headers={**AUTHORIZATION, **kind, **named})
    assert line.sock.recv(100).startswith(b"HTTP/1.1 100")  # the server reads the body: it has admitted the request
    return line


def test_each_client_behind_a_proxy_has_its_own_limit(tmp_path: Path):
    def status(client: str, name: str = "x-forwarded-for") -> int:
        return started.ask("GET", JOBS, headers={**AUTHORIZATION, name: client}).status

    with server(tmp_path / "service", SecurityPolicy({"me": KEY}), connections=BEHIND) as started, ExitStack() as stack:
        first = opened(started, stack, x_forwarded_for=CLIENT)
        opened(started, stack, x_forwarded_for=f"198.51.100.7, {CLIENT}")
        refused = started.ask("GET", JOBS, headers={**AUTHORIZATION, "x-forwarded-for": CLIENT})
        assert (refused.status, refused.json["error"]["code"]) == (429, "too_many_connections")
        assert refused.headers["retry-after"] == "1"
        assert status(f"198.51.100.8, {CLIENT}") == 429  # it cannot choose another address
        assert status(f"for={CLIENT}", "forwarded") == 429
        assert status("192.0.2.2") == 200
        assert started.ask("GET", JOBS, headers=AUTHORIZATION).status == 200  # of the proxy itself
        first.sock.sendall(b"{}")
        assert first.sock.recv(100).startswith(b"HTTP/1.1 422")
        assert status(CLIENT) == 200


def test_one_connection_of_a_proxy_carries_requests_of_several_clients(tmp_path: Path):
    with server(tmp_path / "service", SecurityPolicy({"me": KEY}), connections=BEHIND) as started, ExitStack() as stack:
        for _ in range(2):
            opened(started, stack, x_forwarded_for=CLIENT)
        line = http.client.HTTPConnection("127.0.0.1", started.port, timeout=10)
        stack.callback(line.close)
        for client, expected in (("192.0.2.2", 200), ("192.0.2.3", 200), (CLIENT, 429)):
            line.request("GET", JOBS, headers={**AUTHORIZATION, "x-forwarded-for": client})
            answer = line.getresponse()
            answer.read()
            assert answer.status == expected, client


def test_a_proxy_may_have_more_half_open_connections_than_a_client_but_not_any_number(tmp_path: Path):
    limit = BEHIND.each * PROXY_FACTOR
    with server(tmp_path / "service", SecurityPolicy({"me": KEY}), connections=BEHIND) as started, ExitStack() as stack:
        lines = list[socket.socket]()
        for _ in range(limit + 1):
            line = stack.enter_context(socket.create_connection(("127.0.0.1", started.port), timeout=10))
            line.sendall(b"GET /health HTTP/1.1\r\nhost: local")
            lines.append(line)
        with suppress(ConnectionResetError):
            assert not lines[0].recv(1)  # the oldest was closed
        for line in lines[1:]:  # the others are open, and are answered
            line.sendall(b"host\r\n\r\n")
            assert line.recv(100).startswith(b"HTTP/1.1 200")
        assert started.ask("GET", "/health", headers={"x-forwarded-for": CLIENT}).status == 200


def test_without_a_trusted_proxy_no_header_names_a_client(tmp_path: Path):
    limits = ConnectionLimits(total=100, each=2)
    with server(tmp_path / "service", SecurityPolicy({"me": KEY}), connections=limits) as started, ExitStack() as stack:
        for _ in range(4):  # this machine has no limit
            opened(started, stack, x_forwarded_for=CLIENT, forwarded=f"for={CLIENT}")
        assert started.ask("GET", JOBS, headers={**AUTHORIZATION, "x-forwarded-for": CLIENT}).status == 200
