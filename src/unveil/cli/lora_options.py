"""`unveil lora`: its commands; what they do is in `lora.py`, imported when one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unveil.cli.options import AsJson, Force, ModelName, Quiet
from unveil.io.console import Console

lora_app = typer.Typer(
    no_args_is_help=True, help="Inspect LoRA files, convert them to other formats, merge them into a model."
)
LoraPath = Annotated[Path, typer.Argument(help="LoRA file, peft folder, or run.", metavar="LORA")]


@lora_app.command("inspect")
def inspect(
    lora: LoraPath,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model whose modules are compared with those of the LoRA.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show what a LoRA file contains, by its keys.

    Example: unveil lora inspect style.safetensors --model runs/dit-fashion
    """
    from unveil.cli import lora as work

    work.inspect(lora, model, Console(as_json, quiet))


@lora_app.command("convert")
def convert(
    model: ModelName,
    lora: LoraPath,
    out: Annotated[Path, typer.Argument(help="Output file; for peft a folder.")],
    naming: Annotated[
        str,
        typer.Option("--format", help="Output format: peft, diffusers, diffusers-old, kohya, cloneofsimo or unveil."),
    ] = "diffusers",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Convert a LoRA to another format; the model names the target modules.

    Example: unveil lora convert runs/dit-fashion runs/lora-style style.safetensors --format kohya
    """
    from unveil.cli import lora as work

    work.convert(model, lora, out, naming, force, Console(as_json, quiet))


@lora_app.command("merge")
def merge(
    model: ModelName,
    loras: Annotated[list[str], typer.Argument(help="LoRA as FILE or FILE:WEIGHT; several add up.", metavar="LORA...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder of the merged model.")],
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Merge LoRAs into the weights of a model.

    Example: unveil lora merge runs/dit-fashion runs/lora-style:0.8 -o striped
    """
    from unveil.cli import lora as work

    work.merge(model, [work.parse_lora(one) for one in loras], out, force, Console(as_json, quiet))
