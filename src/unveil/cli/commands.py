"""The commands: what can be asked. What they do lies in the modules beside this one, imported when it is asked for.

Nothing here imports torch, so that help comes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from unveil.cli import image_options, latent_options, serve, text_options
from unveil.cli.analyze_options import study_app
from unveil.cli.console import Console
from unveil.cli.exit_codes import guarded
from unveil.cli.inspect_options import COMMANDS, inspect_app
from unveil.cli.lora_options import lora_app
from unveil.cli.option_groups import asked, flat
from unveil.cli.options import (
    AsJson,
    Conditions,
    Device,
    Drawing,
    Dtype,
    Expansion,
    Force,
    ModelName,
    ModelOrPrompt,
    Overrides,
    Quiet,
    RecipeName,
    Sampler,
    Scale,
    Seeds,
    Settings,
    Size,
    Small,
    Steps,
)
from unveil.cli.preprocess_options import hint_app
from unveil.cli.video_options import COMMANDS as VIDEO_COMMANDS
from unveil.cli.video_options import video_app

app = typer.Typer(
    name="unveil",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich alone would double the time that help takes
    help="Diffusion models: pictures in, a trained model, new pictures and honest numbers out.\n\n"
    "Example: unveil train ddpm-digits, then unveil sample runs/ddpm-digits --label 3 --count 8\n\n"
    "Every command takes --debug, which shows the traceback of an error.\n\n"
    "Exit codes: 0 done, 1 failed, 2 usage or recipe, 3 non-finite numbers, 4 data, 5 resources, 130 interrupted, "
    "143 terminated.",
)
# The command of a group that other words than the names of its commands are for
USUAL = {"inspect": ("model", COMMANDS), "video": ("make", VIDEO_COMMANDS)}
data_app = typer.Typer(no_args_is_help=True, help="Look at pictures and clips before they train a model.")
recipes_app = typer.Typer(no_args_is_help=True, help="The recipes that come with unveil.")
app.add_typer(data_app, name="data")
app.add_typer(hint_app, name="hint")
app.add_typer(inspect_app, name="inspect")
app.add_typer(recipes_app, name="recipes")
app.add_typer(study_app, name="study")
app.add_typer(lora_app, name="lora")
app.add_typer(video_app, name="video")
app.command("translate")(text_options.translate)
app.command("caption")(text_options.caption)
for command in (*image_options.COMMANDS, *latent_options.COMMANDS, *serve.COMMANDS):
    app.command(command.__name__)(command)


@app.command()
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    run: Annotated[
        Path | None, typer.Option(help="The run's folder; runs/RECIPE when left out.", metavar="FOLDER")
    ] = None,
    small: Small = False,
    device: Device = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the recipe's when left out.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure one step, tell shapes, memory, disk, time.")
    ] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the whole recipe and stop.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Delete a run that is there and start over.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a model by a recipe; the same command again goes on where it stopped.

    Example: unveil train ddpm-digits train.steps=300 --run runs/first
    """
    from unveil.cli import train as work

    ask = work.Ask(recipe, tuple(overrides or ()), small=small, run=run, device=device, dtype=dtype, force=force)
    console = Console(as_json, quiet)
    if print_config:
        work.print_config(ask, console)
    elif dry_run:
        work.dry_run(ask, console)
    else:
        work.train(ask, console)


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling that have an option of their own."""

    steps: Steps = None
    sampler: Sampler = None
    eta: Annotated[float | None, typer.Option(help="0 deterministic, 1 as noisy as ancestral.")] = None
    scale: Scale = None
    clip: Annotated[str | None, typer.Option(help="static, dynamic or none.")] = None
    grid: Annotated[str | None, typer.Option(help="uniform, leading, trailing, quadratic, or a respacing string.")] = (
        None
    )


SAMPLES = Drawing(batch=64, out=Path("samples"))


@app.command()
def sample(
    *,
    model: ModelOrPrompt = None,
    settings: Settings = None,
    conditions: Conditions,
    count: Annotated[int | None, typer.Option(help="Pictures; one per label when left out.")] = None,
    seed: Seeds = None,
    first: Annotated[int, typer.Option(help="Number of the set's first picture that is drawn.")] = 0,
    sampling: Sampling,
    size: Size = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A text file with a prompt a line, or a .jsonl file with a map a line: prompt, negative, seed, count, "
            "steps, scale, sampler. Each line makes a set of its own."
        ),
    ] = None,
    noise: Annotated[Path | None, typer.Option(help="Start from noise that `unveil invert` found.")] = None,
    classifier: Annotated[Path | None, typer.Option(help="A noisy classifier that guides towards the class.")] = None,
    classifier_scale: Annotated[float, typer.Option(help="Of its gradient; 1 is Bayes' rule.")] = 1.0,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the network first, for many pictures.")] = False,
    expansion: Expansion,
    drawing: Drawing = SAMPLES,
) -> None:
    """Draw pictures from a model.

    Example: unveil sample ddpm-digits --label 3 --label 7 --count 8 --seed 1 --out digits.png

    Example: unveil sample "a large blue square on green" --out square.png
    """
    options = flat(locals())
    from unveil.cli import sample as work
    from unveil.cli.generation_options import spoken

    options |= spoken(model, settings)

    console, place, wish = drawing.reply.console, work.Place.typed(options), work.Wish.typed(options)
    changes = work.changes(options["settings"] or (), vars(sampling))
    expanding = work.Expanding(**vars(expansion))
    if prompts is not None:
        from unveil.cli.batch_prompts import sample_each

        beside = {"--like": drawing.like, "--noise": noise}
        sample_each(wish, prompts, changes, place, console, beside=beside, expanding=expanding)
    elif drawing.like is not None:
        work.repeat(wish, drawing.like, place, console)
    else:
        work.sample(wish, changes, place, console, noise, expanding)


@app.command()
def evaluate(
    model: ModelName,
    recipe: Annotated[str | None, typer.Option(help="Recipe that says how; the run's own when left out.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="A change such as evaluate.samples=100.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report; the run's own when left out.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Published Inception, or a classifier's card.")] = None,
    samples: Annotated[int | None, typer.Option(help="Drawn, or of each list; the recipe's when left out.")] = None,
    lists: Annotated[
        list[str] | None,
        typer.Option("--list", help="Prompts of the playground: validation, seen or held-out; may be repeated."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.", metavar="DTYPE")] = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Judge a model: scores with their protocol, pictures and plots, as report.json and report.html.

    Example: unveil evaluate runs/ddpm-digits --set sample.steps=50

    Example: unveil evaluate runs/playground-video --list validation --samples 48 --dtype bfloat16
    """
    from unveil.cli import evaluate as work

    ask = work.Ask(model, recipe, tuple(overrides or ()), out=out, weights=weights, device=device, force=force)
    work.evaluate(ask.changed({"samples": samples, "lists": lists, "dtype": dtype}), Console(as_json, quiet))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A published file of weights, or our model's folder.")],
    out: Annotated[Path, typer.Argument(help="The folder, or the .safetensors file, that is written.")],
    layout: Annotated[
        str, typer.Option(help="Of the other side: openai, ddpm, edm, score-sde, dit, diffusers, ldm or ours.")
    ] = "openai",
    recipe: Annotated[str | None, typer.Option(help="Recipe of the model that the file holds (to ours only).")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="A change to it, such as variance=learned-range.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16; int8 with --layout ours.", metavar="DTYPE")
    ] = "float32",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Bring published weights into our folder, ours into a published layout, or a run into a model of its own.

    Stable Diffusion goes from each of one file (ldm), diffusers' folder (diffusers) and our folder to the others; a
    ControlNet from any of these, a run among them, to one file or to diffusers' folder.

    A .pt, .pth or .ckpt file, which could run code, is read by a process of its own that accepts tensors only.

    Example: unveil convert cifar10_uncond_50M_500K.pt cifar --recipe iddpm-cifar10
    """
    from unveil.cli import convert as work

    work.convert(
        source, out, work.Layout(layout, recipe, tuple(overrides or ()), dtype), force, Console(as_json, quiet)
    )


@app.command()
def merge(
    models: Annotated[list[str], typer.Argument(help="Two or more; the first gives the settings.", metavar="MODEL...")],
    out: Annotated[Path, typer.Option(help="The folder that is written.")],
    shares: Annotated[str | None, typer.Option(help="Of each model, such as 0.7,0.3; equal when left out.")] = None,
    dtype: Dtype = "float32",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a model whose weights lie between those of others that were trained on from one another.

    Example: unveil merge runs/mine playground-video --shares 0.7,0.3 --out mixed
    """
    from unveil.cli import merge as work

    work.merge(models, shares, out, dtype, force, Console(as_json, quiet))


