"""`unveil serve`: a service and its HTTP interface, until it is told to end."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from unveil.cli.console import Console
from unveil.server.http.api import BUDGET, Extend, api
from unveil.server.http.middleware import App
from unveil.server.http.security import LOOPBACK, Rules, is_loopback, read_keys
from unveil.server.jobs.folder_lock import refuse_held
from unveil.server.jobs.job import Limits
from unveil.server.jobs.service import serving
from unveil.types import OutputError, RecipeError

VARIABLE = "UNVEIL_SERVER_KEY"
PATIENCE_S = 30.0  # until the head of a request has to be there
CONNECTIONS = 512


@dataclass(frozen=True)
class Ask:
    """What a server is started with, as typed.

    Attributes:
        folder: of jobs and what they make.
        host, port: where it answers; port 0 is a free one.
        keys: a file of keys.
        names: by which it is called beside its own; origins: of pages that may ask.
        devices: a worker each.
        waiting, each: jobs that wait, and those of one key.
        budget: megapixel calls of a job.
        large: paths at which files of any size are taken, where no key is needed.
    """

    folder: Path
    host: str = "127.0.0.1"
    port: int = 7860
    keys: Path | None = None
    names: Sequence[str] = ()
    origins: Sequence[str] = ()
    devices: Sequence[str] = ("auto",)
    waiting: int = 32
    each: int = 8
    budget: float = BUDGET
    large: Sequence[str] = ()

    def known(self, variables: Mapping[str, str]) -> dict[str, str]:
        """The keys, of the file or of the environment.

        Raises:
            RecipeError: there is none, and others can reach the address.
        """
        keys = read_keys(self.keys) if self.keys is not None else {}
        if not keys and (one := variables.get(VARIABLE)):
            keys = {"key": one}
        if not keys and not is_loopback(self.host):
            raise RecipeError(
                f"--host {self.host}: others can reach this address, and no key is set; give --api-keys FILE, or set "
                f"{VARIABLE}, or leave --host away"
            )
        return keys

    def rules(self, variables: Mapping[str, str]) -> Rules:
        """Whom it answers."""
        keys = self.known(variables)
        named = {*LOOPBACK, self.host.lower(), *(name.lower() for name in self.names)}
        hosts, large = None if keys and not self.names else frozenset(named), frozenset(() if keys else self.large)
        return Rules(keys, hosts, frozenset(self.origins), large=large)


class Impatient(H11Protocol):
    """Ends connections on which nothing is answered and no whole head of a request arrives for long."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begins to wait."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Waits no longer once a head is whole."""
        super().data_received(data)
        self._wait()

    def on_response_complete(self) -> None:
        """Waits anew: for the next head, or for the rest of a body that nobody has read."""
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits no longer."""
        self._wait_no_longer()
        super().connection_lost(exc)

    def _wait(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle  # of the last request
        if cycle is not None and not cycle.response_complete:
            self._wait_no_longer()
        elif self._patience is None:  # the time is that of the whole, however its bytes come
            self._patience = self.loop.call_later(PATIENCE_S, self._late)

    def _wait_no_longer(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _late(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def serve(
    ask: Ask,
    console: Console,
    variables: Mapping[str, str] | None = None,
    extend: Extend | None = None,
    before: Callable[[App, Rules], App] | None = None,
) -> None:
    """Serves until it is interrupted; see `api` for what may extend it, and `before` is put before the guard.

    Raises:
        RecipeError: no key for an address that others can reach, or one that is too short.
        NotWritable: the address is taken, or another server has the folder.
    """
    rules = ask.rules(os.environ if variables is None else variables)
    refuse_held(ask.folder)  # by whom is told before that the port is taken, which it is by the same one
    bound = bound_to(ask.host, ask.port)
    with bound:
        shown = f"[{ask.host}]" if ":" in ask.host else ask.host
        address = f"http://{shown}:{bound.getsockname()[1]}"
        limits = Limits(ask.waiting, ask.each if rules.keys else ask.waiting + len(ask.devices))
        with serving(ask.folder, address, ask.devices, limits) as service:
            for line in service.said:
                console.warn(line)
            app: Any = api(service, rules, ask.budget, extend)
            app = app if before is None else before(app, rules)
            config = uvicorn.Config(
                app, http=Impatient, ws="none", lifespan="off" if extend is None else "on", log_config=None,
                access_log=False, server_header=False, timeout_keep_alive=5, timeout_graceful_shutdown=5,
                limit_concurrency=CONNECTIONS, proxy_headers=False,
            )  # fmt: skip
            keyed = f"{len(rules.keys)} keys" if rules.keys else "no key: only this machine can reach it"
            shown = f"{address}/v1" if extend is None else address
            console.result({"address": address, "folder": str(ask.folder)}, f"{shown} ({keyed}); Ctrl-C ends it")
            uvicorn.Server(config).run(sockets=[bound])


def bound_to(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        NotWritable: it is taken, or is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # said to be TCP, or asyncio lets the end of an answer wait until its beginning has arrived, for some 40 ms
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host.strip("[]"), port))
    except OSError as problem:
        found.close()
        raise OutputError(f"{host} port {port}: {problem.strerror}; choose another with --port") from problem
    return found
