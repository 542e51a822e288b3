"""The commands around the initial noise of images: variations, interpolation, inversion.

What they do is in `image_commands.py`, imported when one of them runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unveil.cli.option_groups import flat
from unveil.cli.options import (
    AdapterOptions,
    BatchSize,
    Conditions,
    Device,
    DeviceOptions,
    EditArguments,
    FromMetadata,
    GuidanceScale,
    Metadata,
    Out,
    ReplyOptions,
    Seeds,
    Settings,
    Size,
    SomeModel,
    Steps,
    TrajectoryOptions,
)


def variations(
    *,
    image: Annotated[
        Path | None, typer.Argument(help="Image that `unveil sample` generated; --image works too.", metavar="IMAGE")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Model that generated it, where the metadata are not enough to find it."),
    ] = None,
    amount: Annotated[
        float,
        typer.Option("--variation-strength", help="Strength from 0 (the same image) to 1 (an unrelated image)."),
    ] = 0.3,
    count: Annotated[
        int | None, typer.Option("--num-images", "-n", help="Number of images; one per seed when left out.")
    ] = None,
    seed: Seeds = None,
    batch: BatchSize = 64,
    classifier: Annotated[Path | None, typer.Option(help="Noisy classifier that guided the image, if one did.")] = None,
    classifier_scale: Annotated[float, typer.Option(help="Scale of the classifier's gradient.")] = 1.0,
    out: Out = Path("varied"),
    watched: TrajectoryOptions,
    like: FromMetadata = None,
    additions: AdapterOptions,
    metadata: Metadata = True,
    device: Device = "auto",
    reply: ReplyOptions,
) -> None:
    """Generate variations of an image: its initial noise is moved towards that of other seeds.

    Without --seed the next seed is used. The LoRAs and ControlNets of the image are used again, found as
    `--from-metadata` finds them.

    Example: unveil variations samples/seed0_00000.png --variation-strength 0.2 -n 8 -o near
    """
    options = flat(locals())
    from unveil.cli import image_commands as work

    wish, place = work.GenerationOptions.from_options(options), work.ImageOutput.from_options(options)
    work.vary(wish, image, amount, place, reply.console, like, other=seed is None)


def interpolate(
    *,
    model: SomeModel = None,
    settings: Settings = None,
    conditions: Conditions,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", help="Seed of the first image; repeat for that of the last.")
    ] = None,
    first: Annotated[int, typer.Option("--start-index", help="Index of both images in the sets of their seeds.")] = 0,
    frames: Annotated[int, typer.Option(help="Number of frames, both ends included.")] = 16,
    form: Annotated[
        str, typer.Option("--format", help="Format of the animation: gif, webp, apng, mp4 or webm.")
    ] = "gif",
    rate: Annotated[float, typer.Option("--fps", help="Frame rate of the animation, in frames per second.")] = 12.0,
    steps: Steps = None,
    scale: GuidanceScale = None,
    size: Size = None,
    batch: BatchSize = 64,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Output folder, or .gif, .webp, .apng, .mp4 or .webm file.")
    ] = Path("way"),
    like: FromMetadata = None,
    additions: AdapterOptions,
    metadata: Metadata = True,
    machine: DeviceOptions,
    reply: ReplyOptions,
) -> None:
    """Interpolate between two generated images in the space of initial noise, as frames and as an animation.

    Example: unveil interpolate ddpm-digits --seed 3 --seed 9 --label 3 --label 8 --frames 24 -o way
    """
    options = flat(locals())
    from unveil.cli import image_commands as work

    wish, place = work.GenerationOptions.from_options(options), work.ImageOutput.from_options(options)
    way = work.Interpolation(frames, form, rate)
    work.interpolate(wish, way, {"steps": steps, "guidance_scale": scale}, place, reply.console, like)


def invert(
    *,
    arguments: EditArguments,
    conditions: Conditions,
    steps: Steps = 50,
    scale: GuidanceScale = None,
    size: Size = None,
    batch: BatchSize = 64,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output .safetensors file.")] = Path("noise.safetensors"),
    additions: AdapterOptions,
    machine: DeviceOptions,
    reply: ReplyOptions,
) -> None:
    """Find the initial noise of an image by DDIM inversion; `unveil sample --latents` starts from it.

    Example: unveil invert ddpm-digits three.png --label 3 -o three.safetensors
    """
    options = flat(locals())
    from unveil.cli import image_commands as work

    wish, place = work.GenerationOptions.from_options(options), work.ImageOutput.from_options(options)
    named = {"steps": steps, "guidance_scale": scale}
    work.invert(wish, arguments.image, named, place, reply.console)


COMMANDS = (variations, interpolate, invert)
