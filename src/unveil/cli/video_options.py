"""`unveil video ...`: the commands that generate videos; what they do is in `video.py`, imported when one runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from unveil.cli.option_groups import flat
from unveil.cli.options import (
    PLAYGROUND,
    DeviceOptions,
    Expansion,
    GuidanceScale,
    Metadata,
    ReplyOptions,
    Sampler,
    Size,
    Steps,
)

video_app = typer.Typer(
    no_args_is_help=True,
    help="Generate, extend, join and edit videos.\n\n"
    'Example: unveil video "a small red circle moves left" -o out.mp4\n\n'
    "A prompt alone runs `unveil video generate`.",
)

Video = Annotated[
    Path, typer.Argument(help="Input video: MP4, MOV, WebM, MKV, GIF, or a folder of PNG frames.", metavar="VIDEO")
]
Ends = Annotated[Path, typer.Argument(help="Input video, or image.", metavar="VIDEO")]
Frames = Annotated[int | None, typer.Option(help="Number of frames; the model's default when left out.")]
Added = Annotated[
    int | None, typer.Option(help="Number of frames that are added; when left out, one window of the model is filled.")
]
Context = Annotated[
    int | None, typer.Option("--context-frames", help="Number of frames of each video that new frames continue.")
]
Window = Annotated[
    int | None, typer.Option(help="Number of frames that are generated at once; the model's default when left out.")
]
Overlap = Annotated[
    int | None, typer.Option(help="Number of frames that windows share; a quarter of a window when left out.")
]
Strength = Annotated[
    str,
    typer.Option(
        help="Strength of the edit, from 0 (keeps a frame) to 1 (keeps nothing of it); several with commas change from "
        "the first frame to the last."
    ),
]


@dataclass(frozen=True)
class VideoOptions:
    """Model, size, frame rate, number and main sampling settings of videos."""

    model: Annotated[
        str, typer.Option("--model", "-m", help="Video model: a bundled model, a folder or a weights file.")
    ] = PLAYGROUND
    size: Size = None
    fps: Annotated[
        float | None, typer.Option(help="Frame rate in frames per second; that of the input video, or 8.")
    ] = None
    steps: Steps = None
    guidance: GuidanceScale = None
    sampler: Sampler = None
    seed: Annotated[int, typer.Option(help="Seed of the initial noise.")] = 0
    count: Annotated[
        int, typer.Option("--num-videos", "-n", help="Number of videos, each from its own initial noise.")
    ] = 1
    negative: Annotated[
        str | None,
        typer.Option("--negative-prompt", help="Prompt to guide away from; needs a guidance scale above 1."),
    ] = None


@dataclass(frozen=True)
class LengthOptions:
    """Length of a video, and the windows in which it is generated."""

    frames: Frames = None
    window: Window = None
    overlap: Overlap = None


@dataclass(frozen=True)
class PromptOptions:
    """Prompt of a video that is made from another one."""

    prompt: Annotated[str | None, typer.Option(help="Prompt; that of the input video's metadata when left out.")] = None


@dataclass(frozen=True)
class VideoOutput:
    """Where videos are written."""

    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Output .mp4, .webm, .gif, .webp or .apng file; without a suffix, a folder of PNG."
        ),
    ] = Path("clip.mp4")
    metadata: Metadata = True
    machine: DeviceOptions = field(default_factory=DeviceOptions)
    reply: ReplyOptions = field(default_factory=ReplyOptions)


@dataclass(frozen=True)
class JoinOptions:
    """How two videos are joined."""

    way: Annotated[
        str,
        typer.Option(
            "--method", help="Method: bridge generates frames between the two; blend turns one into the other."
        ),
    ] = "bridge"
    frames: Added = None
    context: Context = None
    strength: Annotated[float, typer.Option(help="Strength of a blend, at its middle; 0 is a plain cross-fade.")] = 0.7


@dataclass(frozen=True)
class VideoEditOptions:
    """Strength, method and region of a video edit."""

    strength: Strength = "0.7"
    way: Annotated[
        str,
        typer.Option(
            "--method",
            help="Method: noise (SDEdit) regenerates from a noised state; difference (FlowEdit) moves the video by "
            "the difference of two prompts.",
        ),
    ] = "noise"
    source: Annotated[
        str | None, typer.Option("--source-prompt", help="Prompt of the input video, for the method difference.")
    ] = None
    mask: Annotated[Path | None, typer.Option(help="Mask image or video, white where new content is generated.")] = None
    keep: Annotated[
        Path | None, typer.Option("--keep-mask", help="Mask image or video, white where the content is kept.")
    ] = None


@video_app.command("generate")
def generate(
    *,
    prompt: Annotated[str, typer.Argument(help="Prompt; --prompt works too.", metavar="PROMPT")],
    image: Annotated[
        list[Path] | None, typer.Option(help="Image that is a frame of the video; repeat for several.")
    ] = None,
    at: Annotated[
        list[int] | None,
        typer.Option(
            "--image-frame", help="Frame index of each image, from 0, or below 0 from the end; 0 when left out."
        ),
    ] = None,
    length: LengthOptions,
    expansion: Expansion,
    options: VideoOptions,
    output: VideoOutput,
) -> None:
    """Generate a video from a prompt, and from images that are frames of it.

    Videos longer than the model's own are generated window by window, sizes far beyond its own in several passes.

    Example: unveil video generate "a small red circle moves left" --image first.png --frames 32 -o out.mp4
    """
    from unveil.cli import video as work

    ask = work.VideoRequest.from_options(flat({"options": options, "output": output}))
    stills = work.ConditioningImages(tuple(image or ()), tuple(at or ()))
    work.make(ask, prompt, stills, work.Length(**vars(length)), work.ExpansionOptions.from_option(expansion.expand))


@video_app.command("extend")
def extend(
    *,
    video: Video,
    frames: Added = None,
    backward: Annotated[bool, typer.Option("--backward", help="Generate frames before the video.")] = False,
    context: Context = None,
    told: PromptOptions,
    options: VideoOptions,
    output: VideoOutput,
) -> None:
    """Extend a video forward or backward; its own frames stay as they are.

    Example: unveil video extend clip.mp4 --frames 16 -o longer.mp4
    """
    from unveil.cli import video as work

    ask = work.VideoRequest.from_options(flat({"told": told, "options": options, "output": output}))
    work.extend(ask, video, frames, "backward" if backward else "forward", context)


@video_app.command("interpolate")
def interpolate(
    *, first: Ends, last: Ends, frames: Added = None, told: PromptOptions, options: VideoOptions, output: VideoOutput
) -> None:
    """Generate the frames between two images, or between the end of a video and the start of another.

    Example: unveil video interpolate first.png last.png --frames 14 -o between.mp4
    """
    from unveil.cli import video as work

    ask = work.VideoRequest.from_options(flat({"told": told, "options": options, "output": output}))
    work.bridge(ask, "between", (first, last), frames, None)


@video_app.command("loop")
def loop(
    *,
    video: Annotated[
        Path | None,
        typer.Argument(help="Input video that new frames close to a loop; without one, --prompt.", metavar="[VIDEO]"),
    ] = None,
    frames: Added = None,
    context: Context = None,
    told: PromptOptions,
    options: VideoOptions,
    output: VideoOutput,
) -> None:
    """Close a video to a loop, or generate a looping video from a prompt.

    Example: unveil video loop clip.mp4 --frames 8 -o loop.gif

    Example: unveil video loop --prompt "a small red circle moves in a circle" -o loop.gif
    """
    from unveil.cli import video as work

    ask = work.VideoRequest.from_options(flat({"told": told, "options": options, "output": output}))
    if video is None:
        work.ring(ask, frames)
    else:
        work.bridge(ask, "loop", (video, video), frames, context)


@video_app.command("join")
def join(
    *,
    first: Video,
    last: Video,
    joining: JoinOptions,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt", help="Prompt of the first video, then of the last; by default those of their metadata."
        ),
    ] = None,
    options: VideoOptions,
    output: VideoOutput,
) -> None:
    """Join two videos of one size: the result starts as the first and ends as the last.

    Example: unveil video join first.mp4 last.mp4 --frames 8 -o both.mp4

    Example: unveil video join first.mp4 last.mp4 --method blend -o both.mp4
    """
    from unveil.cli import video as work

    ask = work.VideoRequest.from_options(flat({"options": options, "output": output}))
    work.connect(ask, (first, last), tuple(prompts or ()), work.JoinSettings(**vars(joining)))


@video_app.command("edit")
def edit(
    *,
    video: Video,
    editing: VideoEditOptions,
    told: PromptOptions,
    options: VideoOptions,
    output: VideoOutput,
) -> None:
    """Edit a video by a prompt: the whole frame, a region, or everything except a region.

    Example: unveil video edit clip.mp4 --prompt "a small blue circle moves left" --strength 0.7 -o blue.mp4
    """
    from unveil.cli import video as work

    ask = work.VideoRequest.from_options(flat({"told": told, "options": options, "output": output}))
    work.edit(ask, video, work.VideoEdit(**vars(editing)))


@video_app.command("storyboard")
def storyboard(
    *,
    script: Annotated[
        Path | None,
        typer.Argument(help="YAML or JSON file of scenes, each with frames and a prompt.", metavar="[FILE]"),
    ] = None,
    scene: Annotated[
        list[str] | None,
        typer.Option(help='Scene as frames and a prompt, such as "0-15 a red circle moves left"; repeat for several.'),
    ] = None,
    fade: Annotated[
        int, typer.Option("--prompt-crossfade", help="Number of frames over which one prompt fades into the next.")
    ] = 0,
    window: Window = None,
    overlap: Overlap = None,
    options: VideoOptions,
    output: VideoOutput,
) -> None:
    """Generate one video of several scenes, each a span of frames with a prompt of its own.

    Example: unveil video storyboard --scene "0-15 a red circle moves left" --scene "16-31 a red circle moves up"
    """
    from unveil.cli import video as work

    ask = work.VideoRequest.from_options(flat({"options": options, "output": output}))
    work.storyboard(ask, script, tuple(scene or ()), fade, work.Length(None, window, overlap))


@video_app.command("upscale")
def upscale(
    *,
    video: Video,
    factor: Annotated[int, typer.Option(help="Upscaling factor of each side; or give --size.")] = 2,
    strength: Annotated[float, typer.Option(help="Strength with which details are regenerated, from 0 to 1.")] = 0.3,
    told: PromptOptions,
    options: VideoOptions,
    output: VideoOutput,
) -> None:
    """Upscale a video: bicubic upsampling, whose details are regenerated in overlapping windows.

    Example: unveil video upscale clip.mp4 --factor 2 -o large.mp4
    """
    from unveil.cli import video as work

    ask = work.VideoRequest.from_options(flat({"told": told, "options": options, "output": output}))
    work.upscale(ask, video, factor, strength)


COMMANDS = tuple(str(info.name) for info in video_app.registered_commands)  # other words are those of `generate`
