"""Commands of `unveil analyze`. `analyze.py`, which imports torch, is imported when one of them runs."""

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
    ReportOptions,
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
        str, typer.Option(help="Numbers of function evaluations (NFE) per sample, in rising order.")
    ] = "5,10,20,50",
    count: Annotated[int, typer.Option("--num-samples", "-n", help="Number of samples, generated as one batch.")] = 16,
    seed: Seed = 0,
    schedule: Annotated[
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

    calls_list = work.parse_numbers(calls, int, "--calls")
    settings = work.SamplerStudySettings(calls_list, count, seed, schedule, tuple(only or ()))
    work.samplers(model, settings, device, work.PageOutput(out, force), Console(as_json, quiet))


@analyze_app.command("guidance")
def guidance(
    model: ModelName,
    scales: Annotated[str, typer.Option(help="Guidance scales, in rising order; 1: no guidance.")] = "1,1.5,2,3,5,8",
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
    from unveil.cli import analyze
    from unveil.cli.text_forms import read_changes
    from unveil.tasks.evaluate import Evaluate

    task = Evaluate.parse(
        {
            "model": model,
            "recipe": recipe,
            "settings": read_changes(overrides or ()),
            "feature_weights": None if weights is None else str(weights),
        }
    )
    output = analyze.PageOutput(out, force)
    analyze.guidance(task, analyze.parse_numbers(scales, float, "--scales"), device, output, Console(as_json, quiet))


@analyze_app.command("inverse")
def inverse(
    model: ModelName,
    count: Annotated[int, typer.Option("--num-images", "-n", help="Number of images, restored as one batch.")] = 64,
    steps: Annotated[
        int, typer.Option(help="Number of sampling steps of each method; DPS takes five times as many.")
    ] = 20,
    seed: Seed = 0,
    split: Annotated[str, typer.Option("--split", help="Split of the data: train or held-out.")] = "held-out",
    recipe: Annotated[str | None, typer.Option(help="Recipe of the data; the run's own when left out.")] = None,
    overrides: Set = None,
    out: OutFolder = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Restore images from measurements: inpainting, super-resolution, deblurring, colourization.

    Writes inverse.html and inverse.json, with the PSNR of each method and of baselines without a model.

    Example: unveil analyze inverse ddpm-digits -n 16 -o runs/study
    """
    from unveil.cli import analyze
    from unveil.cli.text_forms import read_changes
    from unveil.data import check_split
    from unveil.tasks.evaluate import Evaluate

    task = Evaluate.parse({"model": model, "recipe": recipe, "settings": read_changes(overrides or ())})
    settings = analyze.InverseSettings(count, steps, seed)
    output = analyze.PageOutput(out, force)
    analyze.inverse(task, settings, check_split(split), device, output, Console(as_json, quiet))


@analyze_app.command("vit")
def vit(
    recipe: RecipeName = "vit-fashion",
    sizes: Annotated[
        str, typer.Option(help="Sizes of the network as BLOCKSxWIDTH, separated by commas.")
    ] = "3x48,6x96,8x144",
    amounts: Annotated[str, typer.Option(help="Numbers of training images, in rising order.")] = "1000,8000,60000",
    steps: Annotated[int, typer.Option(help="Number of training steps of each network.")] = 1200,
    seeds: Annotated[int, typer.Option(help="Number of networks for each size and number of images.")] = 1,
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

    settings = study.ViTStudySettings(
        study.parse_sizes(sizes), work.parse_numbers(amounts, int, "--amounts"), steps, seeds
    )
    work.vit(recipe, tuple(overrides or ()), settings, work.PageOutput(out, force), Console(as_json, quiet))


@dataclass(frozen=True)
class BenchmarkOptions:
    """Settings and output of a benchmark of a video model."""

    count: Annotated[
        int | None, typer.Option("--num-videos", "-n", help="Number of videos of each task; 48 when left out.")
    ] = None
    sampling: Annotated[
        list[str] | None, typer.Option("--set", help="Sampling setting, such as steps=24 or guidance_scale=2.")
    ] = None
    seed: Seed = 0
    quick: Quick = False
    compare_with: Annotated[
        list[Path] | None,
        typer.Option(
            "--compare-with",
            help=".json file of another model in the same benchmark, which the page shows too; repeat for several.",
        ),
    ] = None
    out: OutFolder = None
    dtype: Dtype = "bfloat16"
    device: Device = "auto"
    report: ReportOptions = field(default_factory=ReportOptions)

    def run(self, command_name: str, model: str, read_settings: str, **values: Any) -> None:
        """Run a benchmark.

        Args:
            command_name: Name of the benchmark in `analyze.VIDEO_BENCHMARKS`.
            model: Model to benchmark.
            read_settings: Name of the function of `analyze` that returns the settings.
            values: Further settings of this benchmark.
        """
        from unveil.cli import analyze as work

        values |= {"count": self.count, "seed": self.seed, "dtype": self.dtype}
        settings = getattr(work, read_settings)(values, self.sampling or (), self.quick)
        output = work.PageOutput(self.out, self.report.force, tuple(self.compare_with or ()))
        work.benchmark_video_model(command_name, model, settings, self.device, output, self.report.console)


@analyze_app.command("video-tasks")
def video_tasks(
    *,
    model: ModelName,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            help="Task: image, extend, loop, connect, edit, ground, sizes or twice; all when left out; may repeat.",
        ),
    ] = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option("--size", help="Size as WIDTHxHEIGHTxFRAMES, such as 48x24x16; repeat for several."),
    ] = None,
    prompt_set: Annotated[
        str, typer.Option("--prompt-set", help="Prompt set of the playground: seen, held-out or validation.")
    ] = "seen",
    options: BenchmarkOptions,
) -> None:
    """Benchmark a video model beyond text-to-video, by Sora's list of tasks.

    The tasks are image-to-video, extension at both ends, loops, joins, edits of an object and of the background, other
    sizes, aspect ratios and lengths, and twice the resolution. Real videos and baselines without a model are measured
    too. Writes video.html and .json.

    Example: unveil analyze video-tasks runs/playground-video --only extend --only loop -n 16
    """
    options.run("video-tasks", model, "video_settings", only=only, sizes=sizes, prompt_set=prompt_set)


@analyze_app.command("prompts")
def prompts(
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
        str, typer.Option("--expand-prompt", help="Prompt expansion to measure too: rules or none.")
    ] = "rules",
    options: BenchmarkOptions,
) -> None:
    """Benchmark how a video model follows prompts, by kind of prompt.

    The kinds are colours, sizes, positions, counts, several objects, combinations that are not in the training data,
    long prompts, negation and others. Real videos, chance and expanded prompts are measured too. Writes text.html and
    .json.

    Example: unveil analyze prompts runs/playground-video --only colour --only position -n 16
    """
    from unveil.cli.analyze import parse_expansion

    options.run("prompts", model, "prompt_settings", only=only, expand=parse_expansion(expand))


@analyze_app.command("physics")
def physics(
    *,
    model: ModelName,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            help="Law: occluder, frame, space, brush, corridor, game or impact; all when left out; repeat for several.",
        ),
    ] = None,
    options: BenchmarkOptions,
) -> None:
    """Benchmark what a video model knows about the world: permanence, space, actions, rules, motion.

    The videos show objects behind an occluder and out of frame, pillars from all sides, paint that stays, a corridor
    that follows the prompt, a game, breaking and falling. They are generated from prompts and from first frames; real
    videos are measured too. Writes world.html and .json.

    Example: unveil analyze physics runs/playground-video --only brush --only corridor -n 16
    """
    options.run("physics", model, "physics_settings", only=only)


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

    The videos are from the playground, with mixed sizes, lengths and frame rates. Writes detector.html and .json.

    Example: unveil analyze detector -n 200 -o runs/study
    """
    from unveil.analysis.detector_accuracy import DetectorSettings
    from unveil.cli import analyze as work

    work.detector(DetectorSettings(count=count, seed=seed), work.PageOutput(out, force), Console(as_json, quiet))
