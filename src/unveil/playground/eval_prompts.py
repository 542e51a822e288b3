"""Evaluation prompts of the playground with their ground truth, and the videos that they describe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from unveil.errors import RecipeError, did_you_mean
from unveil.playground.dataset import Playground, PlaygroundConfig
from unveil.playground.scenes import uniforms
from unveil.playground.world import caption_templates
from unveil.playground.world.caption_templates import CaptionStyle, Facts, Language
from unveil.types import Item

PromptSet = Literal["validation", "seen", "held-out"]
_SETS = get_args(PromptSet)
_ENOUGH = 40  # candidate videos per prompt: one of ten is held out


class EvalPrompt(NamedTuple):
    """An evaluation prompt and the attributes that it states: "colour", "shape", "motion" and others.

    `video_index` is the index of the video that the prompt describes; see `eval_videos`.
    """

    text: str
    caption_style: CaptionStyle
    attributes: Facts
    video_index: int


def eval_prompts(
    prompt_set: PromptSet, *, language: Language = "en", count: int = 500, frames: int = 16
) -> list[EvalPrompt]:
    """Return the prompts of a set: the three styles in turn, uniform over the attributes, always the same.

    "validation" serves to choose a model; "seen" and "held-out" serve only for evaluation. The first two contain only
    combinations of colour, shape and motion that occur in training, the last only others. Raw texts are complete and
    without errors.

    Args:
        prompt_set: Name of the set.
        language: Language of the prompts.
        count: Number of prompts.
        frames: Number of frames, 16, or 1 for image prompts, which state no motion and therefore hold nothing out.

    Raises:
        RecipeError: The set does not exist, or is "held-out" for images.
    """
    if prompt_set == "held-out" and frames == 1:
        raise RecipeError("list 'held-out': holds out colours, shapes and motions together, and images do not move")
    prompts = list[EvalPrompt]()
    world = _source_of(prompt_set, _ENOUGH * count, frames)
    draws = uniforms(world.config.seed, np.arange(count, dtype=np.uint64), caption_templates.DRAWS).tolist()
    for begin in range(0, len(world), count):
        for number, item in enumerate(world.annotations(range(begin, begin + count)), begin):
            if item["unseen"] == (prompt_set == "held-out") and len(prompts) < count:
                register = caption_templates.REGISTERS[len(prompts) % len(caption_templates.REGISTERS)]
                prompts.append(_prompt(item, number, register, language, draws[len(prompts)]))
        if len(prompts) == count:
            break
    return prompts


def dataset_prompts(world: Playground, count: int, registers: Sequence[CaptionStyle]) -> list[EvalPrompt]:
    """Return prompts of the first videos of a one-object data set, in the given styles in turn.

    Raw texts have no errors. The language is the first one of the data set. Prompts of cropped videos describe the
    whole ones.

    Raises:
        RecipeError: The data set has other scenes, or fewer videos.
    """
    if world.config.scenes != ("objects",) or count > len(world):
        raise RecipeError(f"{count} prompts of {len(world)} videos of {', '.join(world.config.scenes)}: give objects")
    draws = uniforms(world.config.seed, np.arange(count, dtype=np.uint64), caption_templates.DRAWS).tolist()
    language = world.config.languages[0]
    return [
        _prompt(item, number, registers[number % len(registers)], language, draws[number])
        for number, item in enumerate(world.annotations(range(count)))
    ]


def _prompt(
    item: Item, number: int, register: CaptionStyle, language: Language, draws: caption_templates.Draws
) -> EvalPrompt:
    """Return the prompt of a video's item, without errors."""
    caption = caption_templates.write_caption(item["attributes"], register, language, draws, faults=0)
    return EvalPrompt(caption.text, register, caption.facts["objects"][0], number)


def eval_videos(prompt_set: PromptSet, prompts: Sequence[EvalPrompt], *, frames: int = 16) -> list[Item]:
    """Return the real videos that the prompts of a set describe, the output of a perfect model.

    Raises:
        RecipeError: The set does not exist.
    """
    numbers = [prompt.video_index for prompt in prompts]
    return _source_of(prompt_set, max(numbers, default=0) + 1, frames).__getitems__(numbers)


def _source_of(prompt_set: PromptSet, count: int, frames: int) -> Playground:
    """Return the data set that a prompt set is taken from."""
    if prompt_set not in _SETS:
        raise RecipeError(f"list {prompt_set!r}: must be one of {', '.join(_SETS)}{did_you_mean(prompt_set, _SETS)}")
    seed = _SETS.index(prompt_set) + 1
    return Playground(PlaygroundConfig(seed=seed, num_val=count, frames=(frames,)), "held-out")
