"""Options that several commands have, so that they mean the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from unveil.cli.console import Console

PLAYGROUND = "playground-video"  # the shipped model of words, which makes clips and pictures

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.", metavar="DEVICE")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.", metavar="DTYPE")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(
        help="Of sampling, such as sampler=heun rescale=0.7; a prompt, for models that take one.",
        metavar="[KEY=VALUE | PROMPT]...",
    ),
]
SomeModel = Annotated[
    str | None, typer.Argument(help="A shipped model, a folder (saved model or run), a file.", metavar="MODEL")
]
ModelOrPrompt = Annotated[
    str | None,
    typer.Argument(
        help="A shipped model, a folder (saved model or run), a file; or at once a prompt for the shipped model.",
        metavar="[MODEL | PROMPT]",
    ),
]
SomePictures = Annotated[Path | None, typer.Argument(help="A picture, or a folder of them.", metavar="PICTURE")]
Labels = Annotated[
    list[str] | None, typer.Option("--label", "--class", help="Class by number or name; may be repeated.")
]
Given = Annotated[list[str] | None, typer.Option(help="Another condition, as KEY=VALUE; may be repeated.")]
Negative = Annotated[
    list[str] | None,
    typer.Option(help="A condition to go away from, as KEY=VALUE, or a prompt; guidance needs a scale above 1."),
]
Seeds = Annotated[list[int] | None, typer.Option("--seed", help="Of the whole set; or repeated, one for each picture.")]
Sampler = Annotated[str | None, typer.Option(help="By name; `unveil inspect samplers` lists them.")]
Steps = Annotated[int | None, typer.Option(help="Steps of the grid; the model's own when left out.")]
Scale = Annotated[float | None, typer.Option(help="Classifier-free guidance; 1 is none.")]
Batch = Annotated[int, typer.Option(help="Pictures at a time.")]
Size = Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels, for networks that take any.", metavar="WxH")]
Loras = Annotated[
    list[str] | None,
    typer.Option("--lora", help="A LoRA's file or run, FILE or FILE:WEIGHT; may be repeated.", metavar="FILE[:WEIGHT]"),
]
Controls = Annotated[
    list[str] | None,
    typer.Option(
        "--control",
        help="A ControlNet's file, folder or run, and the picture it reads; the picture alone for a model that is such "
        "a run; start and stop are shares of the way from noise; may be repeated.",
        metavar="[FILE=]PICTURE[:WEIGHT[:START-STOP]]",
    ),
]
ControlMode = Annotated[
    str, typer.Option("--control-mode", help="balanced, or guess: most where the prompt says little.", metavar="MODE")
]
Like = Annotated[Path | None, typer.Option(help="Repeat this picture exactly.", metavar="PICTURE")]
Out = Annotated[Path, typer.Option(help="A folder, or a .png file.")]
Preview = Annotated[
    Path | None, typer.Option(help="Show the estimate in this .png file while it is drawn.", metavar="FILE")
]
Every = Annotated[int, typer.Option("--preview-every", help="Steps from one preview to the next.")]
Metadata = Annotated[bool, typer.Option("--metadata/--no-metadata", help="Say in each file how it was made.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes such as train.steps=100.", metavar="[KEY=VALUE]...")
]
Small = Annotated[bool, typer.Option("--small", help="The recipe's small mode, a run of seconds.")]
RecipeName = Annotated[str, typer.Argument(help="A shipped recipe, a YAML file or a run's folder.", metavar="RECIPE")]
ModelName = Annotated[
    str, typer.Argument(help="A shipped model, or a folder: a saved model or a run.", metavar="MODEL")
]


# ------------------------------------------------------------------------------------- groups, for `groups.spread`


@dataclass(frozen=True)
class Subject:
    """What is worked on: a model, pictures, and settings of sampling with a prompt."""

    model: SomeModel = None
    picture: SomePictures = None
    settings: Settings = None


@dataclass(frozen=True)
class Conditions:
    """What is to be seen, and what not."""

    label: Labels = None
    given: Given = None
    negative: Negative = None


@dataclass(frozen=True)
class Wanted:
    """What is asked of an edit of pictures, and how it is drawn."""

    conditions: Conditions = Conditions()
    count: Annotated[int | None, typer.Option(help="Results for each picture.")] = None
    seed: Seeds = None
    steps: Steps = None
    scale: Scale = None


@dataclass(frozen=True)
class Expansion:
    """How prompts are made dense before the model is told them."""

    expand: Annotated[
        str | None,
        typer.Option(
            help="What makes prompts dense: rules, the folder of a language model, or an address with a model's name. "
            "Models of the playground are told by the rules when left out.",
            metavar="rules|FOLDER|URL#NAME",
        ),
    ] = None
    no_expand: Annotated[bool, typer.Option("--no-expand", help="Tell the model just what you typed.")] = False


@dataclass(frozen=True)
class Watched:
    """How one sees what happens on the way."""

    strip: Annotated[bool, typer.Option("--strip", help="Also save the way from noise to picture.")] = False
    preview: Preview = None
    preview_every: Every = 5


@dataclass(frozen=True)
class Additions:
    """What is put on the model."""

    lora: Loras = None
    control: Controls = None
    control_mode: ControlMode = "balanced"


@dataclass(frozen=True)
class Machine:
    """What draws, and with which numbers."""

    device: Device = "auto"
    dtype: Dtype = "float32"


@dataclass(frozen=True)
class Reply:
    """How a command answers."""

    force: Force = False
    as_json: AsJson = False
    quiet: Quiet = False

    @property
    def console(self) -> Console:
        """What the answer goes to."""
        return Console(self.as_json, self.quiet)


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn and where they go."""

    batch: Batch = 16
    out: Out = Path("edited")
    watched: Watched = Watched()
    like: Like = None
    additions: Additions = Additions()
    metadata: Metadata = True
    machine: Machine = Machine()
    reply: Reply = Reply()
