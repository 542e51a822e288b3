"""`unveil inspect`: its commands; what they do is in modules that are imported when one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unveil.cli.options import AsJson, Force, Overrides, Quiet
from unveil.io.console import Console

inspect_app = typer.Typer(
    no_args_is_help=True, help="Inspect a checkpoint, the models folder or a noise schedule; list the samplers."
)


@inspect_app.command("model")
def inspect_model(
    model: Annotated[
        Path,
        typer.Argument(
            help="Model folder, run, .safetensors file, or an architecture such as dit-xl-2.", metavar="MODEL"
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            help="Facts that the keys of a weights file do not tell, such as file.heads=8.",
            metavar="[file.KEY=VALUE]...",
        ),
    ] = None,
    keys: Annotated[bool, typer.Option("--list-tensors", help="List every tensor.")] = False,
    size: Annotated[
        int | None, typer.Option(help="Side of the input of an architecture, in pixels or latents.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch-size", help="Batch size that memory is estimated for.")] = 8,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show what a checkpoint contains, from its headers only; or the size and cost of an architecture.

    For a single-file latent diffusion model also how many of its tensors are matched, and which are not.

    Example: unveil inspect model runs/ddpm-digits, or unveil inspect dit-xl-2
    """
    from unveil.cli import inspect as work

    work.model(work.InspectRequest(model, tuple(settings or ()), keys, size, batch), Console(as_json, quiet))


@inspect_app.command("models")
def inspect_models(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List the models folder, $UNVEIL_MODELS or ./models, with the format of each file.

    Its checkpoints/, loras/ and controlnets/ are searched wherever a model, a LoRA or a ControlNet is named.

    Example: unveil inspect models
    """
    from unveil.cli import inspect as work

    work.models(Console(as_json, quiet))


@inspect_app.command("schedule")
def inspect_schedule(
    name: Annotated[
        str, typer.Argument(help="Recipe, or model whose variational bound is measured.", metavar="RECIPE_OR_MODEL")
    ],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output .png file.")] = Path("schedule.png"),
    rows: Annotated[int, typer.Option(help="Number of rows of the table.")] = 11,
    count: Annotated[
        int, typer.Option("--num-images", "-n", help="Number of held-out images that the bound is measured on.")
    ] = 32,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Plot a noise schedule: alpha-bar, the ratio of the two betas and the variational bound, per timestep.

    Example: unveil inspect schedule ddpm-digits process.beta_schedule=linear
    """
    from unveil.cli import noise_schedule as work

    ask = work.ScheduleRequest(name, tuple(overrides or ()), rows=rows, count=count)
    work.process(ask, out, force, Console(as_json, quiet))


@inspect_app.command("samplers")
def inspect_samplers(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List every sampler with its order, noise, network evaluations per step and settings.

    Example: unveil inspect samplers
    """
    from unveil.cli import inspect as work

    work.samplers(Console(as_json, quiet))
