"""The commands that serve; what they do is in `unveil.server.http`, imported when one of them runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from unveil.cli.options import AsJson, Quiet
from unveil.io.console import Console

EXTRA = "server"


@dataclass(frozen=True)
class NetworkOptions:
    """Address of a server, and who may use it."""

    host: Annotated[
        str, typer.Option(help="Address to listen on; one that other machines can reach needs API keys.")
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 7860
    keys: Annotated[
        Path | None,
        typer.Option(
            "--api-keys", help="File of API keys, NAME KEY per line; or set UNVEIL_SERVER_KEY.", metavar="FILE"
        ),
    ] = None
    name: Annotated[
        list[str],
        typer.Option("--allowed-host", help="Host name by which the server is called; repeat for several."),
    ] = field(default_factory=list)
    origin: Annotated[
        list[str],
        typer.Option("--allow-origin", help="Origin of pages that may call it (CORS), such as https://example.org."),
    ] = field(default_factory=list)


@dataclass(frozen=True)
class WorkOptions:
    """Devices and limits of a server."""

    device: Annotated[
        list[str], typer.Option(help="Device of a worker: auto, cpu, cuda:0 ...; repeat for several workers.")
    ] = field(default_factory=lambda: ["auto"])
    queue: Annotated[int, typer.Option("--max-queued", min=1, help="Maximum number of queued jobs.")] = 32
    each: Annotated[
        int, typer.Option("--max-jobs-per-key", min=1, help="Maximum number of queued and running jobs of one API key.")
    ] = 8
    budget: Annotated[
        float,
        typer.Option("--max-job-cost", min=0, help="Maximum cost of a job, in megapixels of network evaluations."),
    ] = 5000.0


StateDir = Annotated[Path, typer.Option("--state-dir", help="Folder of the jobs and of their results.")]


def serve(
    *,
    folder: StateDir = Path("service"),
    network: NetworkOptions,
    work: WorkOptions,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Serve image and video generation over HTTP, by an OpenAI-compatible interface and by its own.

    Jobs survive a restart: queued jobs are run when the server is started again with the same --state-dir.

    Example: unveil serve --port 7860
    """
    _serve_with("unveil.server.http.server", "unveil serve", EXTRA, folder, network, work, Console(as_json, quiet))


def studio(
    *,
    folder: StateDir = Path("service"),
    network: NetworkOptions,
    work: WorkOptions,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Generate images and videos, train and evaluate models in a browser; serves the HTTP interface as well.

    Jobs survive a restart: queued jobs are run when the studio is started again with the same --state-dir.

    Example: unveil studio
    """
    _serve_with("unveil.studio.server", "unveil studio", "studio", folder, network, work, Console(as_json, quiet))


def _serve_with(
    module: str, command: str, extra: str, folder: Path, network: NetworkOptions, work: WorkOptions, console: Console
) -> None:
    """Run the function `serve` of a module, which needs an optional dependency."""
    from unveil.io.optional_deps import import_extra

    server = import_extra(module, command, extra)
    options = import_extra("unveil.server.http.server", command, extra).ServerOptions(
        folder, network.host, network.port, network.keys, tuple(network.name), tuple(network.origin),
        tuple(work.device), work.queue, work.each, work.budget,
    )  # fmt: skip
    server.serve(options, console)


COMMANDS = (serve, studio)
