"""Running image tasks: inputs, requests, output files with metadata, and regeneration from these."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from unveil.checkpoints.guidance_classifier import load_guide
from unveil.errors import DataError
from unveil.generation import hires, inputs
from unveil.generation.generate import (
    PLAIN,
    PROMPT,
    ClassifierGuidance,
    GeneratedSample,
    ModelSource,
    Request,
    SourceFile,
    TaskSpec,
)
from unveil.generation.generate import regenerate as repeat_batch
from unveil.generation.image_output import ImageOutput, filenames, generate_images, sample_ids, write_images
from unveil.generation.invert import read_noise
from unveil.generation.model_loading import ControlNetOption, LoraOption, Media, ModelOptions, check_takes_prompt
from unveil.generation.single_frame import SingleFrameNetwork
from unveil.generation.upscale import upscale
from unveil.io.console import Console
from unveil.io.files import sha256
from unveil.model import Model, model_folder
from unveil.model.shapes import check_size
from unveil.tasks.fields import AdapterFields, CatalogName, FileInput, PromptFields
from unveil.tasks.task import Task, TaskContext, TaskResult, mark_of
from unveil.types import format_size

if TYPE_CHECKING:
    from unveil.tasks.image_task import ClassifierFields, GeneratesImages, ImageTask, ModelTask
    from unveil.tasks.interpolate import Interpolate
    from unveil.tasks.regenerate import Regenerate
    from unveil.tasks.video_task import VideoTask

SMALL = 1e12  # results x pixels x steps x parameters of a run up to which memory and time are not estimated
ReadsPrompts = TypeVar("ReadsPrompts", bound=PromptFields)


@dataclass(frozen=True)
class InputRow:
    """The files of one input, by field, and its number."""

    files: Mapping[str, inputs.LoadedInput]
    number: int

    @property
    def shape(self) -> torch.Size:
        """Shape of the first file's content; rows of one shape are generated together."""
        return next(iter(self.files.values())).content.shape


# ------------------------------------------------------------------------------------------- from fields to requests


def model_options(task: ModelTask | VideoTask, context: TaskContext) -> ModelOptions:
    """The model of a task with its adapters, found where the context says."""
    return ModelOptions(
        context.resolver.path(task.model, CatalogName("model")),
        context.device,
        task.dtype,
        lora_options(task, context),
        controlnet_options(task, context),
        task.control_mode,
        task.file,
    )


def lora_options(task: AdapterFields | Regenerate, context: TaskContext) -> tuple[LoraOption, ...]:
    """The LoRAs of a task."""
    paths = (context.path(lora.file, CatalogName("lora")) for lora in task.lora)
    return tuple(
        LoraOption(model_folder.resolve_name(path, "loras"), lora.weight)
        for path, lora in zip(paths, task.lora, strict=True)
    )


def controlnet_options(task: AdapterFields | Regenerate, context: TaskContext) -> tuple[ControlNetOption, ...]:
    """The ControlNets of a task."""
    return tuple(
        ControlNetOption(
            None
            if control.network is None
            else model_folder.resolve_name(context.path(control.network, CatalogName("controlnet")), "controlnets"),
            context.path(control.image, FileInput("image")),
            control.weight,
            control.start,
            control.stop,
        )
        for control in task.controlnet
    )


def conditions(task: PromptFields, model: Model) -> dict[str, list[Any]]:
    """The conditions of a task by key.

    Raises:
        RecipeError: A prompt for a model that takes none.
    """
    values = {"label": task.label, PROMPT: task.prompt, **task.cond}
    conditions = {key: list(each) for key, each in values.items() if each}
    if PROMPT in conditions:
        check_takes_prompt(model, repr(conditions[PROMPT][0]))
    return conditions


