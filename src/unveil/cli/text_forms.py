"""Text forms of values on the command line: FILE:WEIGHT, FILE=IMAGE:WEIGHT:START-STOP, KEY=VALUE.

No other interface uses them. Some fields have several options, such as --image and --image-frame of a keyframe.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple, get_args

from pydantic.fields import FieldInfo

from unveil.cli.foreign_names import RECIPE_KEYS, SETTING_ALIASES, SETTING_OPTIONS
from unveil.errors import DataError, RecipeError, did_you_mean
from unveil.tasks.fields import IMAGE_SUFFIXES, PLAYGROUND, FileFacts, NumberList, RecipeKeys, SamplingKeys
from unveil.tasks.task import WORDS, Task, find_mark

PROMPT = "prompt"
_SETTING = re.compile(r"[A-Za-z_][\w.]*=")
_NUMBERS = re.compile(r"(?P<rest>.+?)(?::(?P<weight>-?[\d.]+)(?::(?P<start>[\d.]+)-(?P<stop>[\d.]+))?)?")
_SIZE = re.compile(r"(\d+)x(\d+)")
_VIDEO_SIZE = re.compile(r"(\d+)x(\d+)x(\d+)")
_SPAN = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*")
_SCENE = re.compile(r"\s*(\d+\s*-\s*\d+)[\s:]+(.*\S)\s*", re.DOTALL)
_SCENE_FORM = 'frames as FIRST-LAST and a prompt, such as "0-15 a red circle moves left"'


def read_lora(text: str) -> dict[str, Any]:
    """Return the values of FILE or FILE:WEIGHT."""
    path, colon, weight = text.rpartition(":")
    try:
        return {"file": path, "weight": float(weight)} if colon and path else {"file": text}
    except ValueError:
        return {"file": text}


def read_controlnet(text: str) -> dict[str, Any]:
    """Return the values of [FILE=]IMAGE[:WEIGHT[:START-STOP]].

    If names contain equals signs, the network's name ends at the first one that follows an existing path. The path of
    an existing file is an image without a network.

    Raises:
        RecipeError: The text has another form, or its numbers cannot be read.
    """
    match = _NUMBERS.fullmatch(text)
    if match is None:
        raise RecipeError(
            "--controlnet: is written FILE=IMAGE[:WEIGHT[:START-STOP]], such as edges=control.png:0.8:0-0.5"
        )
    rest = match["rest"]
    try:
        numbers = {name: float(match[name]) for name in ("weight", "start", "stop") if match[name] is not None}
    except ValueError:
        raise RecipeError(f"--controlnet {text!r}: weight, start and stop are numbers, such as :0.8:0-0.5") from None
    cuts = [index for index, letter in enumerate(rest) if letter == "="]
    if not cuts or Path(rest).is_file():
        return {"image": rest, **numbers}
    cut = next((index for index in cuts if index and Path(rest[:index]).exists()), cuts[0])
    if not rest[:cut] or not rest[cut + 1 :]:
        raise RecipeError(
            f"--controlnet {text!r}: is written FILE=IMAGE, or only IMAGE if the model is the run of a ControlNet"
        )
    return {"network": rest[:cut], "image": rest[cut + 1 :], **numbers}


def read_number(text: str) -> int | float | str:
    """Return the number that a text contains, or the text if it is not a number."""
    for number_type in (int, float):
        try:
            return number_type(text)
        except ValueError:
            continue
    return text


def read_assignments(texts: Sequence[str], option: str) -> dict[str, list[Any]]:
    """Return the values of KEY=VALUE texts by key.

    Raises:
        RecipeError: A text is not of the form KEY=VALUE.
    """
    values: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise RecipeError(f"{option} {text!r}: is written KEY=VALUE, such as {option} label=3")
        values.setdefault(key, []).append(value if key == PROMPT else read_number(value))
    return values


def read_size(text: str | None) -> dict[str, int]:
    """Return width and height of WIDTHxHEIGHT.

    Raises:
        RecipeError: The text has another form.
    """
    if text is None:
        return {}
    match = _SIZE.fullmatch(text)
    if match is None:
        raise RecipeError(f"--size {text!r}: is written WIDTHxHEIGHT in pixels, such as --size 96x64")
    return {"width": int(match[1]), "height": int(match[2])}


def read_video_size(text: str) -> dict[str, int]:
    """Return the values of WIDTHxHEIGHTxFRAMES.

    Raises:
        RecipeError: The text has another form.
    """
    match = _VIDEO_SIZE.fullmatch(text)
    if match is None:
        raise RecipeError(f"--size {text!r}: is written WIDTHxHEIGHTxFRAMES, such as --size 48x24x16")
    return {"width": int(match[1]), "height": int(match[2]), "frames": int(match[3])}


def read_network_sizes(text: str) -> list[dict[str, int]]:
    """Return the values of a comma-separated text such as 3x48,6x96.

    Raises:
        RecipeError: A part of the text has another form.
    """
    matches = [_SIZE.fullmatch(part.strip()) for part in text.split(",")]
    if not all(matches):
        raise RecipeError(f"--sizes {text!r}: are written BLOCKSxWIDTH, separated by commas, such as 3x48,6x96,8x144")
    return [{"depth": int(match[1]), "width": int(match[2])} for match in matches if match]


def read_prompt_file(path: str) -> list[dict[str, Any]]:
    """Return the values of the lines of a prompt file."""
    from unveil.data.prompts import read_prompts

    return [{**vars(line), "file": path} for line in read_prompts(path)]


def read_numbers(text: str, option: str) -> list[float]:
    """Return the numbers of a comma-separated text.

    Raises:
        RecipeError: A part of the text is not a number.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(f"{option} {text!r}: must be numbers separated by commas, such as 0,0.8") from None


