"""Claims about clips from words, of Sora's report (Brooks et al. 2024) and the papers that it builds on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from torch import Tensor

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
    frame_sheet,
    part,
    prompt_following_curve,
    prompt_style_curve,
    score_prompts_of,
    two_stage_variant,
)
from unveil.reproduce.training_history import RecipeVariant, cost_of, held_out_videos, prompts_of

REPORT = "Video generation models as world simulators, Brooks et al. 2024 (OpenAI's report)"
CAPTIONS = f"Improving Image Generation with Better Captions, Betker et al. 2023, section 3; as used in {REPORT}"
BACKWARD = 3  # a training step costs as much as three forward passes
LOSS = "loss on held-out clips, mean over levels"

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


def _scaling(context: ExperimentContext) -> ExperimentResults:
    pace, sizes = context.scale.pick((PACE, SIZES), (QUICK_PACE, QUICK_SIZES))
    arms = {name: two_stage_variant(context, changes, pace) for name, changes in sizes.items()}
    found = {
        name: context.each_seed(
            f"{RECIPE} {name}", lambda seed, variant=variant: prompt_following_curve(context, variant, seed)
        )
        for name, variant in arms.items()
    }
    again = context.each_placebo(f"{RECIPE} {MIDDLE}", lambda seed: prompt_following_curve(context, arms[MIDDLE], seed))
    steps, comparisons = found[MIDDLE][0].steps, []
    for field, title in (("loss", LOSS), ("missed", ATTRIBUTE_ERROR)):

        def at(by_seed: Sequence[PromptFollowingCurve], point: int, field: str = field) -> list[float]:
            return [getattr(one, field)[point] for one in by_seed]

        for small, large in pairwise(SIZES):
            comparisons.append(
                compare(
                    f"{large} is better than {small} after {steps[-1]} steps",
                    title,
                    (large, at(found[large], -1)),
                    (small, at(found[small], -1)),
                    (at(again, -1), at(found[MIDDLE], -1)),
                )
            )
        for sooner, later in pairwise(range(len(steps))):
            means = [_means([at(found[name], point) for name in SIZES]) for point in (later, sooner)]
            comparisons.append(
                compare(
                    f"{steps[later]} steps are better than {steps[sooner]}, mean of the sizes",
                    title,
                    (f"{steps[later]} steps", means[0]),
                    (f"{steps[sooner]} steps", means[1]),
                    (at(again, later), at(found[MIDDLE], later)),
                )
            )
    costs = {name: _spent(variant, steps, context.scale.quick) for name, variant in arms.items()}
    curves = [
        Curve(
            "multiply-adds of training, pictures included",
            title,
            costs,
            {name: [getattr(one, field) for one in by_seed] for name, by_seed in found.items()},
            True,
            field == "loss",
        )
        for field, title in (("loss", LOSS), ("missed", ATTRIBUTE_ERROR))
    ]
    texts = "; ".join(one.text for one in prompts_of(arms[MIDDLE].recipe_config(context.scale.quick), PREVIEW_COUNT))
    caption = f"Seed 0, sizes {', '.join(SIZES)}, each with the same {PREVIEW_COUNT} texts: {texts}."
    return ExperimentResults(
        comparisons,
        curves,
        [frame_sheet("samples", caption, [by_seed[0].shown for by_seed in found.values()])],
    )


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    """The mean of several arms' values, seed by seed."""
    return [math.fsum(values) / len(values) for values in zip(*rows, strict=True)]


def _spent(variant: RecipeVariant, steps: Sequence[int], quick: bool) -> list[float]:
    """Multiply-adds of training until each of these steps."""
    assert variant.after is not None
    before, recipe = variant.after.recipe_config(quick), variant.recipe_config(quick)
    first, each = (BACKWARD * one.train.batch_size * cost_of(one) for one in (before, recipe))
    return [float(before.train.steps * first + step * each) for step in steps]


# ---------------------------------------------------------------------- captions