def negative_conditions(task: PromptFields, model: Model) -> dict[str, list[Any]]:
    """The negative conditions of a task by key.

    Raises:
        RecipeError: A negative prompt for a model that takes none.
    """
    values = {PROMPT: task.negative_prompt, **task.negative_cond}
    conditions = {key: list(each) for key, each in values.items() if each}
    if PROMPT in conditions:
        check_takes_prompt(model, "negative_prompt")
    return conditions


def classifier_guidance(task: Task, model: Model, context: TaskContext) -> ClassifierGuidance | None:
    """Guidance by the classifier that a task names; None without one."""
    if getattr(task, "classifier", None) is None:
        return None
    with_classifier = cast("ClassifierFields", task)
    path = context.path(str(with_classifier.classifier), CatalogName("classifier"))
    guide = load_guide(path, model.process, with_classifier.classifier_file or None)
    guide.network.to(model.device)
    return ClassifierGuidance(guide, with_classifier.classifier_scale)


def request_of(task: ImageTask | Interpolate, model: Model, context: TaskContext, count: int) -> Request:
    """The request of a task for a number of images."""
    return Request(
        conditions(task, model),
        task.seed[0] if len(task.seed) == 1 else task.seed,
        task.start_index,
        count,
        task.batch_size,
        task.sampling_changes,
        task.dtype,
        classifier_guidance(task, model, context),
        bool(getattr(task, "compile", False)),
        negative_conditions(task, model),
        task.size,
    )


def with_read_prompts(task: ReadsPrompts, model: Model, console: Console) -> ReadsPrompts:
    """A task with its prompts as the model reads them, without expansion.

    Raises:
        RecipeError: Under `strict`, something of a prompt will not be drawn.
    """
    from unveil.generation.prompt_expansion import ExpansionOptions, PromptExpander

    expander = PromptExpander(ExpansionOptions(), model, console, shown=True, strict=task.strict)
    return task.model_copy(update={"prompt": tuple(expander.read(text).text for text in task.prompt)})


def with_expanded_prompts(
    task: ImageTask, model: Model, request: Request, console: Console, *, shown: bool
) -> tuple[Request, str]:
    """Return the request with its prompts as the model reads them, and a note about what of them is not drawn.

    Args:
        task: Task.
        model: Model.
        request: Request with the prompts as they are typed.
        console: Shows the expansion.
        shown: True if the model is also conditioned on images, so that prompts are not expanded by default.

    Raises:
        RecipeError: Under `strict`, something of a prompt will not be drawn.
    """
    expand = getattr(task, "expand_prompt", None)
    if expand is None and PROMPT not in request.cond:
        return request, ""
    from unveil.generation.prompt_expansion import ExpansionOptions, PromptExpander, omission_note

    options = ExpansionOptions.from_option(expand)
    expanded = PromptExpander(options, model, console, shown=shown, strict=task.strict)(request)
    return expanded, omission_note(expanded)


def number_of_results(task: ImageTask, model: Model) -> int:
    """Number of images of one input: as the task states, or one per seed or value of a condition."""
    if task.count is not None:
        return task.count
    return max([1, len(task.seed), *map(len, conditions(task, model).values())])


def image_output(task: Task, context: TaskContext) -> ImageOutput:
    """The output paths of a task."""
    output = context.output
    return ImageOutput(
        output.path,
        bool(getattr(task, "save_trajectory", False)),
        output.metadata,
        output.force,
        output.preview,
        output.preview_every,
        context.on_preview,
    )


