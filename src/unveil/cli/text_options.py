"""The commands for texts and captions; what they do lies in modules of their own, imported when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from unveil.cli.console import Console
from unveil.cli.options import AsJson, Device, Force, Overrides, Quiet, Reply


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
    from unveil.cli import translate as work

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


@dataclass(frozen=True)
class Writing:
    """How a captioner of ours writes."""

    how: Annotated[str | None, typer.Option(help="greedy, beam or sampled; as our captioner's recipe says.")] = None
    beams: Annotated[int | None, typer.Option(help="1 is greedy; as our captioner's recipe says.")] = None
    temperature: Annotated[float, typer.Option(help="Of sampled; below 1 the likely grows likelier.")] = 1.0
    seed: Annotated[int, typer.Option(help="Of sampled.")] = 0
    device: Device = "auto"


def caption(
    *,
    what: Annotated[
        Path,
        typer.Argument(help="A folder of pictures and clips, or a recipe of the playground.", metavar="FOLDER|RECIPE"),
    ],
    overrides: Overrides = None,
    model: Annotated[
        str,
        typer.Option(
            help="A captioner or its run, the folder of an image-to-text model of transformers, or an address and a "
            "model's name there.",
            metavar="MODEL|FOLDER|URL#NAME",
        ),
    ],
    count: Annotated[int | None, typer.Option(help="Clips of the recipe to tell.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file; metadata.jsonl in the folder when left out.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted call stopped.")] = False,
    writing: Writing,
    reply: Reply,
) -> None:
    """Write captions of the pictures and clips of a folder, or of the clips of a recipe.

    The captions that are there stay as they are: the file holds both, as `text` and `caption`. Clips of a recipe are
    named by their numbers, and it trains on such a file with data.captions_file=FILE.

    Example: unveil caption clips --model playground-captioner
    """
    from unveil.cli import caption as work

    ask = work.Ask(
        what,
        model,
        count,
        tuple(overrides or ()),
        out,
        **vars(writing),
        force=reply.force,
        resume=resume,
    )
    work.run(ask, reply.console)