@app.command()
def reproduce(
    name: Annotated[str | None, typer.Argument(help="Which claim; all are listed when left out.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The form of seconds that shows that it works.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the page and its numbers.")] = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a paper's claim as a small experiment with a computed verdict.

    Example: unveil reproduce ddim-steps --quick
    """
    from unveil.cli import reproduce as work

    work.reproduce(name, quick, out, force, Console(as_json, quiet))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of everything that is made.")] = Path("runs/demo"),
    minutes: Annotated[float, typer.Option(help="Wall time that the training may take at most.")] = 4.0,
    quiet: Quiet = False,
) -> None:
    """Train on handwritten digits, draw some, judge them; says where everything lies.

    Example: unveil demo
    """
    from unveil.cli import demo as work

    work.demo(out, minutes, Console(False, quiet))


@data_app.command("check")
def data_check(
    path: Annotated[Path, typer.Argument(help="A folder of pictures or clips, or a file of latents.")],
    size: Annotated[int | None, typer.Option(help="Side that is trained on; 64, of clips their own.")] = None,
    fit: Annotated[str, typer.Option(help="crop, pad, stretch, or (clips) aspect.")] = "crop",
    frames: Annotated[int, typer.Option(help="Frames of a clip.")] = 16,
    fps: Annotated[float | None, typer.Option(help="Frames in a second; each clip's own if left out.")] = None,
    resample: Annotated[str, typer.Option(help="Rule that brings clips to --fps: none, nearest or shown.")] = "none",
    hop: Annotated[
        int | None, typer.Option(help="Frames from piece to piece of a file; one piece if left out.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Decode every file once: counts, sizes, captions, duplicates, and what would be dropped or changed and why.

    Example: unveil data check photos --size 64

    Example: unveil data check films --size 64 --fps 8 --resample nearest
    """
    from unveil.cli import data as work

    clips = work.InTime(frames, fps, resample, hop)
    work.check(path, size, fit, clips, Console(as_json, quiet))


@data_app.command("show")
def data_show(
    recipe: RecipeName,
    overrides: Overrides = None,
    count: Annotated[int, typer.Option(help="Pictures.")] = 64,
    out: Annotated[Path, typer.Option(help="A .png file.")] = Path("data.png"),
    part: Annotated[str, typer.Option(help="train or held-out.")] = "train",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw the pictures that a recipe trains on, as training sees them.

    Example: unveil data show ddpm-digits --count 100
    """
    from unveil.cli import data as work

    shown = work.Shown(recipe, tuple(overrides or ()), count=count, part=part)
    work.show(shown, out, force, Console(as_json, quiet))


@data_app.command("latents")
def data_latents(
    recipe: RecipeName,
    overrides: Overrides = None,
    batch: Annotated[int, typer.Option(help="Pictures that are encoded at once.")] = 32,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Encode the pictures of a recipe once, for training with train.cache_latents=true.

    Stopped, the same command goes on with what is missing.

    Example: unveil data latents my-latent-recipe.yaml --batch 64
    """
    from unveil.cli import latent_cache as work

    work.write(recipe, tuple(overrides or ()), batch, device, Console(as_json, quiet))


@recipes_app.command("list")
def recipes_list(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Name every shipped recipe with its claim.

    Example: unveil recipes list
    """
    from unveil.cli import recipes as work

    work.names(Console(as_json, quiet))


@recipes_app.command("show")
def recipes_show(recipe: RecipeName, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Print a recipe as it is written.

    Example: unveil recipes show ddpm-digits
    """
    from unveil.cli import recipes as work

    work.show(recipe, Console(as_json, quiet))


@recipes_app.command("cite")
def recipes_cite(recipe: RecipeName, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Print the sources of the parts that a recipe uses.

    Example: unveil recipes cite iddpm-fashion
    """
    from unveil.cli import recipes as work

    work.cite(recipe, Console(as_json, quiet))


def run(arguments: Sequence[str]) -> int:
    """Runs a command line; returns its exit code."""
    words = list(arguments)
    for group, (usual, names) in USUAL.items():
        if words[:1] == [group] and len(words) > 1 and words[1] not in (*names, "--help"):
            words.insert(1, usual)
    return guarded(asked(app, words), words)