def check_resources(
    task: Task, model: Model, context: TaskContext, request: Request, inputs: Sequence[Sequence[int]] = ()
) -> None:
    """Refuse a run that is impossible on this machine, and ask about a long one; a bound suffices for small runs.

    Args:
        task: Task.
        model: Model that generates.
        context: Context of the task.
        request: Request for all images.
        inputs: Shape of each input image.

    Raises:
        OutOfResources: Memory or disk are too small, or the run is long and was not confirmed.
        Cancelled: The answer was no.
    """
    factor = int(getattr(task, "factor", 1))
    height, width = request.size or max((shape[-2:] for shape in inputs), key=math.prod, default=model.shape[-2:])
    size = (height, width) if request.size else (height * factor, width * factor)
    steps = model.sampling.changed(request.sampling).steps
    parameters = sum(weight.numel() for weight in model.denoiser.network.parameters())
    if request.count * math.prod(size) * steps * parameters <= SMALL:
        return
    from unveil.tasks.run_check import PlannedRun, check_run

    files = {"image": (1, height, width)} if inputs else {}
    tiled = hires.share_of_calls(model, size, bool(request.size) and hires.needs_passes(model, size), factor)
    out, batch = context.output.path, request.batch
    check_run(task, model, context, PlannedRun(request.count, size, 1, files, request.cond, out, batch, tiled))


# ------------------------------------------------------------------------------------------------------------ inputs


def input_fields(task: Task) -> dict[str, str]:
    """The value of each field that names an input file of the task itself."""
    fields = type(task).model_fields
    named = {name: getattr(task, name) for name in fields if isinstance(mark_of(type(task), name), FileInput)}
    return {name: value for name, value in named.items() if isinstance(value, str)}


def file_mark(task: Task, name: str) -> FileInput:
    """The medium of the file of a field."""
    mark = mark_of(type(task), name)
    assert isinstance(mark, FileInput), name
    return mark


def read_inputs(task: ModelTask, model: Model, context: TaskContext) -> list[InputRow]:
    """Every input with all that belongs to it: of a folder each image, with the mask of the same name.

    Raises:
        DataError: A file that is missing or damaged, or files of one input that differ in size.
    """
    named = input_fields(task)
    if not named:
        return []
    marks = {name: file_mark(task, name) for name in named}
    for name, mark in marks.items():
        if mark.medium == "noise":
            path = context.path(named[name], mark)
            noise = read_noise(path)[0]
            digest = sha256(path)
            return [
                InputRow({name: inputs.LoadedInput(path, noise_file, SourceFile(path.name, digest, row))}, row)
                for row, noise_file in enumerate(noise)
            ]
    places = {
        name: context.path(value, mark) for (name, value), mark in zip(named.items(), marks.values(), strict=True)
    }
    first = next((name for name, mark in marks.items() if mark.medium == "image"), next(iter(named)))
    order = [first, *(name for name in named if name != first)]
    rows: list[InputRow] = []
    for number, path in enumerate(inputs.list_inputs(places[first])):
        files: dict[str, inputs.LoadedInput] = {}
        for name in order:
            place = path if name == first else places[name] / path.name if places[name].is_dir() else places[name]
            medium = marks[name].medium
            channels = 1 if medium == "mask" else model.shape[0]
            files[name] = inputs.open_input(medium, place, channels, task.size)
            _same_size(files[first], files[name])
        rows.append(InputRow(files, number))
    return rows


def _same_size(image: inputs.LoadedInput, other: inputs.LoadedInput) -> None:
    sizes = [format_size(file.content.shape) for file in (other, image)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"{other.path} is {sizes[0]}, {image.path} is {sizes[1]}: "
            "both must have one size, a mask that of its image; give --size WIDTHxHEIGHT to bring both to one"
        )


def spec_of(task: GeneratesImages, model: Model, rows: Sequence[InputRow], each: int) -> TaskSpec:
    """The change of generation of a task, for inputs of one size with `each` results of each."""
    roles = list(rows[0].files) if rows else []
    stacked = {role: torch.stack([row.files[role].content for row in rows]) for role in roles}
    content = {role: each_row.repeat_interleave(each, 0) for role, each_row in stacked.items()}
    sources = {role: [row.files[role].input for row in rows for _ in range(each)] for role in roles}
    return replace(task.spec(model, content), record=task.metadata(), inputs=sources)


# -------------------------------------------------------------------------------------------------------------- runs


