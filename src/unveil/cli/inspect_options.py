"""`unveil inspect`: its commands; what they do lies in modules that are imported when they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unveil.cli.console import Console
from unveil.cli.options import AsJson, Force, Overrides, Quiet

inspect_app = typer.Typer(
    no_args_is_help=True, help="Look at a checkpoint, the models folder or a noise process, list the samplers."
)
COMMANDS = ("model", "models", "process", "samplers")  # `unveil inspect ANYTHING` else is `unveil inspect model`


@inspect_app.command("model")
def inspect_model(
    path: Annotated[Path, typer.Argument(help="A model's folder, a run, a .safetensors file, or dit-xl-2, vit-b-16.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="What a file's keys do not say, such as file.heads=8.", metavar="[file.KEY=VALUE]..."),
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="List every tensor.")] = False,
    size: Annotated[int | None, typer.Option(help="Side of the input of a network that is named.")] = None,
    batch: Annotated[int, typer.Option(help="That its memory is told for.")] = 8,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What a checkpoint is, from its headers alone; or what a network of that name would be and take.

    Of a file with a whole latent diffusion model also how many of its tensors are matched, and which are not.

    Example: unveil inspect model runs/ddpm-digits, or unveil inspect dit-xl-2
    """
    from unveil.cli import inspect as work

    work.model(work.Ask(path, tuple(settings or ()), keys, size, batch), Console(as_json, quiet))


@inspect_app.command("models")
def inspect_models(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """What lies in the models folder, $UNVEIL_MODELS or ./models: names, and what each is by its keys.

    Its checkpoints/, loras/ and controlnets/ are looked through wherever a model or a LoRA is named.

    Example: unveil inspect models
    """
    from unveil.cli import inspect as work

    work.models(Console(as_json, quiet))


@inspect_app.command("process")
def inspect_process(
    name: Annotated[
        str, typer.Argument(help="A recipe, or a model whose bound is measured.", metavar="RECIPE_OR_MODEL")
    ],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="A .png file.")] = Path("process.png"),
    rows: Annotated[int, typer.Option(help="Lines of the table.")] = 11,
    count: Annotated[int, typer.Option(help="Held-out pictures that the bound is measured on.")] = 32,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw alpha-bar, the ratio of the two betas and the bound, step by step.

    Example: unveil inspect process ddpm-digits process.beta_schedule=linear
    """
    from unveil.cli import noise_schedule as work

    ask = work.Ask(name, tuple(overrides or ()), rows=rows, count=count)
    work.process(ask, out, force, Console(as_json, quiet))


@inspect_app.command("samplers")
def inspect_samplers(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Every sampler with its order, noise, network calls per step and settings.

    Example: unveil inspect samplers
    """
    from unveil.cli import inspect as work

    work.samplers(Console(as_json, quiet))
