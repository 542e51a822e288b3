"""HTTP connections: bounded heads, time limits for heads and for clients that do not read, and bodies in small parts.

The heads are checked before they are parsed, since a request has no key until then. Connections are counted by address,
those of a trusted proxy by the client whose request they carry. This client is read from the headers X-Forwarded-For
and Forwarded (RFC 7239), which a client may send itself: each proxy adds the address of its peer at the right, so that
only the addresses that trusted proxies added are believed.
"""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import json
import re
import socket
import struct
import sys
import termios
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle

from unveil.errors import RecipeError
from unveil.server.http.errors import HttpProblem

PATIENCE_S = 30.0  # time until the head of a request must be complete
READER_S = 60.0  # time in which a client must read READER_BYTES of a response, or the rest of it
READER_BYTES = 32 << 10
GRACE_S = 3.0  # time at the end of the server in which responses may still be completed
MAX_HEAD = 16 << 10  # bytes of the request line and the headers
MAX_HEADERS = 100
MAX_EVENTS = 64  # parts of a body that are parsed before other connections have their turn
PROXY_FACTOR = 4  # connections of a trusted proxy that carry no client's request, per those of another address
_HEAD_END = re.compile(rb"\n\r?\n")
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_HEADERS = {b"x-forwarded-for": False, b"forwarded": True}  # by name: has elements of RFC 7239
_NODE = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9.]{7,15}))(?::[0-9]{1,5})?|([0-9A-Fa-f:.]{2,45})")
_PAIR = re.compile(r'[ \t]*([A-Za-z0-9_-]+)=([^\s";,=]+|"[^"\\]*")[ \t]*')


def check_head(headers: Iterable[tuple[bytes, bytes]], target: bytes = b"") -> None:
    """Check the size of a parsed head.

    Raises:
        HttpProblem: 431, it is larger than MAX_HEAD bytes, or has more than MAX_HEADERS headers.
    """
    sizes = [len(name) + len(value) for name, value in headers]
    if len(sizes) > MAX_HEADERS or sum(sizes) + len(target) > MAX_HEAD:
        raise _too_large()


def _too_large() -> HttpProblem:
    """Build the error of a head that is too large."""
    message = f"the head of the request is larger than {MAX_HEAD} bytes, or has more than {MAX_HEADERS} headers"
    return HttpProblem(431, message, "head_too_large")


