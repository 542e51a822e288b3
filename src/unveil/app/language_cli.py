"""The commands for texts; what they do lies in modules of their own, imported when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unveil.app.console import Console
from unveil.app.options import AsJson, Device, Force, Quiet


def translate(
    model: Annotated[str, typer.Argument(help="A run's folder, or the card of a sequence model.", metavar="MODEL")],
    texts: Annotated[list[str] | None, typer.Argument(help="What is translated.", metavar="[TEXT]...")] = None,
    file: Annotated[Path | None, typer.Option(help="More texts, one a line.")] = None,
    beams: Annotated[int | None, typer.Option(help="1 is greedy; the model's own when left out.")] = None,
    length_power: Annotated[float | None, typer.Option(help="0 favours short texts; the model's own.")] = None,
    attention: Annotated[Path | None, typer.Option(help="Folder of what every head looks at.")] = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Turn texts into others by a trained sequence model.

    Example: unveil translate runs/transformer-translate "a small red circle above a large blue ring" --attention maps
    """
    from unveil.app import translate as work

    ask = work.Ask(
        model,
        tuple(texts or ()),
        file=file,
        beams=beams,
        length_power=length_power,
        attention=attention,
        device=device,
        force=force,
    )
    work.run(ask, Console(as_json, quiet))