def read_changes(texts: Sequence[str]) -> dict[str, Any]:
    """The changes of a recipe by their keys, of texts such as train.steps=100.

    Raises:
        RecipeError: Not KEY=VALUE, or a value that is not YAML.
    """
    from unveil.model.config import read_assignment

    return dict(read_assignment(recipe_key(text)) for text in texts)


def read_file_facts(texts: Sequence[str]) -> dict[str, Any]:
    """The facts of a weights file by their keys, of texts such as file.heads=8.

    Raises:
        RecipeError: A text is not of the form file.KEY=VALUE.
    """
    for text in texts:
        if not text.startswith("file.") or "=" not in text:
            raise RecipeError(f"{text!r}: is written file.KEY=VALUE, such as file.heads=8")
    return dict(sampling_of(texts).get("file", {}))


def read_sampling(texts: Sequence[str], option: str) -> dict[str, Any]:
    """Return sampling settings by name, of texts such as steps=24.

    Raises:
        RecipeError: A text is not of the form KEY=VALUE, or no setting has this name.
    """
    for text in texts:
        if not _SETTING.match(text):
            raise RecipeError(f"{option} {text!r}: is written KEY=VALUE, such as {option} steps=24")
    return sampling_of(texts)


def recipe_key(text: str) -> str:
    """Return a change of a recipe with a key of another program replaced by that of recipes."""
    from unveil.model.config import Recipe

    key, equals, value = text.partition("=")
    for candidate in RECIPE_KEYS.get(key.replace("-", "_"), ()):
        section, _, name = candidate.partition(".")
        settings = getattr(Recipe.model_fields[section].annotation, "model_fields", None)
        if settings is None or name in settings:
            return f"{candidate}{equals}{value}"
    return text


