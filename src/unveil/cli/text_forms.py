"""The text forms of values, which only the command line knows: FILE:WEIGHT, FILE=IMAGE:WEIGHT:START-STOP, KEY=VALUE.

Some values have several options, such as --image and --image-frame of a keyframe.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic.fields import FieldInfo

from unveil.cli.foreign_names import SETTING_ALIASES, SETTING_OPTIONS
from unveil.errors import DataError, RecipeError, did_you_mean
from unveil.tasks.fields import PLAYGROUND, PerFrame
from unveil.tasks.task import WORDS, Task

PROMPT = "prompt"
_SETTING = re.compile(r"[A-Za-z_][\w.]*=")
_NUMBERS = re.compile(r"(?P<rest>.+?)(?::(?P<weight>-?[\d.]+)(?::(?P<start>[\d.]+)-(?P<stop>[\d.]+))?)?")
_SIZE = re.compile(r"(\d+)x(\d+)")
_SPAN = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*")
_SCENE = re.compile(r"\s*(\d+\s*-\s*\d+)[\s:]+(.*\S)\s*", re.DOTALL)
_SCENE_FORM = 'frames as FIRST-LAST, and words, such as "0-15 a red circle moves left"'


def read_lora(text: str) -> dict[str, Any]:
    """The values of FILE or FILE:WEIGHT."""
    path, colon, weight = text.rpartition(":")
    try:
        return {"file": path, "weight": float(weight)} if colon and path else {"file": text}
    except ValueError:
        return {"file": text}


def read_controlnet(text: str) -> dict[str, Any]:
    """The values of [FILE=]IMAGE[:WEIGHT[:START-STOP]].

    Where names contain an equals sign themselves, the one counts that follows an existing path; a text that is the
    path of a file is the image alone.

    Raises:
        RecipeError: Nothing before or after the equals sign, or numbers that are none.
    """
    found = _NUMBERS.fullmatch(text)
    if found is None:
        raise RecipeError(
            "--controlnet: is written FILE=IMAGE[:WEIGHT[:START-STOP]], such as edges=control.png:0.8:0-0.5"
        )
    rest = found["rest"]
    try:
        numbers = {name: float(found[name]) for name in ("weight", "start", "stop") if found[name] is not None}
    except ValueError:
        raise RecipeError(f"--controlnet {text!r}: weight, start and stop are numbers, such as :0.8:0-0.5") from None
    cuts = [place for place, letter in enumerate(rest) if letter == "="]
    if not cuts or Path(rest).is_file():
        return {"image": rest, **numbers}
    cut = next((place for place in cuts if place and Path(rest[:place]).exists()), cuts[0])
    if not rest[:cut] or not rest[cut + 1 :]:
        raise RecipeError(f"--controlnet {text!r}: is written FILE=IMAGE, or IMAGE alone for a ControlNet's own run")
    return {"network": rest[:cut], "image": rest[cut + 1 :], **numbers}


def read_number(text: str) -> int | float | str:
    """The number that a text is, or the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def read_assignments(texts: Sequence[str], option: str) -> dict[str, list[Any]]:
    """The values of KEY=VALUE texts by key.

    Raises:
        RecipeError: Not KEY=VALUE.
    """
    values: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise RecipeError(f"{option} {text!r}: is written KEY=VALUE, such as {option} label=3")
        values.setdefault(key, []).append(value if key == PROMPT else read_number(value))
    return values


def read_size(text: str | None) -> dict[str, int]:
    """Width and height of WIDTHxHEIGHT.

    Raises:
        RecipeError: Not of that form.
    """
    if text is None:
        return {}
    found = _SIZE.fullmatch(text)
    if found is None:
        raise RecipeError(f"--size {text!r}: is written WIDTHxHEIGHT in pixels, such as --size 96x64")
    return {"width": int(found[1]), "height": int(found[2])}


def read_prompt_file(path: str) -> list[dict[str, Any]]:
    """The values of the lines of a prompt file."""
    from unveil.data.prompts import read_prompts

    return [{**vars(line), "file": path} for line in read_prompts(path)]


