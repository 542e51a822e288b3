"""Commands made from task classes: the fields of a task are the arguments and options of its command.

`text_forms` reads the text forms of values, such as FILE:WEIGHT of a LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from inspect import Parameter, Signature, get_annotations
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from unveil.cli import text_forms
from unveil.errors import RecipeError
from unveil.io.console import Console
from unveil.tasks.fields import FileInput, RecipeKeys, Repeated
from unveil.tasks.task import WORDS, Task, TaskContext, TaskOutput, field_group, find_mark, mark_of

SETTINGS = "settings"  # name of the argument for KEY=VALUE settings and a prompt
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
_WORDS_HELP = (
    "Sampling settings, such as sampler=heun guidance_rescale=0.7; or a prompt, for models that take one (--prompt "
    "works too)."
)
# Options of all tasks of a kind
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]
Device = Annotated[str, typer.Option(help="Device to compute on: auto, cpu, cuda or mps.", metavar="DEVICE")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Output folder or file.")]
VideoOut = Annotated[
    Path,
    typer.Option(
        "--out", "-o", help="Output .mp4, .webm, .gif, .webp or .apng file; without a suffix, a folder of PNG."
    ),
]
Preview = Annotated[
    Path | None, typer.Option(help=".png file that shows the predicted image while it is sampled.", metavar="FILE")
]
PreviewEvery = Annotated[int, typer.Option("--preview-every", help="Number of steps from one preview to the next.")]
Metadata = Annotated[
    bool, typer.Option("--metadata/--no-metadata", help="Write the generation settings into each file.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Start a run of more than ten minutes without a question.")]
FromMetadata = Annotated[
    Path | None,
    typer.Option(
        "--from-metadata",
        help="Generated file that is generated once more, exactly, from its metadata.",
        metavar="FILE",
    ),
]
_OUTPUT = ("out", "force", "metadata", "preview", "preview_every", "from_metadata", "device")


def command_of(task_class: type[Task], command_name: str = "") -> Callable[..., None]:
    """Return the command of a task, as a function whose signature typer reads.

    Args:
        task_class: Class of the task.
        command_name: Words of the command; the name of the task when left out.
    """

    def run(**typed: Any) -> None:
        _run(task_class, typed, command_name or task_class.name)

    parameters = list(_parameters(task_class))
    run.__name__ = task_class.name.replace("-", "_")
    run.__doc__ = task_class.__doc__
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


# ------------------------------------------------------------------------------------------------------- the options


def _parameters(task_class: type[Task]) -> Iterator[Parameter]:
    for name in task_class.arguments:
        if name == WORDS:
            words = typer.Argument(help=_WORDS_HELP, metavar="[KEY=VALUE | PROMPT]...")
            yield _parameter(SETTINGS, list[str] | None, words, None)
        else:
            yield _argument(task_class, name)
    for name in _by_group(task_class):
        yield from _options(task_class, name)
    if _has_optional_size(task_class):
        help = "Width and height in pixels, for networks that take any; --width W --height H work too."
        yield _parameter("size", str | None, typer.Option(help=help, metavar="WxH"), None)
    yield from _output_options(task_class)


def _has_optional_size(task_class: type[Task]) -> bool:
    """Return True if a task has a width and a height that are set together or not at all."""
    sides = [task_class.model_fields.get(side) for side in ("width", "height")]
    return all(side is not None and side.default is None for side in sides)


def _output_options(task_class: type[Task]) -> Iterator[Parameter]:
    out: Any = VideoOut if task_class.makes == "videos" else Out
    if task_class.out_help:
        out = Annotated[Path, typer.Option("--out", "-o", help=task_class.out_help)]
    default: Any = Parameter.empty if task_class.out_required else Path(task_class.out)
    if task_class.out_optional:
        out, default = Annotated[Path | None, typer.Option("--out", "-o", help=task_class.out_help)], None
    shared: list[tuple[str, Any, Any]] = [("out", out, default)] if task_class.out else []
    if task_class.makes in ("images", "media"):
        shared += [("preview", Preview, None), ("preview_every", PreviewEvery, 5)]
    if task_class.makes in ("images", "videos", "media"):
        shared.append(("metadata", Metadata, True))
    if task_class.makes in ("images", "videos"):
        shared += [("from_metadata", FromMetadata, None), ("yes", Yes, False)]
    force: Any = Force
    if task_class.force_help:
        force = Annotated[bool, typer.Option("--force", help=task_class.force_help)]
    common: dict[str, tuple[Any, Any]] = {"device": (Device, "auto"), "force": (force, False)}
    shared += [(name, *common[name]) for name in task_class.common]
    shared += [("as_json", AsJson, False), ("quiet", Quiet, False)]
    for name, annotation, default in shared:
        yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _by_group(task_class: type[Task]) -> list[str]:
    """Return the fields of a task: those of its class first, then those of each group together."""
    first = [name for name in task_class.model_fields if name in get_annotations(task_class)]
    groups = dict.fromkeys(field_group(task_class, name) for name in task_class.model_fields)
    others = [name for group in groups for name in task_class.model_fields if field_group(task_class, name) == group]
    return list(dict.fromkeys([*first, *others]))


def _argument(task_class: type[Task], name: str) -> Parameter:
    field = task_class.model_fields[name]
    if find_mark(field, RecipeKeys) is not None or _is_several(field):
        metavar = str(_extra(field).get("metavar") or "[KEY=VALUE]...")
        return _parameter(name, list[str] | None, typer.Argument(help=str(field.description), metavar=metavar), None)
    metavar = {
        "model": "[MODEL | PROMPT]"
        if WORDS in task_class.arguments and "image" not in task_class.arguments
        else "MODEL"
    }
    flag = f"--{name}" if name != "model" else "-m"
    help = f"{field.description} {flag} works too."
    shown_as = metavar.get(name) or _extra(field).get("metavar") or name.upper()
    return _parameter(name, str | None, typer.Argument(help=help, metavar=shown_as), None)


def _options(task_class: type[Task], name: str) -> Iterator[Parameter]:
    field = task_class.model_fields[name]
    compound = text_forms.compound_field(field)
    if compound is not None:
        for option, (option_type, flag, help) in compound.options.items():
            yield _parameter(option, option_type | None, typer.Option(flag, help=help), None)
    elif name not in task_class.arguments and _extra(field).get("option") is not False:
        yield _option(field, name)


def _option(field: FieldInfo, name: str) -> Parameter:
    extra = _extra(field)
    option_type = text_forms.option_type(field) or _plain_type(field)
    flags = _flags(field, name)
    default: Any = field.default if isinstance(field.default, bool | int | float | str) else None
    if option_type is bool and not default:
        flags = flags[:1]
    return _parameter(
        name,
        option_type if default is not None or option_type is bool else option_type | None,
        typer.Option(
            *flags,
            help=str(field.description),
            metavar=extra.get("metavar") or None,
            show_default=text_forms.default_text(field) or True,
        ),
        default,
    )


def _flags(field: FieldInfo, name: str) -> list[str]:
    return list(_extra(field).get("flags") or [f"--{name.replace('_', '-')}"])


def _plain_type(field: FieldInfo) -> Any:
    """Return the type of an option: the type of its field without marks and None."""
    if any(isinstance(mark, Repeated) for mark in field.metadata):
        inner = get_args(_bare(field.annotation))[0]
        return list[_bare(inner)] if get_origin(_bare(inner)) is not UnionType else list[str]
    bare = _bare(field.annotation)
    if get_origin(bare) is tuple:
        return list[_bare(get_args(bare)[0])]
    if get_origin(bare) in (UnionType, Union):
        bare = next(_bare(member) for member in get_args(bare) if member is not NoneType)
    return str if get_origin(bare) is Literal else bare


def _is_several(field: FieldInfo) -> bool:
    """Return True if a field has several values, a tuple or a map, which are not in one file as scenes are."""
    return get_origin(_bare(field.annotation)) in (tuple, dict) and text_forms.compound_field(field) is None


def _bare(annotation: Any) -> Any:
    return _bare(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}  # type: ignore[return-value]


def _parameter(name: str, value_type: Any, option: Any, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[value_type, option])


# ----------------------------------------------------------------------------------------------------------- the run


def _run(task_class: type[Task], typed: Mapping[str, Any], command_name: str) -> None:
    console = Console(bool(typed["as_json"]), bool(typed["quiet"]))
    preview = typed.get("preview")
    output = TaskOutput(
        typed.get("out") or Path(),
        bool(typed.get("metadata", True)),
        bool(typed.get("force")),
        preview,
        int(typed.get("preview_every", 5)),
        chosen=typed.get("out") is not None,
    )
    named = [value for name, value in typed.items() if value and _is_file(task_class, name)]
    files = [Path(item) for value in named for item in (value if isinstance(value, list) else [value])]
    device, confirmed = str(typed.get("device", "auto")), bool(typed.get("yes"))
    context = TaskContext(output, console, device, places=files, confirmed=confirmed)
    task = _regeneration(task_class, typed) if typed.get("from_metadata") else task_of(task_class, typed, command_name)
    result = task.run(context)
    if result.facts or result.text:  # one of several processes reports
        console.result(result.facts, result.text)
    if result.exit_code:
        raise SystemExit(result.exit_code)


def _is_file(task_class: type[Task], name: str) -> bool:
    return name in task_class.model_fields and isinstance(mark_of(task_class, name), FileInput)


def task_of(task_class: type[Task], typed: Mapping[str, Any], command_name: str = "") -> Task:
    """Return the task that a command line describes.

    Args:
        task_class: Class of the task.
        typed: Values of options and arguments by name.
        command_name: Words of the command, for errors; the name of the task when left out.

    Raises:
        RecipeError: A value cannot be read, is missing or is outside of its range.
    """
    values: dict[str, Any] = {}
    for name, field in task_class.model_fields.items():
        value, compound = typed.get(name), text_forms.compound_field(field)
        if compound is not None:
            values |= {} if (items := compound.read(typed)) is None else {name: items}
        elif value is not None and value != [] and name not in _OUTPUT:
            values[name] = text_forms.read_value(field, name, value)
    values = {name: value for name, value in values.items() if not _is_default(task_class, name, value)}
    if _has_optional_size(task_class):
        values |= _size_of(values, typed)
    if WORDS in task_class.arguments:
        values = text_forms.merge_settings(task_class, values, typed)
    _check_required(task_class, values, command_name or task_class.name)
    return task_class.parse(values, f"unveil {command_name or task_class.name}")


def _size_of(values: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, int]:
    """Return the width and the height of --size.

    Raises:
        RecipeError: The size cannot be read, or only one side is typed.
    """
    size = text_forms.read_size(typed.get("size"))
    sides = [side for side in ("width", "height") if side in values or side in size]
    if len(sides) == 1:
        other = "height" if sides == ["width"] else "width"
        raise RecipeError(f"--{sides[0]}: give --{other} too, or both as --size WIDTHxHEIGHT")
    return size


def _is_default(task_class: type[Task], name: str, value: Any) -> bool:
    """Return True if typer may have filled in this value for an option that was not typed."""
    return name not in task_class.arguments and value == task_class.model_fields[name].default


def _check_required(task_class: type[Task], values: Mapping[str, Any], command_name: str) -> None:
    missing = [name for name, field in task_class.model_fields.items() if field.is_required() and name not in values]
    if "model" in task_class.arguments and "model" not in values:
        missing = list(dict.fromkeys(["model", *missing]))
    if missing == ["image"] and str(values.get("model", "")).lower().endswith(_IMAGE_SUFFIXES):
        missing = ["model"]  # the image was typed in the place of the model
    if not missing:
        return
    example = next((line.strip() for line in (task_class.__doc__ or "").splitlines() if "Example: " in line), "")
    example = example.removeprefix("Example: ")
    names = {
        "model": "a model",
        "image": "an image",
        "video": "a video",
        "prompt": "a prompt",
        "first": "a first video",
        "last": "a last video",
        "mask": "a mask (--mask FILE, white where new content is generated)",
    }
    for name in task_class.arguments:
        if name in task_class.model_fields and (metavar := _extra(task_class.model_fields[name]).get("metavar")):
            names.setdefault(name, metavar)
    listed = " and ".join(names.get(name) or _flags(task_class.model_fields[name], name)[0] for name in missing)
    raise RecipeError(f"{command_name} needs {listed}: {example}")


def _regeneration(task_class: type[Task], typed: Mapping[str, Any]) -> Task:
    """Return the task that regenerates a file; options may replace its model, adapters and classifier."""
    from unveil.tasks.regenerate import Regenerate

    for name in task_class.model_fields:
        allowed = name in Regenerate.model_fields or name in task_class.arguments or _is_file(task_class, name)
        if not allowed and typed.get(name) not in (None, [], task_class.model_fields[name].default):
            raise RecipeError(f"--{name.replace('_', '-')} and --from-metadata: give one of them")
    shared = {name: typed.get(name) for name in Regenerate.model_fields if name in task_class.model_fields}
    values = {**shared, "source": str(typed["from_metadata"])}
    if WORDS in task_class.arguments:
        values |= {"file_settings": text_forms.merge_settings(task_class, {}, typed).get("file")}
    return task_of(Regenerate, values)
