"""Claims about text-to-video models, of Sora's report (Brooks et al. 2024) and the papers that it builds on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from torch import Tensor

from unveil.evaluate.verdict import Comparison
from unveil.io.images import to_pixels
from unveil.playground import temporal_consistency
from unveil.playground.world.caption_templates import CaptionStyle
from unveil.reproduce.experiment import Claim, Curve, ExperimentContext, ExperimentResults, compare
from unveil.reproduce.prompt_following import (
    ATTRIBUTE_ERROR,
    METHOD,
    PREVIEW_COUNT,
    PROMPT_STYLES,
    QUICK_VIDEO_TRAINING,
    RECIPE,
    VIDEO_TRAINING,
    WORLD,
    PromptFollowingCurve,
    PromptFollowingScores,
    errors_of,
    frame_sheet,
    prompt_following_curve,
    prompt_style_curve,
    score_prompts_of,
    two_stage_variant,
)
from unveil.reproduce.training_history import RecipeVariant, cost_of, held_out_videos, prompts_of

REPORT = "Video generation models as world simulators, Brooks et al. 2024 (OpenAI's report)"
CAPTIONS = f"Improving Image Generation with Better Captions, Betker et al. 2023, section 3; as used in {REPORT}"
BACKWARD = 3  # a training step costs as much as three forward passes
LOSS = "loss on held-out videos, mean over noise levels"

# ---------------------------------------------------------------------- sizes and compute

SIZES = {
    "S": "network.depth=2 network.hidden_size=48 network.heads=2",
    "M": "network.depth=4 network.hidden_size=96 network.heads=3",
    "L": "network.depth=6 network.hidden_size=160 network.heads=5",
}
QUICK_SIZES = {
    name: f"network.hidden_size={width} network.heads=1" for name, width in (("S", 12), ("M", 18), ("L", 24))
}
MIDDLE = "M"
PACE, QUICK_PACE = "train.steps=600 train.sample_every=200", "train.steps=3 train.sample_every=1"
METRICS = {"loss": LOSS, "attribute_errors": ATTRIBUTE_ERROR}  # fields of `PromptFollowingCurve`


def _scaling(context: ExperimentContext) -> ExperimentResults:
    pace, sizes = context.scale.pick((PACE, SIZES), (QUICK_PACE, QUICK_SIZES))
    variants = {name: two_stage_variant(context, changes, pace) for name, changes in sizes.items()}
    curves = {
        name: context.each_seed(
            f"{RECIPE} {name}", lambda seed, variant=variant: prompt_following_curve(context, variant, seed)
        )
        for name, variant in variants.items()
    }
    placebo_curves = context.each_placebo(
        f"{RECIPE} {MIDDLE}", lambda seed: prompt_following_curve(context, variants[MIDDLE], seed)
    )
    comparisons: list[Comparison] = []
    for field, title in METRICS.items():
        comparisons += _compare_sizes_and_steps(curves, placebo_curves, field, title)
    steps = curves[MIDDLE][0].steps
    costs = {name: _training_costs(variant, steps, context.scale.quick) for name, variant in variants.items()}
    plots = [
        Curve(
            "multiply-adds of training, with the training on images",
            title,
            costs,
            {name: [getattr(curve, field) for curve in by_seed] for name, by_seed in curves.items()},
            True,
            field == "loss",
        )
        for field, title in METRICS.items()
    ]
    prompts = prompts_of(variants[MIDDLE].recipe_config(context.scale.quick), PREVIEW_COUNT)
    texts = "; ".join(prompt.text for prompt in prompts)
    caption = f"Seed 0, sizes {', '.join(SIZES)}, each with the same {PREVIEW_COUNT} prompts: {texts}."
    sheet = frame_sheet("samples", caption, [by_seed[0].preview for by_seed in curves.values()])
    return ExperimentResults(comparisons, plots, [sheet])


def _compare_sizes_and_steps(
    curves: Mapping[str, Sequence[PromptFollowingCurve]],
    placebo_curves: Sequence[PromptFollowingCurve],
    field: str,
    title: str,
) -> list[Comparison]:
    """Return the comparisons of one metric: sizes after the last step, then evaluations as the mean of the sizes."""
    steps = curves[MIDDLE][0].steps

    def values(by_seed: Sequence[PromptFollowingCurve], index: int) -> list[float]:
        return [getattr(curve, field)[index] for curve in by_seed]

    comparisons = [
        compare(
            f"{large} is better than {small} after {steps[-1]} steps",
            title,
            (large, values(curves[large], -1)),
            (small, values(curves[small], -1)),
            (values(placebo_curves, -1), values(curves[MIDDLE], -1)),
        )
        for small, large in pairwise(SIZES)
    ]
    for earlier, later in pairwise(range(len(steps))):
        later_mean, earlier_mean = (
            _mean_by_seed([values(curves[name], index) for name in SIZES]) for index in (later, earlier)
        )
        comparisons.append(
            compare(
                f"{steps[later]} steps are better than {steps[earlier]}, mean of the sizes",
                title,
                (f"{steps[later]} steps", later_mean),
                (f"{steps[earlier]} steps", earlier_mean),
                (values(placebo_curves, later), values(curves[MIDDLE], later)),
            )
        )
    return comparisons


def _mean_by_seed(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean over variants by seed."""
    return [math.fsum(values) / len(values) for values in zip(*rows, strict=True)]


