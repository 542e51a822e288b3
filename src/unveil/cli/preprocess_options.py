"""`unveil preprocess`: its commands; what they do is in `preprocess.py`, imported when one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unveil.cli.options import AsJson, Force, Quiet
from unveil.io.console import Console

preprocess_app = typer.Typer(
    no_args_is_help=True, help="Make control images for ControlNets: edges, lines, scribbles, segments, masks, boxes."
)

Source = Annotated[
    Path, typer.Argument(help="Input PNG, JPEG or WebP image, or a folder of them; --image works too.", metavar="IMAGE")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Output .png file; for a folder of images, a folder.")]
Low = Annotated[float, typer.Option(help="Gradient above which an edge continues, 0 to 255.")]
High = Annotated[float, typer.Option(help="Gradient above which an edge starts, 0 to 255.")]
Sigma = Annotated[float, typer.Option(help="Standard deviation of the smoothing before, in pixels.")]
Width = Annotated[int, typer.Option(help="Width of the control image, in pixels; --size WxH works too.")]
Height = Annotated[int, typer.Option(help="Height of the control image, in pixels.")]


@preprocess_app.command("canny")
def canny(
    image: Source,
    out: Out,
    low: Low = 100,
    high: High = 200,
    sigma: Sigma = 1.0,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Detect the edges of images, one pixel thick, white on black.

    Example: unveil preprocess canny photo.png -o edges.png --low 50 --high 150
    """
    from unveil.cli import preprocess as work

    settings = {"low": low, "high": high, "sigma": sigma}
    work.draw("canny", settings, work.Place(image, out, force), Console(as_json, quiet))


@preprocess_app.command("lines")
def lines(
    image: Source,
    out: Out,
    low: Low = 50,
    high: High = 100,
    length: Annotated[int, typer.Option(help="Length of the shortest line, in pixels.")] = 10,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Detect the straight lines of images.

    Example: unveil preprocess lines room.jpg -o lines.png --length 30
    """
    from unveil.cli import preprocess as work

    settings = {"low": low, "high": high, "length": length}
    work.draw("lines", settings, work.Place(image, out, force), Console(as_json, quiet))


@preprocess_app.command("scribble")
def scribble(
    image: Source,
    out: Out,
    sigma: Sigma = 3.0,
    width: Annotated[int, typer.Option(help="Width of the pen, in pixels.")] = 4,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw the outlines of large shapes in images, as with a thick pen.

    Example: unveil preprocess scribble photos -o scribbles
    """
    from unveil.cli import preprocess as work

    settings = {"sigma": sigma, "width": width}
    work.draw("scribble", settings, work.Place(image, out, force), Console(as_json, quiet))


@preprocess_app.command("segments")
def segments(
    image: Source,
    out: Out,
    scale: Annotated[float, typer.Option(help="Scale of the segments; larger makes larger segments.")] = 100.0,
    least: Annotated[int, typer.Option("--min-size", help="Size of the smallest segment, in pixels.")] = 50,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Segment images into regions, each in a colour of its own.

    Example: unveil preprocess segments photo.png -o regions.png --scale 300
    """
    from unveil.cli import preprocess as work

    settings = {"scale": scale, "least": least}
    work.draw("segments", settings, work.Place(image, out, force), Console(as_json, quiet))


@preprocess_app.command("mask")
def mask(image: Source, out: Out, force: Force = False, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Colour class maps, images whose pixels are class numbers, in fixed colours.

    Example: unveil preprocess mask classes.png -o colours.png
    """
    from unveil.cli import preprocess as work

    work.mask(work.Place(image, out, force), Console(as_json, quiet))


@preprocess_app.command("boxes")
def boxes(
    image: Annotated[Path, typer.Argument(help="Input .json file, or a folder of them.", metavar="FILE")],
    out: Out,
    width: Width = 512,
    height: Height = 512,
    style: Annotated[str, typer.Option(help="Style of the boxes: filled or outlined.")] = "filled",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw boxes in the colours of their classes.

    A file holds {"boxes": [[0.5, 0.5, 0.2, 0.4], ...], "labels": [0, ...]}: centre x, centre y, width and height,
    all in [0, 1], and optionally a class for each box.

    Example: unveil preprocess boxes layout.json -o layout.png --width 768
    """
    from unveil.cli import preprocess as work

    work.boxes(work.Place(image, out, force), width, height, style, Console(as_json, quiet))


@preprocess_app.command("resize")
def resize(
    image: Source,
    out: Out,
    width: Width = 512,
    height: Height = 512,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Bring existing control images, such as depth maps or poses, to a size without stretching them.

    Example: unveil preprocess resize depth.png -o control.png --width 768 --height 512
    """
    from unveil.cli import preprocess as work

    work.resize(work.Place(image, out, force), width, height, Console(as_json, quiet))
