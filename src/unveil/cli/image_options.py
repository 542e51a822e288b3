"""The commands that edit images; what they do is in `image_commands.py`, imported when one of them runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from unveil.cli.option_groups import flat
from unveil.cli.options import EditArguments, EditOptions, OutputOptions, Size

Margin = Annotated[int, typer.Option(help="Number of pixels that are added at this edge.")]


@dataclass(frozen=True)
class InpaintOptions:
    """How the generated region is fitted to the rest of the image."""

    feather: Annotated[
        int, typer.Option(help="Width in pixels of the blend between old and new; 0 keeps every unmasked pixel.")
    ] = 0
    method: Annotated[
        str,
        typer.Option(help="Method: auto, network (models trained with masks), replace or repaint (any model)."),
    ] = "auto"
    jump_length: Annotated[
        int, typer.Option("--repaint-jump-length", help="Number of steps that repaint jumps back.")
    ] = 10
    resamples: Annotated[
        int, typer.Option("--repaint-resamples", help="Number of times that repaint samples each stretch.")
    ] = 10

    def settings(self) -> dict[str, Any]:
        """The settings of the task."""
        return {"feather": self.feather, "method": self.method, "jumps": (self.jump_length, self.resamples)}


UPSCALED = OutputOptions(batch=4)


def img2img(
    *,
    arguments: EditArguments,
    strength: Annotated[
        float, typer.Option(help="Strength of the edit, from 0 (keeps the image) to 1 (keeps nothing of it).")
    ] = 0.6,
    edited: EditOptions,
    size: Size = None,
    output: OutputOptions,
) -> None:
    """Generate variants of images from a noised state (SDEdit).

    The last steps * strength steps of the schedule are run.

    Example: unveil img2img ddpm-digits three.png --label 8 --strength 0.5 -o eight.png
    """
    _edit("img2img", {"strength": strength}, {"size": size}, arguments, edited, output)


def inpaint(
    *,
    arguments: EditArguments,
    mask: Annotated[
        Path | None, typer.Option(help="Mask image, white where new content is generated; or a folder of masks.")
    ] = None,
    strength: Annotated[
        float, typer.Option(help="Strength of the edit inside the mask; below 1 the old content shows through.")
    ] = 1.0,
    inpainting: InpaintOptions,
    edited: EditOptions,
    size: Size = None,
    output: OutputOptions,
) -> None:
    """Generate new content inside a mask; what is outside the mask stays as it is.

    Example: unveil inpaint ddpm-digits three.png --mask mask.png -n 4 -o mended
    """
    settings = {"strength": strength, **inpainting.settings()}
    _edit("inpaint", settings, {"size": size, "mask": mask}, arguments, edited, output)


def outpaint(
    *,
    arguments: EditArguments,
    left: Margin = 0,
    right: Margin = 0,
    top: Margin = 0,
    bottom: Margin = 0,
    inpainting: InpaintOptions,
    edited: EditOptions,
    output: OutputOptions,
) -> None:
    """Extend an image beyond its edges; the canvas is rounded up to a size that the network takes.

    Example: unveil outpaint ddpm-digits three.png --left 4 --right 4 -o wide.png
    """
    settings = {"margins": (left, right, top, bottom), **inpainting.settings()}
    _edit("outpaint", settings, {}, arguments, edited, output)


def upscale(
    *,
    arguments: EditArguments,
    factor: Annotated[int, typer.Option(help="Upscaling factor of each side.")] = 4,
    strength: Annotated[
        float, typer.Option(help="Strength of the edit, for models that were not trained for upscaling.")
    ] = 0.3,
    overlap: Annotated[float, typer.Option(help="Overlap of tiles, as a fraction of their side.")] = 0.25,
    edited: EditOptions,
    output: OutputOptions = UPSCALED,
) -> None:
    """Upscale images, in tiles of the model's size where the result is larger.

    A super-resolution model, with the condition `low`, does what it was trained for; any other model edits the bicubic
    upsampling.

    Example: unveil upscale ddpm-digits three.png --factor 2 -o large.png
    """
    settings = {"factor": factor, "strength": strength, "overlap": overlap}
    _edit("upscale", settings, {}, arguments, edited, output)


def _edit(
    task: str,
    settings: Mapping[str, Any],
    extra: Mapping[str, Any],
    arguments: EditArguments,
    edited: EditOptions,
    output: OutputOptions,
) -> None:
    from unveil.cli import image_commands as work

    options = flat({**extra, "arguments": arguments, "edited": edited, "output": output})
    named = {"steps": edited.steps, "guidance_scale": edited.scale}
    job = work.EditTask(task, arguments.image, settings, options.get("mask"))
    wish, place = work.GenerationOptions.from_options(options), work.ImageOutput.from_options(options)
    work.edit(wish, job, named, place, output.reply.console, output.like)


COMMANDS = (img2img, inpaint, outpaint, upscale)
