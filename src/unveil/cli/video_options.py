"""`unveil video ...`: the commands that make clips; what they do lies in `video.py`, imported when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from unveil.cli.option_groups import flat
from unveil.cli.options import PLAYGROUND, Expansion, Machine, Metadata, Reply, Sampler, Steps

video_app = typer.Typer(
    no_args_is_help=True,
    help="Make clips from words, pictures and clips.\n\n"
    'Example: unveil video "a small red circle moves left" -o out.mp4\n\n'
    "Words alone stand for `unveil video make`.",
)

Clip = Annotated[Path, typer.Argument(help="MP4, MOV, WebM, MKV, GIF, or a folder of PNG frames.", metavar="CLIP")]
Ends = Annotated[Path, typer.Argument(help="A clip, or a picture.", metavar="CLIP")]
Frames = Annotated[int | None, typer.Option(help="Frames of the clip; the model's own when left out.")]
Added = Annotated[
    int | None, typer.Option(help="Frames that are added; when left out, what the model makes at once is filled.")
]
Context = Annotated[int | None, typer.Option(help="Frames of each clip that what is made goes on from.")]
Window = Annotated[int | None, typer.Option(help="Frames that are made at once; the model's own when left out.")]
Overlap = Annotated[int | None, typer.Option(help="Frames that windows share; a quarter of one when left out.")]
Strength = Annotated[
    str, typer.Option(help="0 keeps a frame, 1 nothing of it; several with commas go from the first frame to the last.")
]


@dataclass(frozen=True)
class Wanted:
    """What is to be seen, by which model, and how it is drawn."""

    model: Annotated[str, typer.Option(help="A shipped model, a folder, a file; one that makes clips.")] = PLAYGROUND
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT in pixels; clips that are given are brought to it.", metavar="WxH")
    ] = None
    fps: Annotated[float | None, typer.Option(help="Frames in a second; those of the clip, or 8.")] = None
    steps: Steps = None
    guidance: Annotated[float | None, typer.Option(help="How closely the words are followed; 1 is none.")] = None
    sampler: Sampler = None
    seed: Annotated[int, typer.Option(help="Another one makes another clip.")] = 0
    count: Annotated[int, typer.Option(help="Clips, each of its own noise.")] = 1
    negative: Annotated[str | None, typer.Option(help="Words for what is to be avoided.")] = None


@dataclass(frozen=True)
class Lasting:
    """How long a clip is, and the windows in which it is made."""

    frames: Frames = None
    window: Window = None
    overlap: Overlap = None


@dataclass(frozen=True)
class Told:
    """The words for what is made of a clip."""

    prompt: Annotated[
        str | None, typer.Option(help="What is to be seen; the words that made the clip when left out.")
    ] = None


@dataclass(frozen=True)
class Target:
    """Where clips go."""

    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="A .mp4, .webm, .gif, .webp or .apng file; without an ending a folder of PNG."
        ),
    ] = Path("clip.mp4")
    metadata: Metadata = True
    machine: Machine = field(default_factory=Machine)
    reply: Reply = field(default_factory=Reply)


@dataclass(frozen=True)
class Joining:
    """How two clips are connected."""

    way: Annotated[
        str, typer.Option(help="bridge makes frames between the two; blend turns one into the other frame by frame.")
    ] = "bridge"
    frames: Added = None
    context: Context = None
    strength: Annotated[float, typer.Option(help="Of a blend, in its middle; 0 is a cross-fade.")] = 0.7


@dataclass(frozen=True)
class Editing:
    """How strongly a clip is edited, how, and where."""

    strength: Strength = "0.7"
    way: Annotated[
        str, typer.Option(help="noise makes it again from noise; difference moves it by what two texts differ in.")
    ] = "noise"
    source: Annotated[str | None, typer.Option(help="Of difference: words for the clip as it is.")] = None
    mask: Annotated[Path | None, typer.Option(help="A picture or clip, white where it is made anew.")] = None
    keep: Annotated[Path | None, typer.Option(help="A picture or clip, white where it stays as it is.")] = None


@video_app.command("make")
def make(
    *,
    prompt: Annotated[str, typer.Argument(help="What is to be seen.", metavar="PROMPT")],
    image: Annotated[
        list[Path] | None, typer.Option(help="A picture that is a frame of the clip; may be repeated.")
    ] = None,
    at: Annotated[
        list[int] | None, typer.Option(help="Which frame each picture is, from 0, or below 0 from the end; the first.")
    ] = None,
    lasting: Lasting,
    expansion: Expansion,
    wanted: Wanted,
    target: Target,
) -> None:
    """Make a clip from words, and from pictures that are frames of it.

    Longer clips than the model's own are made window by window. Sizes far beyond its own are made in passes.

    Example: unveil video make "a small red circle moves left" --image first.png --frames 32 -o out.mp4
    """
    from unveil.cli import video as work

    ask = work.Ask.typed(flat({"wanted": wanted, "target": target}))
    stills, length = work.Stills(tuple(image or ()), tuple(at or ())), work.Length(**vars(lasting))
    work.make(ask, prompt, stills, length, work.Expanding(**vars(expansion)))


@video_app.command("extend")
def extend(
    *,
    clip: Clip,
    frames: Added = None,
    backward: Annotated[bool, typer.Option("--backward", help="Make what comes before it.")] = False,
    context: Context = None,
    told: Told,
    wanted: Wanted,
    target: Target,
) -> None:
    """Go on with a clip, or lead up to it; the frames that are there stay as they are.

    Example: unveil video extend clip.mp4 --frames 16 -o longer.mp4
    """
    from unveil.cli import video as work

    ask = work.Ask.typed(flat({"told": told, "wanted": wanted, "target": target}))
    work.extend(ask, clip, frames, "backward" if backward else "forward", context)


@video_app.command("between")
def between(*, first: Ends, last: Ends, frames: Added = None, told: Told, wanted: Wanted, target: Target) -> None:
    """Make the frames between two pictures, or between the end of a clip and the beginning of another.

    Example: unveil video between first.png last.png --frames 14 -o between.mp4
    """
    from unveil.cli import video as work

    ask = work.Ask.typed(flat({"told": told, "wanted": wanted, "target": target}))
    work.bridge(ask, "between", (first, last), frames, None)


@video_app.command("loop")
def loop(
    *,
    clip: Annotated[
        Path | None, typer.Argument(help="A clip that is closed by new frames; without one words make a loop.")
    ] = None,
    frames: Added = None,
    context: Context = None,
    told: Told,
    wanted: Wanted,
    target: Target,
) -> None:
    """Close a clip to a loop, or make one from words, in which every frame has one before and one after it.

    Example: unveil video loop clip.mp4 --frames 8 -o loop.gif

    Example: unveil video loop --prompt "a small red circle moves in a circle" -o loop.gif
    """
    from unveil.cli import video as work

    ask = work.Ask.typed(flat({"told": told, "wanted": wanted, "target": target}))
    if clip is None:
        work.ring(ask, frames)
    else:
        work.bridge(ask, "loop", (clip, clip), frames, context)


@video_app.command("connect")
def connect(
    *,
    first: Clip,
    last: Clip,
    joining: Joining,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="Of the first clip, then of the last; those that made them when left out."),
    ] = None,
    wanted: Wanted,
    target: Target,
) -> None:
    """Connect two clips of one size: the result begins as the one and ends as the other.

    Example: unveil video connect first.mp4 last.mp4 --frames 8 -o both.mp4

    Example: unveil video connect first.mp4 last.mp4 --way blend -o both.mp4
    """
    from unveil.cli import video as work

    ask = work.Ask.typed(flat({"wanted": wanted, "target": target}))
    work.connect(ask, (first, last), tuple(prompts or ()), work.Joint(**vars(joining)))


@video_app.command("edit")
def edit(
    *,
    clip: Clip,
    editing: Editing,
    told: Told,
    wanted: Wanted,
    target: Target,
) -> None:
    """Edit a clip by words, all of it, a region, or all but a region.

    Example: unveil video edit clip.mp4 --prompt "a small blue circle moves left" --strength 0.7 -o blue.mp4
    """
    from unveil.cli import video as work

    ask = work.Ask.typed(flat({"told": told, "wanted": wanted, "target": target}))
    work.edit(ask, clip, work.Change(**vars(editing)))


@video_app.command("storyboard")
def storyboard(
    *,
    script: Annotated[
        Path | None, typer.Argument(help="YAML or JSON: scenes, each with frames and a prompt.", metavar="FILE")
    ] = None,
    scene: Annotated[
        list[str] | None, typer.Option(help='Frames and words, such as "0-15 a red circle moves left"; repeated.')
    ] = None,
    fade: Annotated[int, typer.Option(help="Frames over which one text goes over into the next.")] = 0,
    window: Window = None,
    overlap: Overlap = None,
    wanted: Wanted,
    target: Target,
) -> None:
    """Make one clip of several scenes, each a span of frames with words of its own.

    Example: unveil video storyboard --scene "0-15 a red circle moves left" --scene "16-31 a red circle moves up"
    """
    from unveil.cli import video as work

    ask = work.Ask.typed(flat({"wanted": wanted, "target": target}))
    work.storyboard(ask, script, tuple(scene or ()), fade, work.Length(None, window, overlap))


@video_app.command("upscale")
def upscale(
    *,
    clip: Clip,
    factor: Annotated[int, typer.Option(help="How many times as many pixels a side; or give --size.")] = 2,
    strength: Annotated[float, typer.Option(help="How much of the plain enlargement is made again.")] = 0.3,
    told: Told,
    wanted: Wanted,
    target: Target,
) -> None:
    """Enlarge a clip: a plain enlargement, of which the details are made again in overlapping windows.

    Example: unveil video upscale clip.mp4 --factor 2 -o large.mp4
    """
    from unveil.cli import video as work

    ask = work.Ask.typed(flat({"told": told, "wanted": wanted, "target": target}))
    work.upscale(ask, clip, factor, strength)


COMMANDS = tuple(str(one.name) for one in video_app.registered_commands)  # other words are those of `make`
