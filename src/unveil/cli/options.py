"""Options that several commands have, so that they mean the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from unveil.io.console import Console

PLAYGROUND = "playground-video"  # the bundled text-to-video model, which makes images too

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]
Device = Annotated[str, typer.Option(help="Device to compute on: auto, cpu, cuda or mps.", metavar="DEVICE")]
Dtype = Annotated[
    str, typer.Option(help="Number format of the network: float32, bfloat16 or float16.", metavar="DTYPE")
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(
        help="Sampling settings, such as sampler=heun guidance_rescale=0.7; or a prompt, for models that take one "
        "(--prompt works too).",
        metavar="[KEY=VALUE | PROMPT]...",
    ),
]
SomeModel = Annotated[
    str | None,
    typer.Argument(help="Bundled model, folder (saved model or run) or weights file; -m works too.", metavar="MODEL"),
]
ModelOrPrompt = Annotated[
    str | None,
    typer.Argument(
        help="Bundled model, folder (saved model or run) or weights file; or at once a prompt for the bundled "
        "text-to-image model. --model (-m) and --prompt work too.",
        metavar="[MODEL | PROMPT]",
    ),
]
SomeImages = Annotated[
    Path | None, typer.Argument(help="Input image, or a folder of images; --image works too.", metavar="IMAGE")
]
Labels = Annotated[
    list[str] | None, typer.Option("--label", "--class", help="Class by number or name; repeat for several.")
]
Cond = Annotated[list[str] | None, typer.Option("--cond", help="Other condition, as KEY=VALUE; repeat for several.")]
NegativePrompt = Annotated[
    list[str] | None,
    typer.Option("--negative-prompt", help="Prompt to guide away from; needs a guidance scale above 1."),
]
NegativeCond = Annotated[
    list[str] | None,
    typer.Option("--negative-cond", help="Condition to guide away from, as KEY=VALUE, such as label=3."),
]
Seeds = Annotated[
    list[int] | None,
    typer.Option("--seed", help="Seed of the initial noise, 0 by default; repeat for several, one for each image."),
]
Sampler = Annotated[
    str | None,
    typer.Option(
        help="Sampler by name, such as dpmpp-2m; `unveil inspect samplers` lists all, and names of other programs "
        'such as euler_a or "DPM++ 2M Karras" are understood.'
    ),
]
Steps = Annotated[int | None, typer.Option(help="Number of sampling steps; the model's default when left out.")]
GuidanceScale = Annotated[
    float | None,
    typer.Option("--guidance-scale", help="Classifier-free guidance scale; 1 is no guidance, the model's default."),
]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Number of images that are generated at once.")]
Size = Annotated[
    str | None,
    typer.Option(
        help="Width and height in pixels, for networks that take any; --width W --height H work too.", metavar="WxH"
    ),
]
Loras = Annotated[
    list[str] | None,
    typer.Option("--lora", help="LoRA file or run, with its weight; repeat for several.", metavar="FILE[:WEIGHT]"),
]
Controls = Annotated[
    list[str] | None,
    typer.Option(
        "--controlnet",
        help="ControlNet file, folder or run, and the control image; the image alone for a model that is such a run. "
        "Start and stop are fractions of the sampling trajectory. Repeat for several.",
        metavar="[FILE=]IMAGE[:WEIGHT[:START-STOP]]",
    ),
]
ControlMode = Annotated[
    str,
    typer.Option(
        "--control-mode",
        help="Balance of prompt and control image: balanced, or guess, which favours the control image.",
        metavar="MODE",
    ),
]
FromMetadata = Annotated[
    Path | None,
    typer.Option(
        "--from-metadata",
        help="Generated file that is generated once more, exactly, from its metadata.",
        metavar="FILE",
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Output folder or file.")]
VideoOut = Annotated[
    Path,
    typer.Option(
        "--out", "-o", help="Output .mp4, .webm, .gif, .webp or .apng file; without a suffix, a folder of PNG."
    ),
]
OutFolder = Annotated[
    Path | None, typer.Option("--out", "-o", help="Output folder of the page; the run's folder when left out.")
]
Preview = Annotated[
    Path | None, typer.Option(help=".png file that shows the predicted image while it is sampled.", metavar="FILE")
]
PreviewEvery = Annotated[int, typer.Option("--preview-every", help="Number of steps from one preview to the next.")]
Metadata = Annotated[
    bool, typer.Option("--metadata/--no-metadata", help="Write the generation settings into each file.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes of the recipe, such as train.steps=100.", metavar="[KEY=VALUE]...")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Change of the recipe, such as evaluate.samples=100; may repeat.")
]
Quick = Annotated[bool, typer.Option("--quick", help="Run a smoke test of seconds that shows that everything works.")]
RecipeName = Annotated[str, typer.Argument(help="Bundled recipe, YAML file or run folder.", metavar="RECIPE")]
ModelName = Annotated[
    str, typer.Argument(help="Bundled model, or a folder: a saved model or a run; -m works too.", metavar="MODEL")
]
FeatureWeights = Annotated[
    Path | None,
    typer.Option("--feature-weights", help="Weights of the feature network: published Inception, or a classifier."),
]


# ------------------------------------------------------------------------------------- groups


@dataclass(frozen=True)
class EditArguments:
    """The arguments of an edit: a model, images, and sampling settings with a prompt."""

    model: SomeModel = None
    image: SomeImages = None
    settings: Settings = None


@dataclass(frozen=True)
class Conditions:
    """Conditions and negative conditions."""

    label: Labels = None
    cond: Cond = None
    negative_prompt: NegativePrompt = None
    negative_cond: NegativeCond = None


@dataclass(frozen=True)
class EditOptions:
    """Conditions, number, seeds and main sampling settings of an edit of images."""

    conditions: Conditions = Conditions()
    count: Annotated[int | None, typer.Option("--num-images", "-n", help="Number of results for each input image.")] = (
        None
    )
    seed: Seeds = None
    steps: Steps = None
    scale: GuidanceScale = None


@dataclass(frozen=True)
class Expansion:
    """How prompts are expanded before the model reads them."""

    expand: Annotated[
        str | None,
        typer.Option(
            "--expand-prompt",
            help="Prompt expansion: rules, the folder of a language model, a URL with a model's name, or none. When "
            "left out, rules for the playground's models and none for others.",
            metavar="rules|PATH|URL#NAME|none",
        ),
    ] = None


@dataclass(frozen=True)
class TrajectoryOptions:
    """What is saved or shown of the sampling trajectory."""

    strip: Annotated[
        bool, typer.Option("--save-trajectory", help="Save the sampling trajectory too, from noise to image.")
    ] = False
    preview: Preview = None
    preview_every: PreviewEvery = 5


@dataclass(frozen=True)
class AdapterOptions:
    """LoRAs and ControlNets."""

    lora: Loras = None
    control: Controls = None
    control_mode: ControlMode = "balanced"


@dataclass(frozen=True)
class DeviceOptions:
    """Device and number format."""

    device: Device = "auto"
    dtype: Dtype = "float32"


@dataclass(frozen=True)
class ReplyOptions:
    """How a command reports."""

    force: Force = False
    as_json: AsJson = False
    quiet: Quiet = False

    @property
    def console(self) -> Console:
        """The console of these options."""
        return Console(self.as_json, self.quiet)


@dataclass(frozen=True)
class OutputOptions:
    """How images are generated and where they are written."""

    batch: BatchSize = 16
    out: Out = Path("edited")
    watched: TrajectoryOptions = TrajectoryOptions()
    like: FromMetadata = None
    additions: AdapterOptions = AdapterOptions()
    metadata: Metadata = True
    machine: DeviceOptions = DeviceOptions()
    reply: ReplyOptions = ReplyOptions()
