"""The commands around samples of a model: others near one, the way between two, the noise of a picture.

What they do lies in `edit.py`, imported when it is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unveil.cli.option_groups import flat
from unveil.cli.options import (
    Additions,
    Batch,
    Conditions,
    Device,
    Like,
    Machine,
    Metadata,
    Out,
    Reply,
    Scale,
    Seeds,
    Settings,
    Size,
    SomeModel,
    Steps,
    Subject,
    Watched,
)


def vary(
    *,
    picture: Annotated[Path | None, typer.Argument(help="One that `unveil sample` drew.", metavar="PICTURE")] = None,
    model: Annotated[str | None, typer.Option(help="That drew it, where its name is not enough to find it.")] = None,
    amount: Annotated[float, typer.Option(help="0 is the same picture, 1 another one.")] = 0.3,
    count: Annotated[int | None, typer.Option(help="Pictures; one per seed when left out.")] = None,
    seed: Seeds = None,
    batch: Batch = 64,
    classifier: Annotated[Path | None, typer.Option(help="The one that guided the picture, if one did.")] = None,
    classifier_scale: Annotated[float, typer.Option(help="Of its gradient.")] = 1.0,
    out: Out = Path("varied"),
    watched: Watched,
    like: Like = None,
    additions: Additions,
    metadata: Metadata = True,
    device: Device = "auto",
    reply: Reply,
) -> None:
    """Draw pictures near one: its noise is moved towards that of other seeds, without --seed the one after its own.

    The LoRAs and ControlNets that made it are used again, found as `--like` finds them.

    Example: unveil vary samples/seed0_00000.png --amount 0.2 --count 8 --out near
    """
    options = flat(locals())
    from unveil.cli import image_commands as work

    wish, place = work.Wish.typed(options), work.Place.typed(options)
    work.vary(wish, picture, amount, place, reply.console, like, other=seed is None)


def interpolate(
    *,
    model: SomeModel = None,
    settings: Settings = None,
    conditions: Conditions,
    seed: Annotated[list[int] | None, typer.Option("--seed", help="Of the first sample, and of the last.")] = None,
    first: Annotated[int, typer.Option(help="Number of both samples in their sets.")] = 0,
    frames: Annotated[int, typer.Option(help="In all, both ends among them.")] = 16,
    clip: Annotated[str, typer.Option(help="Form of the animation: gif, webp, apng, mp4 or webm.")] = "gif",
    rate: Annotated[float, typer.Option(help="Frames in a second.")] = 12.0,
    steps: Steps = None,
    scale: Scale = None,
    size: Size = None,
    batch: Batch = 64,
    out: Annotated[Path, typer.Option(help="A folder, or a .gif, .webp or .apng file.")] = Path("way"),
    like: Like = None,
    additions: Additions,
    metadata: Metadata = True,
    machine: Machine,
    reply: Reply,
) -> None:
    """Draw the way from one sample to another, as frames and as an animation.

    Example: unveil interpolate ddpm-digits --seed 3 --seed 9 --label 3 --label 8 --frames 24 --out way
    """
    options = flat(locals())
    from unveil.cli import image_commands as work

    wish, place = work.Wish.typed(options), work.Place.typed(options)
    way = work.Way(frames, clip, rate)
    work.interpolate(wish, way, {"steps": steps, "guidance_scale": scale}, place, reply.console, like)


def invert(
    *,
    subject: Subject,
    conditions: Conditions,
    steps: Steps = 50,
    scale: Scale = None,
    size: Size = None,
    batch: Batch = 64,
    out: Annotated[Path, typer.Option(help="A .safetensors file.")] = Path("noise.safetensors"),
    additions: Additions,
    machine: Machine,
    reply: Reply,
) -> None:
    """Find the noise that a picture comes from, by DDIM backwards; `unveil sample --noise` goes on from it.

    Example: unveil invert ddpm-digits three.png --label 3 --out three.safetensors
    """
    options = flat(locals())
    from unveil.cli import image_commands as work

    wish, place = work.Wish.typed(options), work.Place.typed(options)
    work.invert(wish, subject.picture, {"steps": steps, "guidance_scale": scale}, place, reply.console)


COMMANDS = (vary, interpolate, invert)
