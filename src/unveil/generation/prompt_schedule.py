"""Text that changes in the course of a clip: a prompt for each span of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.conditioning.batching import build_conditions
from unveil.core import guidance
from unveil.core.sampling_run import SamplingRun
from unveil.errors import RecipeError
from unveil.generation.task_spec import select_list
from unveil.model import RunTransform
from unveil.types import Condition


class Scene(NamedTuple):
    """A span of a clip, from one frame to the one before another, and what is to be seen there."""

    start: int
    stop: int
    prompt: str


def check_scenes(scenes: Sequence[Scene], frames: int) -> tuple[Scene, ...]:
    """Scenes in order that cover a clip.

    Raises:
        RecipeError: a gap, an overlap, an empty span or prompt, or an end that is not the clip's.
    """
    end = 0
    for number, scene in enumerate(scenes):
        if scene.start != end or scene.stop <= scene.start:
            raise RecipeError(
                f"scene {number + 1} from frame {scene.start} to {scene.stop}: must begin at {end}, where the one "
                "before it ends, and end later"
            )
        if not scene.prompt.strip():
            raise RecipeError(f"scene {number + 1}: an empty prompt; say what is to be seen")
        end = scene.stop
    if end != frames:
        raise RecipeError(f"the scenes end at frame {end}, the clip at {frames}: make the last one end there")
    return tuple(scenes)


def prompt_weights(scenes: Sequence[Scene], start: int, stop: int, fade: int = 0) -> Tensor:
    """How much each scene's text counts in each frame from start to stop: (K, stop - start), columns add up to 1.

    Args:
        fade: frames, centred where one scene follows the other, over which the text goes from one to the next.
    """
    middle = torch.arange(start, stop, dtype=torch.float64) + 0.5
    begun = [torch.ones_like(middle)]
    for scene in scenes[1:]:
        along = (middle - scene.start) / fade + 0.5 if fade else (middle >= scene.start).double()
        begun.append(along.clamp(0, 1))
    begun.append(torch.zeros_like(middle))
    return torch.stack([now - after for now, after in pairwise(begun)])


def prompt_schedule(texts: Sequence[Mapping[str, Sequence[Any]]], weights: Tensor) -> RunTransform:
    """A course whose estimate is, frame by frame, the mean of those for several texts.

    Args:
        texts: conditions by key, each with one value for all clips, or one each; K of them.
        weights: (K, T), of each in each frame; columns add up to 1.

    Source: the composition of Liu et al. 2022, eq. 11 (arXiv:2206.01714), with weights that differ between frames.
    """

    def change(course: SamplingRun, rows: slice) -> SamplingRun:
        places = None if course.condition is None else course.condition.places
        own = [{key: select_list(values, rows) for key, values in text.items()} for text in texts]
        told = [_at(build_conditions(course.conditioners, text, len(course))[0], places) for text in own]
        steps = [course.guided(one, course.null) for one in told]
        shared = _at_latents(weights, course.shape[1])
        each = [one.view(1, 1, -1, 1, 1) for one in shared[1:]]
        return replace(course, step=guidance.composed(steps[0], steps[1:], each))

    return change


def _at(condition: Condition | None, places: Tensor | None) -> Condition | None:
    return condition if condition is None or places is None else replace(condition, places=places)


def _at_latents(weights: Tensor, frames: int) -> Tensor:
    """Weights (K, T) of frames as those of latents (K, F): of the frame in the middle of each."""
    count = weights.shape[1]
    if count == frames:
        return weights
    return weights[:, torch.linspace(0, count - 1, frames).round().long()]
