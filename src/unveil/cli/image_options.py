"""The commands that make pictures from pictures; what they do lies in `edit.py`, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from unveil.cli.option_groups import flat
from unveil.cli.options import Drawing, Size, Subject, Wanted

Beyond = Annotated[int, typer.Option(help="Pixels beyond this edge.")]


@dataclass(frozen=True)
class Filling:
    """How what is made anew is fitted to what is there."""

    feather: Annotated[
        int, typer.Option(help="Pixels over which old and new are blended; 0 keeps all that is known.")
    ] = 0
    method: Annotated[
        str, typer.Option(help="auto, network (models trained with masks), replace or repaint (any model).")
    ] = "auto"
    jumps: Annotated[
        tuple[int, int], typer.Option(help="Of repaint: steps of a jump back, and how often each stretch is walked.")
    ] = (10, 10)


ENLARGING = Drawing(batch=4)


def img2img(
    *,
    subject: Subject,
    strength: Annotated[float, typer.Option(help="0 keeps the picture, 1 keeps nothing of it.")] = 0.6,
    wanted: Wanted,
    size: Size = None,
    drawing: Drawing,
) -> None:
    """Draw pictures again from a noised state: SDEdit.

    Of the grid the last steps * strength steps are run.

    Example: unveil img2img ddpm-digits three.png --label 8 --strength 0.5 --out eight.png
    """
    _edit("img2img", {"strength": strength}, {"size": size}, subject, wanted, drawing)


def inpaint(
    *,
    subject: Subject,
    mask: Annotated[
        Path | None, typer.Option(help="White where the picture is made anew; or a folder, one for each picture.")
    ] = None,
    strength: Annotated[float, typer.Option(help="Below 1 what is there shines through.")] = 1.0,
    filling: Filling,
    wanted: Wanted,
    size: Size = None,
    drawing: Drawing,
) -> None:
    """Make a part of a picture anew; what lies outside of the mask stays as it is.

    Example: unveil inpaint ddpm-digits three.png --mask mask.png --count 4 --out mended
    """
    how = {"strength": strength, **vars(filling)}
    _edit("inpaint", how, {"size": size, "mask": mask}, subject, wanted, drawing)


def outpaint(
    *,
    subject: Subject,
    left: Beyond = 0,
    right: Beyond = 0,
    top: Beyond = 0,
    bottom: Beyond = 0,
    filling: Filling,
    wanted: Wanted,
    drawing: Drawing,
) -> None:
    """Go on beyond a picture's edges; the canvas is rounded up to a size that the network takes.

    Example: unveil outpaint ddpm-digits three.png --left 4 --right 4 --out wide.png
    """
    _edit("outpaint", {"margins": (left, right, top, bottom), **vars(filling)}, {}, subject, wanted, drawing)


def upscale(
    *,
    subject: Subject,
    factor: Annotated[int, typer.Option(help="How many times as many pixels a side.")] = 4,
    strength: Annotated[float, typer.Option(help="Of the edit, for models that were not trained to enlarge.")] = 0.3,
    overlap: Annotated[float, typer.Option(help="Of tiles, as a share of their side.")] = 0.25,
    wanted: Wanted,
    drawing: Drawing = ENLARGING,
) -> None:
    """Enlarge pictures, in tiles of the model's size where the result is larger.

    A model with the condition `low` draws what it was trained to; any other edits the bicubic enlargement.

    Example: unveil upscale ddpm-digits three.png --factor 2 --out large.png
    """
    _edit("upscale", {"factor": factor, "strength": strength, "overlap": overlap}, {}, subject, wanted, drawing)


def _edit(
    verb: str,
    settings: Mapping[str, Any],
    own: Mapping[str, Any],
    subject: Subject,
    wanted: Wanted,
    drawing: Drawing,
) -> None:
    from unveil.cli import image_commands as work

    options = flat({**own, "subject": subject, "wanted": wanted, "drawing": drawing})
    named = {"steps": wanted.steps, "guidance_scale": wanted.scale}
    job = work.Job(verb, subject.picture, settings, options.get("mask"))
    wish, place = work.Wish.typed(options), work.Place.typed(options)
    work.edit(wish, job, named, place, drawing.reply.console, drawing.like)


COMMANDS = (img2img, inpaint, outpaint, upscale)
