"""Opening a model for generation: with its LoRAs and ControlNets, on its device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from unveil.conditioning.image import ConcatCondition
from unveil.data.low_res import LOW
from unveil.errors import RecipeError
from unveil.generation import controlnets, loras
from unveil.generation.controlnets import ControlNetOption
from unveil.generation.generate import DTYPES, PROMPT, Source
from unveil.generation.inpaint import MASK, MASKED
from unveil.generation.loras import LoraOption
from unveil.generation.model_loading import device, open_model
from unveil.generation.single_frame import as_image_model
from unveil.io.console import Console
from unveil.model import Model
from unveil.model.shapes import is_video_model

Media = Literal["images", "videos"]
# Conditions that are images, which a task gives to networks that were trained with them
SHOWN: Mapping[str, tuple[str, ...]] = {"inpaint": (MASK, MASKED), "outpaint": (MASK, MASKED), "upscale": (LOW,)}


@dataclass(frozen=True)
class ModelOptions:
    """A model, its adapters, its device and its number format.

    Attributes:
        name: Bundled model, folder or weights file.
        file: What a weights file does not state itself, by the names of `checkpoints.overrides.ModelOverrides`.
    """

    name: str
    device: str = "auto"
    dtype: str = "float32"
    loras: tuple[LoraOption, ...] = ()
    controlnets: tuple[ControlNetOption, ...] = ()
    control_mode: str = "balanced"
    file: Mapping[str, Any] = field(default_factory=dict)


def open_for_generation(
    options: ModelOptions,
    console: Console,
    *,
    shown: Sequence[str] = (),
    recorded: Mapping[str, Any] | None = None,
    places: Sequence[Path] = (),
    media: Media = "images",
) -> tuple[Model, Source]:
    """The model of some options with its LoRAs and ControlNets, ready to generate images or videos.

    A video model generates images as videos of one frame.

    Args:
        options: Model, adapters, device and number format.
        console: Shows what was matched.
        shown: Keys of the images that the task gives the network as conditions.
        recorded: Metadata of a file that is generated again; they state the adapters.
        places: Files and folders where the control images of the metadata may lie.
        media: What the task generates.

    Raises:
        RecipeError: The model needs other images as conditions, or its samples are not of this medium.
    """
    named = options.dtype if recorded is None else str(recorded.get("dtype", options.dtype))
    dtype = DTYPES.get(named, torch.float32)  # text encoders compute in it too; the request refuses another one
    model, source = open_model(options.name, device(options.device), options.file or None, dtype)
    conditions = [key for key, value in model.conditioners.items() if isinstance(value, ConcatCondition)]
    if recorded is None and (missing := [key for key in conditions if key not in shown]):
        tasks = " or ".join(f"`unveil {task}`" for task, keys in SHOWN.items() if missing[0] in keys)
        raise RecipeError(
            f"this model takes an image as the condition {missing[0]!r}, which cannot be typed; "
            + (f"use {tasks}" if tasks else "use it from Python: unveil.load(...).generate(cond=...)")
        )
    of_images = len(model.shape) == 3 and media == "images"
    if not (of_images or is_video_model(model)) or model.shape[0] not in (1, 3):
        raise RecipeError(
            f"this model generates samples of shape {model.shape}, which are no {media}; "
            "use it from Python: unveil.load(...).generate(...)"
        )
    adapters = options.loras if recorded is None else loras.again(recorded.get("loras") or [], options.loras)
    loras.put_on(model, source, adapters, console)
    controls, mode = options.controlnets, options.control_mode
    if recorded is not None:
        controls, mode = controlnets.again(recorded, controls, model, places)
    controlnets.put_on(model, controls, mode, console)
    model = as_image_model(model) if media == "images" and is_video_model(model) else model
    return model.to_inference_dtype(dtype), source


def check_takes_prompt(model: Model, what: str) -> None:
    """Refuse a prompt for a model that takes none.

    Args:
        what: What was given.

    Raises:
        RecipeError: The model takes no prompt; the message says what it takes.
    """
    if PROMPT not in model.conditioners:
        raise RecipeError(f"{what}: this model takes no prompt, only: {', '.join(model.conditioners) or 'nothing'}")
