"""What models of the playground are asked for: prompts that are said of its clips, and these clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from unveil.playground.dataset import Playground, PlaygroundConfig
from unveil.playground.scenes import uniforms
from unveil.playground.world import caption_templates
from unveil.playground.world.caption_templates import Facts, Language, Register
from unveil.types import Item, RecipeError, did_you_mean

Asked = Literal["validation", "seen", "held-out"]
_ASKED = get_args(Asked)
_ENOUGH = 40  # clips looked at for each prompt: one of ten is held out


class Prompt(NamedTuple):
    """What a model is asked for, and what the text says of the one thing: "colour", "shape", "motion" and others.

    number: of the clip that it is said of, see `score_clips`.
    """

    text: str
    register: Register
    thing: Facts
    number: int


def score_prompts(asked: Asked, *, language: Language = "en", count: int = 500, frames: int = 16) -> list[Prompt]:
    """Prompts of the score world in the three registers in turn, uniform over what it has; always the same.

    "validation" is for choosing a model; "seen" and "held-out" are for its score alone. The first two have only
    combinations of colour, shape and motion that training has, the last only others. Raw texts are complete and right.

    Args:
        frames: 16, or 1 for prompts of pictures, which say no motion and so hold no combination out.

    Raises:
        RecipeError: another list, or the last one of pictures.
    """
    if asked == "held-out" and frames == 1:
        raise RecipeError("list 'held-out': holds out colours, shapes and motions together, and pictures do not move")
    found = list[Prompt]()
    world = _asked_of(asked, _ENOUGH * count, frames)
    draws = uniforms(world.config.seed, np.arange(count, dtype=np.uint64), caption_templates.DRAWS).tolist()
    for begin in range(0, len(world), count):
        for number, item in enumerate(world.told(range(begin, begin + count)), begin):
            if item["unseen"] == (asked == "held-out") and len(found) < count:
                register = caption_templates.REGISTERS[len(found) % len(caption_templates.REGISTERS)]
                found.append(_prompt(item, number, register, language, draws[len(found)]))
        if len(found) == count:
            break
    return found


def prompts(world: Playground, count: int, registers: Sequence[Register]) -> list[Prompt]:
    """What the first clips of a world of one thing show, said in some registers in turn; raw texts complete and right.

    In the first language of the world; of clips that are cut, what the whole ones show.

    Raises:
        RecipeError: a world of other scenes, or of fewer clips.
    """
    if world.config.scenes != ("objects",) or count > len(world):
        raise RecipeError(f"{count} prompts of {len(world)} clips of {', '.join(world.config.scenes)}: give objects")
    draws = uniforms(world.config.seed, np.arange(count, dtype=np.uint64), caption_templates.DRAWS).tolist()
    language = world.config.languages[0]
    return [
        _prompt(item, number, registers[number % len(registers)], language, draws[number])
        for number, item in enumerate(world.told(range(count)))
    ]


def _prompt(item: Item, number: int, register: Register, language: Language, draws: caption_templates.Draws) -> Prompt:
    """What a clip's item shows, said without a fault."""
    told = caption_templates.tell(item["attributes"], register, language, draws, faults=0)
    return Prompt(told.text, register, told.said["objects"][0], number)


def score_clips(asked: Asked, prompts: Sequence[Prompt], *, frames: int = 16) -> list[Item]:
    """The clips of the world that prompts of a list are said of, what a model that makes no fault might make of them.

    Raises:
        RecipeError: another list.
    """
    numbers = [prompt.number for prompt in prompts]
    return _asked_of(asked, max(numbers, default=0) + 1, frames).__getitems__(numbers)


def _asked_of(asked: Asked, count: int, frames: int) -> Playground:
    """The world that a list of prompts is taken from."""
    if asked not in _ASKED:
        raise RecipeError(f"list {asked!r}: must be one of {', '.join(_ASKED)}{did_you_mean(asked, _ASKED)}")
    seed = _ASKED.index(asked) + 1
    return Playground(PlaygroundConfig(seed=seed, num_val=count, frames=(frames,)), "held-out")
