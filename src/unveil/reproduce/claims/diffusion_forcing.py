"""Claim of diffusion forcing (Chen et al. 2024, arXiv:2407.01392): video extension with a noise level per frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unveil.analysis.video_study import StudyContext, VideoTaskSettings, ignore_truncated_prompts, stack_videos
from unveil.core.inverse import replace_known
from unveil.core.samplers.loop import SamplingRun
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
INDEPENDENT, SHARED, CONDITIONED = "a noise level per frame", "one noise level per video", "conditioning frames"
CONTEXT_MODES = {
    INDEPENDENT: "objective.context_modes.none=0.5 objective.context_modes.independent=0.5",
    SHARED: "",
    CONDITIONED: "objective.context_modes.none=0.5 objective.context_modes.prefix=0.5",
}
BATCH = 100  # videos
CONTEXT = 4  # conditioning frames of eight
LOST = 8.0  # error in pixels if no object is detected: half a side
POSITION_ERROR = "mean position error of the objects in the generated frames, pixels"


class RealVideos(NamedTuple):
    """Real videos of moving objects, uint8 (N, 3, T, H, W), and their prompts."""

    pixels: Tensor
    prompts: list[str]


class ExtensionError(NamedTuple):
    """Position errors of a variant in the generated frames.

    Attributes:
        clean: Mean over videos with conditioning frames at noise level 0.
        replaced: Mean over videos whose conditioning frames are replaced after each step.
        by_frame: Errors of `clean` by frame.
        preview: First videos of `clean`.
    """

    clean: float
    replaced: float
    by_frame: list[float]
    preview: Tensor


def _forcing(context: ExperimentContext) -> ExperimentResults:
    pace = context.scale.pick(VIDEO_TRAINING, QUICK_VIDEO_TRAINING)
    variants = {name: two_stage_variant(context, "", f"{pace} {modes}") for name, modes in CONTEXT_MODES.items()}
    videos = _moving_videos(context, variants[INDEPENDENT])

    def measure(variant: RecipeVariant, seed: int) -> ExtensionError:
        return _extension_error(context.training_history(variant, seed).model, seed, videos)

    errors = {
        name: context.each_seed(name, lambda seed, variant=variant: measure(variant, seed))
        for name, variant in variants.items()
    }
    placebo = context.each_placebo(INDEPENDENT, lambda seed: measure(variants[INDEPENDENT], seed))

    def values(by_seed: Sequence[ExtensionError], field: str) -> list[float]:
        return [getattr(error, field) for error in by_seed]

    comparisons = [
        compare(
            f"extensions are better after training with {INDEPENDENT} than with {other}",
            POSITION_ERROR,
            (INDEPENDENT, values(errors[INDEPENDENT], "clean")),
            (other, values(errors[variant], field)),
            (values(placebo, "clean"), values(errors[INDEPENDENT], "clean")),
            primary=variant == SHARED,
        )
        for other, variant, field in (
            (SHARED, SHARED, "clean"),
            (f"{SHARED}, the conditioning frames replaced after each step", SHARED, "replaced"),
            (CONDITIONED, CONDITIONED, "clean"),
        )
    ]
    lines = {name: [error.by_frame for error in by_seed] for name, by_seed in errors.items()}
    frames = range(CONTEXT + 1, CONTEXT + 1 + len(lines[INDEPENDENT][0]))
    caption = (
        f"Seed 0: {PREVIEW_COUNT} real videos, then these with generated frames after the first {CONTEXT}, trained "
        f"with {'; '.join(CONTEXT_MODES)}."
    )
    previews = [videos.pixels[:PREVIEW_COUNT], *(by_seed[0].preview for by_seed in errors.values())]
    frozen = _frozen_error(videos.pixels)
    metric = POSITION_ERROR[0].upper() + POSITION_ERROR[1:]
    notes = [f"{metric}, if the last conditioning frame is frozen: {frozen:.2f}."]
    sheet = frame_sheet("clips", caption, previews)
    return ExperimentResults(comparisons, [Curve("frame", POSITION_ERROR, list(frames), lines)], [sheet], notes)


def _moving_videos(context: ExperimentContext, variant: RecipeVariant) -> RealVideos:
    """Return the first held-out videos of moving objects."""
    count, world = context.scale.pick(300, 12), held_out_videos(variant.recipe_config(context.scale.quick))
    prompts = dataset_prompts(world, 2 * count, world.config.caption_styles)
    moving = [prompt for prompt in prompts if prompt.attributes["motion"] != "still"][:count]
    items = world.__getitems__([prompt.video_index for prompt in moving])
    return RealVideos(stack_videos(items), [prompt.text for prompt in moving])


def _extension_error(model: Model, seed: int, videos: RealVideos) -> ExtensionError:
    study = StudyContext(model, VideoTaskSettings(count=len(videos.prompts), batch=BATCH, seed=seed))

    def extend(condition: Callable[[Model, ConditioningFrames, str], TaskSpec]) -> Tensor:
        def task(rows: slice) -> TaskSpec:
            frames = keyframes(videos.pixels[rows][:, :, :CONTEXT], range(CONTEXT), videos.pixels.shape[2])
            return condition(model, frames, "extend")

        with ignore_truncated_prompts():
            return study.generate(videos.prompts, task)

    clean, replaced = extend(conditioned_generation), extend(_replacement)
    errors = _position_errors(clean, videos.pixels)
    return ExtensionError(
        float(errors.mean()),
        float(_position_errors(replaced, videos.pixels).mean()),
        errors.mean(0).tolist(),
        clean[:PREVIEW_COUNT],
    )


def _replacement(model: Model, frames: ConditioningFrames, task: str) -> TaskSpec:
    """Return a task that replaces the conditioning frames after each step, for a network with one noise level."""
    unit = input_to_unit(frames.pixels, model.shape[0], "T, H, W")

    def change(sampling_run: SamplingRun, rows: slice) -> SamplingRun:
        pixels, until = select_rows(unit, rows), select_rows(frames.release_t, rows)
        return sampling_run.wrap_denoiser(lambda denoise: replace_known(denoise, pixels, until))

    return replace(conditioned_generation(model, frames, task), transform=change)


def _position_errors(videos: Tensor, real: Tensor) -> Array:
    """Return the distances of objects from their true positions in the generated frames, (N, T - CONTEXT) pixels."""
    centres = temporal_consistency.centres
    errors = [
        temporal_consistency.position_error(centres(frames[:, CONTEXT:]), centres(truth)[CONTEXT:], LOST)
        for frames, truth in zip(videos, real, strict=True)
    ]
    return np.stack(errors)


def _frozen_error(real: Tensor) -> float:
    """Return the mean position error of videos whose last conditioning frame is frozen."""
    frozen = real[:, :, CONTEXT - 1 : CONTEXT].expand(-1, -1, real.shape[2] - CONTEXT, -1, -1)
    return float(_position_errors(torch.cat([real[:, :, :CONTEXT], frozen], dim=2), real).mean())


CLAIMS = (
    Claim(
        "video-forcing",
        "a network that was trained with independent noise levels per frame in half of the steps extends videos better "
        "than one that was trained with one noise level for all frames",
        PAPER,
        f"{METHOD}All arms share the training on images. The models are conditioned on {CONTEXT} frames of 300 "
        f"held-out videos of moving objects and on their prompts. The {8 - CONTEXT} frames after them are compared. "
        "The conditioning frames have noise level 0. The network with one noise level is also measured with the "
        "conditioning frames replaced after each step, a use that it was trained for. A network that was trained with "
        "conditioning frames is beside the claim. A missing object counts as half a side off. Placebo: independent "
        "noise levels against themselves with other seeds.",
        _forcing,
        WORLD,
    ),
)
