"""Commands made of tasks: a task's fields are the arguments and options of its command.

Only the command line knows the text forms of values, such as FILE:WEIGHT of a LoRA; `text_forms` reads them.
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
from unveil.cli.options import (
    AsJson,
    Device,
    Force,
    FromMetadata,
    Metadata,
    Out,
    Preview,
    PreviewEvery,
    Quiet,
    VideoOut,
)
from unveil.errors import RecipeError
from unveil.io.console import Console
from unveil.tasks.context import TaskContext, TaskOutput
from unveil.tasks.fields import FileInput, Repeated
from unveil.tasks.task import WORDS, Task, field_group, mark_of

SETTINGS = "settings"  # the argument for KEY=VALUE and a prompt
_WORDS_HELP = (
    "Sampling settings, such as sampler=heun guidance_rescale=0.7; or a prompt, for models that take one (--prompt "
    "works too)."
)
_OUTPUT = ("out", "force", "metadata", "preview", "preview_every", "from_metadata", "device")


def command_of(kind: type[Task], called: str = "") -> Callable[..., None]:
    """The function whose signature typer reads as the command of a task.

    Args:
        kind: Class of the task.
        called: Words of the command; the task's name when left out.
    """

    def run(**typed: Any) -> None:
        _run(kind, typed, called or kind.name)

    parameters = list(_parameters(kind))
    run.__name__ = kind.name.replace("-", "_")
    run.__doc__ = kind.__doc__
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


# ------------------------------------------------------------------------------------------------------- the options


def _parameters(kind: type[Task]) -> Iterator[Parameter]:
    for name in kind.arguments:
        if name == WORDS:
            words = typer.Argument(help=_WORDS_HELP, metavar="[KEY=VALUE | PROMPT]...")
            yield _parameter(SETTINGS, list[str] | None, words, None)
        else:
            yield _argument(kind, name)
    for name in _by_group(kind):
        yield from _options(kind, name)
    if _has_optional_size(kind):
        help = "Width and height in pixels, for networks that take any; --width W --height H work too."
        yield _parameter("size", str | None, typer.Option(help=help, metavar="WxH"), None)
    yield from _output_options(kind)


def _has_optional_size(kind: type[Task]) -> bool:
    """Whether a task has a width and a height that are given together or not at all."""
    sides = [kind.model_fields.get(side) for side in ("width", "height")]
    return all(side is not None and side.default is None for side in sides)


def _output_options(kind: type[Task]) -> Iterator[Parameter]:
    out: Any = VideoOut if kind.makes == "videos" else Out
    if kind.out_help:
        out = Annotated[Path, typer.Option("--out", "-o", help=kind.out_help)]
    default: Any = Parameter.empty if kind.out_required else Path(kind.out)
    shared: list[tuple[str, Any, Any]] = [("out", out, default)] if kind.out else []
    if kind.makes in ("images", "media"):
        shared += [("preview", Preview, None), ("preview_every", PreviewEvery, 5)]
    if kind.makes in ("images", "videos", "media"):
        shared.append(("metadata", Metadata, True))
    if kind.makes in ("images", "videos"):
        shared.append(("from_metadata", FromMetadata, None))
    common: dict[str, tuple[Any, Any]] = {"device": (Device, "auto"), "force": (Force, False)}
    shared += [(name, *common[name]) for name in kind.common]
    shared += [("as_json", AsJson, False), ("quiet", Quiet, False)]
    for name, annotation, default in shared:
        yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _by_group(kind: type[Task]) -> list[str]:
    """The fields of a task, its own first, then those of each group together."""
    own = [name for name in kind.model_fields if name in get_annotations(kind)]
    groups = dict.fromkeys(field_group(kind, name) for name in kind.model_fields)
    others = [name for group in groups for name in kind.model_fields if field_group(kind, name) == group]
    return list(dict.fromkeys([*own, *others]))


def _argument(kind: type[Task], name: str) -> Parameter:
    field = kind.model_fields[name]
    metavar = {"model": "[MODEL | PROMPT]" if WORDS in kind.arguments and "image" not in kind.arguments else "MODEL"}
    also = f" --{name} works too." if name != "model" else " -m works too."
    metavar_of = metavar.get(name) or _extra(field).get("metavar") or name.upper()
    shown = typer.Argument(help=str(field.description) + also, metavar=metavar_of)
    return _parameter(name, str | None, shown, None)


def _options(kind: type[Task], name: str) -> Iterator[Parameter]:
    field = kind.model_fields[name]
    several = text_forms.several_options(field)
    if several is not None:
        for option, (typed, flag, help) in several.options.items():
            yield _parameter(option, typed | None, typer.Option(flag, help=help), None)
    elif name not in kind.arguments and _extra(field).get("option") is not False:
        yield _option(field, name)


def _option(field: FieldInfo, name: str) -> Parameter:
    extra = _extra(field)
    typed = text_forms.option_type(field)
    if typed is None:
        typed = _plain_type(field)
    flags = extra.get("flags") or [f"--{name.replace('_', '-')}"]
    default: Any = field.default if isinstance(field.default, bool | int | float | str) else None
    if typed is bool and not default:
        flags = flags[:1]
    return _parameter(
        name,
        typed if default is not None or typed is bool else typed | None,
        typer.Option(*flags, help=str(field.description), metavar=extra.get("metavar") or None),
        default,
    )


def _plain_type(field: FieldInfo) -> Any:
    """The type of an option: what is left of a field's type without its marks."""
    if any(isinstance(mark, Repeated) for mark in field.metadata):
        inner = get_args(_bare(field.annotation))[0]
        return list[_bare(inner)] if get_origin(_bare(inner)) is not UnionType else list[str]
    bare = _bare(field.annotation)
    if get_origin(bare) is tuple:
        return list[_bare(get_args(bare)[0])]
    if get_origin(bare) in (UnionType, Union):
        bare = next(_bare(one) for one in get_args(bare) if one is not NoneType)
    return str if get_origin(bare) is Literal else bare


