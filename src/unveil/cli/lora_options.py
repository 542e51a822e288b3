"""`unveil lora`: its commands; what they do lies in `lora.py`, imported when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unveil.cli.console import Console
from unveil.cli.options import AsJson, Force, ModelName, Quiet

lora_app = typer.Typer(no_args_is_help=True, help="Look at LoRA files, rewrite them in other namings, merge them.")
LoraPath = Annotated[Path, typer.Argument(help="A file, peft's folder, or a run of ours.", metavar="LORA")]


@lora_app.command("inspect")
def inspect(
    lora: LoraPath,
    model: Annotated[str | None, typer.Option(help="Also say which modules this model has.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What a LoRA file is, by its keys.

    Example: unveil lora inspect style.safetensors --model runs/dit-fashion
    """
    from unveil.cli import lora as work

    work.inspect(lora, model, Console(as_json, quiet))


@lora_app.command("convert")
def convert(
    model: ModelName,
    lora: LoraPath,
    out: Annotated[Path, typer.Argument(help="The file that is written; for peft a folder.")],
    naming: Annotated[
        str, typer.Option(help="peft, diffusers, diffusers-old, kohya, cloneofsimo or unveil.")
    ] = "diffusers",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a LoRA in another naming; the model says which modules there are.

    Example: unveil lora convert runs/dit-fashion runs/lora-style style.safetensors --naming kohya
    """
    from unveil.cli import lora as work

    work.convert(model, lora, out, naming, force, Console(as_json, quiet))


@lora_app.command("merge")
def merge(
    model: ModelName,
    loras: Annotated[list[str], typer.Argument(help="FILE or FILE:WEIGHT; several add up.", metavar="LORA...")],
    out: Annotated[Path, typer.Option(help="The folder of the model that is written.")],
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Save a model with LoRAs in its weights.

    Example: unveil lora merge runs/dit-fashion runs/lora-style:0.8 --out striped
    """
    from unveil.cli import lora as work

    work.merge(model, [work.asked(one) for one in loras], out, force, Console(as_json, quiet))
