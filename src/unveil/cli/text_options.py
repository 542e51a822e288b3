"""The command for texts; what it does is in a module that is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unveil.cli.options import AsJson, Device, Force, Quiet
from unveil.io.console import Console

NumBeams = Annotated[
    int | None,
    typer.Option("--num-beams", help="Number of beams; 1 is greedy decoding; that of the recipe when left out."),
]


def translate(
    model: Annotated[
        str, typer.Argument(help="Run folder, or card of a sequence-to-sequence model; -m works too.", metavar="MODEL")
    ],
    texts: Annotated[
        list[str] | None, typer.Argument(help="Text to translate; several are allowed.", metavar="[TEXT]...")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="File of more texts, one per line.")] = None,
    beams: NumBeams = None,
    length_power: Annotated[
        float | None,
        typer.Option("--length-penalty", help="Length penalty of beam search; 0 favours short texts."),
    ] = None,
    attention: Annotated[
        Path | None, typer.Option("--save-attention", help="Output folder of the attention maps of every head.")
    ] = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Translate texts by a trained sequence-to-sequence model.

    Example: unveil translate runs/transformer-translate "a red circle above a blue ring" --save-attention maps
    """
    from unveil.cli import translate as work

    ask = work.TranslateRequest(
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