def run_images(task: ImageTask, context: TaskContext) -> TaskResult:
    """Generate the images of a task and write them.

    Raises:
        Error: They cannot be generated or written.
    """
    output, console = image_output(task, context), context.console
    output.check()
    model, source = context.open(model_options(task, context), shown=task.gives)
    suggest_video(task, model, console)
    if (latents := getattr(task, "latents", None)) is not None:
        task = from_noise_file(task, model, source, context.path(latents, FileInput("noise")), console)
    rows = read_inputs(task, model, context)
    each = task.count if task.count is not None else number_of_results(task, model) if len(rows) < 2 else 1
    noises = latents is not None and bool(rows)
    is_edit = bool(rows) and not noises
    count = each * len(rows) if is_edit else each
    request = request_of(task, model, context, count)
    check_resources(task, model, context, request, [row.shape for row in rows])
    request, not_drawn = with_expanded_prompts(task, model, request, console, shown=bool(rows or task.controlnet))
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row.shape)] or [[]]
    names = (
        _edit_names([next(iter(row.files.values())).path for row in rows for _ in range(each)], sample_ids(request))
        if is_edit
        else filenames(sample_ids(request))
    )
    names = [f"{context.output.mark}{name}" for name in names]
    specs = [spec_of(task, model, group, each if is_edit else 1) for group in groups]
    rows_of = [(group[0].number * each, (group[-1].number + 1) * each) if is_edit else (0, count) for group in groups]
    requests = [request.part(*numbers) if is_edit else request for numbers in rows_of]
    existing = images_there(model, source, requests, specs, output, names)
    output.check(names, len(groups) == 1, context.output.mark, existing)
    for spec in specs:
        for note in spec.notes:
            console.warn(note)
        if spec.size is not None:  # before the first image is generated
            check_size(model, spec.size)
    if not rows and specs[0].is_plain:
        specs[0], requests[0] = hires_passes(model, source, request, output, console, specs[0])

    def drawn() -> Iterator[GeneratedSample]:
        for numbers, part, spec in zip(rows_of, requests, specs, strict=True):
            yield from draw(model, source, part, output, console, spec, names[slice(*numbers)], existing)

    columns = len(task.label) if 1 < len(task.label) < request.count else None  # a column for each label
    if is_edit:
        columns = each if each > 1 and len(rows) > 1 else None
    written = write_images(drawn(), output, names, columns, context.output.mark, existing)
    facts = written.facts() | {"model": source._asdict(), "task": task.name, "count": len(names)}
    facts |= {"seed": task.seed[0] if len(task.seed) == 1 else list(task.seed)}
    if request.original_cond:
        from unveil.generation.prompt_expansion import expansions_of

        facts |= expansions_of(request)
    return TaskResult(facts, written.text() + not_drawn)


def images_there(
    model: Model,
    source: ModelSource,
    requests: Sequence[Request],
    specs: Sequence[TaskSpec],
    output: ImageOutput,
    names: Sequence[str],
) -> AbstractSet[str]:
    """Return the names of the images of a run that are in its folder already, see `generation.resume`.

    Raises:
        AlreadyExists: An image of this name was generated with other settings.
    """
    whole = output.one_file or output.force or output.strip or not output.metadata
    if whole or not any((output.out / name).exists() for name in names) or hires.needs_passes(model, requests[0].size):
        return frozenset()
    from unveil.generation.resume import existing_images

    return existing_images(model, source, list(zip(requests, specs, strict=True)), output, names)


def draw(
    model: Model,
    source: ModelSource,
    request: Request,
    output: ImageOutput,
    console: Console,
    spec: TaskSpec,
    names: Sequence[str],
    existing: AbstractSet[str],
) -> Iterator[GeneratedSample]:
    """Yield the samples of a request; existing ones are read from their files."""
    if not any(name in existing for name in names):
        return generate_images(model, source, request, output, console, spec)
    from unveil.generation.resume import generate_missing

    return generate_missing(model, source, request, output, console, spec, names, existing)