def read_numbers(text: str, option: str) -> list[float]:
    """The numbers of a text with commas.

    Raises:
        RecipeError: Not numbers.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(f"{option} {text!r}: is a number, or several with commas, such as 0,0.8") from None


def read_keyframes(typed: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The values of --image and --image-frame.

    Raises:
        RecipeError: Not one frame index for each image.
    """
    images, places = list(typed.get("image") or ()), list(typed.get("image_frame") or ())
    if not images and not places:
        return None
    places = places or [0]
    if len(places) != len(images):
        raise RecipeError(
            f"--image: {len(images)} images but {len(places)} frame indices; give one --image-frame for each, such as "
            "--image-frame 0"
        )
    return [{"image": str(image), "frame": place} for image, place in zip(images, places, strict=True)]


def read_scenes(typed: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The scenes of a file, or those of --scene, each "0-15 words".

    The file is YAML or JSON: a list of {frames: 0-15, prompt: ...}, or a map that has it under `scenes`.

    Raises:
        RecipeError: Neither or both given, or a scene that cannot be read.
        DataError: No such file.
    """
    from unveil.model.config import read_yaml

    file, texts = typed.get("scenes"), list(typed.get("scene") or ())
    if typed.get("from_metadata"):
        return None
    if (file is None) == (not texts):
        raise RecipeError(f"a storyboard is a file, or --scene repeated: {_SCENE_FORM}")
    if file is None:
        return [_typed_scene(text) for text in texts]
    try:
        content: Any = read_yaml(Path(file).read_text("utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{file}: {getattr(problem, 'strerror', None) or problem}") from problem
    scenes = content.get("scenes") if isinstance(content, dict) else content
    if not isinstance(scenes, list) or not scenes:
        raise RecipeError(f"{file}: holds no list of scenes; each has frames: 0-15 and a prompt")
    return [_written_scene(scene, f"{file}: scene {number}") for number, scene in enumerate(scenes, 1)]


def _written_scene(scene: Any, where: str) -> dict[str, Any]:
    if not isinstance(scene, dict) or set(scene) != {"frames", "prompt"} or not isinstance(scene["prompt"], str):
        raise RecipeError(f"{where}: {scene!r}; needs frames: 0-15 and a prompt, and nothing else")
    return _scene(str(scene["frames"]), scene["prompt"], where)


def _typed_scene(text: str) -> dict[str, Any]:
    parts = _SCENE.fullmatch(text)
    if parts is None:
        raise RecipeError(f"--scene {text!r}: needs {_SCENE_FORM}")
    return _scene(parts[1], parts[2], f"--scene {text!r}")


def _scene(span: str, prompt: str, where: str) -> dict[str, Any]:
    frames = _SPAN.fullmatch(span)
    if frames is None:
        raise RecipeError(f"{where}: frames {span!r}; written FIRST-LAST, such as 0-15")
    return {"first": int(frames[1]), "last": int(frames[2]), "prompt": prompt}


class SeveralOptions(NamedTuple):
    """Options that together are the values of one field.

    Attributes:
        options: Type, flag and help of each option, by its name.
        read: The values of the field, of what was typed; None where nothing was.
    """

    options: Mapping[str, tuple[Any, str, str]]
    read: Callable[[Mapping[str, Any]], list[dict[str, Any]] | None]


# Fields of several options, by the name of a value's type
SEVERAL: dict[str, SeveralOptions] = {
    "Keyframe": SeveralOptions(
        {
            "image": (list[str], "--image", "Image that is a frame of the video; repeat for several."),
            "image_frame": (
                list[int],
                "--image-frame",
                "Frame index of each image, from 0, or below 0 from the end; 0 when left out.",
            ),
        },
        read_keyframes,
    ),
    "Scene": SeveralOptions(
        {
            "scene": (
                list[str],
                "--scene",
                'Scene as frames and a prompt, such as "0-15 a red circle moves left"; repeat for several.',
            )
        },
        read_scenes,
    ),
}
# The text forms by the name of a value's type; each option of one may be repeated
FORMS: dict[str, Callable[[str], dict[str, Any]]] = {"Lora": read_lora, "ControlNet": read_controlnet}
# The same for files that contain all values of a field
FILE_FORMS: dict[str, Callable[[str], list[dict[str, Any]]]] = {"PromptLine": read_prompt_file}


def _form_in(forms: Mapping[str, Any], field: FieldInfo) -> Any:
    return next((forms[name] for inner in get_args(field.annotation) if (name := _name(inner)) in forms), None)


def _name(kind: Any) -> str:
    return str(getattr(kind, "__name__", ""))


def _is_map(field: FieldInfo) -> bool:
    return getattr(field.annotation, "__origin__", None) is dict


def several_options(field: FieldInfo) -> SeveralOptions | None:
    """The options of a field that has several; None for others."""
    return _form_in(SEVERAL, field)


def _is_per_frame(field: FieldInfo) -> bool:
    return any(isinstance(mark, PerFrame) for mark in field.metadata)


def option_type(field: FieldInfo) -> Any:
    """The type of the option of a field with a text form; None for others."""
    if _is_per_frame(field):
        return str
    if _form_in(FILE_FORMS, field) is not None:
        return Path
    return list[str] if _form_in(FORMS, field) is not None or _is_map(field) else None


def read(field: FieldInfo, name: str, value: Any) -> Any:
    """The plain value of a field, of what was typed."""
    form, of_file = _form_in(FORMS, field), _form_in(FILE_FORMS, field)
    if of_file is not None and isinstance(value, Path):
        return of_file(str(value))
    if form is not None and isinstance(value, list):
        return [form(text) if isinstance(text, str) else text for text in value]
    if _is_map(field) and isinstance(value, list):
        return read_assignments(value, f"--{name.replace('_', '-')}")
    if _is_per_frame(field) and isinstance(value, str):
        return read_numbers(value, f"--{name.replace('_', '-')}")
    return str(value) if isinstance(value, Path) else value


# ------------------------------------------------------------------------------------------ KEY=VALUE and the prompt


def with_words(kind: type[Task], values: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a task with those of the words behind its arguments.

    A word KEY=VALUE is a sampling setting, any other a prompt. A prompt may stand in the place of the model, which is
    then the bundled one.

    Raises:
        RecipeError: A setting that is unknown; the message names the option or the nearest setting.
    """
    values, words = dict(values), list(typed.get("settings") or ())
    model = values.get("model")
    if kind.arguments[:2] == ("model", WORDS):
        conditions = typed.get("cond") or ()
        if model is None and (typed.get(PROMPT) or any(text.startswith(f"{PROMPT}=") for text in conditions)):
            values["model"] = PLAYGROUND
        elif model is not None and not is_model_name(model):
            values["model"], words = PLAYGROUND, [model, *words]
    prompts = [word for word in words if not _SETTING.match(word)]
    if prompts:
        values[PROMPT] = [*prompts, *values.get(PROMPT, ())]
    if (given := dict(values.get("cond") or {})).get(PROMPT):
        values[PROMPT] = [*values.get(PROMPT, ()), *given.pop(PROMPT)]
        values["cond"] = given
    if given.get("label"):
        values["label"] = [*values.get("label", ()), *given.pop("label")]
        values["cond"] = given
    for name, value in sampling_of(words).items():
        if name in ("file", "classifier"):
            values["file" if name == "file" else "classifier_file"] = value
        elif name in kind.model_fields:
            values.setdefault(name, value)
        else:
            values.setdefault("sampling", {})[name] = value
    return values


def is_model_name(text: str) -> bool:
    """Whether a text can name a model: something of this name exists, or it is one word of ASCII characters."""
    return os.path.exists(text) or (text.isascii() and " " not in text.strip())


def sampling_of(words: Sequence[str]) -> dict[str, Any]:
    """The sampling settings of KEY=VALUE texts; other texts are passed over.

    Raises:
        RecipeError: A setting that cannot be read.
    """
    from unveil.model.config import override

    values: dict[str, Any] = {}
    for word in filter(_SETTING.match, words):
        key, _, value = word.partition("=")
        override(values, f"{setting_name(key, value)}={value}")
    return values


def setting_name(name: str, value: str = "") -> str:
    """The name of a sampling setting, of its name on the command line or in another program.

    Args:
        name: As typed.
        value: Its value: `guidance=3` is a guidance scale, `guidance=apg` is a kind of guidance.

    Raises:
        RecipeError: It is no setting but an option; the message names it.
    """
    from unveil.model.config import SampleConfig

    first, dot, rest = name.partition(".")
    if dot and first in ("options", "file", "classifier"):
        return name
    names = SampleConfig.names()
    if first == "guidance" and not isinstance(read_number(value), str):
        first = "guidance_scale"
    today = SETTING_ALIASES.get(first, first)
    if today in names or first in names:
        return (today if today in names else first) + dot + rest
    if first in SETTING_OPTIONS:
        option = SETTING_OPTIONS[first]
        raise RecipeError(f"{name}={value}: is no sampling setting but an option: {option} {value}")
    raise RecipeError(
        f"{name}: is not a sampling setting{did_you_mean(first, names)}; "
        "conditions of the model are given by --cond KEY=VALUE"
    )