def _too_many_connections() -> HttpProblem:
    """Build the error of a client with too many open requests at a proxy."""
    message = "too many requests of this address are open; wait until one is answered"
    return HttpProblem(429, message, "too_many_connections", headers={"retry-after": "1"})


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of open connections.

    Attributes:
        total: Maximum number of connections.
        each: Maximum number of connections of one address; of IPv6, an address is a network of 64 bits. A trusted
            proxy may have PROXY_FACTOR times as many that carry no request of a client: those without a complete head,
            and those whose headers name no client.
        proxies: Addresses or networks of trusted proxies. Their connections are counted for the clients that they name.
        reader_seconds: Time in which a client must read READER_BYTES of a response, or the rest of it. Later its
            connection is closed.
    """

    total: int = 512
    each: int = 64
    proxies: tuple[str, ...] = ()
    reader_seconds: float = READER_S

    def __post_init__(self) -> None:
        """Raise RecipeError for an impossible limit or address."""
        if min(self.total, self.each) < 1:
            raise RecipeError(f"connections: at most {self.total}, {self.each} of one address; must be at least 1")
        if not self.reader_seconds > 0:
            raise RecipeError(f"reader_seconds = {self.reader_seconds}: must be above 0 seconds")
        for proxy in self.proxies:
            try:
                ipaddress.ip_network(proxy, strict=False)
            except ValueError:
                raise RecipeError(
                    f"--trusted-proxy {proxy}: must be an address or a network, such as 10.0.0.0/8"
                ) from None

    def is_proxy(self, address: str) -> bool:
        """Return True for an address of this machine or of a trusted proxy."""
        parsed = parse_address(address)
        return parsed is not None and (parsed.is_loopback or self.is_trusted(parsed))

    def is_trusted(self, address: IPAddress) -> bool:
        """Return True for a proxy that an option names; an address of this machine is not one by itself."""
        return any(address in ipaddress.ip_network(proxy, strict=False) for proxy in self.proxies)

    def maximum(self, peer: Peer) -> int | None:
        """Return the maximum number of connections of an address; None for this machine, of which only all count."""
        if not peer.address:
            return None
        return self.each * PROXY_FACTOR if peer.is_proxy else self.each

    def peer(self, host: str) -> Peer:
        """Return how the connections of a peer are counted before they carry the request of a client."""
        parsed = parse_address(host)
        if parsed is None:
            return Peer(host)
        if self.is_trusted(parsed):
            return Peer(str(parsed), is_proxy=True)
        return Peer("" if parsed.is_loopback else _network(parsed))

    def client(self, peer: Peer, headers: Iterable[tuple[bytes, bytes]]) -> Peer:
        """Return how a connection is counted while it carries a request; headers of other peers are ignored."""
        client = forwarded_client(headers, self.is_trusted) if peer.is_proxy else None
        return peer if client is None else Peer(_network(client))


class Peer(NamedTuple):
    """Whose connection one is.

    Attributes:
        address: Address or network; empty for this machine, whose connections have no limit of their own.
        is_proxy: The address is that of a trusted proxy itself.
    """

    address: str
    is_proxy: bool = False


def _network(address: IPAddress) -> str:
    """Return an IPv4 address, or the network of 64 bits of an IPv6 address, of which one client has all addresses."""
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))


class ConnectionPool:
    """The open connections of a server.

    A connection waits until a request of it is admitted, with a key or, where none is needed, without. A connection
    beyond a limit replaces the one that has waited longest. Without one that waits, it is closed. So neither requests
    that are never completed nor connections without a request keep others out.

    Args:
        limits: Limits of the connections.
    """

    def __init__(self, limits: ConnectionLimits | None = None) -> None:
        self.limits = limits or ConnectionLimits()
        self._open: dict[IdleTimeoutProtocol, Peer] = {}  # oldest first

    def __len__(self) -> int:
        """Number of open connections."""
        return len(self._open)

    def add(self, connection: IdleTimeoutProtocol, host: str) -> bool:
        """Add a connection from an address; return False if it exceeds a limit, and must be closed."""
        peer = self.limits.peer(host)
        if self._is_full(peer):
            if not self._close_oldest(peer):
                return False
        elif len(self._open) >= self.limits.total and not self._close_oldest(self._most_waiting()):
            return False
        self._open[connection] = peer
        return True

    def remove(self, connection: IdleTimeoutProtocol) -> None:
        """Remove a connection that is closed."""
        self._open.pop(connection, None)

    def begin_request(self, connection: IdleTimeoutProtocol, host: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Count a proxy's connection for the client of a request; return False if that exceeds the client's limit."""
        peer = self.limits.peer(host)
        client = self.limits.client(peer, headers)
        if client == peer or self._open.pop(connection, None) is None:  # or it was closed for another
            return True
        accepted = not self._is_full(client) or self._close_oldest(client)
        self._open[connection] = client if accepted else peer
        return accepted

    def end_request(self, connection: IdleTimeoutProtocol, host: str) -> None:
        """Count a connection of a proxy for the proxy again, once a request was answered."""
        peer = self.limits.peer(host)
        if not peer.is_proxy or self._open.get(connection, peer) == peer:
            return
        del self._open[connection]
        if self._is_full(peer):
            self._close_oldest(peer)
        self._open[connection] = peer

    def _is_full(self, peer: Peer) -> bool:
        """Return True if an address has as many connections as it may have."""
        maximum = self.limits.maximum(peer)
        return maximum is not None and sum(other == peer for other in self._open.values()) >= maximum

    def _most_waiting(self) -> Peer | None:
        """Return the address with the most connections that wait."""
        counts = Counter(peer for connection, peer in self._open.items() if connection.is_waiting)
        return counts.most_common(1)[0][0] if counts else None

    def _close_oldest(self, peer: Peer | None) -> bool:
        """Close the connection of an address that has waited longest; return False if none waits."""
        waiting = [connection for connection, other in self._open.items() if other == peer and connection.is_waiting]
        for connection in waiting[:1]:
            self.remove(connection)
            connection.transport.abort()
        return bool(waiting)