def suggest_video(task: ImageTask, model: Model, console: Console) -> None:
    """Name the command for videos, if images without inputs are generated by a video model that is not the default."""
    name, default = task.model, type(task).model_fields["model"].default
    if name != default and not task.gives and isinstance(model.denoiser.network, SingleFrameNetwork):
        console.say(
            f"{name}: a video model; images are single frames, and `unveil video --model {name}` generates videos"
        )


def from_noise_file(task: ImageTask, model: Model, source: ModelSource, path: Path, console: Console) -> ImageTask:
    """A task with the settings and conditions of a file of noise, where it states none itself."""
    from unveil.generation.generate import adapter_metadata

    noise, stated = read_noise(path)
    made_by = stated.get("model", {}).get("sha256", source.sha256)
    if made_by != source.sha256:
        console.warn(f"{path}: its noise was found with another model, {stated['model'].get('name')!r}")
    if adapters_of(stated) != adapters_of(adapter_metadata(model)):
        console.warn(f"{path}: its noise was found with other LoRAs or ControlNets; give the same to come back to it")
    changes: dict[str, Any] = {"sampling": {**stated.get("sampling", {}), **task.sampling_changes}}
    changes |= dict.fromkeys(("steps", "sampler", "guidance_scale", "schedule", "eta", "threshold"))
    if len(noise) > 1:
        changes["count"] = len(noise)
    if not conditions(task, model):
        changes |= condition_fields(stated.get("given", {}))
    if not (task.negative_prompt or task.negative_cond):
        changes |= condition_fields(stated.get("negative", {}), "negative_")
    if task.size is None and "size" in stated and tuple(stated["size"]) != tuple(model.shape[-2:]):
        changes |= {"height": int(stated["size"][0]), "width": int(stated["size"][1])}
    return task.model_copy(update=changes)


def condition_fields(values: Mapping[str, Sequence[Any]], prefix: str = "") -> dict[str, Any]:
    """The fields of a task that hold conditions, of conditions by key."""
    plain_keys = ("prompt",) if prefix else ("prompt", "label")
    fields: dict[str, Any] = {f"{prefix}{key}": tuple(each) for key, each in values.items() if key in plain_keys}
    others = {key: tuple(each) for key, each in values.items() if key not in plain_keys}
    return fields | ({f"{prefix}cond": others} if others else {})


def adapters_of(facts: Mapping[str, Any]) -> list[Any]:
    """The metadata of LoRAs and ControlNets without the names of files."""
    each = [*facts.get("loras", []), *facts.get("controls", [])]
    return [{key: item[key] for key in item if key not in ("name", "image")} for item in each]


def hires_passes(
    model: Model, source: ModelSource, request: Request, output: ImageOutput, console: Console, spec: TaskSpec = PLAIN
) -> tuple[TaskSpec, Request]:
    """The last of the passes in which a size far beyond that of a video model is generated, after those before it.

    Any other size has one pass.
    """
    if request.size is None or not hires.needs_passes(model, request.size):
        return spec, request
    size = request.size[0], request.size[1]
    console.say(hires.describe_passes(model, size))
    plain, every = replace(output, strip=False, preview=None, on_preview=None), hires.pass_sizes(model, size)
    edit, pass_request = PLAIN, replace(request, size=every[0])
    for after in every[1:]:
        small = torch.stack(
            [image.pixels for image in generate_images(model, source, pass_request, plain, console, edit)]
        )
        edit = upscale(model, small, size=after, strength=hires.PASS_STRENGTH, faithful=True)
        pass_request = hires.without_guidance(request)
    settings = {**edit.settings, "passes": [list(pass_size) for pass_size in every]}
    return replace(edit, settings=settings, record=spec.record), pass_request


