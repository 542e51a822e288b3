"""`unveil study`: its commands; what they do lies in `study.py`, imported when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from unveil.cli.console import Console
from unveil.cli.options import AsJson, Device, Dtype, Force, ModelName, Quiet, RecipeName, Reply

study_app = typer.Typer(
    no_args_is_help=True,
    help="Compare samplers, scales of guidance, methods that restore pictures, or sizes of a ViT; try models of clips.",
)


@study_app.command("samplers")
def samplers(
    model: ModelName,
    calls: Annotated[str, typer.Option(help="Network calls of one sample, rising.")] = "5,10,20,50",
    count: Annotated[int, typer.Option(help="Samples, drawn as one batch.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    grid: Annotated[str | None, typer.Option(help="Of all samplers; karras where the process allows it.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="A sampler by name; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the page; the run's own when left out.")] = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure every sampler on a model: error against network calls, order, cost, as samplers.html and .json.

    Example: unveil study samplers ddpm-digits --calls 5,10,20 --out runs/study
    """
    from unveil.cli import analyze as work

    settings = work.SamplerStudySettings(work.numbers(calls, int, "calls"), count, seed, grid, tuple(only or ()))
    work.samplers(model, settings, device, work.Place(out, force), Console(as_json, quiet))


@study_app.command("guidance")
def guidance(
    model: ModelName,
    scales: Annotated[str, typer.Option(help="Of guidance, rising; 1 is none.")] = "1,1.5,2,3,5,8",
    recipe: Annotated[str | None, typer.Option(help="Recipe that says how to judge; the run's own otherwise.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="A change such as evaluate.samples=100.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the page; the run's own when left out.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Published Inception, or a classifier's card.")] = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Judge a model along the scale of guidance: fidelity against diversity, as guidance.html and .json.

    Example: unveil study guidance ddpm-digits --scales 1,2,4 --set evaluate.samples=200 --out runs/study
    """
    from unveil.cli import analyze, evaluate

    ask = evaluate.Ask(model, recipe, tuple(overrides or ()), weights=weights, device=device)
    place = analyze.Place(out, force)
    analyze.guidance(ask, analyze.numbers(scales, float, "scales"), place, Console(as_json, quiet))


@study_app.command("inverse")
def inverse(
    model: ModelName,
    count: Annotated[int, typer.Option(help="Pictures, restored as one batch.")] = 64,
    steps: Annotated[int, typer.Option(help="Of each method; DPS takes five times as many.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the noise, and of what is measured.")] = 0,
    part: Annotated[str, typer.Option("--data", help="Part of the data: held-out or train.")] = "held-out",
    recipe: Annotated[str | None, typer.Option(help="Recipe that names the data; the run's own otherwise.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="A change such as data.path=photos.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the page; the run's own when left out.")] = None,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Restore pictures from what was measured of them: masks, super-resolution, deblurring, colourisation.

    Writes inverse.html and inverse.json, with PSNR beyond what one would do without the model.

    Example: unveil study inverse ddpm-digits --count 16 --out runs/study
    """
    from unveil.cli import analyze, evaluate
    from unveil.data import check_split

    ask = evaluate.Ask(model, recipe, tuple(overrides or ()), device=device)
    settings = analyze.restoration.InverseSettings(count, steps, seed)
    analyze.inverse(ask, settings, check_split(part), analyze.Place(out, force), Console(as_json, quiet))


@study_app.command("vit")
def vit(
    recipe: RecipeName = "vit-fashion",
    sizes: Annotated[str, typer.Option(help="Blocks x width.")] = "3x48,6x96,8x144",
    amounts: Annotated[str, typer.Option(help="Training pictures, rising.")] = "1000,8000,60000",
    steps: Annotated[int, typer.Option(help="Of training, for each network.")] = 1200,
    seeds: Annotated[int, typer.Option(help="Networks of each size and amount.")] = 1,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="A change such as train.lr=1e-3.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the page; runs/RECIPE-sizes when left out.")] = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a ViT in several sizes on several amounts of data: accuracy as vit.html and vit.json.

    Stopped, the same command goes on with the networks that are missing.

    Example: unveil study vit vit-fashion --amounts 500,5000 --steps 300 --out runs/study
    """
    from unveil.analysis import vit as study
    from unveil.cli import analyze as work

    settings = study.ViTStudySettings(study.parse_sizes(sizes), work.numbers(amounts, int, "amounts"), steps, seeds)
    work.vit(recipe, tuple(overrides or ()), settings, work.Place(out, force), Console(as_json, quiet))


@dataclass(frozen=True)
class Studied:
    """How a model of clips is studied, and where the page goes."""

    count: Annotated[int | None, typer.Option(help="Clips of each task; 48.")] = None
    sampling: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of sampling, such as steps=24 or scale=2.")
    ] = None
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0
    quick: Annotated[bool, typer.Option("--quick", help="A few clips in few steps, to show that it works.")] = False
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="The same study's .json of a model of another size, shown too; may be repeated."),
    ] = None
    out: Annotated[Path | None, typer.Option(help="Folder of the page; the run's own when left out.")] = None
    dtype: Dtype = "bfloat16"
    device: Device = "auto"
    reply: Reply = field(default_factory=Reply)

    @property
    def wanted(self) -> dict[str, Any]:
        """The settings among them."""
        return {"count": self.count, "seed": self.seed, "dtype": self.dtype}

    @property
    def place(self) -> Any:
        """Where the page goes, and what stands on it beside the model."""
        from unveil.cli import analyze as work

        return work.Place(self.out, self.reply.force, tuple(self.beside or ()))


@study_app.command("video")
def video(
    *,
    model: ModelName,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            help="picture, extend, loop, connect, edit, ground, sizes or twice; all when left out; may repeat.",
        ),
    ] = None,
    sizes: Annotated[
        list[str] | None, typer.Option("--size", help="Width x height x frames, such as 48x24x16; may be repeated.")
    ] = None,
    asked: Annotated[
        str, typer.Option("--list", help="Prompts of the playground: seen, held-out or validation.")
    ] = "seen",
    studied: Studied,
) -> None:
    """Try what a model of clips does besides clips from text, Sora's list: each point with a number and a film.

    Pictures that move, clips that go on both ways, loops, connections, edits of a thing and of the ground, other sizes,
    aspects and lengths, twice the resolution; beside real clips and what takes no model. As video.html and .json.

    Example: unveil study video runs/playground-video --task extend --task loop --count 16
    """
    from unveil.cli import analyze as work

    wanted = {**studied.wanted, "only": only, "sizes": sizes, "asked": asked}
    settings = work.clip_settings(wanted, studied.sampling or (), studied.quick)
    work.video(model, settings, studied.device, studied.place, studied.reply.console)


@study_app.command("text")
def text(
    *,
    model: ModelName,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            help="colour, shape, size, motion, position, ground, alt-text, chinese, rare, count, several, long or "
            "negation; all when left out; may repeat.",
        ),
    ] = None,
    expand: Annotated[bool, typer.Option("--expand/--no-expand", help="Also as the rules expand them.")] = True,
    studied: Studied,
) -> None:
    """Try what a model of clips understands of prompts: kinds of them, each with its share of right clips.

    Colours, sizes, places, counts, several things, combinations that training never has, long prompts, negation and
    others; beside real clips and chance, and as the rules expand them. As text.html and .json.

    Example: unveil study text runs/playground-video --kind colour --kind position --count 16
    """
    from unveil.cli import analyze as work

    settings = work.text_settings(
        {**studied.wanted, "only": only, "expand": expand}, studied.sampling or (), studied.quick
    )
    work.text(model, settings, studied.device, studied.place, studied.reply.console)


@study_app.command("world")
def world(
    *,
    model: ModelName,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--law", help="occluder, frame, space, brush, corridor, game or impact; all when left out; may repeat."
        ),
    ] = None,
    studied: Studied,
) -> None:
    """Try what a model of clips knows about the world: what lasts, space, actions, rules, laws of motion.

    Things behind a bar and out of the picture, pillars seen from all around, paint that stays, a corridor that obeys a
    word, a game, breaking and falling; from words and from first frames, beside real clips. As world.html and .json.

    Example: unveil study world runs/playground-video --law brush --law corridor --count 16
    """
    from unveil.cli import analyze as work

    settings = work.world_settings({**studied.wanted, "only": only}, studied.sampling or (), studied.quick)
    work.world(model, settings, studied.device, studied.place, studied.reply.console)


@study_app.command("detector")
def detector(
    count: Annotated[int, typer.Option(help="Clips.")] = 500,
    seed: Annotated[int, typer.Option(help="Of the clips.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the page; runs/detector when left out.")] = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Read real clips of the playground back, before and after H.264: the ceiling of every score of a model of clips.

    Clips of mixed sizes, lengths and rates; writes detector.html and .json.

    Example: unveil study detector --count 200 --out runs/study
    """
    from unveil.cli import analyze as work

    settings = work.reading.DetectorSettings(count=count, seed=seed)
    work.detector(settings, work.Place(out, force), Console(as_json, quiet))
