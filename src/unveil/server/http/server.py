"""`unveil serve`: runs the service and its HTTP interface until it is interrupted."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from platformdirs import user_data_path

from unveil.errors import OutputError, RecipeError
from unveil.generation.model_loading import resolve_device
from unveil.io.console import Console
from unveil.server.http.api import BUDGET, ExtendApp, api
from unveil.server.http.connection import ConnectionLimits, ConnectionPool, IdleTimeoutProtocol
from unveil.server.http.middleware import LOOPBACK, ApiKeys, App, SecurityPolicy, is_loopback, read_keys
from unveil.server.jobs.folder_lock import check_unlocked
from unveil.server.jobs.job_table import QueueLimits
from unveil.server.jobs.owners import Quota
from unveil.server.jobs.queue import FILE as DATABASE
from unveil.server.jobs.service import serving

VARIABLE = "UNVEIL_SERVER_KEY"
FORMER_STATE_DIR = Path("service")  # default of earlier versions, in the current folder
DAY_S = 24 * 3600.0
DAY_MINUTES = 24 * 60.0


@dataclass(frozen=True)
class ServerOptions:
    """Options of a server.

    Attributes:
        folder: State folder, with jobs and their outputs; None: `default_state_dir`.
        host, port: Address to listen on; port 0 is a free one.
        keys: File of API keys.
        shared_keys: Other users may read this file.
        connections: Limits of open connections.
        job_minutes: Maximum duration of a job, in minutes; 0: unlimited; None: one day with keys, else unlimited.
        names: Additional allowed hosts.
        origins: Allowed origins of other pages.
        devices: Devices, with one worker each.
        waiting: Maximum number of queued jobs.
        each: Maximum number of jobs per key.
        budget: Maximum cost of a job, in megapixel evaluations.
        quota: Limits of the data of one key.
        has_lanes: Run short jobs beside a long one on the same device.
        retention: Days after which a job that has ended is deleted; None: never.
        large: Paths that accept uploads of any size, if no key is required.
    """

    folder: Path | None
    host: str = "127.0.0.1"
    port: int = 7860
    keys: Path | None = None
    names: Sequence[str] = ()
    origins: Sequence[str] = ()
    devices: Sequence[str] = ("auto",)
    waiting: int = 32
    each: int = 8
    budget: float = BUDGET
    quota: Quota = field(default_factory=Quota)
    retention: float | None = None
    has_lanes: bool = True
    large: Sequence[str] = ()
    shared_keys: bool = False
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    job_minutes: float | None = None

    def time_limit(self, has_keys: bool) -> float:
        """Return the maximum duration of a job in minutes; 0 is unlimited."""
        if self.job_minutes is not None:
            return self.job_minutes
        return DAY_MINUTES if has_keys else 0.0

    def load_keys(self, variables: Mapping[str, str]) -> ApiKeys:
        """Read the keys from the file or the environment; the only key of the environment is that of an admin.

        Raises:
            RecipeError: No key is set, although other machines can reach the address; or other users can read the file.
        """
        keys = read_keys(self.keys, shared=self.shared_keys) if self.keys is not None else ApiKeys()
        if not keys.keys and (key := variables.get(VARIABLE)):
            keys = ApiKeys({"key": key}, frozenset({"key"}))
        if not keys.keys and not is_loopback(self.host):
            raise RecipeError(
                f"--host {self.host}: others can reach this address, and no key is set; give --api-keys FILE, or set "
                f"{VARIABLE}, or leave --host away"
            )
        return keys

    def policy(self, variables: Mapping[str, str]) -> SecurityPolicy:
        """Return the security policy."""
        keys, admins = self.load_keys(variables)
        named = {*LOOPBACK, self.host.lower(), *(name.lower() for name in self.names)}
        hosts, large = None if keys and not self.names else frozenset(named), frozenset(() if keys else self.large)
        return SecurityPolicy(
            keys, hosts, frozenset(self.origins), large=large, admins=admins, proxies=self.connections
        )


def default_state_dir() -> Path:
    """Return the state folder of this user's servers: `unveil/service` in the data directory of the system."""
    return user_data_path("unveil", appauthor=False) / "service"


def serve(
    options: ServerOptions,
    console: Console,
    variables: Mapping[str, str] | None = None,
    extend: ExtendApp | None = None,
    before: Callable[[App, SecurityPolicy], App] | None = None,
) -> None:
    """Serve until interrupted.

    `extend` adds routes as for `api`; `before` wraps the security middleware.

    Raises:
        RecipeError: A key is too short, or is missing for an address that other machines can reach.
        OutputError: The address is in use, or another server uses the folder.
        OutOfResources: A device that this machine does not have.
    """
    rules = options.policy(os.environ if variables is None else variables)
    for device in options.devices:  # now, not in the first job of a worker
        resolve_device(device)
    folder = default_state_dir() if options.folder is None else options.folder
    check_unlocked(folder)  # first: its error names the other server, which probably has the same port
    bound = bind_socket(options.host, options.port)
    with bound:
        shown = f"[{options.host}]" if ":" in options.host else options.host
        address = f"http://{shown}:{bound.getsockname()[1]}"
        limits = QueueLimits(options.waiting, options.each if rules.keys else options.waiting + len(options.devices))
        limits = replace(limits, seconds=60.0 * options.time_limit(bool(rules.keys)))
        retention = None if options.retention is None else options.retention * DAY_S
        admins = rules.admins if rules.keys else None
        with serving(
            folder,
            address,
            options.devices,
            limits,
            quota=options.quota,
            admins=admins,
            retention=retention,
            has_lanes=options.has_lanes,
        ) as service:
            for line in service.messages:
                console.warn(line)
            if options.folder is None and (FORMER_STATE_DIR / DATABASE).is_file():
                console.warn(
                    f"{FORMER_STATE_DIR}/ has jobs of an earlier version; --state-dir {FORMER_STATE_DIR} opens it"
                )
            app: Any = api(service, rules, options.budget, extend)
            app = app if before is None else before(app, rules)
            protocol: Any = partial(IdleTimeoutProtocol, pool=ConnectionPool(options.connections))
            config = uvicorn.Config(
                app, http=protocol, ws="none", lifespan="off" if extend is None else "on", log_config=None,
                access_log=False, server_header=False, timeout_keep_alive=5, timeout_graceful_shutdown=5,
                proxy_headers=False,
            )  # fmt: skip
            keyed = f"{len(rules.keys)} keys" if rules.keys else "no key: only this machine can reach it"
            shown = f"{address}/v1" if extend is None else address
            console.result(
                {"address": address, "folder": str(folder)},
                f"{shown} ({keyed}); jobs and results in {folder}; Ctrl-C ends it",
            )
            uvicorn.Server(config).run(sockets=[bound])


def bind_socket(host: str, port: int) -> socket.socket:
    """Bind a socket to an address.

    Raises:
        OutputError: The address is in use, or is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # with IPPROTO_TCP asyncio sets TCP_NODELAY; else the end of a response may be delayed by some 40 ms
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host.strip("[]"), port))
    except OSError as problem:
        bound.close()
        raise OutputError(f"{host} port {port}: {problem.strerror}; choose another with --port") from problem
    return bound
