"""Benchmark of the world knowledge of a video model: permanence, space, actions, rules and the laws of motion.

Each law has a scene of the playground in which it holds by construction. The model generates the scene from a prompt,
and from the first frames of a real video; its videos are measured as real videos are.

Source: Brooks et al. 2024, "Video generation models as world simulators", emerging simulation capabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unveil.analysis.video_study import (
    Progress,
    StudyContext,
    StudyResult,
    VideoStudy,
    VideoStudySettings,
    check_model,
    example_videos,
    means,
    run_study,
    shares,
    stack_videos,
)
from unveil.core.rng import key
from unveil.errors import RecipeError
from unveil.evaluate.findings import Finding, Rule
from unveil.evaluate.judges.video_alignment import detect
from unveil.generation import video
from unveil.generation.long_video import VideoSpec
from unveil.model import Model
from unveil.playground import scene_detectors
from unveil.playground.detector import detect_objects
from unveil.playground.world import caption_templates
from unveil.types import Item

SEED = 13  # playground seed of the scenes
CONTEXT = 6  # conditioning frames
NO_BOUNCE_ERROR = 90.0  # degrees, of a ball that does not bounce
NO_PILLARS_ERROR = 64.0  # pixels at a side of 64, of scenes without pillars
SIDE = 64  # side of the image that residuals are scaled to
MIN_TURN = 20.0  # degrees of a moving camera; real videos have 60
MIN_WALK = 0.5  # distance of a walk in half-widths of the corridor; real videos have 0.8
MIN_NEW_PAINT = 0.5  # share of the paint that is applied after the first frame; real videos have more
_MAX_RATIO = 9.0  # of two fall distances
FREE, CONDITIONED = "from the prompt", "from {} frames"


class PhysicsMetric(NamedTuple):
    """A number of a video.

    Attributes:
        name: Description of the measure.
        measure: Measure of a video of an item: 0 or 1 if the unit is "%", between them if it is "part".
        unit: Unit of the number.
        bar: Bar of the mean.
        rule: Better side of the bar and of the ceiling.
        correct: Range of the values of a correct video; None: no examples are shown.
    """

    name: str
    measure: Callable[[Item, Tensor], float]
    unit: Literal["%", "part", "px", ""] = "%"
    bar: float | None = None
    rule: Rule = "at least"
    correct: tuple[float, float] | None = None


@dataclass(frozen=True)
class PhysicsTest:
    """A law that holds in a scene.

    Attributes:
        title: Name of the law.
        world: Settings of `PlaygroundConfig` for videos in which it can be seen.
        metrics: Measures of it.
        accept: Predicate that selects the videos.
    """

    title: str
    world: Mapping[str, Any]
    metrics: tuple[PhysicsMetric, ...]
    accept: Callable[[Item], bool] = field(default=lambda item: True)


def object_permanence(item: Item, frames: Tensor) -> float:
    """1 if the object has its colour and shape both at the beginning and at the end."""
    truth, length = item["attributes"]["objects"][0], max(2, frames.shape[1] // 3)
    for part in (frames[:, :length], frames[:, -length:]):
        attributes = detect(part).attributes
        if attributes["colour"] != truth["colour"] or attributes["shape"] != truth["shape"]:
            return 0.0
    return 1.0


def reappears(item: Item, frames: Tensor, *, where: Literal["behind", "outside"]) -> float:
    """1 if the object is permanent and hidden once for some frames: behind a bar, or outside the image."""
    objects = detect_objects(frames, max_objects=1)
    is_hidden = bool(objects) and scene_detectors.occlusion(frames, objects[0]) == where
    return object_permanence(item, frames) * float(is_hidden)


def direction_correct(item: Item, frames: Tensor) -> float:
    """1 if the object moves as in the prompt."""
    return float(detect(frames).attributes["motion"] == item["attributes"]["objects"][0]["motion"])


def residual(item: Item, frames: Tensor) -> float:
    """Error in pixels of the pillars' positions against a ring under a turning camera, scaled to a side of 64."""
    del item
    return min(scene_detectors.yaw(frames).residual * SIDE / min(frames.shape[2:]), NO_PILLARS_ERROR)


