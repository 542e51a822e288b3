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
from unveil.playground.world.caption_templates import CaptionStyle
from unveil.reproduce.experiment import Curve, ExperimentContext, ImageSheet
from unveil.reproduce.training_history import RecipeVariant, held_out_videos, prompts_of

RECIPE = "playground-small"
WORLD = (
    "the playground, 16 x 16, 8 frames at 8 a second: one of five shapes in one of eight colours that stays or goes "
    "left, right, up or down; a tenth of the combinations is held out from training and asked for"
)
IMAGE_TRAINING = "'data.frames=[1]' 'shape=[3, 16, 16]' train.batch_size=128 train.steps=500"
QUICK_IMAGE_TRAINING = "'data.frames=[1]' 'shape=[3, 16, 16]' train.steps=2"
VIDEO_TRAINING, QUICK_VIDEO_TRAINING = "train.steps=600", "train.steps=3"
METHOD = (
    f"The recipe `{RECIPE}` in float32: 500 steps of 128 pictures, then 600 of 32 clips. Samples by 8 Euler steps with "
    "guidance 2.5 for the texts of held-out clips, a tenth of them combinations that training never has; the detector "
    "reads them back. "
)
QUICK_READ = 24  # clips, which take longer to read than to make
PREVIEW_COUNT = 4  # clips of each arm on a sheet
ATTRIBUTE_ERROR = "share of colours, shapes and motions that clips do not show as their text says"


def two_stage_variant(
    context: ExperimentContext, changes: str = "", clips: str = "", *, images: tuple[str, str] | None = None
) -> RecipeVariant:
    """An arm that is trained on pictures, and goes on with clips.

    Args:
        changes: of both trainings. clips: of that on clips alone.
        pictures: changes of that on pictures alone, in full and in the quick form.
    """
    first = context.scale.pick(*(images or (IMAGE_TRAINING, QUICK_IMAGE_TRAINING)))
    before = RecipeVariant(RECIPE, f"{changes} {first}".strip())
    return RecipeVariant(RECIPE, f"{changes} {clips}".strip(), after=before)


def attribute_error(prompts: Sequence[EvalPrompt], clips: Tensor) -> float:
    """The share of what prompts say of colour, shape and motion that clips uint8 (N, 3, T, H, W) do not show."""
    hits = [matches_prompt(prompt, detect(clip)) for prompt, clip in zip(prompts, clips, strict=True)]
    return 1 - sum(hit[name] for hit in hits for name in PROMPT_ATTRIBUTES) / (len(PROMPT_ATTRIBUTES) * len(hits))


PROMPT_STYLES = {
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
    attribute_errors: list[float]
    loss: list[float]
    shown: Tensor


def prompt_following_curve(context: ExperimentContext, variant: RecipeVariant, seed: int) -> PromptFollowingCurve:
    """The training of this seed, its samples read."""
    history = context.training_history(variant, seed)
    count = _read(context)
    prompts = prompts_of(variant.recipe_config(context.scale.quick), count)
    found = [attribute_error(prompts, clips[:count]) for clips in history.pixels]
    return PromptFollowingCurve(history.steps, found, history.losses, history.pixels[-1][:PREVIEW_COUNT])


def _read(context: ExperimentContext) -> int:
    """How many clips of each arm are read."""
    return context.scale.pick(context.scale.samples, min(context.scale.samples, QUICK_READ))


def frame_sheet(name: str, caption: str, rows: Sequence[Tensor]) -> ImageSheet:
    """Clips (N, 3, T, H, W) of each arm, every clip a row of its frames."""
    clips = torch.cat(list(rows))
    return ImageSheet(name, caption, clips.transpose(1, 2).flatten(0, 1), clips.shape[2])


def score_prompts_of(
    context: ExperimentContext, variant: RecipeVariant, seed: int, register: CaptionStyle
) -> PromptFollowingScores:
    """What clips of this seed miss of what held-out clips show, asked in a register and in short texts."""
    history, count = context.training_history(variant, seed), _read(context)
    world = held_out_videos(variant.recipe_config(context.scale.quick))
    own, short = (dataset_prompts(world, count, [one]) for one in (register, "short"))

    def draw(prompts: Sequence[EvalPrompt], scale: float | None = 1.0) -> Tensor:
        with ignore_truncated_prompts():
            raw = {"prompt": [one.text for one in prompts]}
            return to_pixels(history.model.generate(cond=raw, count=count, seed=seed, guidance_scale=scale))

    plain = draw(own)
    return PromptFollowingScores(
        attribute_error(own, plain),
        attribute_error(own, draw(own, None)),
        attribute_error(short, draw(short)),
        plain[:PREVIEW_COUNT],
    )


def prompt_style_curve(found: Mapping[str, Sequence[PromptFollowingScores]]) -> Curve:
    """What the arms miss, by how they were asked."""
    ways = "; ".join(f"{number}: {words}" for number, words in enumerate(PROMPT_STYLES.values()))
    lines = {name: [[getattr(one, field) for field in PROMPT_STYLES] for one in drawn] for name, drawn in found.items()}
    return Curve(f"asked {ways}", ATTRIBUTE_ERROR, list(range(len(PROMPT_STYLES))), lines)


def part(drawn: Sequence[PromptFollowingScores], field: str) -> list[float]:
    """What clips of every seed miss, asked in one way."""
    return [getattr(one, field) for one in drawn]
