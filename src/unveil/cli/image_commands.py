"""`unveil img2img`, `inpaint`, `outpaint`, `upscale`, `variations`, `interpolate`, `invert`: images from images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from unveil.cli.generation_options import SHOWN, GenerationOptions, ModelLoader, changes, opened
from unveil.cli.sample import model_of, repeat
from unveil.data.folder_index import IMAGE_SUFFIXES
from unveil.errors import DataError, RecipeError, WeightsError
from unveil.generation import inputs, registry
from unveil.generation.generate import GeneratedSample, Request, additions, generate, guided_by, sampling_of
from unveil.generation.image_output import ImageOutput, draw, filenames, numbered, put, write
from unveil.generation.inpaint import Padding, fitting
from unveil.generation.invert import invert as find_noise
from unveil.generation.invert import noise_bytes
from unveil.generation.metadata import read_facts
from unveil.generation.size import check_size
from unveil.io.console import Console
from unveil.io.files import refuse_overwrite
from unveil.io.images import upscale_for_display
from unveil.io.video.writer import FORMS, check_video_path, write_video
from unveil.model import Model
from unveil.types import format_size


@dataclass(frozen=True)
class EditTask:
    """What is done to which pictures.

    Attributes:
        verb: its name, such as inpaint.
        pictures: a file or a folder.
        settings: of the verb, by the names of its arguments.
        mask: a file for all pictures, or a folder with one of the same name for each.
    """

    verb: str
    pictures: Path | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    mask: Path | None = None


@dataclass(frozen=True)
class _Read:
    """A picture with all that belongs to it, and the number of its first result."""

    files: Mapping[str, inputs.LoadedInput]
    number: int


def edit(
    wish: GenerationOptions,
    job: EditTask,
    named: Mapping[str, Any],
    place: ImageOutput,
    console: Console,
    like: Path | None = None,
    opener: ModelLoader = opened,
) -> None:
    """Edits pictures and writes the results; or one again, where the inputs that were given say what it was made of.

    Args:
        wish: what is asked.
        job: what is done to which pictures.
        named: settings of sampling that were given as options.
        place: where results go.
        console: what says how it goes.
        like: the result that is drawn again.
        opener: what opens the model.
    """
    if like is not None:
        repeat(wish, like, place, console, [path for path in (job.pictures, job.mask) if path])
        return
    if wish.model is None or job.pictures is None:
        raise RecipeError(f"{job.verb} needs a model and an image: unveil {job.verb} ddpm-digits image.png")
    if job.verb == "inpaint" and job.mask is None:
        raise RecipeError("inpaint needs a mask: --mask FILE, white where new content is generated")
    place.check()
    model, source = opener(wish, wish.model, console, shown=SHOWN.get(job.verb, ()))
    every = _read(job, model, wish.sized())
    each = wish.count if wish.count is not None else wish.number(model) if len(every) == 1 else 1
    request = wish.request(model, changes(wish.words, named), each * len(every))
    names = _names([one.files["picture"].path for one in every for _ in range(each)], numbered(request))
    place.check(names, len({one.files["picture"].content.shape for one in every}) == 1)
    alike = [list(group) for _, group in groupby(every, key=lambda one: one.files["picture"].content.shape)]
    edits = [_edit(job, model, group, each, console) for group in alike]
    for one in edits:
        if one.size is not None:  # before others are drawn
            check_size(model, one.size)

    def drawn() -> Iterator[GeneratedSample]:
        for group, one in zip(alike, edits, strict=True):
            part = request.part(group[0].number * each, (group[-1].number + 1) * each)
            yield from draw(model, source, part, place, console, one)

    written = write(drawn(), place, names, each if each > 1 and len(every) > 1 else None)
    told = written.facts() | {"model": source._asdict(), "task": job.verb, "count": len(names)}
    console.result(told, written.text())


def vary(
    wish: GenerationOptions,
    picture: Path | None,
    amount: float,
    place: ImageOutput,
    console: Console,
    like: Path | None = None,
    other: bool = False,
) -> None:
    """Draws pictures near one that the program drew, towards another seed than its own; or one of these again."""
    if like is not None:
        repeat(wish, like, place, console)
        return
    if picture is None:
        raise RecipeError(
            "variations needs an image that `unveil sample` generated: unveil variations samples/seed0_00000.png"
        )
    facts = read_facts(picture)
    place.check()
    model, source = model_of(wish, facts, picture, console)
    if facts.get("task"):
        raise DataError(
            f"{picture}: generated by {facts['task'].get('verb')}; variations starts from an image of `unveil sample`"
        )
    if facts["model"].get("sha256") != source.sha256:
        raise WeightsError(
            f"{picture}: generated by {facts['model'].get('name')!r} with other weights than {source.name!r}; "
            "give the model that generated it with --model"
        )
    size = facts.get("size")
    count = wish.count or max(1, len(wish.seeds))
    own, number = int(facts["seed"]), int(facts["sample"])
    if other:
        wish = replace(wish, seed=(own + 1) % (1 << 63))
    if own in wish.seeds and wish.first <= number < wish.first + count and amount > 0:
        raise RecipeError(
            f"--seed {own}: is that of {picture} itself, which would be generated again; use another seed"
        )
    given, negative = ({key: [value] for key, value in facts.get(name, {}).items()} for name in ("given", "negative"))
    guided = wish.guided(model)
    if facts.get("classifier"):  # with its own scale
        guided = guided_by(facts["classifier"], None if guided is None else guided.classifier)
    request = Request(
        given, wish.seed, wish.first, count, wish.batch, sampling_of(facts), str(facts["dtype"]), guided,
        negative=negative, size=(int(size[0]), int(size[1])) if size else None,
    )  # fmt: skip
    names = filenames(numbered(request))
    place.check(names)
    task = registry.make_task("vary", model, {"amount": amount, "of": (facts["seed"], facts["sample"])}, {})
    written = write(draw(model, source, request, place, console, task), place, names)
    console.result(written.facts() | {"model": source._asdict(), "task": "vary", "count": count}, written.text())


@dataclass(frozen=True)
class Interpolation:
    """The way between two samples: how many frames, and the animation that shows them."""

    frames: int = 16
    form: str = "gif"
    rate: float = 12.0


def interpolate(
    wish: GenerationOptions,
    way: Interpolation,
    named: Mapping[str, Any],
    place: ImageOutput,
    console: Console,
    like: Path | None = None,
) -> None:
    """Draws the way between two samples, as frames and as an animation; or one frame again."""
    if like is not None:
        repeat(wish, like, place, console)
        return
    if wish.model is None:
        raise RecipeError("interpolate needs a model: unveil interpolate ddpm-digits --seed 3 --seed 9")
    if Path(wish.model).suffix.lower() in IMAGE_SUFFIXES:
        raise RecipeError(
            f"{wish.model}: is an image; interpolate generates both ends itself and needs a model; for frames between "
            f"two images use `unveil video interpolate {wish.model} LAST`"
        )
    alone = place.out.suffix.lower().removeprefix(".")
    if place.out.suffix and alone not in FORMS:
        raise RecipeError(f"--out {place.out}: must be a folder, or end in .{', .'.join(FORMS)}")
    film = place.out if alone in FORMS else place.out / f"clip.{way.form}"
    check_video_path(film, way.rate)  # refuses before the work
    refuse_overwrite(film, place.force)
    model, source = opened(wish, wish.model, console)
    given = wish.conditions(model)
    far = {key: values for key, values in given.items() if len(values) > 2}
    if far or len(wish.seeds) > 2:
        raise RecipeError(f"{next(iter(far), 'seed')}: more than 2; give one for both ends, or one for each")
    near, *_, last = (*wish.seeds, *wish.seeds[-1:])
    ends = [(near, wish.first), (last, wish.first)]
    to = {key: values[-1:] for key, values in given.items()}
    settings = {"ends": ends, "frames": way.frames, "to": to}
    task = registry.make_task("interpolate", model, settings, {})
    first = replace(wish, labels=(), given=tuple(f"{k}={v[0]}" for k, v in given.items()), words=(), seed=0, first=0)
    request = first.request(model, changes(wish.words, named), way.frames)
    with console.progress("step", 0) as progress:
        pictures = list(generate(model, request, source, task, on_step=progress.reach))
    shown = upscale_for_display(torch.stack([picture.pixels for picture in pictures])).transpose(0, 1)
    facts = pictures[0].facts if place.metadata else None
    if alone in FORMS:
        write_video(film, shown, way.rate, facts)
        console.result({"pictures": [], "clip": str(film), "model": source._asdict()}, str(film))
        return
    written = write(pictures, place, [f"frame_{number:05d}.png" for number in range(way.frames)])
    write_video(refuse_overwrite(film, place.force), shown, way.rate, facts)
    told = written.facts() | {"clip": str(film), "model": source._asdict(), "task": "interpolate"}
    console.result(told, f"{written.text()}\n{film}")


def invert(
    wish: GenerationOptions, pictures: Path | None, named: Mapping[str, Any], place: ImageOutput, console: Console
) -> None:
    """Finds the noise that pictures come from, and writes it."""
    if wish.model is None or pictures is None:
        raise RecipeError("invert needs a model and an image: unveil invert ddpm-digits image.png")
    if place.out.suffix != ".safetensors":
        raise RecipeError(f"--out {place.out}: must end in .safetensors")
    refuse_overwrite(place.out, place.force)
    model, source = opened(wish, wish.model, console)
    every = _read(EditTask("invert", pictures), model, wish.sized())
    contents = [one.files["picture"].content for one in every]
    if len({content.shape for content in contents}) > 1:
        raise DataError(f"{pictures}: images of several sizes; invert them one by one, or give --size WIDTHxHEIGHT")
    request = wish.request(model, changes(wish.words, named), len(every))
    with console.progress("step", 0) as progress:
        found = find_noise(model, torch.stack(contents), request, on_step=progress.reach)
    files = [one.files["picture"].input._asdict() for one in every]
    said = {name: {k: list(v) for k, v in getattr(request, name).items()} for name in ("given", "negative")}
    facts: dict[str, Any] = {"model": source._asdict(), "sampling": found.sampling, **said, "inputs": files}
    facts["size"] = list(contents[0].shape[-2:])
    facts |= additions(model)
    put({place.out: noise_bytes(found.noise, facts)}, place.force)
    told: dict[str, Any] = {**facts, "noise": str(place.out), "deviation": round(float(found.noise.std()), 4)}
    console.result(told, f"{place.out}: standard deviation {told['deviation']} (that of standard normal noise is 1)")


def _read(job: EditTask, model: Model, size: tuple[int, int] | None) -> list[_Read]:
    """Every picture with its mask."""
    assert job.pictures is not None
    every: list[_Read] = []
    for number, path in enumerate(inputs.list_inputs(job.pictures)):
        files = {"picture": inputs.open_input("picture", path, model.shape[0], size)}
        if job.mask is not None:
            mask = job.mask / path.name if job.mask.is_dir() else job.mask
            files["mask"] = inputs.open_input("mask", mask, 1, size)
            _same_size(files["picture"], files["mask"])
        every.append(_Read(files, number))
    return every


def _same_size(picture: inputs.LoadedInput, mask: inputs.LoadedInput) -> None:
    sizes = [format_size(one.content.shape) for one in (mask, picture)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"{mask.path} is {sizes[0]}, {picture.path} is {sizes[1]}: "
            "a mask has the size of its image; give --size WIDTHxHEIGHT to bring both to one"
        )


def _edit(job: EditTask, model: Model, group: Sequence[_Read], each: int, console: Console) -> registry.TaskSpec:
    """The edit of pictures of one size, with the names of their files."""
    settings = dict(job.settings)
    contents = {
        role: torch.stack([one.files[role].content for one in group]).repeat_interleave(each, 0)
        for role in group[0].files
    }
    if job.verb == "outpaint":
        wanted = Padding(*settings["margins"])
        height, width = contents["picture"].shape[2:]
        made = fitting(model, (height, width), wanted)
        if made != wanted:
            size = format_size((height + made.top + made.bottom, width + made.left + made.right))
            console.warn(f"the canvas is rounded up to {size}, which the network takes: {made._asdict()}")
        settings["margins"] = made
    named = {role: [one.files[role].input for one in group for _ in range(each)] for role in group[0].files}
    return replace(registry.make_task(job.verb, model, settings, contents), inputs=named)


def _names(sources: Sequence[Path], rows: Sequence[tuple[int, int]]) -> list[str]:
    """A file name for each result: that of its picture, with seed and number where several have the same."""
    often = Counter(path.stem for path in sources)
    return [
        f"{path.stem}.png" if often[path.stem] == 1 else f"{path.stem}_{name}"
        for path, name in zip(sources, filenames(rows), strict=True)
    ]