DENSE, RAW = "dense captions", "raw captions"
REGISTERS: dict[str, CaptionStyle] = {DENSE: "dense", RAW: "raw"}


def _captions(context: ExperimentContext) -> ExperimentResults:
    pace = context.scale.pick(VIDEO_TRAINING, QUICK_VIDEO_TRAINING)
    arms = {name: two_stage_variant(context, f"'data.caption_styles=[{own}]'", pace) for name, own in REGISTERS.items()}

    def of(name: str, seed: int) -> PromptFollowingScores:
        return score_prompts_of(context, arms[name], seed, REGISTERS[name])

    found = {name: context.each_seed(name, lambda seed, name=name: of(name, seed)) for name in arms}
    again = context.each_placebo(DENSE, lambda seed: of(DENSE, seed))
    comparisons = [
        compare(
            f"asked {words}, a network trained on {DENSE} follows its text better than one trained on {RAW}",
            ATTRIBUTE_ERROR,
            (DENSE, part(found[DENSE], field)),
            (RAW, part(found[RAW], field)),
            (part(again, field), part(found[DENSE], field)),
            primary=field == "plain",
        )
        for field, words in PROMPT_STYLES.items()
    ]
    prompts = {
        name: prompts_of(variant.recipe_config(context.scale.quick), PREVIEW_COUNT) for name, variant in arms.items()
    }
    texts = [f"{name}: {'; '.join(prompt.text for prompt in by_name)}" for name, by_name in prompts.items()]
    caption = f"Seed 0, without guidance, {PREVIEW_COUNT} clips of each. {'. '.join(texts)}."
    shown = frame_sheet("samples", caption, [drawn[0].shown for drawn in found.values()])
    return ExperimentResults(comparisons, [prompt_style_curve(found)], [shown])


# ---------------------------------------------------------------------- sizes of the data

NATIVE, SQUARE = "native sizes", "square crops"
ASPECTS = "data.min_size=16 data.max_size=32 data.aspect=2 'data.frames=[{}]' train.batching=packed"
CUTS = {NATIVE: "data.crop=none", SQUARE: "data.crop=square"}
OF_ALL_SIZES = (
    f"{ASPECTS.format(1)} 'shape=[3, 24, 24]' train.batch_size=64 train.steps=500",
    f"{ASPECTS.format(1)} 'shape=[3, 24, 24]' train.steps=2",
)
OBLONG = ((8, 16, 32), (8, 32, 16))  # frames, height and width
TOUCHING = 3  # pixels of a frame's edge, from which on its thing counts as cut
CUT = "share of frames whose subject goes on beyond the edge"


class CropRate(NamedTuple):
    """How often an arm's subjects are cut: in squares of a size that both arms train on, and in oblong clips."""

    square: float
    oblong: float
    shown: Tensor


def _native(context: ExperimentContext) -> ExperimentResults:
    pace = f"{ASPECTS.format(8)} 'shape=[3, 8, 24, 24]' " + context.scale.pick(
        "train.batch_size=16 train.steps=600", ""
    )
    arms = {name: two_stage_variant(context, cut, pace, images=OF_ALL_SIZES) for name, cut in CUTS.items()}
    found = {
        name: context.each_seed(name, lambda seed, variant=variant: _framed(context, variant, seed))
        for name, variant in arms.items()
    }
    again = context.each_placebo(NATIVE, lambda seed: _framed(context, arms[NATIVE], seed))

    def by_seed(drawn: Sequence[CropRate], field: str) -> list[float]:
        return [getattr(one, field) for one in drawn]

    comparisons = [
        compare(
            f"in {what}, training on {NATIVE} keeps the whole subject in the frame more often than on {SQUARE}",
            CUT,
            (NATIVE, by_seed(found[NATIVE], field)),
            (SQUARE, by_seed(found[SQUARE], field)),
            (by_seed(again, field), by_seed(found[NATIVE], field)),
        )
        for field, what in (("square", "squares of 24"), ("oblong", "clips of 16 x 32 and 32 x 16"))
    ]
    lines = {name: [[one.square, one.oblong] for one in drawn] for name, drawn in found.items()}
    curve = Curve("squares: 0, oblong clips: 1", CUT, [0, 1], lines)
    caption = f"Seed 0: {PREVIEW_COUNT} squares of each, {'; '.join(CUTS)}."
    return ExperimentResults(comparisons, [curve],
                    [frame_sheet("clips", caption, [drawn[0].shown for drawn in found.values()])],
                    [_real(context, arms)])  # fmt: skip