def read_keyframes(typed: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the keyframes of --image and --image-frame.

    Raises:
        RecipeError: The number of frame indices is not that of the images.
    """
    images, frames = list(typed.get("image") or ()), list(typed.get("image_frame") or ())
    if not images and not frames:
        return None
    frames = frames or [0]
    if len(frames) != len(images):
        raise RecipeError(
            f"--image: {len(images)} images but {len(frames)} frame indices; give one --image-frame for each, such as "
            "--image-frame 0"
        )
    return [{"image": str(image), "frame": frame} for image, frame in zip(images, frames, strict=True)]


def read_scenes(typed: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the scenes of a file, or those of --scene, each written "0-15 PROMPT".

    The file is YAML or JSON: a list of {frames: 0-15, prompt: ...}, or a map with that list under the key `scenes`.

    Raises:
        RecipeError: There is neither a file nor --scene, or there are both; or a scene cannot be read.
        DataError: The file cannot be read.
    """
    from unveil.model.config import read_yaml

    file, texts = typed.get("scenes"), list(typed.get("scene") or ())
    if typed.get("from_metadata"):
        return None
    if (file is None) == (not texts):
        raise RecipeError(f"a storyboard is a file, or one --scene for each scene: {_SCENE_FORM}")
    if file is None:
        return [_scene_of_option(text) for text in texts]
    try:
        content: Any = read_yaml(Path(file).read_text("utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{file}: {getattr(problem, 'strerror', None) or problem}") from problem
    scenes = content.get("scenes") if isinstance(content, dict) else content
    if not isinstance(scenes, list) or not scenes:
        raise RecipeError(f"{file}: contains no list of scenes; each scene has frames: 0-15 and a prompt")
    return [_scene_of_file(scene, f"{file}: scene {number}") for number, scene in enumerate(scenes, 1)]


def _scene_of_file(scene: Any, where: str) -> dict[str, Any]:
    if not isinstance(scene, dict) or set(scene) != {"frames", "prompt"} or not isinstance(scene["prompt"], str):
        raise RecipeError(f"{where}: {scene!r}; a scene has frames: 0-15 and a prompt, and nothing else")
    return _scene(str(scene["frames"]), scene["prompt"], where)


def _scene_of_option(text: str) -> dict[str, Any]:
    parts = _SCENE.fullmatch(text)
    if parts is None:
        raise RecipeError(f"--scene {text!r}: needs {_SCENE_FORM}")
    return _scene(parts[1], parts[2], f"--scene {text!r}")


def _scene(span: str, prompt: str, where: str) -> dict[str, Any]:
    frames = _SPAN.fullmatch(span)
    if frames is None:
        raise RecipeError(f"{where}: frames {span!r}: are written FIRST-LAST, such as 0-15")
    return {"first": int(frames[1]), "last": int(frames[2]), "prompt": prompt}


class CompoundField(NamedTuple):
    """Options that together give the values of one field.

    Attributes:
        options: Type, flag and help of each option by its name.
        read: Function that returns the values of the field, or None if none of the options was typed.
    """

    options: Mapping[str, tuple[Any, str, str]]
    read: Callable[[Mapping[str, Any]], list[dict[str, Any]] | None]


# Fields with several options, by the name of the type of their values
COMPOUND_FIELDS: dict[str, CompoundField] = {
    "Keyframe": CompoundField(
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
    "Scene": CompoundField(
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
# Text forms by the name of the type of a value; the options of such fields may be repeated
TEXT_FORMS: dict[str, Callable[[str], dict[str, Any]]] = {
    "Lora": read_lora,
    "ControlNet": read_controlnet,
    "VideoSize": read_video_size,
}
# Text forms of all values of a field in one text, by the name of the type of a value
LIST_FORMS: dict[str, Callable[[str], list[dict[str, Any]]]] = {"NetworkSize": read_network_sizes}
# Files that contain all values of a field, by the name of the type of a value
FILE_FORMS: dict[str, Callable[[str], list[dict[str, Any]]]] = {"PromptLine": read_prompt_file}


def _form_in(forms: Mapping[str, Any], field: FieldInfo) -> Any:
    names = [getattr(inner, "__name__", "") for inner in get_args(field.annotation)]
    return next((forms[name] for name in names if name in forms), None)


def _is_map(field: FieldInfo) -> bool:
    return getattr(field.annotation, "__origin__", None) is dict


def compound_field(field: FieldInfo) -> CompoundField | None:
    """Return the options of a field that has several; None for other fields."""
    return _form_in(COMPOUND_FIELDS, field)


def _is_number_list(field: FieldInfo) -> bool:
    return any(isinstance(mark, NumberList) for mark in field.metadata)


def option_type(field: FieldInfo) -> Any:
    """Return the type of the option of a field with a text form; None for other fields."""
    if _is_number_list(field) or _form_in(LIST_FORMS, field) is not None:
        return str
    if _form_in(FILE_FORMS, field) is not None:
        return Path
    return list[str] if _form_in(TEXT_FORMS, field) is not None or _is_map(field) else None


def default_text(field: FieldInfo) -> str | None:
    """Return the default of a field whose values are one text on the command line, as that text; None without one."""
    in_one_text = _is_number_list(field) or _form_in(LIST_FORMS, field) is not None
    if not in_one_text or not field.default:
        return None
    return ",".join(
        f"{value:g}" if isinstance(value, int | float) else "x".join(map(str, value.model_dump().values()))
        for value in field.default
    )


def read_value(field: FieldInfo, name: str, value: Any) -> Any:
    """Return the value of a field from the value of its option.

    Args:
        field: Field of the task.
        name: Name of the field, for errors.
        value: Value of the option as typer returns it.
    """
    form, read_file = _form_in(TEXT_FORMS, field), _form_in(FILE_FORMS, field)
    read_list, option = _form_in(LIST_FORMS, field), f"--{name.replace('_', '-')}"
    if read_file is not None and isinstance(value, Path):
        return read_file(str(value))
    if form is not None and isinstance(value, list):
        return [form(text) if isinstance(text, str) else text for text in value]
    if find_mark(field, RecipeKeys) is not None and isinstance(value, list):
        return read_changes(value)
    if find_mark(field, FileFacts) is not None and isinstance(value, list):
        return read_file_facts(value)
    if find_mark(field, SamplingKeys) is not None and isinstance(value, list):
        return read_sampling(value, "--set")
    if _is_map(field) and isinstance(value, list):
        return read_assignments(value, option)
    if _is_number_list(field) and isinstance(value, str):
        return read_numbers(value, option)
    if read_list is not None and isinstance(value, str):
        return read_list(value)
    return str(value) if isinstance(value, Path) else value


# ------------------------------------------------------------------------------------------ KEY=VALUE and the prompt


def merge_settings(task_class: type[Task], values: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a task together with its positional settings and prompts.

    KEY=VALUE is a sampling setting, the name of an image file an end of an interpolation, any other text a prompt. A
    prompt may be written in the place of the model; the model is then the bundled one.

    Args:
        task_class: Class of the task.
        values: Values of the fields.
        typed: Values of options and arguments by name.

    Raises:
        RecipeError: A setting is unknown; the message names the option or the nearest setting.
    """
    values, words = dict(values), list(typed.get("settings") or ())
    model = values.get("model")
    if task_class.arguments[:2] == ("model", WORDS):
        conditions = typed.get("cond") or ()
        if model is None and (typed.get(PROMPT) or any(text.startswith(f"{PROMPT}=") for text in conditions)):
            values["model"] = PLAYGROUND
        if model is not None and is_prompt(model) and not os.path.exists(model):
            values["model"], words = PLAYGROUND, [model, *words]
    ends = [name for name in ("first", "last") if name in task_class.model_fields and name not in task_class.arguments]
    if ends:  # image files between which the task works
        files = [word for word in words if PurePath(word).suffix.lower() in IMAGE_SUFFIXES]
        if len(files) > len(ends):
            raise RecipeError(f"{', '.join(files)}: are {len(files)} images; give two, the first and the last")
        values |= dict(zip(ends, files, strict=False))
        words = [word for word in words if word not in files]
    prompts = [word for word in words if not _SETTING.match(word)]
    if prompts:
        values[PROMPT] = [*prompts, *values.get(PROMPT, ())]
    cond = dict(values.get("cond") or {})
    moved = {key: cond.pop(key) for key in (PROMPT, "label") if cond.get(key)}  # conditions that have a field
    if moved:
        values |= {key: [*values.get(key, ()), *items] for key, items in moved.items()} | {"cond": cond}
    for name, value in sampling_of(words).items():
        if name in ("file", "classifier"):
            values["file" if name == "file" else "classifier_file"] = value
        elif name in task_class.model_fields:
            values.setdefault(name, value)
        else:
            values.setdefault("sampling", {})[name] = value
    return values


def is_prompt(text: str) -> bool:
    """Return True if a text in the place of a model is a prompt or a setting; the empty text is a prompt."""
    return not text or bool(_SETTING.match(text)) or not is_model_name(text)


def is_model_name(text: str) -> bool:
    """Return True if a text can name a model: such a path exists, or the text is one word of ASCII characters."""
    return os.path.exists(text) or (text.isascii() and " " not in text.strip())


def sampling_of(words: Sequence[str]) -> dict[str, Any]:
    """Return the sampling settings of KEY=VALUE texts; other texts are ignored.

    Raises:
        RecipeError: A setting cannot be read.
    """
    from unveil.model.config import override

    values: dict[str, Any] = {}
    for word in filter(_SETTING.match, words):
        key, _, value = word.partition("=")
        override(values, f"{setting_name(key, value)}={value}")
    return values


def setting_name(name: str, value: str = "") -> str:
    """Return the current name of a sampling setting.

    Args:
        name: Name as typed: the current one, a former one, or that of another program.
        value: Value of the setting: `guidance=3` is a guidance scale, `guidance=apg` is a kind of guidance.

    Raises:
        RecipeError: The setting does not exist; the message names the option that is meant, or the nearest setting.
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
        raise RecipeError(f"{name}={value}: is an option, not a sampling setting: {option} {value}")
    raise RecipeError(
        f"{name}: is not a sampling setting{did_you_mean(first, names)}; "
        "conditions of the model are given by --cond KEY=VALUE"
    )
