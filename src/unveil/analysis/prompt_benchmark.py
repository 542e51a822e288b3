"""Benchmark of the prompt alignment of a video model: kinds of prompts, each with its share of correct videos.

Source: the kinds of DrawBench, Saharia et al. 2022, appendix C (arXiv:2205.11487), as far as the playground has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from unveil.analysis.video_study import (
    Progress,
    StudyContext,
    StudyResult,
    VideoStudy,
    VideoStudySettings,
    caption_of,
    check_model,
    example_videos,
    object_of,
    run_study,
    shares,
)
from unveil.evaluate.findings import Finding
from unveil.evaluate.judges.video_alignment import detect
from unveil.model import Model
from unveil.playground import temporal_consistency
from unveil.playground.detector import DetectedObject, detect_objects
from unveil.playground.shapes import COLOURS
from unveil.playground.world import caption_templates
from unveil.playground.world.caption_templates import CaptionStyle, Language
from unveil.playground.world.rendering import TONES
from unveil.prompting import expand_by_rules
from unveil.types import Item

SEED = 11  # playground seed of the videos that prompts describe
NEGATION, FALLBACK = "negation", "red"  # the kind, and the negative prompt if no object is detected
IsCorrect = Callable[[Item, Tensor], bool]
COUNTS = (1, 2, 3)  # of objects
MAX_COUNT = max(COUNTS)
_OFFSETS = (1, 2, 3, 4)  # differences of index between a prompt and the unrelated videos of its baseline


@dataclass(frozen=True)
class PromptKind:
    """A kind of prompts.

    Attributes:
        title: Name of the kind.
        scored: What a video must show.
        register, language: Form of the prompts.
        is_correct: Returns True if a video matches its prompt.
        objects: Numbers of objects in its videos, each equally often.
        accept: Predicate that selects the videos.
    """

    title: str
    scored: str
    register: CaptionStyle
    is_correct: IsCorrect
    language: Language = "en"
    objects: tuple[int, ...] = (1,)
    accept: Callable[[Item], bool] = lambda item: not item["unseen"]


def _has_attributes(*names: str) -> IsCorrect:
    """A test whether the only object of a video has these attributes of the prompt."""
    return lambda item, frames: all(detect(frames).attributes[name] == object_of(item)[name] for name in names)


def _starts_in_place(item: Item, frames: Tensor) -> bool:
    """Return True if the object starts in the ninth of the image that the prompt states."""
    objects = detect_objects(frames, max_objects=1)
    if not objects or not objects[0].visible[0]:
        return False
    x, y = objects[0].centres[0] / (frames.shape[3], frames.shape[2])
    names = (("upper left", "top", "upper right"), ("left", "centre", "right"), ("lower left", "bottom", "lower right"))
    return names[min(max(int(3 * y), 0), 2)][min(max(int(3 * x), 0), 2)] == object_of(item)["start"]


def _has_background(item: Item, frames: Tensor) -> bool:
    return temporal_consistency.ground_name(frames) == item["attributes"]["ground"]


def _objects_by_colour(frames: Tensor) -> dict[str, DetectedObject]:
    """The objects of a video by their colours, which differ; it detects more than any prompt states."""
    objects = detect_objects(frames, max_objects=MAX_COUNT + 2)
    return {detected.colour: detected for detected in objects if detected.visible.mean() >= 0.5}


def _has_count(item: Item, frames: Tensor) -> bool:
    return len(_objects_by_colour(frames)) == len(item["attributes"]["objects"])


def _has_objects(*names: str) -> IsCorrect:
    """A test whether a video has exactly the objects of its prompt, with these attributes."""

    def is_correct(item: Item, frames: Tensor) -> bool:
        objects = _objects_by_colour(frames)
        truth: Sequence[Any] = item["attributes"]["objects"]
        if len(objects) != len(truth):
            return False
        detections = {
            colour: {"colour": colour, "shape": detected.shape, "size": detected.size, "motion": detected.motion_name}
            for colour, detected in objects.items()
        }
        return all(
            expected["colour"] in detections
            and all(detections[expected["colour"]][name] == expected[name] for name in names)
            for expected in truth
        )

    return is_correct


def _has_plain_background(item: Item) -> bool:
    return item["attributes"]["ground"] in TONES and not item["unseen"]


def _has_uncoloured_background(item: Item) -> bool:
    return item["attributes"]["ground"] not in COLOURS and not item["unseen"]


KINDS: dict[str, PromptKind] = {
    "colour": PromptKind("Colours", "the colour", "short", _has_attributes("colour")),
    "shape": PromptKind("Shapes", "the shape", "short", _has_attributes("shape")),
    "size": PromptKind("Sizes", "the size", "dense", _has_attributes("size")),
    "motion": PromptKind("Motions", "the motion", "short", _has_attributes("motion")),
    "position": PromptKind("Positions", "the object's first position", "dense", _starts_in_place),
    "ground": PromptKind(
        "Backgrounds", "the background", "dense", _has_background, accept=_has_plain_background,
    ),
    "alt-text": PromptKind(
        "Alt-text", "colour, shape and motion", "raw", _has_attributes("colour", "shape", "motion"),
    ),
    "chinese": PromptKind(
        "Chinese", "colour, shape and motion", "dense", _has_attributes("colour", "shape", "motion"), "zh",
    ),
    "rare": PromptKind(
        "Combinations that training never has", "colour, shape and motion", "dense",
        _has_attributes("colour", "shape", "motion"), accept=lambda item: bool(item["unseen"]),
    ),
    "count": PromptKind("Counts", "the number of objects", "short", _has_count, objects=COUNTS),
    "several": PromptKind(
        "Several objects", "colour, shape and motion of both", "short", _has_objects("colour", "shape", "motion"),
        objects=(2,),
    ),
    "long": PromptKind(
        "Long prompts", "colour, shape, size and motion of three", "dense",
        _has_objects("colour", "shape", "size", "motion"), objects=(MAX_COUNT,),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class PromptBenchmarkSettings(VideoStudySettings):
    """Settings of all kinds of prompts.

    Attributes:
        expand: True also measures each prompt in the form of the prompt expansion by rules.
    """

    expand: bool = True


QUICK = PromptBenchmarkSettings(count=3, sampling={"steps": 2})


def study_prompts(
    model: Model, settings: PromptBenchmarkSettings, on_progress: Progress = lambda done, total: None
) -> VideoStudy:
    """Generate videos from prompts of each kind and count the correct ones.

    Args:
        model: Video model (3, T, H, W) with a condition `prompt`.
        settings: Settings of the study.
        on_progress: Called with the number of generated videos.

    Raises:
        RecipeError: The model is not a text-to-video model, a kind is unknown, or the playground has no videos of a
            kind in the model's size.
    """
    check_model(model)
    trial = StudyContext(model, replace(settings, count=2), on_progress)
    for kind in (KINDS[name] for name in settings.only or KINDS if name in KINDS):  # fails before hours of work
        items_of(trial, kind)
    return run_study(model, settings, TASKS, on_progress)


def study_kind(kind: PromptKind, context: StudyContext[PromptBenchmarkSettings]) -> StudyResult:
    """The share of correct videos of a kind of prompts, with and without prompt expansion."""
    items = items_of(context, kind)
    prompts = [prompt_of(item, kind, number) for number, item in enumerate(items)]
    real = [kind.is_correct(item, item["pixels"]) for item in items]
    unrelated = [
        kind.is_correct(items[n - offset], item["pixels"])
        for offset in _OFFSETS
        if offset < len(items)
        for n, item in enumerate(items)
    ]
    variants = {kind.scored: prompts}
    if context.settings.expand and kind.register != "dense":
        variants[f"{kind.scored}, expanded by the rules"] = [expand_by_rules(prompt).text for prompt in prompts]
    findings: list[Finding] = []
    animations: dict[str, bytes] = {}
    for name, variant in variants.items():
        videos = context.generate(variant)
        correct = [kind.is_correct(item, frames) for item, frames in zip(items, videos, strict=True)]
        findings.append(shares(name, correct, real, baselines={"others": sum(unrelated) / len(unrelated)}))
        animations |= {f"{name}. {caption}": image for caption, image in example_videos([videos], correct).items()}
    method = (
        f"Prompts in the register {kind.register!r}, such as {prompts[0]!r}. Ceiling: the real videos that they "
        "describe. Baseline: real videos of other prompts of the kind."
    )
    return StudyResult(kind.title, method, findings, animations=animations)


def study_negation(context: StudyContext[PromptBenchmarkSettings]) -> StudyResult:
    """How often a negative prompt removes the colour that a video has without it."""
    items = items_of(context, replace(KINDS["motion"], accept=_has_uncoloured_background))
    prompts = [caption_of(item).replace(f" {object_of(item)['colour']}", "") for item in items]
    plain, other_noise = context.generate(prompts), context.generate(prompts, first=len(prompts))
    negative = [_colour(frames) or FALLBACK for frames in plain]
    negated = context.generate(prompts, negative=negative)
    # correct: an object is detected, and it has another colour
    correct, chance = (
        [_colour(frames) not in (None, colour) for frames, colour in zip(videos, negative, strict=True)]
        for videos in (negated, other_noise)
    )
    finding = shares("an object of another colour than without the negative prompt", correct,
                     baselines={"other noise, no negative prompt": sum(chance) / len(chance)})  # fmt: skip
    method = (
        f"Prompts without a colour, such as {prompts[0]!r}, and a negative prompt with the colour of the video "
        f"without one, such as {negative[0]!r}, from the same noise. Upper row: without the negative prompt."
    )
    return StudyResult("Negation", method, [finding], animations=example_videos([plain, negated], correct))


def _colour(frames: Tensor) -> str | None:
    return detect(frames).attributes["colour"]


def items_of(context: StudyContext[PromptBenchmarkSettings], kind: PromptKind) -> list[Item]:
    """Real videos of a kind, of the model's size and length; those of each number of objects in turn."""

    def with_count(number: int) -> list[Item]:
        return context.select_items(
            context.model.shape[1:],
            SEED,
            lambda item: len(item["attributes"]["objects"]) == number and kind.accept(item),
            {"objects": (number,)},
        )

    by_count = zip(*(with_count(number) for number in kind.objects), strict=True)
    return [item for items in by_count for item in items][: context.settings.count]


def prompt_of(item: Item, kind: PromptKind, number: int) -> str:
    """Prompt of a video; the form of short and raw prompts depends on the video's number."""
    draws = [(0.37 * (number + 1) + 0.13 * index) % 1 for index in range(caption_templates.DRAWS)]
    return caption_templates.write_caption(item["attributes"], kind.register, kind.language, draws, faults=0).text


TASKS: dict[str, Callable[[StudyContext[PromptBenchmarkSettings]], StudyResult]] = {
    **{name: partial(study_kind, kind) for name, kind in KINDS.items()}, NEGATION: study_negation,
}  # fmt: skip