def _framed(context: ExperimentContext, variant: RecipeVariant, seed: int) -> CropRate:
    history, count = context.training_history(variant, seed), context.scale.pick(150, 6)
    texts = [one.text for one in prompts_of(variant.recipe_config(context.scale.quick), count)]
    wide = [
        cut_share(to_pixels(history.model.generate(cond={"prompt": texts}, count=count, seed=seed, size=size)))
        for size in OBLONG
    ]
    return CropRate(cut_share(history.pixels[-1]), sum(wide) / len(wide), history.pixels[-1][:PREVIEW_COUNT])


def cut_share(clips: Sequence[Tensor] | Tensor) -> float:
    """The share of frames of clips uint8 (3, T, H, W) whose thing touches the edge with several pixels."""
    return float(np.concatenate([temporal_consistency.edge_pixels(clip) >= TOUCHING for clip in clips]).mean())


def _real(context: ExperimentContext, arms: Mapping[str, RecipeVariant]) -> str:
    """What the data of each arm show."""
    shares = [
        f"{name} {cut_share([item['pixels'] for item in world.__getitems__(range(context.scale.samples))]):.1%}"
        for name, world in (
            (name, held_out_videos(variant.recipe_config(context.scale.quick))) for name, variant in arms.items()
        )
    ]
    return f"Held-out clips of the arms' own data, {CUT}: {', '.join(shares)}."


CLAIMS = (
    Claim(
        "video-scaling",
        "with a larger network, and with longer training, held-out loss and text following both get better",
        REPORT,
        f"{METHOD}Three sizes, about 3 and 4 times as many multiply-adds each, looked at "
        "after every third of the clips' training. Sizes are compared at the end, next ones with each other; times as "
        "the mean of the three sizes. Three seeds had every sign as claimed and the loss shown, and left two intervals "
        "of text following that held 0, so there are six, the first three among them. Placebo: the middle size "
        "against itself with other seeds.",
        _scaling,
        WORLD,
        seeds=6,
    ),
    Claim(
        "video-captions",
        "a network trained on dense and right captions follows its text better than one trained on raw ones",
        CAPTIONS,
        f"{METHOD}The arms differ in their captions alone, of pictures and of clips: dense "
        "ones tell everything; raw ones lack a fifth of the attributes, and 15 % are wrong. Each is asked in its own "
        "register, in texts that are complete and right. Compared is what the network learned, without guidance, which "
        "sharpens what either has learned and stands beside the claim, as do short texts that neither arm has read. "
        "Placebo: dense captions against themselves with other seeds.",
        _captions,
        WORLD,
    ),
    Claim(
        "video-native",
        "trained on clips of their native sizes, a network keeps the whole subject in the frame more often than one "
        "trained on square crops of the same clips",
        REPORT,
        f"The recipe `{RECIPE}` in float32, on clips of 16 to 32 pixels a side and up to twice as wide as high or the "
        "other way round, packed: 500 steps of 64 pictures, then 600 of 16 clips. The arms differ in that one is "
        "shown the square in the middle of each clip. Both are asked for squares, which both were trained on, and for "
        f"oblong clips. A subject counts as cut where it has {TOUCHING} pixels or more of a frame's edge, which whole "
        "ones that stand at the edge have too: the share in real clips is told below. Placebo: native sizes against "
        "themselves with other seeds.",
        _native,
        "the playground, 16 to 32 pixels a side, aspect up to 2:1, 8 frames at 8 a second",
    ),
)
