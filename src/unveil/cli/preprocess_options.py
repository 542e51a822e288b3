"""`unveil hint`: its commands; what they do lies in `hint.py`, imported when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unveil.cli.console import Console
from unveil.cli.options import AsJson, Force, Quiet

hint_app = typer.Typer(
    no_args_is_help=True, help="Draw what a ControlNet is told: edges, lines, scribbles, regions, masks, boxes."
)

Source = Annotated[Path, typer.Argument(help="A PNG, JPEG or WebP picture, or a folder of them.", metavar="PICTURE")]
Out = Annotated[Path, typer.Option(help="A .png file; for a folder of pictures, a folder.")]
Low = Annotated[float, typer.Option(help="Gradient above which an edge goes on, 0 to 255.")]
High = Annotated[float, typer.Option(help="Gradient above which an edge begins, 0 to 255.")]
Sigma = Annotated[float, typer.Option(help="Of the smoothing before, in pixels.")]
Width = Annotated[int, typer.Option(help="Of the hint, in pixels.")]
Height = Annotated[int, typer.Option(help="Of the hint, in pixels.")]


@hint_app.command("canny")
def canny(
    source: Source,
    out: Out,
    low: Low = 100,
    high: High = 200,
    sigma: Sigma = 1.0,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw the edges of pictures, one pixel thick, white on black.

    Example: unveil hint canny photo.png --out edges.png --low 50 --high 150
    """
    from unveil.cli import preprocess as work

    settings = {"low": low, "high": high, "sigma": sigma}
    work.draw("canny", settings, work.Place(source, out, force), Console(as_json, quiet))


@hint_app.command("lines")
def lines(
    source: Source,
    out: Out,
    low: Low = 50,
    high: High = 100,
    length: Annotated[int, typer.Option(help="Of the shortest line, in pixels.")] = 10,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw the straight lines of pictures.

    Example: unveil hint lines room.jpg --out lines.png --length 30
    """
    from unveil.cli import preprocess as work

    settings = {"low": low, "high": high, "length": length}
    work.draw("lines", settings, work.Place(source, out, force), Console(as_json, quiet))


@hint_app.command("scribble")
def scribble(
    source: Source,
    out: Out,
    sigma: Sigma = 3.0,
    width: Annotated[int, typer.Option(help="Of the pen, in pixels.")] = 4,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw the outlines of what is large in pictures, as with a thick pen.

    Example: unveil hint scribble photos --out scribbles
    """
    from unveil.cli import preprocess as work

    settings = {"sigma": sigma, "width": width}
    work.draw("scribble", settings, work.Place(source, out, force), Console(as_json, quiet))


@hint_app.command("segments")
def segments(
    source: Source,
    out: Out,
    scale: Annotated[float, typer.Option(help="Larger makes larger regions.")] = 100.0,
    least: Annotated[int, typer.Option(help="Pixels of the smallest region.")] = 50,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw the regions that are found in pictures, each in a colour of its own.

    Example: unveil hint segments photo.png --out regions.png --scale 300
    """
    from unveil.cli import preprocess as work

    settings = {"scale": scale, "least": least}
    work.draw("segments", settings, work.Place(source, out, force), Console(as_json, quiet))


@hint_app.command("mask")
def mask(source: Source, out: Out, force: Force = False, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Draw maps of classes, pictures whose pixels are the classes' numbers, in fixed colours.

    Example: unveil hint mask classes.png --out colours.png
    """
    from unveil.cli import preprocess as work

    work.mask(work.Place(source, out, force), Console(as_json, quiet))


@hint_app.command("boxes")
def boxes(
    source: Annotated[Path, typer.Argument(help="A .json file, or a folder of them.", metavar="FILE")],
    out: Out,
    width: Width = 512,
    height: Height = 512,
    style: Annotated[str, typer.Option(help="filled or outlined.")] = "filled",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw boxes in the colours of their classes.

    A file holds {"boxes": [[0.5, 0.5, 0.2, 0.4], ...], "labels": [0, ...]}: centre x, centre y, width and height,
    all in [0, 1], and a class for each box, which may be left out.

    Example: unveil hint boxes layout.json --out layout.png --width 768
    """
    from unveil.cli import preprocess as work

    work.boxes(work.Place(source, out, force), width, height, style, Console(as_json, quiet))


@hint_app.command("given")
def given(
    source: Source,
    out: Out,
    width: Width = 512,
    height: Height = 512,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Bring pictures that are hints already, such as depth or poses, to a size without stretching them.

    Example: unveil hint given depth.png --out hint.png --width 768 --height 512
    """
    from unveil.cli import preprocess as work

    work.given(work.Place(source, out, force), width, height, Console(as_json, quiet))
