"""What a model of clips knows about the world: things that last, space, actions, rules, and the laws of motion.

Each law has a scene of the playground in which it holds by construction. A model is asked for the scene in words, and
to go on from its first frames; what it makes is read back as real clips are.

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

from unveil.analysis.video_bench import (
    Reach,
    SharedSettings,
    StudyContext,
    VideoStudy,
    check_model,
    example_videos,
    run_study,
    stack_videos,
)
from unveil.analysis.video_metrics import StudyResult, means, shares
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

SEED = 13  # of the worlds that scenes are taken from
GIVEN = 6  # frames that a clip goes on from
OFF = 90.0  # degrees, of a ball that is not seen to turn back
AWAY = 64.0  # pixels at 64 px, of pillars that are none
SIDE = 64  # that residuals are reckoned for
TURNED = 20.0  # degrees that a camera goes at least, where it goes; in real clips 60
GONE = 0.5  # of a corridor's half-width, that somebody walks at least, where they walk; in real clips 0.8
ADDED = 0.5  # of the paint, that is put on after the first frame; in real clips more
_MOST = 9.0  # of a ratio of ways
Measured = Callable[[Item, Tensor], float]


class PhysicsMetric(NamedTuple):
    """A number of a clip.

    words: what is measured. of: the clip of an item, 0 or 1 where the unit is "%", and between them where it is "part".
    bar: of the mean. rule: on which side of it, and of what real clips reach, is better.
    well: from and to which value a clip is shown as one that is as it should be; None: no clips are shown.
    """

    words: str
    of: Measured
    unit: Literal["%", "part", "px", ""] = "%"
    bar: float | None = None
    rule: Rule = "at least"
    well: tuple[float, float] | None = None


@dataclass(frozen=True)
class PhysicsTest:
    """Something that holds in a scene.

    Attributes:
        title: in words.
        world: changes of `PlaygroundConfig`, for clips in which it can be seen.
        chosen: which of these.
        measures: of it.
    """

    title: str
    world: Mapping[str, Any]
    measures: tuple[PhysicsMetric, ...]
    chosen: Callable[[Item], bool] = field(default=lambda item: True)


def object_permanence(item: Item, clip: Tensor) -> float:
    """Whether a thing is seen with its colour and shape at the beginning, and again at the end."""
    wanted, part = item["attributes"]["objects"][0], max(2, clip.shape[1] // 3)
    for own in (clip[:, :part], clip[:, -part:]):
        found = detect(own).facts
        if found["colour"] != wanted["colour"] or found["shape"] != wanted["shape"]:
            return 0.0
    return 1.0


def occluded_then_seen(item: Item, clip: Tensor, *, where: Literal["behind", "outside"]) -> float:
    """Whether a thing lasts, and is not seen once, some frames on end: behind a bar, or outside of the picture."""
    found = detect_objects(clip, max_objects=1)
    return object_permanence(item, clip) * float(bool(found) and scene_detectors.occlusion(clip, found[0]) == where)


def direction_correct(item: Item, clip: Tensor) -> float:
    """Whether a thing goes the way that is asked for."""
    return float(detect(clip).facts["motion"] == item["attributes"]["objects"][0]["motion"])


def residual(item: Item, clip: Tensor) -> float:
    """By how many pixels, of a picture of 64, pillars are off their places in a ring seen from anywhere."""
    del item
    found = scene_detectors.yaw(clip).residual * SIDE / min(clip.shape[2:])
    return min(found, AWAY)


def camera_direction_correct(item: Item, clip: Tensor) -> float:
    """Whether the camera goes round the way that is asked for, in four of five steps and altogether."""
    steps = np.diff(scene_detectors.yaw(clip).degrees) * (1 if item["attributes"]["orbit"] == "right" else -1)
    return float(steps.sum() >= TURNED and (steps > 0).mean() >= 0.8)


def paint_persistence(item: Item, clip: Tensor) -> float:
    """The part of the paint that stays to the end; 0 where nothing is painted, or was there from the beginning."""
    del item
    found = scene_detectors.trail(clip)
    return 0.0 if found is None or found.new < ADDED else found.remaining


def paint_colour_correct(item: Item, clip: Tensor) -> float:
    """Whether the paint has the colour that is asked for."""
    found = scene_detectors.trail(clip)
    return float(found is not None and found.colour == item["attributes"]["colour"])


def walk_correct(item: Item, clip: Tensor) -> float:
    """Whether somebody walks the way that the word says, and does not stand."""
    gone = float(scene_detectors.corridor_progress(clip)[-1])
    return float((gone if item["attributes"]["walk"] == "forward" else -gone) >= GONE)


def ball_in_play(item: Item, clip: Tensor) -> float:
    """Whether the ball has its colour, turns back at least once, and is there most of the time."""
    found = scene_detectors.rebounds(clip)
    colours = {one.colour for one in detect_objects(clip, max_objects=2)}
    return float(found is not None and found.bounces > 0 and item["attributes"]["colour"] in colours)


def reflection_error(item: Item, clip: Tensor) -> float:
    """By how many degrees the ways of the ball differ at most; 90 where there is no ball, or none that turns back."""
    del item
    found = scene_detectors.rebounds(clip)
    return OFF if found is None or found.ways < 2 else min(found.error, OFF)


def fracture_correct(item: Item, clip: Tensor) -> float:
    """Whether a body breaks where it is to, and stays whole where not; 0 where there is none."""
    if not detect_objects(clip, max_objects=1):
        return 0.0
    return float((scene_detectors.fracture_frame(clip) is not None) == (item["attributes"]["fate"] == "breaks"))


def acceleration_ratio(item: Item, clip: Tensor) -> float:
    """How much further a body falls in the second half of its fall than in the first: 3 under gravity, 1 evenly."""
    del item
    found = detect_objects(clip, max_objects=1)
    if not found:
        return 1.0
    y = found[0].centres[:, 1]
    y = y[: int(np.argmin(np.isfinite(y)))] if not np.isfinite(y).all() else y
    fast = int(np.argmax(np.diff(y))) + 1 if len(y) > 1 else 0  # the end of the longest step is the last of the fall
    if fast < 2:
        return 1.0
    middle = (y[fast // 2] + y[(fast + 1) // 2]) / 2
    return float(np.clip((y[fast] - middle) / max(middle - y[0], 0.25), 0, _MOST))


_AXIS = ("left", "right", "up", "down")
_YES = (0.5, 1.0)
_BEHIND, _OUTSIDE = (
    PhysicsMetric("is hidden, and there again as it was", partial(occluded_then_seen, where=where), bar=0.8, well=_YES)
    for where in ("behind", "outside")
)
_LASTS = PhysicsMetric("is as it was, hidden in between or not", object_permanence, well=_YES)
LAWS: dict[str, PhysicsTest] = {
    "occluder": PhysicsTest(
        "Permanence behind a bar", {"p_occluder": 1.0, "motions": _AXIS},
        (_BEHIND, _LASTS, PhysicsMetric("goes on its way", direction_correct, well=_YES)),
        lambda item: item["attributes"]["bar"] == "yes",
    ),
    "frame": PhysicsTest(
        "Permanence out of the picture", {"p_camera": 1.0, "motions": ("still",)}, (_OUTSIDE, _LASTS),
        lambda item: item["attributes"]["camera"] == "away",
    ),
    "space": PhysicsTest(
        "Space", {"scenes": ("pillars",)},
        # a ring that stands still has its pillars in their places
        (PhysicsMetric("pillars off their places", residual, "px", 2.0, "at most", (0, 2)),
         PhysicsMetric("the camera goes as asked", camera_direction_correct, bar=0.8, well=_YES)),
    ),
    "brush": PhysicsTest(
        "Actions that leave marks", {"scenes": ("brush",)},
        (PhysicsMetric("paint that stays", paint_persistence, "part", 0.9, well=(0.9, 1)),
         PhysicsMetric("paint of its colour", paint_colour_correct, well=_YES)),
    ),
    "corridor": PhysicsTest(
        "A world that obeys a word", {"scenes": ("corridor",)},
        (PhysicsMetric("walks as asked", walk_correct, bar=0.95, well=_YES),),
    ),
    "game": PhysicsTest(
        "A game", {"scenes": ("paddle",)},
        (PhysicsMetric("a ball of the colour that is asked for, in play", ball_in_play, bar=0.95, well=_YES),
         PhysicsMetric("degrees off the law of reflection", reflection_error, "", rule="at most", well=(0, 15))),
    ),
    "impact": PhysicsTest(
        "Breaking and falling", {"scenes": ("impact",)},
        (PhysicsMetric("breaks or stays whole as asked", fracture_correct, well=_YES),
         PhysicsMetric("second half of the fall over the first: 3 under gravity, 1 evenly", acceleration_ratio, "",
                 rule="like",
                 well=(2, 4.5))),
    ),
}  # fmt: skip


QUICK = SharedSettings(count=3, sampling={"steps": 2})


def study_world(model: Model, settings: SharedSettings, reach: Reach = lambda done, total: None) -> VideoStudy:
    """Asks a model of clips for scenes in which laws hold, and reads what it makes.

    Args:
        model: of clips (3, T, H, W) of at least 12 frames of 32 pixels, with a condition `prompt`.
        settings: count, seed and the like.
        reach: told how many clips are drawn.

    Raises:
        RecipeError: another kind of model, or an unknown law.
    """
    check_model(model)
    if model.shape[1] < 12 or min(model.shape[2:]) < 32:
        raise RecipeError(f"clips of {tuple(model.shape)}: laws are seen in at least 12 frames of 32 x 32")
    return run_study(model, settings, {name: partial(of_law, law) for name, law in LAWS.items()}, reach)


def of_law(law: PhysicsTest, bench: StudyContext[SharedSettings]) -> StudyResult:
    """What a model makes of a law: from words, and from the first frames of real clips."""
    items = scenes_of(bench, law)
    real, texts = stack_videos(items), [told(item) for item in items]
    words = bench.made(texts)
    # fewer where latents do not hold so many
    known = int(video.extend(bench.model, real[:1, :, :GIVEN], context=GIVEN).settings["context"])

    def going_on(rows: slice) -> VideoSpec:
        return video.extend(bench.model, real[rows, :, :known], real.shape[2] - known, context=known)

    later = bench.filmed(texts, going_on)[:, :, : real.shape[2]]
    mixed = torch.stack([_mixed(clip, bench.settings.seed, n) for n, clip in enumerate(real)])
    held = real[:, :, :1].expand_as(real)
    stopped = real[:, :, torch.arange(real.shape[2]).clamp(max=known - 1)]
    rows: list[Finding] = []
    animations: dict[str, bytes] = {}
    for measure in law.measures:
        beside = {
            "real clips with their frames mixed": _mean(measure, items, mixed),
            "the first frame of real ones, held": _mean(measure, items, held),
        }
        alone = _row(bench, measure, "from words", items, words, real, beside)
        rows.append(alone)
        without = {
            f"the {known} frames, the last one held": _mean(measure, items, stopped),
            **beside, "without these frames": alone.value,
        }  # fmt: skip
        rows.append(_row(bench, measure, f"from {known} frames", items, later, real, without))
        animations |= _films(measure, items, words, later, (real, known))
    method = (
        f"Prompts such as {texts[0]!r}; and the first {known} frames of real clips with the same words. Ceiling: real "
        "clips. Baselines: these with their frames in another order, their first frame, or the last one of the first "
        f"{known}, held still, and what is made without the first frames."
    )
    return StudyResult(law.title, method, rows, animations=animations)


def scenes_of(bench: StudyContext[SharedSettings], law: PhysicsTest) -> list[Item]:
    """Real clips of a law, of the model's size and length."""
    return bench.chosen(bench.model.shape[1:], SEED, law.chosen, law.world)


