"""The commands that make pictures from pictures; what they do lies in `edit.py`, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from unveil.app.console import Console
from unveil.app.options import (
    AsJson,
    Batch,
    ControlMode,
    Controls,
    Device,
    Dtype,
    Every,
    Force,
    Given,
    Labels,
    Like,
    Loras,
    Metadata,
    Negative,
    Out,
    Preview,
    Quiet,
    Scale,
    Seeds,
    Settings,
    Size,
    SomeModel,
    SomePictures,
    Steps,
)

Feather = Annotated[int, typer.Option(help="Pixels over which old and new are blended; 0 keeps all that is known.")]
Method = Annotated[str, typer.Option(help="auto, network (models trained with masks), replace or repaint (any model).")]
Jumps = Annotated[
    tuple[int, int], typer.Option(help="Of repaint: steps of a jump back, and how often each stretch is walked.")
]


def img2img(
    model: SomeModel = None,
    picture: SomePictures = None,
    settings: Settings = None,
    strength: Annotated[float, typer.Option(help="0 keeps the picture, 1 keeps nothing of it.")] = 0.6,
    label: Labels = None,
    given: Given = None,
    negative: Negative = None,
    count: Annotated[int | None, typer.Option(help="Results for each picture.")] = None,
    seed: Seeds = None,
    steps: Steps = None,
    scale: Scale = None,
    size: Size = None,
    batch: Batch = 16,
    out: Out = Path("edited"),
    strip: Annotated[bool, typer.Option("--strip", help="Also save the way from noise to picture.")] = False,
    preview: Preview = None,
    preview_every: Every = 5,
    like: Like = None,
    lora: Loras = None,
    control: Controls = None,
    control_mode: ControlMode = "balanced",
    metadata: Metadata = True,
    device: Device = "auto",
    dtype: Dtype = "float32",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw pictures again from a noised state: SDEdit.

    Of the grid the last steps * strength steps are run.

    Example: unveil img2img ddpm-digits three.png --label 8 --strength 0.5 --out eight.png
    """
    _edit("img2img", {"strength": strength}, locals())


def inpaint(
    model: SomeModel = None,
    picture: SomePictures = None,
    settings: Settings = None,
    mask: Annotated[
        Path | None, typer.Option(help="White where the picture is made anew; or a folder, one for each picture.")
    ] = None,
    strength: Annotated[float, typer.Option(help="Below 1 what is there shines through.")] = 1.0,
    feather: Annotated[
        int, typer.Option(help="Pixels over which old and new are blended; 0 keeps all that is known.")
    ] = 0,
    method: Method = "auto",
    jumps: Jumps = (10, 10),
    label: Labels = None,
    given: Given = None,
    negative: Negative = None,
    count: Annotated[int | None, typer.Option(help="Results for each picture.")] = None,
    seed: Seeds = None,
    steps: Steps = None,
    scale: Scale = None,
    size: Size = None,
    batch: Batch = 16,
    out: Out = Path("edited"),
    strip: Annotated[bool, typer.Option("--strip", help="Also save the way from noise to picture.")] = False,
    preview: Preview = None,
    preview_every: Every = 5,
    like: Like = None,
    lora: Loras = None,
    control: Controls = None,
    control_mode: ControlMode = "balanced",
    metadata: Metadata = True,
    device: Device = "auto",
    dtype: Dtype = "float32",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a part of a picture anew; what lies outside of the mask stays as it is.

    Example: unveil inpaint ddpm-digits three.png --mask mask.png --count 4 --out mended
    """
    how = {"strength": strength, "feather": feather, "method": method, "jumps": jumps}
    _edit("inpaint", how, locals())


def outpaint(
    model: SomeModel = None,
    picture: SomePictures = None,
    settings: Settings = None,
    left: Annotated[int, typer.Option(help="Pixels beyond this edge.")] = 0,
    right: Annotated[int, typer.Option(help="Pixels beyond this edge.")] = 0,
    top: Annotated[int, typer.Option(help="Pixels beyond this edge.")] = 0,
    bottom: Annotated[int, typer.Option(help="Pixels beyond this edge.")] = 0,
    feather: Feather = 0,
    method: Method = "auto",
    jumps: Jumps = (10, 10),
    label: Labels = None,
    given: Given = None,
    negative: Negative = None,
    count: Annotated[int | None, typer.Option(help="Results for each picture.")] = None,
    seed: Seeds = None,
    steps: Steps = None,
    scale: Scale = None,
    batch: Batch = 16,
    out: Out = Path("edited"),
    strip: Annotated[bool, typer.Option("--strip", help="Also save the way from noise to picture.")] = False,
    preview: Preview = None,
    preview_every: Every = 5,
    like: Like = None,
    lora: Loras = None,
    control: Controls = None,
    control_mode: ControlMode = "balanced",
    metadata: Metadata = True,
    device: Device = "auto",
    dtype: Dtype = "float32",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Go on beyond a picture's edges; the canvas is rounded up to a size that the network takes.

    Example: unveil outpaint ddpm-digits three.png --left 4 --right 4 --out wide.png
    """
    margins = (left, right, top, bottom)
    _edit("outpaint", {"margins": margins, "feather": feather, "method": method, "jumps": jumps}, locals())


def upscale(
    model: SomeModel = None,
    picture: SomePictures = None,
    settings: Settings = None,
    factor: Annotated[int, typer.Option(help="How many times as many pixels a side.")] = 4,
    strength: Annotated[float, typer.Option(help="Of the edit, for models that were not trained to enlarge.")] = 0.3,
    overlap: Annotated[float, typer.Option(help="Of tiles, as a share of their side.")] = 0.25,
    label: Labels = None,
    given: Given = None,
    negative: Negative = None,
    count: Annotated[int | None, typer.Option(help="Results for each picture.")] = None,
    seed: Seeds = None,
    steps: Steps = None,
    scale: Scale = None,
    batch: Batch = 4,
    out: Out = Path("edited"),
    strip: Annotated[bool, typer.Option("--strip", help="Also save the way from noise to picture.")] = False,
    preview: Preview = None,
    preview_every: Every = 5,
    like: Like = None,
    lora: Loras = None,
    metadata: Metadata = True,
    device: Device = "auto",
    dtype: Dtype = "float32",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Enlarge pictures, in tiles of the model's size where the result is larger.

    A model with the condition `low` draws what it was trained to; any other edits the bicubic enlargement.

    Example: unveil upscale ddpm-digits three.png --factor 2 --out large.png
    """
    _edit("upscale", {"factor": factor, "strength": strength, "overlap": overlap}, locals())


def _edit(verb: str, settings: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    from unveil.app import edit as work

    named = {"steps": options["steps"], "scale": options["scale"]}
    job = work.Job(verb, options["picture"], settings, options.get("mask"))
    console = Console(options["as_json"], options["quiet"])
    work.edit(work.Wish.typed(options), job, named, work.Place.typed(options), console, options["like"])


COMMANDS = (img2img, inpaint, outpaint, upscale)