def _bare(annotation: Any) -> Any:
    return _bare(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}  # type: ignore[return-value]


def _parameter(name: str, kind: Any, shown: Any, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, shown])


# ----------------------------------------------------------------------------------------------------------- the run


def _run(kind: type[Task], typed: Mapping[str, Any], called: str) -> None:
    console = Console(bool(typed["as_json"]), bool(typed["quiet"]))
    preview = typed.get("preview")
    output = TaskOutput(
        typed.get("out") or Path(),
        bool(typed.get("metadata", True)),
        bool(typed.get("force")),
        preview,
        int(typed.get("preview_every", 5)),
    )
    files = [Path(value) for name, value in typed.items() if value and _is_file(kind, name)]
    context = TaskContext(output, console, str(typed.get("device", "auto")), places=files)
    task = _regeneration(kind, typed) if typed.get("from_metadata") else task_of(kind, typed, called)
    result = task.run(context)
    console.result(result.facts, result.text)


def _is_file(kind: type[Task], name: str) -> bool:
    return name in kind.model_fields and isinstance(mark_of(kind, name), FileInput)


def task_of(kind: type[Task], typed: Mapping[str, Any], called: str = "") -> Task:
    """The task of what was typed.

    Args:
        kind: Class of the task.
        typed: Values of options and arguments by name.
        called: Words of the command, for errors; the task's name when left out.

    Raises:
        RecipeError: A value that cannot be read, or that is missing or out of its range.
    """
    values: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        value, several = typed.get(name), text_forms.several_options(field)
        if several is not None:
            values |= {} if (read := several.read(typed)) is None else {name: read}
        elif value is not None and value != [] and name not in _OUTPUT:
            values[name] = text_forms.read(field, name, value)
    values = {name: value for name, value in values.items() if not _is_default(kind, name, value)}
    values |= text_forms.read_size(typed.get("size"))
    sides = [side for side in ("width", "height") if side in values]
    if len(sides) == 1 and _has_optional_size(kind):
        other = "height" if sides == ["width"] else "width"
        raise RecipeError(f"--{sides[0]}: give --{other} too, or both as --size WIDTHxHEIGHT")
    if SETTINGS in typed:
        values = text_forms.with_words(kind, values, typed)
    _check_required(kind, values, called or kind.name)
    return kind.parse(values, f"unveil {called or kind.name}")


def _is_default(kind: type[Task], name: str, value: Any) -> bool:
    """Whether a value is the one that typer fills in for an option that was not typed."""
    return name not in kind.arguments and value == kind.model_fields[name].default


def _check_required(kind: type[Task], values: Mapping[str, Any], called: str) -> None:
    missing = [name for name, field in kind.model_fields.items() if field.is_required() and name not in values]
    if "model" in kind.arguments and "model" not in values:
        missing = ["model", *missing]
    if not missing:
        return
    example = next((line.strip() for line in (kind.__doc__ or "").splitlines() if "Example: " in line), "")
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
    listed = " and ".join(names.get(name, f"--{name.replace('_', '-')}") for name in missing)
    raise RecipeError(f"{called} needs {listed}: {example}")


def _regeneration(kind: type[Task], typed: Mapping[str, Any]) -> Task:
    """The regeneration of a file, with what was typed of the model, its adapters and the classifier."""
    from unveil.tasks.regenerate import Regenerate

    for name in kind.model_fields:
        allowed = name in Regenerate.model_fields or name in kind.arguments or _is_file(kind, name)
        if not allowed and typed.get(name) not in (None, [], kind.model_fields[name].default):
            raise RecipeError(f"--{name.replace('_', '-')} and --from-metadata: give one of them")
    shared = {name: typed.get(name) for name in Regenerate.model_fields if name in kind.model_fields}
    values = {**shared, "source": str(typed["from_metadata"])}
    if SETTINGS in typed:
        values |= {"file_settings": text_forms.with_words(kind, {}, typed).get("file")}
    return task_of(Regenerate, values)
