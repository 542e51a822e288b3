"""A family of diffusers' pipelines as one record: the names of its classes, what reads its folders, and its tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from unveil.checkpoints.hf.pipeline_folder import PipelineFolder
from unveil.checkpoints.hf.weights import KeyMatchReport
from unveil.model import Model

PipelineTask = Literal["sample", "img2img", "inpaint", "lora", "train"]
TASKS: tuple[PipelineTask, ...] = ("sample", "img2img", "inpaint", "lora", "train")
IMAGE_TASKS: tuple[PipelineTask, ...] = ("sample", "img2img", "inpaint", "lora")


@dataclass(frozen=True, kw_only=True)
class PipelineFamily:
    """Pipelines of diffusers whose folders have the same parts.

    Attributes:
        name: Name of the models, for a person.
        pipelines: Names of the classes, as in `_class_name` of model_index.json. Classes for images, inpainting and
            ControlNets have the parts of the family; a ControlNet in the folder is not read, but given as an option.
        load: Build the model of a folder, its matrices in a type.
        tasks: What its models do; a test runs each.
        networks: Components whose class is a network of diffusers.
        video: Its models generate videos.
        native: Its models consist of parts of this package, so that they are saved, converted and trained.
        report: Compare the weights of a folder with its settings; None: networks of diffusers, see `pipelines.report`.
    """

    name: str
    pipelines: tuple[str, ...]
    load: Callable[[PipelineFolder, torch.dtype], Model]
    tasks: tuple[PipelineTask, ...]
    networks: tuple[str, ...] = ("transformer",)
    video: bool = False
    native: bool = False
    report: Callable[[PipelineFolder], dict[str, KeyMatchReport]] | None = None