class BoundedConnection(h11.Connection):
    """Parser that refuses large heads before it parses them, and pauses before a body and within one of many parts.

    Attributes:
        refusal: Why a head was refused; None: it was not.
        events_left: Number of parts of a body until it pauses.
        is_stream: The response is a stream of events, which may have no end.
    """

    refusal: HttpProblem | None = None
    events_left = MAX_EVENTS
    is_stream = False

    def send(self, event: Any) -> Any:
        """Return the bytes of an event to send."""
        if isinstance(event, h11.Response):
            self.is_stream = any(
                name == b"content-type" and value.startswith(b"text/event-stream") for name, value in event.headers
            )
        return super().send(event)

    def next_event(self) -> Any:
        """Return the next event; NEED_DATA also once no events are left.

        Raises:
            h11.RemoteProtocolError: The head is too large, or the request is malformed.
        """
        if self.their_state is h11.IDLE and _is_large(self.trailing_data[0]):
            self.refusal = _too_large()
            raise h11.RemoteProtocolError(str(self.refusal), error_status_hint=self.refusal.status)
        if self.events_left <= 0:
            return h11.NEED_DATA
        event = super().next_event()
        if isinstance(event, h11.Data):
            self.events_left -= 1
        elif isinstance(event, h11.Request) and self.trailing_data[0]:
            self.events_left = 0  # the application sees the head first, and may refuse the request
        return event


def _is_large(received: bytes) -> bool:
    """Return True if a head, complete or not, is larger than allowed."""
    end = _HEAD_END.search(received, 0, MAX_HEAD)
    if end is None:
        return len(received) >= MAX_HEAD or received.count(b"\n") > MAX_HEADERS + 1
    return received.count(b"\n", 0, end.end()) > MAX_HEADERS + 2  # with the request line and the empty line