def _edit_names(sources: Sequence[Path], rows: Sequence[tuple[int, int]]) -> list[str]:
    """A file name for each result: that of its input, with seed and number where several have the same."""
    count = Counter(path.stem for path in sources)
    return [
        f"{path.stem}.png" if count[path.stem] == 1 else f"{path.stem}_{name}"
        for path, name in zip(sources, filenames(rows), strict=True)
    ]


# ------------------------------------------------------------------------------------------------------ regeneration


def open_recorded(
    facts: Mapping[str, Any],
    file: Path,
    regeneration: Regenerate,
    context: TaskContext,
    places: Sequence[Path],
    media: Media = "images",
) -> tuple[Model, ModelSource]:
    """The model that a file's metadata name, or the one that is given, with the recorded adapters.

    Raises:
        DataError: The metadata name no model, or an input is missing.
    """
    recorded = facts.get("model")
    name = regeneration.model or (recorded.get("name") if isinstance(recorded, dict) else None)
    if not isinstance(name, str):
        raise DataError(f"{file}: its metadata name no model; give the model's folder")
    options = ModelOptions(
        context.resolver.path(name, CatalogName("model")),
        context.device,
        loras=lora_options(regeneration, context),
        controlnets=controlnet_options(regeneration, context),
        file=regeneration.file_settings,
    )
    return context.open(options, recorded=facts, places=places, media=media)


def regenerate_image(
    task: GeneratesImages, context: TaskContext, facts: Mapping[str, Any], regeneration: Regenerate
) -> TaskResult:
    """Generate an image again and write it.

    Raises:
        DataError: An input is missing, or the metadata lack something.
        WeightsError: Another model, adapter or classifier than the metadata name.
    """
    file = context.path(regeneration.source, FileInput("media"))
    if facts.get("passes"):
        raise DataError(f"{file}: images of several passes are not generated again from their metadata; sample again")
    names = filenames([(int(facts.get("seed", 0)), int(facts.get("sample", 0)))])
    output = image_output(regeneration, context)
    output.check(names)
    places = [*context.places, file.parent, Path()]
    model, source = open_recorded(facts, file, regeneration, context, places)
    guided = classifier_guidance(regeneration, model, context)
    spec = recorded_spec(task, model, facts, places)
    with context.console.progress("step", 0) as progress:
        classifier = None if guided is None else guided.classifier
        image = repeat_batch(model, facts, source, progress.reach, classifier=classifier, edit=spec)
    written = write_images([image], output, names)
    return TaskResult(
        written.facts() | {"model": source._asdict(), "task": task.name, "source": str(file)}, written.text()
    )


def recorded_spec(task: GeneratesImages, model: Model, facts: Mapping[str, Any], places: Sequence[Path]) -> TaskSpec:
    """The change of generation of the task in some metadata, whose inputs are read again.

    Raises:
        DataError: An input is missing, or the metadata lack something.
    """
    try:
        size = facts.get("size")
        fitted = (int(size[0]), int(size[1])) if size else None
        content: dict[str, Tensor] = {}
        sources: dict[str, list[SourceFile]] = {}
        for role, files in facts.get("batch", {}).get("inputs", {}).items():
            mark = mark_of(type(task), role) if role in type(task).model_fields else None
            medium = mark.medium if isinstance(mark, FileInput) else "image"
            sources[role] = [SourceFile(str(entry["name"]), str(entry["sha256"]), int(entry["row"])) for entry in files]
            paths = inputs.find_inputs(sources[role], places)
            content[role] = torch.stack(
                [
                    inputs.open_input(medium, path, model.shape[0], fitted, source.row).content
                    for path, source in zip(paths, sources[role], strict=True)
                ]
            )
        spec = task.spec(model, content)
    except (KeyError, TypeError, AttributeError, IndexError) as problem:
        raise DataError(f"the image's metadata lack {problem}; use the file as it was written") from problem
    return replace(spec, record=task.metadata(), inputs=sources)