def told(item: Item) -> str:
    """The dense caption of a clip."""
    return caption_templates.write_caption(item["attributes"], "dense", "en", (0.5,) * caption_templates.DRAWS).text


def _mixed(clip: Tensor, seed: int, number: int) -> Tensor:
    """A clip with its frames in an order of its own."""
    return clip[:, torch.randperm(clip.shape[1], generator=torch.Generator().manual_seed(key(seed, number) >> 1))]


def _row(
    bench: StudyContext[SharedSettings], measure: PhysicsMetric, how: str, items: Sequence[Item],
    made: Tensor, real: Tensor,
    baselines: Mapping[str, float],
) -> Finding:  # fmt: skip
    values, true = (_values(measure, items, clips) for clips in (made, real))
    alone = how == "from words"
    name, bar = f"{measure.words}, {how}", measure.bar if alone else None
    if measure.unit == "%":
        right, ceiling = ([value > 0.5 for value in outcomes] for outcomes in (values, true))
        finding = shares(name, right, ceiling, bar=bar, rule=measure.rule, baselines=baselines)
    else:
        unit, mean = "%" if measure.unit == "part" else measure.unit, float(np.mean(true))
        seed = bench.settings.seed
        finding = means(name, values, seed, unit=unit, bar=bar, rule=measure.rule, ceiling=mean, baselines=baselines)
    return replace(finding, is_main=alone)


def _values(measure: PhysicsMetric, items: Sequence[Item], clips: Tensor) -> list[float]:
    return [measure.of(item, clip) for item, clip in zip(items, clips, strict=True)]


def _mean(measure: PhysicsMetric, items: Sequence[Item], clips: Tensor) -> float:
    return float(np.mean(_values(measure, items, clips)))


def _films(
    measure: PhysicsMetric, items: Sequence[Item], words: Tensor, later: Tensor, given: tuple[Tensor, int]
) -> dict[str, bytes]:
    """Clips for which a measure is as it should be and for which not, by their captions; real ones, frames given."""
    real, known = given
    if measure.well is None:
        return {}
    low, high = measure.well
    alone, going = ([low <= value <= high for value in _values(measure, items, clips)] for clips in (words, later))
    animations = {f"From words, {measure.words}. {name}": film for name, film in example_videos([words], alone).items()}
    seen = example_videos([real, later], going, range(known, real.shape[2]))
    how = f"From {known} frames, below the real clips, {measure.words}"
    return animations | {f"{how}. {name}": film for name, film in seen.items()}