class IdleTimeoutProtocol(H11Protocol):
    """HTTP protocol with bounded heads, which closes connections whose client does not send a head or read in time.

    Args:
        args: As of H11Protocol.
        pool: The open connections of the server; None: no other is counted.
        kwargs: As of H11Protocol.
    """

    conn: BoundedConnection
    _patience: asyncio.TimerHandle | None = None
    _paused = False  # parts of a body are left to parse
    _reader: asyncio.TimerHandle | None = None
    _unread: int | None = None  # bytes that the client has not read; None: it has read many since

    def __init__(self, *args: Any, pool: ConnectionPool | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pool = ConnectionPool() if pool is None else pool
        self.conn = BoundedConnection(h11.SERVER, MAX_HEAD)

    def connection_made(self, transport: Any) -> None:
        """Start the timeout."""
        super().connection_made(transport)
        if not self._pool.add(self, self._host):
            transport.abort()
            return
        self._wait()

    @property
    def _host(self) -> str:
        """Address of the peer."""
        return self.client[0] if self.client else ""

    @property
    def is_waiting(self) -> bool:
        """True until a request was admitted, and again after it was answered."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete or not cycle.scope.get("state", {}).get("admitted")

    def data_received(self, data: bytes) -> None:
        """Stop the timeout once a request head is complete."""
        super().data_received(data)
        if self._paused:  # the application, which has read a part of the body, has resumed reading
            self.transport.pause_reading()
        self._wait()

    def handle_events(self) -> None:
        """Handle what has arrived, up to MAX_EVENTS parts of a body; the rest follows after other connections."""
        self.conn.events_left = MAX_EVENTS
        previous: RequestResponseCycle | None = self.cycle
        super().handle_events()
        if self.cycle is not previous and not self._pool.begin_request(self, self._host, self.headers):
            # read by the security middleware, which has not run yet
            self.cycle.scope.setdefault("state", {})["refusal"] = _too_many_connections()
        if self.conn.events_left <= 0 and not self._paused:
            self._paused = True
            self.transport.pause_reading()
            self.loop.call_soon(self._resume)

    def _resume(self) -> None:
        self._paused = False
        if not self.transport.is_closing():
            if not self.flow.read_paused:
                self.transport.resume_reading()
            self.handle_events()
            self._wait()

    def send_400_response(self, msg: str) -> None:
        """Answer a malformed request and close the connection; after the start of a response, only close it."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        problem = self.conn.refusal or HttpProblem(400, msg, "bad_request")
        body = json.dumps(problem.as_json()).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        phrase = STATUS_PHRASES[problem.status]
        start = h11.Response(status_code=problem.status, headers=headers, reason=phrase)
        for event in (start, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        if self.cycle is not None and not self.cycle.response_complete:  # its response would be a second one
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def on_response_complete(self) -> None:
        """Restart the timeout, for the next head or for the rest of an unread body."""
        self._pool.end_request(self, self._host)  # first: the next request may already be there
        if self.transport.get_write_buffer_size():
            self._watch_reader()
        super().on_response_complete()
        self._wait()

    def pause_writing(self) -> None:
        """Start the timeout of a client that does not read."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """Note that the client has read most of what was written."""
        super().resume_writing()
        self._unread = None

    def shutdown(self) -> None:
        """End a stream of events; let another response be completed."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete or not self.conn.is_stream:
            super().shutdown()
            if cycle is not None:  # read by routes that wait for a job
                cycle.scope.setdefault("state", {})["ends"] = self.loop.time() + GRACE_S
            return
        cycle.disconnected = True  # which ends the application
        cycle.message_event.set()
        self.transport.write(self.conn.send(h11.EndOfMessage()) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timeouts."""
        self._wait_no_longer()
        if self._reader is not None:
            self._reader.cancel()
        self._pool.remove(self)
        super().connection_lost(exc)

    def _wait(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle  # the last request
        if cycle is not None and not cycle.response_complete:
            self._wait_no_longer()
        elif self._patience is None:  # it covers the whole head, however slowly its bytes arrive
            self._patience = self.loop.call_later(PATIENCE_S, self._late)

    def _wait_no_longer(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _late(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def _left(self) -> int:
        """Return the bytes of responses that the client has not received."""
        line: socket.socket | None = self.transport.get_extra_info("socket")
        return self.transport.get_write_buffer_size() + (0 if line is None else _unsent(line))

    def _watch_reader(self) -> None:
        if self._reader is None:
            self._unread = self._left()
            self._reader = self.loop.call_later(self._pool.limits.reader_seconds, self._check_reader)

    def _check_reader(self) -> None:
        """Close the connection of a client that has read too little since the last check."""
        self._reader = None
        left = self._left()
        if not self.transport.get_write_buffer_size():
            return
        if self._unread is not None and self._unread - left < READER_BYTES:
            # closing it would wait until all is read, and without the option the system would still send its buffer
            line: socket.socket | None = self.transport.get_extra_info("socket")
            if line is not None:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            self._watch_reader()


def _unsent(line: socket.socket) -> int:
    """Return the bytes in the send buffer of the system, which may not change the buffer behind it for a long time."""
    size = bytearray(4)
    try:
        fcntl.ioctl(line.fileno(), termios.TIOCOUTQ, size)
    except (OSError, ValueError):  # not supported, or closed
        return 0
    return int.from_bytes(size, sys.byteorder)


# ------------------------------------------------------------------------------------ clients of trusted proxies


def parse_address(text: str) -> IPAddress | None:
    """Parse an address; an IPv4 address within IPv6 (::ffff:192.0.2.1) is that IPv4 address; None if malformed."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def forwarded_client(
    headers: Iterable[tuple[bytes, bytes]], is_trusted: Callable[[IPAddress], bool]
) -> IPAddress | None:
    """Return the client whose request a trusted proxy sent: the right-most address that is not trusted.

    Args:
        headers: Headers of the request, with names in lower case.
        is_trusted: Returns True for the address of a trusted proxy.

    Returns:
        The address of the client. None if there is none, if the value at the right of it or itself is malformed, or if
        the two headers name different clients, one of which the client may have sent itself.
    """
    values: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name in _HEADERS:
            values.setdefault(name, []).append(value)
    clients = {_right_most(b",".join(parts).decode("latin-1"), name, is_trusted) for name, parts in values.items()}
    return clients.pop() if len(clients) == 1 else None


def _right_most(value: str, name: bytes, is_trusted: Callable[[IPAddress], bool]) -> IPAddress | None:
    """Return the right-most untrusted address of a header; what is at the left of it is not parsed."""
    for element in reversed(value.split(",")):
        node = _for_of(element) if _HEADERS[name] else element.strip(" \t")
        address = None if node is None else _node_address(node)
        if address is None or not is_trusted(address):
            return address
    return None


def _for_of(element: str) -> str | None:
    """Return the value of `for` in an element of Forwarded; None if the element is malformed or has not exactly one."""
    pairs = [_PAIR.fullmatch(pair) for pair in element.split(";")]
    values = [pair[2].strip('"') for pair in pairs if pair is not None and pair[1].lower() == "for"]
    return values[0] if len(values) == 1 and None not in pairs else None


def _node_address(node: str) -> IPAddress | None:
    """Return the address of a node, which may have a port; None for an obfuscated, unknown or malformed one."""
    match = _NODE.fullmatch(node)
    return None if match is None else parse_address(match[1] or match[2] or match[3])
