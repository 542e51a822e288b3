"""The HTTP server, as a task of the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from unveil.tasks.fields import LocalFile, Name, Names, info
from unveil.tasks.task import Task, TaskContext, TaskResult


class Serve(Task):
    """Serve image and video generation over HTTP, by an OpenAI-compatible interface and by its own.

    Jobs survive a restart: queued jobs are run when the server is started again with the same --state-dir.

    Example: unveil serve --port 7860
    """

    name: ClassVar[str] = "serve"
    section: ClassVar[str] = "Serve"
    common: ClassVar[tuple[str, ...]] = ()
    makes: ClassVar[str] = "text"
    served: ClassVar[str] = "a server is started on its machine"
    group: ClassVar[str] = "Server"
    module: ClassVar[str] = "unveil.server.http.server"  # module whose function `serve` does the work
    extra: ClassVar[str] = "server"  # optional dependencies that the module needs

    state_dir: Annotated[
        LocalFile | None,
        info("Folder of the jobs and of their results; in the user's data directory when left out.", metavar="FOLDER"),
    ] = None
    host: Annotated[Name, info("Address to listen on; one that other machines can reach needs API keys.")] = "127.0.0.1"
    port: Annotated[int, info("Port to listen on; 0 picks a free one.", ge=0, le=65535)] = 7860
    api_keys: Annotated[
        LocalFile | None,
        info(
            "File of API keys, NAME KEY per line; NAME KEY admin for a key that may add models. Or set "
            "UNVEIL_SERVER_KEY.",
            metavar="FILE",
        ),
    ] = None
    shared_api_keys: Annotated[
        bool, info("Accept a file of API keys that other users can read, such as a mounted secret of a container.")
    ] = False
    allowed_hosts: Annotated[
        Names,
        info("Host name by which the server is called; repeat for several.", flags=["--allowed-host"]),
    ] = ()
    allow_origins: Annotated[
        Names,
        info(
            "Origin of pages that may call it (CORS), such as https://example.org; repeat for several.",
            flags=["--allow-origin"],
        ),
    ] = ()
    devices: Annotated[
        Names,
        info(
            "Device of a worker: auto, cpu, cuda:0 ...; repeat for several workers; auto when left out.",
            flags=["--device"],
        ),
    ] = ("auto",)
    max_queued: Annotated[int, info("Maximum number of queued jobs.", ge=1)] = 32
    max_jobs_per_key: Annotated[int, info("Maximum number of queued and running jobs of one API key.", ge=1)] = 8
    max_job_cost: Annotated[float, info("Maximum cost of a job, in megapixels of network evaluations.", ge=0)] = 5000.0
    quota_gib: Annotated[
        float, info("Maximum size of the uploads, runs and outputs of one API key.", unit="GiB", gt=0)
    ] = 16.0
    quota_files: Annotated[int, info("Maximum number of files of one API key.", ge=1)] = 50_000
    retention_days: Annotated[
        float | None,
        info("Days after which an ended job is deleted with its outputs; runs are kept. Left out: never.", gt=0),
    ] = None
    max_job_minutes: Annotated[
        float | None,
        info(
            "Maximum duration of a job, after which it is stopped and fails; 0 is unlimited. Left out: a day with API "
            "keys, unlimited without.",
            unit="min",
            ge=0,
        ),
    ] = None
    max_connections: Annotated[int, info("Maximum number of open connections.", ge=1)] = 512
    max_connections_per_address: Annotated[
        int,
        info("Maximum number of open connections of one address, or of one client behind a trusted proxy.", ge=1),
    ] = 64
    trusted_proxies: Annotated[
        Names,
        info(
            "Address or network of a reverse proxy, such as 10.0.0.5, whose X-Forwarded-For and Forwarded name the "
            "client; repeat for several.",
            flags=["--trusted-proxy"],
        ),
    ] = ()
    reader_seconds: Annotated[
        float,
        info(
            "Time in which a client must read 32 KiB of a response, or the rest of it; later it is disconnected.",
            unit="s",
            gt=0,
        ),
    ] = 60.0

    single_lane: Annotated[
        bool, info("Run one job at a time on each device, so that images and videos wait for a training.")
    ] = False

    def run(self, context: TaskContext) -> TaskResult:
        """Serve until interrupted.

        Raises:
            RecipeError: The optional dependencies are not installed, or a key is too short, or missing for an address
                that other machines can reach.
            OutputError: The address is in use, or another server uses the folder.
            OutOfResources: A device that this machine does not have.
        """
        from unveil.io.optional_deps import import_extra

        command = f"unveil {self.name}"
        server = import_extra(self.module, command, self.extra)
        Quota = import_extra("unveil.server.jobs.owners", command, self.extra).Quota
        limits = import_extra("unveil.server.http.connection", command, self.extra).ConnectionLimits(
            self.max_connections, self.max_connections_per_address, tuple(self.trusted_proxies), self.reader_seconds
        )
        state_dir, api_keys = (None if path is None else Path(path) for path in (self.state_dir, self.api_keys))
        options = import_extra("unveil.server.http.server", command, self.extra).ServerOptions(
            state_dir, self.host, self.port, api_keys, self.allowed_hosts, self.allow_origins, self.devices,
            self.max_queued, self.max_jobs_per_key,
            self.max_job_cost, Quota(max(1, round(self.quota_gib * 2**30)), self.quota_files), self.retention_days,
            shared_keys=self.shared_api_keys, connections=limits, job_minutes=self.max_job_minutes,
            has_lanes=not self.single_lane,
        )  # fmt: skip
        server.serve(options, context.console)
        return TaskResult({}, "")