def camera_direction_correct(item: Item, frames: Tensor) -> float:
    """1 if the camera turns as in the prompt, in four of five steps and in total."""
    steps = np.diff(scene_detectors.yaw(frames).degrees) * (1 if item["attributes"]["orbit"] == "right" else -1)
    return float(steps.sum() >= MIN_TURN and (steps > 0).mean() >= 0.8)


def paint_persistence(item: Item, frames: Tensor) -> float:
    """Share of the paint that remains at the end; 0 if nothing is painted, or if it was there from the beginning."""
    del item
    trail = scene_detectors.trail(frames)
    return 0.0 if trail is None or trail.new < MIN_NEW_PAINT else trail.remaining


def paint_colour_correct(item: Item, frames: Tensor) -> float:
    """1 if the paint has the colour of the prompt."""
    trail = scene_detectors.trail(frames)
    return float(trail is not None and trail.colour == item["attributes"]["colour"])


def walk_correct(item: Item, frames: Tensor) -> float:
    """1 if the camera walks in the direction of the prompt."""
    distance = float(scene_detectors.corridor_progress(frames)[-1])
    return float((distance if item["attributes"]["walk"] == "forward" else -distance) >= MIN_WALK)


def ball_in_play(item: Item, frames: Tensor) -> float:
    """1 if the ball has its colour, bounces at least once, and is visible most of the time."""
    rebounds = scene_detectors.rebounds(frames)
    colours = {ball.colour for ball in detect_objects(frames, max_objects=2)}
    return float(rebounds is not None and rebounds.bounces > 0 and item["attributes"]["colour"] in colours)


def reflection_error(item: Item, frames: Tensor) -> float:
    """Largest error of the ball's directions in degrees; 90 without a ball or a bounce."""
    del item
    rebounds = scene_detectors.rebounds(frames)
    return NO_BOUNCE_ERROR if rebounds is None or rebounds.ways < 2 else min(rebounds.error, NO_BOUNCE_ERROR)


def fracture_correct(item: Item, frames: Tensor) -> float:
    """1 if the body breaks or stays whole as in the prompt; 0 without a body."""
    if not detect_objects(frames, max_objects=1):
        return 0.0
    return float((scene_detectors.fracture_frame(frames) is not None) == (item["attributes"]["fate"] == "breaks"))


