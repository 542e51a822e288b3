"""The command that serves; what it does lies in `unveil.server.http`, imported when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from unveil.cli.console import Console
from unveil.cli.options import AsJson, Quiet

EXTRA = "server"


@dataclass(frozen=True)
class Reached:
    """Where a server answers, and whom."""

    host: Annotated[str, typer.Option(help="An address of this machine; others than its own need a key.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is a free one.")] = 7860
    keys: Annotated[
        Path | None, typer.Option(help="A file of keys, NAME KEY a line; or set UNVEIL_SERVER_KEY.", metavar="FILE")
    ] = None
    name: Annotated[list[str], typer.Option(help="By which it is called, beside its own; repeat for more.")] = field(
        default_factory=list
    )
    origin: Annotated[list[str], typer.Option(help="Of pages that may ask, such as https://example.org.")] = field(
        default_factory=list
    )


@dataclass(frozen=True)
class Worked:
    """How much is done, and by whom."""

    device: Annotated[list[str], typer.Option(help="A worker each: auto, cpu, cuda:0 ...")] = field(
        default_factory=lambda: ["auto"]
    )
    queue: Annotated[int, typer.Option(min=1, help="Jobs that may wait.")] = 32
    each: Annotated[int, typer.Option(min=1, help="Jobs of one key that may wait or run.")] = 8
    budget: Annotated[float, typer.Option(min=0, help="Work of a job, in megapixels of network calls.")] = 5000.0


def serve(
    *,
    folder: Annotated[Path, typer.Option(help="Of jobs, and of what they make.")] = Path("service"),
    reached: Reached,
    worked: Worked,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Serve pictures and clips over HTTP, in the words of OpenAI's interface and in its own.

    Jobs outlive the server: what waited when it ended goes on when it is started again on the same folder.

    Example: unveil serve --port 7860
    """
    _begun("unveil.server.http.server", "unveil serve", EXTRA, folder, reached, worked, Console(as_json, quiet))


def studio(
    *,
    folder: Annotated[Path, typer.Option(help="Of jobs, and of what they make.")] = Path("service"),
    reached: Reached,
    worked: Worked,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make pictures and clips, train and judge models in a browser; the HTTP interface is served as well.

    Jobs outlive the page and the server: what waited when it ended goes on when it is started again on the same folder.

    Example: unveil studio
    """
    _begun("unveil.studio.server", "unveil studio", "studio", folder, reached, worked, Console(as_json, quiet))


def _begun(
    module: str, what: str, needs: str, folder: Path, reached: Reached, worked: Worked, console: Console
) -> None:
    """Serves by a module that has `serve`."""
    from unveil.io.optional_deps import import_extra

    work = import_extra(module, what, needs)
    ask = import_extra("unveil.server.http.server", what, needs).ServerOptions(
        folder, reached.host, reached.port, reached.keys, tuple(reached.name), tuple(reached.origin),
        tuple(worked.device), worked.queue, worked.each, worked.budget,
    )  # fmt: skip
    work.serve(ask, console)


COMMANDS = (serve, studio)