def _training_costs(variant: RecipeVariant, steps: Sequence[int], quick: bool) -> list[float]:
    """Return the multiply-adds of training until each of these steps, with those of the training on images."""
    assert variant.after is not None
    before, recipe = variant.after.recipe_config(quick), variant.recipe_config(quick)
    image_step, video_step = (BACKWARD * stage.train.batch_size * cost_of(stage) for stage in (before, recipe))
    return [float(before.train.steps * image_step + step * video_step) for step in steps]


# ---------------------------------------------------------------------- captions

DENSE, RAW = "dense captions", "raw captions"
REGISTERS: dict[str, CaptionStyle] = {DENSE: "dense", RAW: "raw"}


def _captions(context: ExperimentContext) -> ExperimentResults:
    pace = context.scale.pick(VIDEO_TRAINING, QUICK_VIDEO_TRAINING)
    variants = {
        name: two_stage_variant(context, f"'data.caption_styles=[{register}]'", pace)
        for name, register in REGISTERS.items()
    }

    def scores_of(name: str, seed: int) -> PromptFollowingScores:
        return score_prompts_of(context, variants[name], seed, REGISTERS[name])

    scores = {name: context.each_seed(name, lambda seed, name=name: scores_of(name, seed)) for name in variants}
    placebo = context.each_placebo(DENSE, lambda seed: scores_of(DENSE, seed))
    comparisons = [
        compare(
            f"{style}: a network trained on {DENSE} follows its prompt better than one trained on {RAW}",
            ATTRIBUTE_ERROR,
            (DENSE, errors_of(scores[DENSE], field)),
            (RAW, errors_of(scores[RAW], field)),
            (errors_of(placebo, field), errors_of(scores[DENSE], field)),
            primary=field == "plain",
        )
        for field, style in PROMPT_STYLES.items()
    ]
    prompts = {
        name: prompts_of(variant.recipe_config(context.scale.quick), PREVIEW_COUNT)
        for name, variant in variants.items()
    }
    texts = [f"{name}: {'; '.join(prompt.text for prompt in by_name)}" for name, by_name in prompts.items()]
    caption = f"Seed 0, without guidance, {PREVIEW_COUNT} videos of each. {'. '.join(texts)}."
    sheet = frame_sheet("samples", caption, [by_seed[0].preview for by_seed in scores.values()])
    return ExperimentResults(comparisons, [prompt_style_curve(scores)], [sheet])


# ---------------------------------------------------------------------- sizes of the data

NATIVE, SQUARE = "native sizes", "square crops"
ASPECTS = "data.min_size=16 data.max_size=32 data.aspect=2 'data.frames=[{}]' train.batching=packed"
CROPS = {NATIVE: "data.crop=none", SQUARE: "data.crop=square"}
IMAGES_OF_ALL_SIZES = (
    f"{ASPECTS.format(1)} 'shape=[3, 24, 24]' train.batch_size=64 train.steps=500",
    f"{ASPECTS.format(1)} 'shape=[3, 24, 24]' train.steps=2",
)
OBLONG = ((8, 16, 32), (8, 32, 16))  # frames, height and width
MIN_EDGE_PIXELS = 3  # subject pixels at the edge of a frame from which the subject counts as cropped
CROPPED = "share of frames whose subject extends beyond the edge"


class CropRate(NamedTuple):
    """Share of frames with a cropped subject: in squares of a size that all variants train on, and in oblong videos.

    `preview` holds the first square videos.
    """

    square: float
    oblong: float
    preview: Tensor


