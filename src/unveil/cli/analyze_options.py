"""`unveil analyze`: its commands; what they do is in `analyze.py`, imported when one of them runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from unveil.cli.options import (
    AsJson,
    Device,
    Dtype,
    FeatureWeights,
    Force,
    ModelName,
    OutFolder,
    Quick,
    Quiet,
    RecipeName,
    ReplyOptions,
    Set,
)
from unveil.io.console import Console

analyze_app = typer.Typer(
    no_args_is_help=True,
    help="Compare samplers, guidance scales, restoration methods or ViT sizes; benchmark video models.",
)

Seed = Annotated[int, typer.Option("--seed", help="Seed of the initial noise and of the data.")]


@analyze_app.command("samplers")
def samplers(
    model: ModelName,
    calls: Annotated[
        str, typer.Option(help="Numbers of network evaluations (NFE) of one sample, rising.")
    ] = "5,10,20,50",
    count: Annotated[int, typer.Option("--num-samples", "-n", help="Number of samples, generated as one batch.")] = 16,
    seed: Seed = 0,
    grid: Annotated[
        str | None,
        typer.Option("--schedule", help="Noise schedule of all samplers; karras where the process allows it."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Sampler to measure; all when left out; repeat for several.")
    ] = None,
    out: OutFolder = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure every sampler on a model: error against NFE, order, cost, as samplers.html and .json.

    Example: unveil analyze samplers ddpm-digits --calls 5,10,20 -o runs/study
    """
    from unveil.cli import analyze as work

    settings = work.SamplerStudySettings(work.numbers(calls, int, "calls"), count, seed, grid, tuple(only or ()))
    work.samplers(model, settings, device, work.Place(out, force), Console(as_json, quiet))