def acceleration_ratio(item: Item, frames: Tensor) -> float:
    """Distance in the second half of the fall over that in the first: 3 under gravity, 1 at constant speed."""
    del item
    objects = detect_objects(frames, max_objects=1)
    if not objects:
        return 1.0
    y = objects[0].centres[:, 1]
    y = y[: int(np.argmin(np.isfinite(y)))] if not np.isfinite(y).all() else y
    end = int(np.argmax(np.diff(y))) + 1 if len(y) > 1 else 0  # the longest step is the last one of the fall
    if end < 2:
        return 1.0
    middle = (y[end // 2] + y[(end + 1) // 2]) / 2
    return float(np.clip((y[end] - middle) / max(middle - y[0], 0.25), 0, _MAX_RATIO))


_AXIS = ("left", "right", "up", "down")
_YES = (0.5, 1.0)
_BEHIND, _OUTSIDE = (
    PhysicsMetric("is hidden and reappears unchanged", partial(reappears, where=where), bar=0.8, correct=_YES)
    for where in ("behind", "outside")
)
_UNCHANGED = PhysicsMetric("is unchanged, hidden in between or not", object_permanence, correct=_YES)
LAWS: dict[str, PhysicsTest] = {
    "occluder": PhysicsTest(
        "Permanence behind a bar", {"p_occluder": 1.0, "motions": _AXIS},
        (_BEHIND, _UNCHANGED, PhysicsMetric("moves in its direction", direction_correct, correct=_YES)),
        lambda item: item["attributes"]["bar"] == "yes",
    ),
    "frame": PhysicsTest(
        "Permanence outside the image", {"p_camera": 1.0, "motions": ("still",)}, (_OUTSIDE, _UNCHANGED),
        lambda item: item["attributes"]["camera"] == "away",
    ),
    "space": PhysicsTest(
        "Space", {"scenes": ("pillars",)},
        # a camera that does not move has no position error, so its direction has a bar, too
        (PhysicsMetric("position error of the pillars", residual, "px", 2.0, "at most", (0, 2)),
         PhysicsMetric("the camera moves as in the prompt", camera_direction_correct, bar=0.8, correct=_YES)),
    ),
    "brush": PhysicsTest(
        "Actions that leave marks", {"scenes": ("brush",)},
        (PhysicsMetric("paint that stays", paint_persistence, "part", 0.9, correct=(0.9, 1)),
         PhysicsMetric("paint of its colour", paint_colour_correct, correct=_YES)),
    ),
    "corridor": PhysicsTest(
        "Control by words", {"scenes": ("corridor",)},
        (PhysicsMetric("walks as in the prompt", walk_correct, bar=0.95, correct=_YES),),
    ),
    "game": PhysicsTest(
        "A game", {"scenes": ("paddle",)},
        (PhysicsMetric("a ball of the prompt's colour, in play", ball_in_play, bar=0.95, correct=_YES),
         PhysicsMetric("degrees off the law of reflection", reflection_error, "", rule="at most", correct=(0, 15))),
    ),
    "impact": PhysicsTest(
        "Breaking and falling", {"scenes": ("impact",)},
        (PhysicsMetric("breaks or stays whole as in the prompt", fracture_correct, correct=_YES),
         PhysicsMetric("second half of the fall over the first: 3 under gravity, 1 at constant speed",
                       acceleration_ratio, "", rule="like", correct=(2, 4.5))),
    ),
}  # fmt: skip


QUICK = VideoStudySettings(count=3, sampling={"steps": 2})


def study_physics(
    model: Model, settings: VideoStudySettings, on_progress: Progress = lambda done, total: None
) -> VideoStudy:
    """Generate scenes in which laws hold, and measure them.

    Args:
        model: Video model (3, T, H, W) of at least 12 frames of 32 pixels, with a condition `prompt`.
        settings: Settings of the study.
        on_progress: Called with the number of generated videos.

    Raises:
        RecipeError: The model is not such a model, or a law is unknown.
    """
    check_model(model)
    if model.shape[1] < 12 or min(model.shape[2:]) < 32:
        raise RecipeError(f"videos of {tuple(model.shape)}: laws are measured on at least 12 frames of 32 x 32")
    return run_study(model, settings, {name: partial(study_law, law) for name, law in LAWS.items()}, on_progress)


def study_law(law: PhysicsTest, context: StudyContext[VideoStudySettings]) -> StudyResult:
    """Findings of a law: from prompts, and from the first frames of real videos."""
    items = scenes_of(context, law)
    real, prompts = stack_videos(items), [prompt_of(item) for item in items]
    free = context.generate(prompts)
    # fewer frames if latent frames do not end at CONTEXT
    length = int(video.extend(context.model, real[:1, :, :CONTEXT], context=CONTEXT).settings["context"])

    def extension(rows: slice) -> VideoSpec:
        return video.extend(context.model, real[rows, :, :length], real.shape[2] - length, context=length)

    conditioned = context.generate_long(prompts, extension)[:, :, : real.shape[2]]
    shuffled = torch.stack([_shuffle_frames(frames, context.settings.seed, n) for n, frames in enumerate(real)])
    frozen = real[:, :, :1].expand_as(real)
    stopped = real[:, :, torch.arange(real.shape[2]).clamp(max=length - 1)]
    findings: list[Finding] = []
    animations: dict[str, bytes] = {}
    for metric in law.metrics:
        baselines = {
            "real videos with shuffled frames": _mean(metric, items, shuffled),
            "first frame of real videos, frozen": _mean(metric, items, frozen),
        }
        finding = _finding(context, metric, FREE, items, free, real, baselines)
        findings.append(finding)
        baselines = {
            f"the {length} frames, the last one frozen": _mean(metric, items, stopped),
            **baselines, "without these frames": finding.value,
        }  # fmt: skip
        findings.append(_finding(context, metric, CONDITIONED.format(length), items, conditioned, real, baselines))
        animations |= _examples(metric, items, free, conditioned, real, length)
    method = (
        f"Prompts such as {prompts[0]!r}; and the first {length} frames of real videos with the same prompts. Ceiling: "
        "real videos. Baselines: real videos with shuffled frames, with their first frame frozen, or with the last of "
        f"the first {length} frames frozen, and the videos from the prompt only."
    )
    return StudyResult(law.title, method, findings, animations=animations)


def scenes_of(context: StudyContext[VideoStudySettings], law: PhysicsTest) -> list[Item]:
    """Real videos of a law, of the model's size and length."""
    return context.select_items(context.model.shape[1:], SEED, law.accept, law.world)


def prompt_of(item: Item) -> str:
    """Dense caption of a video."""
    return caption_templates.write_caption(item["attributes"], "dense", "en", (0.5,) * caption_templates.DRAWS).text


def _shuffle_frames(frames: Tensor, seed: int, number: int) -> Tensor:
    """A video with its frames in a random order that depends on its number."""
    return frames[:, torch.randperm(frames.shape[1], generator=torch.Generator().manual_seed(key(seed, number) >> 1))]


def _finding(
    context: StudyContext[VideoStudySettings], metric: PhysicsMetric, condition: str, items: Sequence[Item],
    videos: Tensor, real: Tensor, baselines: Mapping[str, float],
) -> Finding:  # fmt: skip
    values, truth = (_values(metric, items, every) for every in (videos, real))
    name, bar = f"{metric.name}, {condition}", metric.bar if condition == FREE else None
    if metric.unit == "%":
        hits, ceiling = ([value > 0.5 for value in outcomes] for outcomes in (values, truth))
        finding = shares(name, hits, ceiling, bar=bar, rule=metric.rule, baselines=baselines)
    else:
        finding = means(
            name, values, context.settings.seed, unit="%" if metric.unit == "part" else metric.unit, bar=bar,
            rule=metric.rule, ceiling=float(np.mean(truth)), baselines=baselines,
        )  # fmt: skip
    return replace(finding, is_main=condition == FREE)


def _values(metric: PhysicsMetric, items: Sequence[Item], videos: Tensor) -> list[float]:
    return [metric.measure(item, frames) for item, frames in zip(items, videos, strict=True)]


def _mean(metric: PhysicsMetric, items: Sequence[Item], videos: Tensor) -> float:
    return float(np.mean(_values(metric, items, videos)))


def _examples(
    metric: PhysicsMetric, items: Sequence[Item], free: Tensor, conditioned: Tensor, real: Tensor, length: int
) -> dict[str, bytes]:
    """Animations of correct and wrong videos, from prompts only and from the first `length` frames of real videos."""
    if metric.correct is None:
        return {}
    low, high = metric.correct
    is_correct = [[low <= value <= high for value in _values(metric, items, videos)] for videos in (free, conditioned)]
    without = example_videos([free], is_correct[0])
    animations = {f"From the prompt, {metric.name}. {caption}": image for caption, image in without.items()}
    below = example_videos([real, conditioned], is_correct[1], range(length, real.shape[2]))
    prefix = f"From {length} frames, below the real videos, {metric.name}"
    return animations | {f"{prefix}. {caption}": image for caption, image in below.items()}
