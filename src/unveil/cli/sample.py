"""`unveil sample`: pictures from a model, as files; and the same picture again, whatever command drew it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.cli.generation_options import GenerationOptions, changes, opened
from unveil.errors import DataError, RecipeError
from unveil.generation import hires, inputs, registry
from unveil.generation.generate import Request, Source, additions
from unveil.generation.generate import repeat as draw_again
from unveil.generation.image_output import ImageOutput, draw, filenames, numbered, write
from unveil.generation.img2img import from_latents
from unveil.generation.invert import read_noise
from unveil.generation.metadata import read_facts
from unveil.generation.prompt_expansion import USUAL, ExpansionOptions, PromptExpander, expanded
from unveil.generation.task_spec import PLAIN, SourceFile, TaskSpec
from unveil.generation.upscale import upscale
from unveil.io.console import Console
from unveil.model import Model

__all__ = ["ExpansionOptions", "GenerationOptions", "ImageOutput", "again", "changes", "model_of", "repeat", "sample"]


def sample(
    wish: GenerationOptions,
    changes: Mapping[str, Any],
    place: ImageOutput,
    console: Console,
    noise: Path | None = None,
    expanding: ExpansionOptions = USUAL,
) -> None:
    """Draws and writes.

    Args:
        wish: what is asked.
        changes: of the settings of sampling.
        place: where pictures go.
        console: what says how it goes.
        noise: a file that is started from; it also says the settings and conditions that nobody gave.
        expanding: how prompts are made dense.
    """
    if wish.model is None:
        raise RecipeError("sample needs a model: a name or a folder, such as `unveil sample runs/ddpm-digits`")
    place.check()
    changes = dict(changes)
    model, source = opened(wish, wish.model, console)
    edit, count = PLAIN, None
    if noise is not None:
        edit, said = _noise(noise, model, source, console)
        changes = {**said.get("sampling", {}), **changes}
        count = None if len(edit.inputs["noise"]) == 1 else len(edit.inputs["noise"])
        if not wish.conditions(model):
            wish = replace(wish, given=_typed(said["given"]))
        if not wish.negative:
            wish = replace(wish, negative=_typed(said.get("negative", {})))
        if wish.size is None and "size" in said and tuple(said["size"]) != tuple(model.shape[-2:]):
            wish = replace(wish, size=f"{said['size'][1]}x{said['size'][0]}")
    expander = PromptExpander(expanding, model, console, shown=noise is not None or bool(wish.controls))
    request = expander(wish.request(model, changes, count or wish.number(model)))
    names = filenames(numbered(request))
    place.check(names)
    if noise is None:
        edit, request = in_passes(model, source, request, place, console)
    pictures = draw(model, source, request, place, console, edit)
    columns = len(wish.labels) if 1 < len(wish.labels) < request.count else None  # a column for each label
    written = write(pictures, place, names, columns)
    facts = written.facts() | {"model": source._asdict(), "seed": wish.seed, "count": request.count}
    facts |= expanded(request)
    console.result(facts, written.text())


def _typed(values: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, each in values.items() for value in each)


def repeat(
    wish: GenerationOptions, like: Path, place: ImageOutput, console: Console, places: Sequence[Path] = ()
) -> None:
    """Draws a picture again from its own record.

    Args:
        wish: the model, where the record's name is not enough, the device and the classifier.
        like: the picture.
        place: where it goes.
        console: what says how it goes.
        places: files and folders where its inputs may lie, besides where it lies itself.
    """
    facts = read_facts(like)
    names = filenames([(int(facts.get("seed", 0)), int(facts.get("sample", 0)))])
    place.check(names)
    places = [*places, like.parent, Path()]
    model, source = model_of(wish, facts, like, console, places)
    guided = wish.guided(model)
    edit = again(model, facts, places)
    with console.progress("step", 0) as progress:
        classifier = None if guided is None else guided.classifier
        picture = draw_again(model, facts, source, progress.reach, classifier=classifier, edit=edit)
    written = write([picture], place, names)
    console.result(written.facts() | {"model": source._asdict(), "like": str(like)}, written.text())


def model_of(
    wish: GenerationOptions, facts: Mapping[str, Any], like: Path, console: Console, places: Sequence[Path] = ()
) -> tuple[Model, Source]:
    """The model that a picture's record names, or the one that was given; its inputs lie in `places`, or beside it.

    Raises:
        MediaError: neither does.
    """
    named = facts.get("model")
    name = wish.model or (named.get("name") if isinstance(named, dict) else None)
    if not isinstance(name, str):
        raise DataError(f"{like}: its record names no model; pass the model's folder")
    return opened(wish, name, console, recorded=facts, places=places or [like.parent, Path()])


def again(model: Model, facts: Mapping[str, Any], places: Sequence[Path]) -> TaskSpec:
    """The edit that a record tells of, its inputs read again.

    Raises:
        MediaError: an input is not there, or the record lacks something.
    """
    if "task" not in facts:
        return PLAIN
    size = facts.get("size")
    fitted = (int(size[0]), int(size[1])) if size else None
    contents: dict[str, Tensor] = {}
    named: dict[str, list[SourceFile]] = {}
    for role, wanted in facts.get("batch", {}).get("inputs", {}).items():
        named[role] = [SourceFile(str(one["name"]), str(one["sha256"]), int(one["row"])) for one in wanted]
        files = inputs.find_inputs(named[role], places)
        contents[role] = torch.stack(
            [
                inputs.open_input(role, path, model.shape[0], fitted, one.row).content
                for path, one in zip(files, named[role], strict=True)
            ]
        )
    return replace(registry.task_from_metadata(model, facts, contents), inputs=named)


def in_passes(
    model: Model, source: Source, request: Request, place: ImageOutput, console: Console
) -> tuple[TaskSpec, Request]:
    """The last of the passes in which a size far beyond that of a model of clips is drawn; draws those before it.

    Of another size there is one pass.
    """
    if request.size is None or not hires.goes_in_passes(model, request.size):
        return PLAIN, request
    size = request.size[0], request.size[1]
    console.say(hires.describe_passes(model, size))
    plain, every = replace(place, strip=False, preview=None), hires.sizes(model, size)
    edit, asked = PLAIN, replace(request, size=every[0])
    for after in every[1:]:
        small = torch.stack([one.pixels for one in draw(model, source, asked, plain, console, edit)])
        edit = upscale(model, small, size=after, strength=hires.AGAIN, faithful=True)
        asked = hires.without_guidance(request)
    settings = {**edit.settings, "passes": [list(one) for one in every]}
    return replace(edit, verb="large", settings=settings), asked


def _noise(path: Path, model: Model, source: Source, console: Console) -> tuple[TaskSpec, dict[str, Any]]:
    """The edit that starts from a file of noise, and what the file says."""
    from unveil.io.files import sha256

    found, said = read_noise(path)
    made_by = said.get("model", {}).get("sha256", source.sha256)
    if made_by != source.sha256:
        console.warn(f"{path}: its noise was found with another model, {said['model'].get('name')!r}")
    if _told(said) != _told(additions(model)):
        console.warn(f"{path}: its noise was found with other LoRAs or ControlNets; give the same to come back to it")
    digest = sha256(path)
    names = [SourceFile(path.name, digest, row) for row in range(len(found))]
    return replace(from_latents(found), inputs={"noise": names}), {"given": {}, **said}


def _told(facts: Mapping[str, Any]) -> list[Any]:
    """What a record says of LoRAs and ControlNets but for the names of files."""
    each = [*facts.get("loras", []), *facts.get("controls", [])]
    return [{key: one[key] for key in one if key not in ("name", "picture")} for one in each]