@analyze_app.command("guidance")
def guidance(
    model: ModelName,
    scales: Annotated[str, typer.Option(help="Guidance scales, rising; 1 is no guidance.")] = "1,1.5,2,3,5,8",
    recipe: Annotated[str | None, typer.Option(help="Recipe of the evaluation; the run's own when left out.")] = None,
    overrides: Set = None,
    out: OutFolder = None,
    weights: FeatureWeights = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate a model at several guidance scales: fidelity against diversity, as guidance.html and .json.

    Example: unveil analyze guidance ddpm-digits --scales 1,2,4 --set evaluate.samples=200 -o runs/study
    """
    from unveil.cli import analyze, evaluate

    ask = evaluate.EvaluateRequest(model, recipe, tuple(overrides or ()), weights=weights, device=device)
    place = analyze.Place(out, force)
    analyze.guidance(ask, analyze.numbers(scales, float, "scales"), place, Console(as_json, quiet))


@analyze_app.command("inverse")
def inverse(
    model: ModelName,
    count: Annotated[int, typer.Option("--num-images", "-n", help="Number of images, restored as one batch.")] = 64,
    steps: Annotated[
        int, typer.Option(help="Number of sampling steps of each method; DPS takes five times as many.")
    ] = 20,
    seed: Seed = 0,
    part: Annotated[str, typer.Option("--split", help="Split of the data: train or held-out.")] = "held-out",
    recipe: Annotated[str | None, typer.Option(help="Recipe of the data; the run's own when left out.")] = None,
    overrides: Set = None,
    out: OutFolder = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Restore images from measurements: inpainting, super-resolution, deblurring, colourization.

    Writes inverse.html and inverse.json, with PSNR beside that of baselines without a model.

    Example: unveil analyze inverse ddpm-digits -n 16 -o runs/study
    """
    from unveil.cli import analyze, evaluate
    from unveil.data import check_split

    ask = evaluate.EvaluateRequest(model, recipe, tuple(overrides or ()), device=device)
    settings = analyze.restoration.InverseSettings(count, steps, seed)
    analyze.inverse(ask, settings, check_split(part), analyze.Place(out, force), Console(as_json, quiet))


@analyze_app.command("vit")
def vit(
    recipe: RecipeName = "vit-fashion",
    sizes: Annotated[str, typer.Option(help="Sizes of the network, as blocks x width.")] = "3x48,6x96,8x144",
    amounts: Annotated[str, typer.Option(help="Numbers of training images, rising.")] = "1000,8000,60000",
    steps: Annotated[int, typer.Option(help="Number of training steps of each network.")] = 1200,
    seeds: Annotated[int, typer.Option(help="Number of networks of each size and amount.")] = 1,
    overrides: Set = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output folder of the page; runs/RECIPE-sizes when left out.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a ViT in several sizes on several amounts of data: accuracy as vit.html and vit.json.

    After an interruption the same command trains the networks that are missing.

    Example: unveil analyze vit vit-fashion --amounts 500,5000 --steps 300 -o runs/study
    """
    from unveil.analysis import vit as study
    from unveil.cli import analyze as work

    settings = study.ViTStudySettings(study.parse_sizes(sizes), work.numbers(amounts, int, "amounts"), steps, seeds)
    work.vit(recipe, tuple(overrides or ()), settings, work.Place(out, force), Console(as_json, quiet))


@dataclass(frozen=True)
class BenchmarkOptions:
    """How a video model is benchmarked, and where the page is written."""

    count: Annotated[
        int | None, typer.Option("--num-videos", "-n", help="Number of videos of each task; 48 when left out.")
    ] = None
    sampling: Annotated[
        list[str] | None, typer.Option("--set", help="Sampling setting, such as steps=24 or guidance_scale=2.")
    ] = None
    seed: Seed = 0
    quick: Quick = False
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            "--compare-with", help=".json of the same benchmark of another model, shown beside; repeat for several."
        ),
    ] = None
    out: OutFolder = None
    dtype: Dtype = "bfloat16"
    device: Device = "auto"
    reply: ReplyOptions = field(default_factory=ReplyOptions)

    @property
    def wanted(self) -> dict[str, Any]:
        """The settings among them."""
        return {"count": self.count, "seed": self.seed, "dtype": self.dtype}

    @property
    def place(self) -> Any:
        """Where the page goes, and what stands on it beside the model."""
        from unveil.cli import analyze as work

        return work.Place(self.out, self.reply.force, tuple(self.beside or ()))


@analyze_app.command("video-tasks")
def video(
    *,
    model: ModelName,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            help="Task: picture, extend, loop, connect, edit, ground, sizes or twice; all when left out; may repeat.",
        ),
    ] = None,
    sizes: Annotated[
        list[str] | None, typer.Option("--size", help="Width x height x frames, such as 48x24x16; repeat for several.")
    ] = None,
    asked: Annotated[
        str, typer.Option("--prompt-set", help="Prompt set of the playground: seen, held-out or validation.")
    ] = "seen",
    studied: BenchmarkOptions,
) -> None:
    """Benchmark a video model beyond text-to-video, by Sora's list of tasks.

    Image-to-video, extension both ways, loops, joins, edits of an object and of the background, other sizes, aspect
    ratios and lengths, twice the resolution; beside real videos and baselines without a model. Writes video.html and
    .json.

    Example: unveil analyze video-tasks runs/playground-video --only extend --only loop -n 16
    """
    from unveil.cli import analyze as work

    wanted = {**studied.wanted, "only": only, "sizes": sizes, "asked": asked}
    settings = work.clip_settings(wanted, studied.sampling or (), studied.quick)
    work.video(model, settings, studied.device, studied.place, studied.reply.console)


@analyze_app.command("prompts")
def text(
    *,
    model: ModelName,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            help="Kind of prompt: colour, shape, size, motion, position, ground, alt-text, chinese, rare, count, "
            "several, long or negation; all when left out; repeat for several.",
        ),
    ] = None,
    expand: Annotated[
        str, typer.Option("--expand-prompt", help="Prompt expansion that is measured too: rules or none.")
    ] = "rules",
    studied: BenchmarkOptions,
) -> None:
    """Benchmark how a video model follows prompts, by kind of prompt.

    Colours, sizes, positions, counts, several objects, combinations that training never has, long prompts, negation and
    others; beside real videos and chance, and with expanded prompts. Writes text.html and .json.

    Example: unveil analyze prompts runs/playground-video --only colour --only position -n 16
    """
    from unveil.cli import analyze as work

    settings = work.text_settings(
        {**studied.wanted, "only": only, "expand": work.expands(expand)}, studied.sampling or (), studied.quick
    )
    work.text(model, settings, studied.device, studied.place, studied.reply.console)


@analyze_app.command("physics")
def world(
    *,
    model: ModelName,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            help="Law: occluder, frame, space, brush, corridor, game or impact; all when left out; repeat for several.",
        ),
    ] = None,
    studied: BenchmarkOptions,
) -> None:
    """Benchmark what a video model knows about the world: permanence, space, actions, rules, motion.

    Objects behind an occluder and out of frame, pillars seen from all sides, paint that stays, a corridor that follows
    the prompt, a game, breaking and falling; from prompts and from first frames, beside real videos. Writes world.html
    and .json.

    Example: unveil analyze physics runs/playground-video --only brush --only corridor -n 16
    """
    from unveil.cli import analyze as work

    settings = work.world_settings({**studied.wanted, "only": only}, studied.sampling or (), studied.quick)
    work.world(model, settings, studied.device, studied.place, studied.reply.console)


@analyze_app.command("detector")
def detector(
    count: Annotated[int, typer.Option("--num-videos", "-n", help="Number of videos.")] = 500,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output folder of the page; runs/detector when left out.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure the detector on real videos, before and after H.264: the ceiling of every score of a video model.

    Videos of the playground of mixed sizes, lengths and frame rates; writes detector.html and .json.

    Example: unveil analyze detector -n 200 -o runs/study
    """
    from unveil.cli import analyze as work

    settings = work.reading.DetectorSettings(count=count, seed=seed)
    work.detector(settings, work.Place(out, force), Console(as_json, quiet))
