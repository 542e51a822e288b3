"""Watch of the processes of one training: each notices within seconds when another one ends too early.

A collective operation on one machine fails when a process is killed, without the number of that process; on GPUs and
on several machines it waits for minutes. Therefore every process has a TCP connection to the first one. The system
closes it when its process ends, also after SIGKILL, and the first process informs the others.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from unveil.errors import OutOfResources
from unveil.train.metrics_logger import log

CONNECT_S = 60.0  # for all processes to connect
GRACE_S = 20.0  # until a process that waits in vain for another one is ended
NOTICE_S = 5.0  # between the failure of a collective operation and the notice of its cause
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # a machine that is lost: 25 s
TOKEN_BYTES = 16


class ProcessEnd(NamedTuple):
    """End of a process before the training was complete.

    Attributes:
        rank: Number of the process.
        reason: Message of its error; None: it was killed.
    """

    rank: int
    reason: str | None


class ProcessWatch:
    """Connections between this process and the first one (for the first: to all others), read by one thread.

    A process that hangs in a collective operation because another one has ended is ended itself after `GRACE_S`, with
    exit code 5 and a message on stderr. Processes that cannot connect train without the watch, with a warning.

    Args:
        rank: Number of this process.
        world: Number of processes.
        broadcast: Function that returns the value of the first process on all processes.
        host: Address of the first process.
    """

    def __init__(self, rank: int, world: int, broadcast: Callable[[Any], Any], host: str) -> None:
        self.rank, self.world = rank, world
        self.end: ProcessEnd | None = None
        self._noticed, self._closed = threading.Event(), threading.Event()
        self._sending = threading.Lock()  # a process sends one end: its own or the one that it noticed before
        self._links = _accepted(world, broadcast, host) if rank == 0 else _connected(rank, broadcast, host)
        self._received = dict.fromkeys(self._links, b"")
        self._thread = threading.Thread(target=self._watch, name="process watch", daemon=True)
        self._thread.start()

    def failure(self) -> OutOfResources | None:
        """Wait at most `NOTICE_S` for the notice that another process has ended, and return it as an error."""
        if self._links:
            self._noticed.wait(NOTICE_S)
        return None if self.end is None else OutOfResources(self._message(self.end))

    def close(self, problem: BaseException | None = None) -> None:
        """End the watch, and notify the other processes of the error that ends this one; None: there is none."""
        reason = None if problem is None else str(problem) or type(problem).__name__
        with self._sending:
            self._closed.set()
            if self.end is None:  # otherwise the cause has been sent, and this end follows from it
                self._send({"ended": self.rank, "reason": reason, "early": problem is not None})
        for link in self._links:
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for link in self._links:
            link.close()

    # ------------------------------------------------------------------ the thread

    def _watch(self) -> None:
        """Read all connections until a process ends too early, all have ended, or this one has."""
        with selectors.DefaultSelector() as selector:
            for link in self._links:
                selector.register(link, selectors.EVENT_READ)
            while self.end is None and selector.get_map() and not self._closed.is_set():
                for key, _ in selector.select():
                    link: Any = key.fileobj
                    if not self._read(link):
                        selector.unregister(link)
                        self._note_end(link)
                        if self.end is not None:
                            break
        if self.end is None or self._closed.is_set():
            return
        if not self._closed.wait(GRACE_S):
            os.write(2, f"error: {self._message(self.end)}\n".encode())
            os._exit(OutOfResources.exit_code)

    def _read(self, link: socket.socket) -> bool:
        """Read what has arrived; return False if the process of the connection has ended or reported an end."""
        try:
            received = link.recv(65536)
        except OSError:
            return False
        self._received[link] += received
        return bool(received) and not self._received[link].endswith(b"\n")

    def _note_end(self, link: socket.socket) -> None:
        """Record an early end and forward it, before the main thread can close the connections."""
        try:
            last: dict[str, Any] = json.loads(self._received[link])
        except ValueError:  # nothing, or a part of a line: it was killed
            last = {"ended": self._links[link], "reason": None, "early": True}
        with self._sending:
            if last["early"] and not self._closed.is_set():
                self.end = ProcessEnd(last["ended"], last["reason"])
                self._send({"ended": self.end.rank, "reason": self.end.reason, "early": True})
                self._noticed.set()

    def _send(self, end: dict[str, Any]) -> None:
        for link in self._links:
            with suppress(OSError):
                link.sendall(json.dumps(end).encode() + b"\n")

    def _message(self, end: ProcessEnd) -> str:
        what = (
            "was killed or lost (by the system if memory was short)"
            if end.reason is None
            else f"stopped with an error: {end.reason}"
        )
        return (
            f"process {end.rank} of {self.world} (numbers from 0) {what}, so that process {self.rank} cannot go on; "
            "start all processes again: the training resumes from the last checkpoint"
        )


def _accepted(world: int, broadcast: Callable[[Any], Any], host: str) -> dict[socket.socket, int]:
    """Return a connection from each other process, with its number; none of a process that does not connect in time."""
    token, links = secrets.token_bytes(TOKEN_BYTES), dict[socket.socket, int]()
    try:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
        server = socket.create_server((host, 0), family=family, backlog=world)
    except OSError as problem:
        broadcast(None)
        _warn(0, host, problem)
        return links
    with server:
        broadcast((server.getsockname()[1], token.hex()))
        until = time.monotonic() + CONNECT_S
        while len(links) < world - 1:
            server.settimeout(max(until - time.monotonic(), 0.01))
            try:
                link, _ = server.accept()
            except OSError as problem:
                _warn(0, host, problem)
                break
            link.settimeout(5.0)
            first = _exactly(link, TOKEN_BYTES + 4)
            if not hmac.compare_digest(first[:TOKEN_BYTES], token):
                link.close()
                continue
            links[link] = int.from_bytes(first[TOKEN_BYTES:], "big")
    for link in links:
        _keep_alive(link)
    return links


def _connected(rank: int, broadcast: Callable[[Any], Any], host: str) -> dict[socket.socket, int]:
    """Return the connection to the first process; none if there is none."""
    place = broadcast(None)
    if place is None:  # the first process has reported it
        return {}
    try:
        link = socket.create_connection((host, place[0]), timeout=CONNECT_S)
        link.sendall(bytes.fromhex(place[1]) + rank.to_bytes(4, "big"))
    except OSError as problem:
        _warn(rank, host, problem)
        return {}
    _keep_alive(link)
    return {link: 0}


def _warn(rank: int, host: str, problem: OSError) -> None:
    log.warning(
        "process %d: no connection between all processes at %s (%s); training goes on, but the end of one process may "
        "not be noticed; check MASTER_ADDR and the firewall", rank, host, problem,
    )  # fmt: skip


def _exactly(link: socket.socket, count: int) -> bytes:
    """Read a number of bytes, or fewer if the connection ends or is silent."""
    content = b""
    with suppress(OSError):
        while len(content) < count and (more := link.recv(count - len(content))):
            content += more
    return content


def _keep_alive(link: socket.socket) -> None:
    """Let the system check an idle connection, so that the loss of a machine is noticed too."""
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if (option := getattr(socket, name, None)) is not None:
            link.setsockopt(socket.IPPROTO_TCP, option, value)
