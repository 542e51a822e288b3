"""What is asked of which model, as typed on a command line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from unveil.checkpoints.guidance_classifier import load_guide
from unveil.cli.foreign_names import SETTING_ALIASES, SETTING_OPTIONS
from unveil.cli.lora import parse_lora
from unveil.cli.options import PLAYGROUND
from unveil.conditioning.image import ConcatCondition
from unveil.data.low_res import LOW
from unveil.errors import RecipeError, did_you_mean
from unveil.generation import controlnets as controls
from unveil.generation import loras
from unveil.generation.generate import DTYPES, PROMPT, ClassifierGuidance, Request, Source
from unveil.generation.inpaint import MASK, MASKED
from unveil.generation.model_loading import device as pick
from unveil.generation.model_loading import open_model
from unveil.generation.single_frame import as_image_model
from unveil.generation.size import is_video_model
from unveil.io.console import Console
from unveil.model import Model
from unveil.model.config import SampleConfig, override

MEDIA = {"pictures": "images", "clips": "videos"}
SHOWN = {"inpaint": (MASK, MASKED), "outpaint": (MASK, MASKED), "upscale": (LOW,)}  # what a verb gives a network
_SETTING = re.compile(r"[A-Za-z_][\w.]*=")
# Names of settings on the command line, and what `SampleConfig` calls them
_FORMER_SETTINGS = {
    "schedule": "grid",
    "threshold": "clip",
    "guidance_scale": "scale",
    "guidance_kind": "guidance",
    "guidance_schedule": "schedule",
    "guidance_interval": "interval",
    "guidance_rescale": "rescale",
    "guidance_channels": "channels",
}


class ModelLoader(Protocol):
    """What opens a model for a command, such as `opened`, or one that keeps what it has opened."""

    def __call__(
        self,
        wish: GenerationOptions,
        name: str,
        console: Console,
        *,
        shown: Sequence[str] = (),
        makes: Literal["pictures", "clips"] = "pictures",
    ) -> tuple[Model, Source]:
        """As `opened`."""
        ...


def model_and_settings(model: str | None, words: Sequence[str] | None, cond: Sequence[str] = ()) -> dict[str, Any]:
    """The options `model` and `settings`: what cannot be a model's name is a prompt for the bundled model.

    A name is one word of ASCII characters, or there is something of this name. Without one, a prompt among the
    conditions is for the bundled model too.
    """
    if model is None and any(one.startswith(f"{PROMPT}=") for one in cond):
        return {"model": PLAYGROUND, "settings": words}
    if model is None or os.path.exists(model) or (model.isascii() and " " not in model.strip()):
        return {"model": model, "settings": words}
    return {"model": PLAYGROUND, "settings": [model, *(words or ())]}


@dataclass(frozen=True)
class GenerationOptions:
    """What is asked of which model, as typed."""

    model: str | None = None
    labels: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    count: int | None = None
    seed: int | tuple[int, ...] = 0
    first: int = 0
    batch: int = 64
    device: str = "auto"
    dtype: str = "float32"
    classifier: Path | None = None
    classifier_scale: float = 1.0
    compiled: bool = False
    negative: tuple[str, ...] = ()
    size: str | None = None
    words: tuple[str, ...] = ()  # settings as KEY=VALUE, and a prompt
    loras: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    control_mode: str = "balanced"

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> GenerationOptions:
        """The wish of a command's options, by their names; what a command does not have is as it is by default."""
        lists = {"label": "labels", "cond": "given", "negative_cond": "negative", "settings": "words"}
        lists |= {"lora": "loras", "control": "controls"}
        found: dict[str, Any] = {to: tuple(options.get(name) or ()) for name, to in lists.items()}
        found["negative"] = (
            tuple(f"{PROMPT}={text}" for text in options.get("negative_prompt") or ()) + found["negative"]
        )
        seeds: Sequence[int] = options.get("seed") or (0,)
        found["seed"] = seeds[0] if len(seeds) == 1 else tuple(seeds)
        plain = {one.name for one in fields(cls)} - found.keys()
        return cls(**found, **{name: value for name, value in options.items() if name in plain})

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed that was given."""
        return (self.seed,) if isinstance(self.seed, int) else self.seed

    @property
    def prompts(self) -> list[str]:
        """Every prompt that was typed."""
        return [word for word in self.words if not _SETTING.match(word)]

    def conditions(self, model: Model) -> dict[str, list[Any]]:
        """What was given, by key.

        Raises:
            RecipeError: not KEY=VALUE, or a prompt for a model that takes none.
        """
        prompts = self.prompts
        if prompts:
            check_takes_prompt(model, repr(prompts[0]))
        given: dict[str, list[Any]] = {"label": list(self.labels)} if self.labels else {}
        if prompts:
            given[PROMPT] = prompts
        conditions = assigned(self.given, "--cond", given)
        if PROMPT in conditions:
            check_takes_prompt(model, repr(conditions[PROMPT][0]))
        return conditions

    def avoided(self, model: Model) -> dict[str, list[Any]]:
        """What is gone away from, by key; what is no KEY=VALUE is a prompt, for models that take one.

        Raises:
            RecipeError: not KEY=VALUE, for another model.
        """
        prompts = [word for word in self.negative if PROMPT in model.conditioners and not _SETTING.match(word)]
        others = [word for word in self.negative if word not in prompts]
        conditions = assigned(others, "--negative-cond", {PROMPT: list(prompts)} if prompts else {})
        if PROMPT in conditions:
            check_takes_prompt(model, "--negative-prompt")
        return conditions

    def request(self, model: Model, changes: Mapping[str, Any], count: int) -> Request:
        """The request for so many pictures.

        Args:
            model: that is asked.
            changes: of the settings of sampling.
            count: of pictures.
        """
        changes = {name: value for name, value in changes.items() if name != "file"}
        guided = self.guided(model, changes.pop("classifier", None))
        return Request(
            self.conditions(model), self.seed, self.first, count, self.batch, changes, self.dtype, guided,
            self.compiled, self.avoided(model), self.sized(),
        )  # fmt: skip

    def number(self, model: Model) -> int:
        """How many pictures are meant: as said, or one for each seed or value of a condition."""
        if self.count is not None:
            return self.count
        return max([1, len(self.seeds), *map(len, self.conditions(model).values())])

    def sized(self) -> tuple[int, int] | None:
        """Height and width, where they were given.

        Raises:
            RecipeError: not WIDTHxHEIGHT.
        """
        if self.size is None:
            return None
        found = re.fullmatch(r"(\d+)x(\d+)", self.size)
        if found is None:
            raise RecipeError(f"--size {self.size!r}: is written WIDTHxHEIGHT in pixels, such as --size 96x64")
        return int(found[2]), int(found[1])

    def guided(self, model: Model, said: Mapping[str, Any] | None = None) -> ClassifierGuidance | None:
        """Guidance by the classifier that was named."""
        if self.classifier is None:
            return None
        guide = load_guide(self.classifier, model.process, said)
        guide.network.to(model.device)
        return ClassifierGuidance(guide, self.classifier_scale)


def opened(
    wish: GenerationOptions,
    name: str,
    console: Console,
    *,
    shown: Sequence[str] = (),
    recorded: Mapping[str, Any] | None = None,
    places: Sequence[Path] = (),
    makes: Literal["pictures", "clips"] = "pictures",
) -> tuple[Model, Source]:
    """The model of a wish with its LoRAs and ControlNets, ready to draw pictures or clips.

    A model of clips draws pictures as clips of one frame.

    Args:
        wish: what is asked.
        name: of the model, or its place.
        shown: keys of the pictures that the command gives the network.
        console: what says how it goes.
        recorded: the record of a picture that is drawn again; it says what is shown and which LoRAs and ControlNets
            there are.
        places: files and folders where the pictures of a record may lie.
        makes: what is asked of it.

    Raises:
        RecipeError: a model that has to be shown other pictures, or whose samples are none.
    """
    typed = wish.dtype if recorded is None else str(recorded.get("dtype", wish.dtype))  # text encoders read in it, too
    dtype = DTYPES.get(typed, torch.float32)  # another one is refused by the request
    said = changes(wish.words, {}).get("file")  # what a published file does not say itself
    model, source = open_model(name, pick(wish.device), said, dtype)
    pictures = [key for key, one in model.conditioners.items() if isinstance(one, ConcatCondition)]
    if recorded is None and (missing := [key for key in pictures if key not in shown]):
        verbs = " or ".join(f"`unveil {verb}`" for verb, keys in SHOWN.items() if missing[0] in keys)
        raise RecipeError(
            f"this model takes an image as the condition {missing[0]!r}, which cannot be typed; "
            + (f"use {verbs}" if verbs else "use it from Python: unveil.load(...).generate(cond=...)")
        )
    if ((len(model.shape) != 3 or makes == "clips") and not is_video_model(model)) or model.shape[0] not in (1, 3):
        raise RecipeError(
            f"this model generates samples of shape {model.shape}, which are no {MEDIA[makes]}; "
            "use it from Python: unveil.load(...).generate(...)"
        )
    wanted = [parse_lora(one) for one in wish.loras]
    loras.put_on(
        model, source, wanted if recorded is None else loras.again(recorded.get("loras") or [], wanted), console
    )
    steered, mode = [controls.parse_controlnet(one) for one in wish.controls], wish.control_mode
    if recorded is not None:
        steered, mode = controls.again(recorded, steered, model, places)
    controls.put_on(model, steered, mode, console)
    model = as_image_model(model) if makes == "pictures" and is_video_model(model) else model
    return model.to_inference_dtype(dtype), source


def changes(words: Sequence[str], named: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of sampling: those typed as KEY=VALUE, and those given by options, which win. A prompt is no setting.

    Raises:
        RecipeError: a setting that cannot be read.
    """
    typed: dict[str, Any] = {}
    for word in words:
        if _SETTING.match(word):
            key, _, value = word.partition("=")
            override(typed, f"{setting_name(key, value)}={value}")
    return typed | {setting_name(name): value for name, value in named.items() if value is not None}


