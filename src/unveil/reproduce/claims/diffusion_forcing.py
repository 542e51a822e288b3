"""A claim of diffusion forcing (Chen et al. 2024, arXiv:2407.01392): a level for each frame, and clips go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unveil.analysis.video_study import StudyContext as Clips
from unveil.analysis.video_study import VideoTaskSettings, ignore_truncated_prompts, stack_videos
from unveil.core.inverse import replace_known
from unveil.core.sampling_run import SamplingRun
from unveil.generation.conditioning_frames import ConditioningFrames, conditioned_generation, keyframes
from unveil.generation.generate import TaskSpec, input_to_unit, select_rows
from unveil.model import Model
from unveil.playground import temporal_consistency
from unveil.playground.eval_prompts import dataset_prompts
from unveil.playground.shapes import Array
from unveil.reproduce.experiment import Claim, Curve, ExperimentContext, ExperimentResults, compare
from unveil.reproduce.prompt_following import (
    METHOD,
    PREVIEW_COUNT,
    QUICK_VIDEO_TRAINING,
    VIDEO_TRAINING,
    WORLD,
    frame_sheet,
    two_stage_variant,
)
from unveil.reproduce.training_history import RecipeVariant, held_out_videos

PAPER = "Diffusion Forcing, Chen et al. 2024 (arXiv:2407.01392), section 3.1"
OWN, ONE, GIVEN = "a level for each frame", "one level for a clip", "frames given"
WAYS = {
    OWN: "objective.context_modes.none=0.5 objective.context_modes.independent=0.5",
    ONE: "",
    GIVEN: "objective.context_modes.none=0.5 objective.context_modes.prefix=0.5",
}
AT_ONCE = 100  # clips
KNOWN = 4  # frames of eight, which are given
LOST = 8.0  # pixels: half a side, as far as what is not seen counts to be off
STRAYED = "how far things are from where they truly go in the frames that are added, mean, pixels"


class RealVideos(NamedTuple):
    """Real clips of what moves, uint8 (N, 3, T, H, W), and what they are asked for by."""

    real: Tensor
    texts: list[str]


class ExtensionError(NamedTuple):
    """How far off an arm's things are in what it adds.

    Attributes:
        held: the mean over clips, known frames told as clean; `imposed`: known frames put back after each step.
        along: of `held`, by frame. shown: the first clips, held.
    """

    held: float
    imposed: float
    along: list[float]
    shown: Tensor


def _forcing(context: ExperimentContext) -> ExperimentResults:
    arms = {
        name: two_stage_variant(context, "", f"{context.scale.pick(VIDEO_TRAINING, QUICK_VIDEO_TRAINING)} {ways}")
        for name, ways in WAYS.items()
    }
    shown = _moving(context, arms[OWN])
    found = {
        name: context.each_seed(
            name, lambda seed, variant=variant: _extended(context.training_history(variant, seed).model, seed, shown)
        )
        for name, variant in arms.items()
    }
    again = context.each_placebo(
        OWN, lambda seed: _extended(context.training_history(arms[OWN], seed).model, seed, shown)
    )

    def by_seed(drawn: Sequence[ExtensionError], field: str) -> list[float]:
        return [getattr(one, field) for one in drawn]

    comparisons = [
        compare(
            f"clips go on better after training with {OWN} than with {other}",
            STRAYED,
            (OWN, by_seed(found[OWN], "held")),
            (other, by_seed(found[variant], field)),
            (by_seed(again, "held"), by_seed(found[OWN], "held")),
            primary=variant == ONE,
        )
        for other, variant, field in (
            (ONE, ONE, "held"),
            (f"{ONE}, the known frames put back after each step", ONE, "imposed"),
            (GIVEN, GIVEN, "held"),
        )
    ]
    lines = {name: [one.along for one in drawn] for name, drawn in found.items()}
    frames = range(KNOWN + 1, KNOWN + 1 + len(lines[OWN][0]))
    caption = (
        f"Seed 0: {PREVIEW_COUNT} real clips, then these with the frames after the first {KNOWN} made, trained with "
        f"{'; '.join(WAYS)}."
    )
    rows = [shown.real[:PREVIEW_COUNT], *(drawn[0].shown for drawn in found.values())]
    notes = [f"{STRAYED[0].upper()}{STRAYED[1:]}, if the last known frame stays: {_frozen(shown.real):.2f}."]
    sheet = frame_sheet("clips", caption, rows)
    return ExperimentResults(comparisons, [Curve("frame", STRAYED, list(frames), lines)], [sheet], notes)


def _moving(context: ExperimentContext, variant: RecipeVariant) -> RealVideos:
    """The first held-out clips of what moves."""
    count, world = context.scale.pick(300, 12), held_out_videos(variant.recipe_config(context.scale.quick))
    told = dataset_prompts(world, 2 * count, world.config.caption_styles)
    chosen = [one for one in told if one.attributes["motion"] != "still"][:count]
    return RealVideos(
        stack_videos(world.__getitems__([one.video_index for one in chosen])), [one.text for one in chosen]
    )


def _extended(model: Model, seed: int, shown: RealVideos) -> ExtensionError:
    clips = Clips(model, VideoTaskSettings(count=len(shown.texts), batch=AT_ONCE, seed=seed))

    def made(hold: Callable[[Model, ConditioningFrames, str], TaskSpec]) -> Tensor:
        def edit(rows: slice) -> TaskSpec:
            known = keyframes(shown.real[rows][:, :, :KNOWN], range(KNOWN), shown.real.shape[2])
            return hold(model, known, "extend")

        with ignore_truncated_prompts():
            return clips.generate(shown.texts, edit)

    held, imposed = made(conditioned_generation), made(_imposing)
    each = _away(held, shown.real)
    return ExtensionError(
        float(each.mean()), float(_away(imposed, shown.real).mean()), each.mean(0).tolist(), held[:PREVIEW_COUNT]
    )


def _imposing(model: Model, known: ConditioningFrames, verb: str) -> TaskSpec:
    """Generation around frames that are known, for a network that was told one level for a whole clip of pixels."""
    unit = input_to_unit(known.pixels, model.shape[0], "T, H, W")

    def change(sampling_run: SamplingRun, rows: slice) -> SamplingRun:
        here, until = select_rows(unit, rows), select_rows(known.release_t, rows)
        return sampling_run.wrap_denoiser(lambda step: replace_known(step, here, until))

    return replace(conditioned_generation(model, known, verb), transform=change)


def _away(clips: Tensor, real: Tensor) -> Array:
    """How far things are from where they truly are, in the frames that are not given: (N, T - KNOWN) pixels."""
    found = [
        temporal_consistency.position_error(
            temporal_consistency.centres(one[:, KNOWN:]), temporal_consistency.centres(true)[KNOWN:], LOST
        )
        for one, true in zip(clips, real, strict=True)
    ]
    return np.stack(found)


def _frozen(real: Tensor) -> float:
    """The same of clips whose last known frame stays."""
    still = real[:, :, KNOWN - 1 : KNOWN].expand(-1, -1, real.shape[2] - KNOWN, -1, -1)
    return float(_away(torch.cat([real[:, :, :KNOWN], still], dim=2), real).mean())


CLAIMS = (
    Claim(
        "video-forcing",
        "a level of its own for each frame in half of the training lets a network go on with clips better than one "
        "that was trained with one level for all frames",
        PAPER,
        f"{METHOD}Both arms share the training on pictures. {KNOWN} frames of 300 held-out "
        f"clips of what moves are given, and their text; compared are the {8 - KNOWN} frames after them. The known "
        "frames are told as being clean; beside that the network with one level is also judged with the known frames "
        "put back after each step instead, which asks nothing of it that it was not trained for. A network trained on "
        "frames that are given stands beside the claim. What is not seen counts as half a side away. Placebo: levels "
        "of their own against themselves with other seeds.",
        _forcing,
        WORLD,
    ),
)
