"""Every task by its name, made of plain settings and inputs: the same way the first time and from a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from unveil.errors import DataError, RecipeError, did_you_mean
from unveil.generation.img2img import from_latents, img2img
from unveil.generation.inpaint import Padding, RePaintConfig, inpaint, outpaint
from unveil.generation.inputs import MASK, NOISE, PICTURE
from unveil.generation.task_spec import TaskSpec
from unveil.generation.upscale import upscale
from unveil.generation.variations import interpolate, seed_variations
from unveil.model import Model

Settings = Mapping[str, Any]
Inputs = Mapping[str, Tensor]  # by role, (N, ...): pictures and masks uint8, noise float32
WHITE = 128  # from here on a mask's pixel belongs to the hole


def make_task(verb: str, model: Model, settings: Settings, inputs: Inputs) -> TaskSpec:
    """The edit of a name.

    Args:
        verb: a key of `VERBS`.
        model: that draws it.
        settings: by the names of the verb's own arguments.
        inputs: what it works on.

    Raises:
        RecipeError: another name, or settings that cannot work.
    """
    if verb == "large":
        raise RecipeError("pictures made in several passes are not repeated from their record; ask for them again")
    if verb not in VERBS:
        raise RecipeError(f"task {verb!r}: must be one of {', '.join(VERBS)}{did_you_mean(verb, [*VERBS])}")
    return VERBS[verb](model, settings, inputs)


def task_from_metadata(model: Model, facts: Mapping[str, Any], inputs: Inputs) -> TaskSpec:
    """The edit of a record, for the whole batch that it tells of.

    Raises:
        MediaError: the record lacks something.
    """
    task = facts["task"]
    try:
        return make_task(str(task["verb"]), model, task, inputs)
    except (KeyError, TypeError, AttributeError, IndexError) as problem:
        raise DataError(f"the picture's record lacks {problem}; it was not written by this program") from problem


def _img2img(model: Model, settings: Settings, inputs: Inputs) -> TaskSpec:
    return img2img(model, inputs[PICTURE], strength=float(settings["strength"]))


def _noise(model: Model, settings: Settings, inputs: Inputs) -> TaskSpec:
    del model, settings
    return from_latents(inputs[NOISE])


def _inpaint(model: Model, settings: Settings, inputs: Inputs) -> TaskSpec:
    return inpaint(
        model,
        inputs[PICTURE],
        inputs[MASK] >= WHITE,
        strength=float(settings["strength"]),
        feather=int(settings["feather"]),
        method=settings["method"],
        jumps=RePaintConfig(*map(int, settings["jumps"])),
    )


def _outpaint(model: Model, settings: Settings, inputs: Inputs) -> TaskSpec:
    return outpaint(
        model,
        inputs[PICTURE],
        Padding(*map(int, settings["margins"])),
        feather=int(settings["feather"]),
        method=settings["method"],
        jumps=RePaintConfig(*map(int, settings["jumps"])),
    )


def _vary(model: Model, settings: Settings, inputs: Inputs) -> TaskSpec:
    del model, inputs
    seed, number = map(int, settings["of"])
    return seed_variations((seed, number), amount=float(settings["amount"]))


def _interpolate(model: Model, settings: Settings, inputs: Inputs) -> TaskSpec:
    del inputs
    first, last = ((int(seed), int(number)) for seed, number in settings["ends"])
    return interpolate(model, (first, last), frames=int(settings["frames"]), to=settings["to"])


def _upscale(model: Model, settings: Settings, inputs: Inputs) -> TaskSpec:
    return upscale(
        model,
        inputs[PICTURE],
        factor=int(settings["factor"]),
        size=settings.get("size"),
        strength=float(settings["strength"]),
        overlap=float(settings["overlap"]),
        reach=int(settings.get("reach", 1)),
        faithful=bool(settings.get("faithful", False)),
    )


VERBS: dict[str, Callable[[Model, Settings, Inputs], TaskSpec]] = {
    "img2img": _img2img,
    "inpaint": _inpaint,
    "outpaint": _outpaint,
    "vary": _vary,
    "interpolate": _interpolate,
    "upscale": _upscale,
    "noise": _noise,
}