def setting_name(typed: str, value: str = "") -> str:
    """The name of a sampling setting in `SampleConfig`, of its name on the command line or in another program.

    Args:
        value: that is set; `guidance=3` is a guidance scale, `guidance=apg` is a kind of guidance.

    Raises:
        RecipeError: it is no setting but an option; the message names it.
    """
    name, dot, rest = typed.partition(".")
    if dot and name in ("options", "file", "classifier"):
        return typed
    names = SampleConfig.names()
    if name == "guidance" and _value(value) != value:
        name = "guidance_scale"
    today = SETTING_ALIASES.get(name, name)
    if today in _FORMER_SETTINGS and "grid" in names:
        return _FORMER_SETTINGS[today] + dot + rest
    if today in names or name in names:
        return (today if today in names else name) + dot + rest
    if name in SETTING_OPTIONS:
        option = SETTING_OPTIONS[name]
        raise RecipeError(f"{typed}={value}: is no sampling setting but an option: {option} {value}")
    known = [*_FORMER_SETTINGS, *(one for one in names if one not in _FORMER_SETTINGS.values())]
    raise RecipeError(
        f"{typed}: is not a sampling setting{did_you_mean(name, known)}; "
        "conditions of the model are given by --cond KEY=VALUE"
    )


def check_takes_prompt(model: Model, what: str) -> None:
    """Refuses a prompt for a model that takes none.

    Args:
        what: was given.

    Raises:
        RecipeError: the model takes no prompt; the message says what it takes.
    """
    if PROMPT not in model.conditioners:
        raise RecipeError(f"{what}: this model takes no prompt, only: {', '.join(model.conditioners) or 'nothing'}")


def assigned(assignments: Sequence[str], option: str, before: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Conditions typed as KEY=VALUE, behind those that are there already.

    Raises:
        RecipeError: not KEY=VALUE.
    """
    given = dict(before)
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise RecipeError(f"{option} {assignment!r}: is written KEY=VALUE, such as {option} label=3")
        given[key] = [*given.get(key, []), value if key == PROMPT else _value(value)]
    return given


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
