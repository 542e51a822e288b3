"""The commands for texts and captions; what they do is in modules that are imported when one of them runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from unveil.cli.options import AsJson, Device, Force, Overrides, Quiet, ReportOptions
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


@dataclass(frozen=True)
class DecodingOptions:
    """Decoding of a native captioner."""

    how: Annotated[
        str | None,
        typer.Option("--decoding", help="Decoding: greedy, beam or sampled; that of the recipe when left out."),
    ] = None
    beams: NumBeams = None
    temperature: Annotated[
        float, typer.Option(help="Temperature of sampled decoding; below 1 favours likely words.")
    ] = 1.0
    seed: Annotated[int, typer.Option(help="Seed of sampled decoding.")] = 0
    device: Device = "auto"


def caption(
    *,
    what: Annotated[
        Path,
        typer.Argument(help="Folder of images and videos, or recipe of the playground.", metavar="FOLDER|RECIPE"),
    ],
    overrides: Overrides = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="Captioner or its run, folder of a transformers image-to-text model, or URL and model name of a "
            "vision endpoint.",
            metavar="MODEL|FOLDER|URL#NAME",
        ),
    ],
    count: Annotated[
        int | None, typer.Option("--num-videos", "-n", help="Number of videos of the recipe to caption.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Output .jsonl file; metadata.jsonl in the folder when left out."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run with its output file.")] = False,
    writing: DecodingOptions,
    reply: ReportOptions,
) -> None:
    """Caption the images and videos of a folder, or the videos of a recipe.

    Existing captions are kept: the file has both, as `text` and `caption`. Videos of a recipe are named by their
    numbers, and the recipe trains on such a file with data.captions_file=FILE.

    Example: unveil caption clips --model playground-captioner
    """
    from unveil.cli import caption as work

    ask = work.CaptionRequest(
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
