"""Prompt following of small text-to-video models, which are trained on images first and on videos afterwards.

The model learns colours, positions and shapes from images, at an eighth of the cost, and motion from videos.
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
    "the playground, 16 x 16, 8 frames at 8 a second: one of five shapes in one of eight colours that is still or "
    "moves left, right, up or down; a tenth of the combinations is held out from training and is in the prompts"
)
IMAGE_TRAINING = "'data.frames=[1]' 'shape=[3, 16, 16]' train.batch_size=128 train.steps=500"
QUICK_IMAGE_TRAINING = "'data.frames=[1]' 'shape=[3, 16, 16]' train.steps=2"
VIDEO_TRAINING, QUICK_VIDEO_TRAINING = "train.steps=600", "train.steps=3"
METHOD = (
    f"The recipe `{RECIPE}` in float32: 500 steps of 128 images, then 600 steps of 32 videos. Samples by 8 Euler steps "
    "with guidance scale 2.5 from prompts of held-out videos, a tenth of them combinations that are not in the "
    "training data. The detector reads the samples. "
)
QUICK_COUNT = 24  # videos that the detector reads in the smoke run; detection takes longer than sampling
PREVIEW_COUNT = 4  # videos of each variant on a sheet
ATTRIBUTE_ERROR = "share of colours, shapes and motions that differ from the prompt"


def two_stage_variant(
    context: ExperimentContext, changes: str = "", videos: str = "", *, images: tuple[str, str] | None = None
) -> RecipeVariant:
    """Return a variant that is trained on images first and then on videos.

    Args:
        context: Context of the experiment.
        changes: Changes of both trainings.
        videos: Further changes of the training on videos.
        images: Further changes of the training on images, of the full run and of the smoke run.
    """
    image_changes = context.scale.pick(*(images or (IMAGE_TRAINING, QUICK_IMAGE_TRAINING)))
    before = RecipeVariant(RECIPE, f"{changes} {image_changes}".strip())
    return RecipeVariant(RECIPE, f"{changes} {videos}".strip(), after=before)


def attribute_error(prompts: Sequence[EvalPrompt], videos: Tensor) -> float:
    """Return the share of colours, shapes and motions of prompts that videos uint8 (N, 3, T, H, W) do not show."""
    hits = [matches_prompt(prompt, detect(frames)) for prompt, frames in zip(prompts, videos, strict=True)]
    return 1 - sum(hit[name] for hit in hits for name in PROMPT_ATTRIBUTES) / (len(PROMPT_ATTRIBUTES) * len(hits))


PROMPT_STYLES = {
    "plain": "prompts in the register of training, without guidance",
    "guided": "prompts in the register of training, with guidance",
    "short": "short prompts, without guidance",
}


class PromptFollowingScores(NamedTuple):
    """Attribute errors of a variant by `PROMPT_STYLES`, and its first videos without guidance."""

    plain: float
    guided: float
    short: float
    preview: Tensor


class PromptFollowingCurve(NamedTuple):
    """Attribute errors and losses of each evaluation of a training, and the first videos of the last one."""

    steps: list[int]
    attribute_errors: list[float]
    loss: list[float]
    preview: Tensor


def prompt_following_curve(context: ExperimentContext, variant: RecipeVariant, seed: int) -> PromptFollowingCurve:
    """Return the attribute errors and losses of the training with this seed."""
    history = context.training_history(variant, seed)
    count = _num_videos(context)
    prompts = prompts_of(variant.recipe_config(context.scale.quick), count)
    errors = [attribute_error(prompts, videos[:count]) for videos in history.pixels]
    return PromptFollowingCurve(history.steps, errors, history.losses, history.pixels[-1][:PREVIEW_COUNT])


def _num_videos(context: ExperimentContext) -> int:
    """Return the number of videos of each variant that the detector reads."""
    return context.scale.pick(context.scale.samples, min(context.scale.samples, QUICK_COUNT))


def frame_sheet(name: str, caption: str, variants: Sequence[Tensor]) -> ImageSheet:
    """Return a sheet of videos (N, 3, T, H, W) of each variant, with the frames of a video in one row."""
    videos = torch.cat(list(variants))
    return ImageSheet(name, caption, videos.transpose(1, 2).flatten(0, 1), videos.shape[2])


def score_prompts_of(
    context: ExperimentContext, variant: RecipeVariant, seed: int, register: CaptionStyle
) -> PromptFollowingScores:
    """Return the attribute errors of the model of this seed, for prompts of held-out videos.

    Args:
        context: Context of the experiment.
        variant: Variant of the model.
        seed: Seed of training and samples.
        register: Register of the prompts that are not short.
    """
    history, count = context.training_history(variant, seed), _num_videos(context)
    world = held_out_videos(variant.recipe_config(context.scale.quick))
    prompts, short = (dataset_prompts(world, count, [style]) for style in (register, "short"))

    def sample(prompts: Sequence[EvalPrompt], guidance_scale: float | None = 1.0) -> Tensor:
        cond = {"prompt": [prompt.text for prompt in prompts]}
        with ignore_truncated_prompts():
            samples = history.model.generate(cond=cond, count=count, seed=seed, guidance_scale=guidance_scale)
        return to_pixels(samples)

    plain = sample(prompts)
    return PromptFollowingScores(
        attribute_error(prompts, plain),
        attribute_error(prompts, sample(prompts, None)),
        attribute_error(short, sample(short)),
        plain[:PREVIEW_COUNT],
    )


def prompt_style_curve(scores: Mapping[str, Sequence[PromptFollowingScores]]) -> Curve:
    """Return the attribute errors of the variants by prompt style."""
    x_label = "; ".join(f"{number}: {style}" for number, style in enumerate(PROMPT_STYLES.values()))
    lines = {
        name: [[getattr(errors, field) for field in PROMPT_STYLES] for errors in by_seed]
        for name, by_seed in scores.items()
    }
    return Curve(x_label, ATTRIBUTE_ERROR, list(range(len(PROMPT_STYLES))), lines)


def errors_of(scores: Sequence[PromptFollowingScores], field: str) -> list[float]:
    """Return the attribute errors of one prompt style by seed."""
    return [getattr(errors, field) for errors in scores]