def _native(context: ExperimentContext) -> ExperimentResults:
    pace = f"{ASPECTS.format(8)} 'shape=[3, 8, 24, 24]' " + context.scale.pick(
        "train.batch_size=16 train.steps=600", ""
    )
    variants = {
        name: two_stage_variant(context, crop, pace, images=IMAGES_OF_ALL_SIZES) for name, crop in CROPS.items()
    }
    rates = {
        name: context.each_seed(name, lambda seed, variant=variant: _crop_rate(context, variant, seed))
        for name, variant in variants.items()
    }
    placebo = context.each_placebo(NATIVE, lambda seed: _crop_rate(context, variants[NATIVE], seed))

    def values(by_seed: Sequence[CropRate], field: str) -> list[float]:
        return [getattr(rate, field) for rate in by_seed]

    comparisons = [
        compare(
            f"in {shape}, training on {NATIVE} keeps the whole subject in the frame more often than on {SQUARE}",
            CROPPED,
            (NATIVE, values(rates[NATIVE], field)),
            (SQUARE, values(rates[SQUARE], field)),
            (values(placebo, field), values(rates[NATIVE], field)),
        )
        for field, shape in (("square", "squares of 24"), ("oblong", "videos of 16 x 32 and 32 x 16"))
    ]
    lines = {name: [[rate.square, rate.oblong] for rate in by_seed] for name, by_seed in rates.items()}
    curve = Curve("squares: 0, oblong videos: 1", CROPPED, [0, 1], lines)
    caption = f"Seed 0: {PREVIEW_COUNT} squares of each, {'; '.join(CROPS)}."
    sheet = frame_sheet("clips", caption, [by_seed[0].preview for by_seed in rates.values()])
    return ExperimentResults(comparisons, [curve], [sheet], [_real_crop_rates(context, variants)])


def _crop_rate(context: ExperimentContext, variant: RecipeVariant, seed: int) -> CropRate:
    history, count = context.training_history(variant, seed), context.scale.pick(150, 6)
    texts = [prompt.text for prompt in prompts_of(variant.recipe_config(context.scale.quick), count)]
    oblong = [
        cropped_share(to_pixels(history.model.generate(cond={"prompt": texts}, count=count, seed=seed, size=size)))
        for size in OBLONG
    ]
    squares = history.pixels[-1]
    return CropRate(cropped_share(squares), sum(oblong) / len(oblong), squares[:PREVIEW_COUNT])


def cropped_share(videos: Sequence[Tensor] | Tensor) -> float:
    """Return the share of frames of videos uint8 (3, T, H, W) whose subject has several pixels at the edge."""
    edge_pixels = [temporal_consistency.edge_pixels(frames) for frames in videos]
    return float(np.concatenate([pixels >= MIN_EDGE_PIXELS for pixels in edge_pixels]).mean())


def _real_crop_rates(context: ExperimentContext, variants: Mapping[str, RecipeVariant]) -> str:
    """Return a note on the held-out data of each variant."""
    shares = []
    for name, variant in variants.items():
        items = held_out_videos(variant.recipe_config(context.scale.quick)).__getitems__(range(context.scale.samples))
        shares.append(f"{name} {cropped_share([item['pixels'] for item in items]):.1%}")
    return f"Held-out videos of each arm's data, {CROPPED}: {', '.join(shares)}."


CLAIMS = (
    Claim(
        "video-scaling",
        "a larger network and longer training both improve held-out loss and prompt following",
        REPORT,
        f"{METHOD}Three sizes, of which the second has about 5.5 times the multiply-adds of the first, and the third "
        "about 3.5 times those of the second, are evaluated after every third of the training on videos. Neighbouring "
        "sizes are compared after the last step, and evaluations as the mean of the three sizes. With three seeds "
        "every effect had the claimed sign and the loss was shown, but two intervals of prompt following contained 0. "
        "So there are six seeds, which include the first three. Placebo: the middle size against itself with other "
        "seeds.",
        _scaling,
        WORLD,
        seeds=6,
    ),
    Claim(
        "video-captions",
        "a network trained on dense and correct captions follows its prompt better than one trained on raw captions",
        CAPTIONS,
        f"{METHOD}The arms differ only in the captions of images and videos. Dense captions state every attribute. Raw "
        "captions lack a fifth of the attributes, and 15 % are wrong. The prompts of an arm are complete and correct, "
        "in the register of its captions. Samples without guidance are compared. Samples with guidance, and samples "
        "from short prompts, which neither arm was trained on, are beside the claim. Placebo: dense captions against "
        "themselves with other seeds.",
        _captions,
        WORLD,
    ),
    Claim(
        "video-native",
        "a network trained on videos of their native sizes keeps the whole subject in the frame more often than one "
        "trained on square crops of the same videos",
        REPORT,
        f"The recipe `{RECIPE}` in float32 on videos of 16 to 32 pixels a side and aspect ratios of up to 2:1, packed: "
        "500 steps of 64 images, then 600 steps of 16 videos. One arm is trained on the central square of each video. "
        "Both arms generate squares, which both were trained on, and oblong videos. A subject counts as cropped if it "
        f"has at least {MIN_EDGE_PIXELS} pixels at the edge of a frame. Whole subjects at the edge have them too; the "
        "share in real videos is stated below. Placebo: native sizes against themselves with other seeds.",
        _native,
        "the playground, 16 to 32 pixels a side, aspect up to 2:1, 8 frames at 8 a second",
    ),
)
