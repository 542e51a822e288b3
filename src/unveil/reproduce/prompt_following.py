"""Arms that make small clips from words: trained on pictures first, then on clips, and how well they follow the words.

Colours, places and shapes are learned of single pictures, at an eighth of the price; motion is learned of clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.analysis.video_study import ignore_truncated_prompts
from unveil.evaluate.judges.video_alignment import PROMPT_ATTRIBUTES, detect, matches_prompt
from unveil.io.images import to_pixels
from unveil.playground.eval_prompts import EvalPrompt, dataset_prompts
from unveil.playground.world.caption_templates import Register
from unveil.reproduce.experiment import Curve, ExperimentContext, ImageSheet
from unveil.reproduce.training_history import RecipeVariant, held_out_videos, prompts_of

RECIPE = "playground-small"
WORLD = (
    "the playground, 16 x 16, 8 frames at 8 a second: one of five shapes in one of eight colours that stays or goes "
    "left, right, up or down; a tenth of the combinations is held out from training and asked for"
)
PICTURES = "'data.frames=[1]' 'shape=[3, 16, 16]' train.batch_size=128 train.steps=500"
QUICK_PICTURES = "'data.frames=[1]' 'shape=[3, 16, 16]' train.steps=2"
CLIPS, QUICK_CLIPS = "train.steps=600", "train.steps=3"
TRAINED = (
    f"The recipe `{RECIPE}` in float32: 500 steps of 128 pictures, then 600 of 32 clips. Samples by 8 Euler steps with "
    "guidance 2.5 for the texts of held-out clips, a tenth of them combinations that training never has; the detector "
    "reads them back. "
)
QUICK_READ = 24  # clips, which take longer to read than to make
SHOWN = 4  # clips of each arm on a sheet
MISSED = "share of colours, shapes and motions that clips do not show as their text says"


def arm_of(
    bench: ExperimentContext, changes: str = "", clips: str = "", *, pictures: tuple[str, str] | None = None
) -> RecipeVariant:
    """An arm that is trained on pictures, and goes on with clips.

    Args:
        changes: of both trainings. clips: of that on clips alone.
        pictures: changes of that on pictures alone, in full and in the quick form.
    """
    first = bench.scale.pick(*(pictures or (PICTURES, QUICK_PICTURES)))
    before = RecipeVariant(RECIPE, f"{changes} {first}".strip())
    return RecipeVariant(RECIPE, f"{changes} {clips}".strip(), after=before)


def attribute_error(prompts: Sequence[EvalPrompt], clips: Tensor) -> float:
    """The share of what prompts say of colour, shape and motion that clips uint8 (N, 3, T, H, W) do not show."""
    hits = [matches_prompt(prompt, detect(clip)) for prompt, clip in zip(prompts, clips, strict=True)]
    return 1 - sum(hit[name] for hit in hits for name in PROMPT_ATTRIBUTES) / (len(PROMPT_ATTRIBUTES) * len(hits))


ASKED_IN = {
    "plain": "in its own register, without guidance",
    "guided": "in its own register, with guidance",
    "short": "in short texts, without guidance",
}


class PromptFollowingScores(NamedTuple):
    """What clips of an arm miss, by how it was asked, see `ASKED_IN`, and the first clips, without guidance."""

    plain: float
    guided: float
    short: float
    shown: Tensor


class PromptFollowingCurve(NamedTuple):
    """The training of an arm at its points: what its clips miss, and its loss; shown are first clips of the last."""

    steps: list[int]
    missed: list[float]
    loss: list[float]
    shown: Tensor


def prompt_following_curve(bench: ExperimentContext, arm: RecipeVariant, seed: int) -> PromptFollowingCurve:
    """The training of this seed, its samples read."""
    course = bench.course(arm, seed)
    count = _read(bench)
    prompts = prompts_of(arm.read(bench.scale.quick), count)
    found = [attribute_error(prompts, clips[:count]) for clips in course.pixels]
    return PromptFollowingCurve(course.steps, found, course.losses, course.pixels[-1][:SHOWN])


def _read(bench: ExperimentContext) -> int:
    """How many clips of each arm are read."""
    return bench.scale.pick(bench.scale.pictures, min(bench.scale.pictures, QUICK_READ))


def strips(name: str, caption: str, rows: Sequence[Tensor]) -> ImageSheet:
    """Clips (N, 3, T, H, W) of each arm, every clip a row of its frames."""
    clips = torch.cat(list(rows))
    return ImageSheet(name, caption, clips.transpose(1, 2).flatten(0, 1), clips.shape[2])


def score_prompts_of(
    bench: ExperimentContext, arm: RecipeVariant, seed: int, register: Register
) -> PromptFollowingScores:
    """What clips of this seed miss of what held-out clips show, asked in a register and in short texts."""
    course, count = bench.course(arm, seed), _read(bench)
    world = held_out_videos(arm.read(bench.scale.quick))
    own, short = (dataset_prompts(world, count, [one]) for one in (register, "short"))

    def draw(asked: Sequence[EvalPrompt], scale: float | None = 1.0) -> Tensor:
        with ignore_truncated_prompts():
            raw = {"prompt": [one.text for one in asked]}
            return to_pixels(course.model.generate(cond=raw, count=count, seed=seed, guidance_scale=scale))

    plain = draw(own)
    return PromptFollowingScores(
        attribute_error(own, plain),
        attribute_error(own, draw(own, None)),
        attribute_error(short, draw(short)),
        plain[:SHOWN],
    )


def by_prompt_style(found: Mapping[str, Sequence[PromptFollowingScores]]) -> Curve:
    """What the arms miss, by how they were asked."""
    ways = "; ".join(f"{number}: {words}" for number, words in enumerate(ASKED_IN.values()))
    lines = {name: [[getattr(one, field) for field in ASKED_IN] for one in drawn] for name, drawn in found.items()}
    return Curve(f"asked {ways}", MISSED, list(range(len(ASKED_IN))), lines)


def part(drawn: Sequence[PromptFollowingScores], field: str) -> list[float]:
    """What clips of every seed miss, asked in one way."""
    return [getattr(one, field) for one in drawn]
