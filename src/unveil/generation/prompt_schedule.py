"""Prompt schedules: a prompt for each span of a video's frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.conditioning.batching import build_conditions
from unveil.core import guidance
from unveil.core.samplers.loop import SamplingRun
from unveil.errors import RecipeError
from unveil.generation.generate import select_list
from unveil.model import RunTransform
from unveil.types import Condition


class ScheduledPrompt(NamedTuple):
    """The frames `start` to `stop` - 1 of a video, and their prompt."""

    start: int
    stop: int
    prompt: str


def check_scenes(scenes: Sequence[ScheduledPrompt], frames: int) -> tuple[ScheduledPrompt, ...]:
    """Return the scenes if they cover a video in order.

    Raises:
        RecipeError: A gap, an overlap, an empty span or prompt, or an end that is not the video's.
    """
    end = 0
    for number, scene in enumerate(scenes):
        if scene.start != end or scene.stop <= scene.start:
            raise RecipeError(
                f"scene {number + 1} from frame {scene.start} to {scene.stop}: must begin at {end}, where the one "
                "before it ends, and end later"
            )
        if not scene.prompt.strip():
            raise RecipeError(f"scene {number + 1}: an empty prompt; describe the scene")
        end = scene.stop
    if end != frames:
        raise RecipeError(f"the scenes end at frame {end}, the video at {frames}: make the last one end there")
    return tuple(scenes)


def prompt_weights(scenes: Sequence[ScheduledPrompt], start: int, stop: int, fade: int = 0) -> Tensor:
    """Return the weight of each scene's prompt in frames `start` to `stop` - 1: (K, stop - start), columns sum to 1.

    Args:
        scenes: The K scenes.
        start, stop: Range of frames.
        fade: Number of frames, centred at the cut, over which one prompt fades into the next.
    """
    middle = torch.arange(start, stop, dtype=torch.float64) + 0.5
    begun = [torch.ones_like(middle)]
    for scene in scenes[1:]:
        along = (middle - scene.start) / fade + 0.5 if fade else (middle >= scene.start).double()
        begun.append(along.clamp(0, 1))
    begun.append(torch.zeros_like(middle))
    return torch.stack([now - after for now, after in pairwise(begun)])


def prompt_schedule(texts: Sequence[Mapping[str, Sequence[Any]]], weights: Tensor) -> RunTransform:
    """Return a change of runs: the estimate is, frame by frame, the weighted mean of those for several prompts.

    Args:
        texts: K conditions by key, each with one value for all videos, or one each.
        weights: (K, T), weight of each in each frame; columns sum to 1.

    Source: the composition of Liu et al. 2022, eq. 11 (arXiv:2206.01714), with weights that differ between frames.
    """

    def change(run: SamplingRun, rows: slice) -> SamplingRun:
        places = None if run.condition is None else run.condition.positions
        values_of_rows = [{key: select_list(values, rows) for key, values in text.items()} for text in texts]
        encoded = (build_conditions(run.conditioners, text, len(run))[0] for text in values_of_rows)
        steps = [run.make_guided_denoiser(_at(condition, places), run.null) for condition in encoded]
        shares = [share.view(1, 1, -1, 1, 1) for share in _at_latents(weights, run.shape[1])[1:]]
        return replace(run, denoiser=guidance.composed(steps[0], steps[1:], shares))

    return change


def _at(condition: Condition | None, places: Tensor | None) -> Condition | None:
    return condition if condition is None or places is None else replace(condition, positions=places)


def _at_latents(weights: Tensor, frames: int) -> Tensor:
    """Return the weights (K, F) of latents, those of the frame in the middle of each, from weights (K, T) of frames."""
    count = weights.shape[1]
    if count == frames:
        return weights
    return weights[:, torch.linspace(0, count - 1, frames).round().long()]
