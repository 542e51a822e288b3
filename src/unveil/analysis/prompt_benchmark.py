"""What a model of clips understands of what it is told: kinds of prompts, each with its share of right clips.

Source: the kinds of DrawBench, Saharia et al. 2022, appendix C (arXiv:2205.11487), as far as the playground has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from unveil.analysis.video_bench import (
    Reach,
    SharedSettings,
    StudyContext,
    VideoStudy,
    check_model,
    example_videos,
    run_study,
    text_of,
    thing,
)
from unveil.analysis.video_metrics import StudyResult, shares
from unveil.evaluate.findings import Finding
from unveil.evaluate.judges.video_alignment import detect
from unveil.model import Model
from unveil.playground import temporal_consistency
from unveil.playground.detector import DetectedObject, detect_objects
from unveil.playground.shapes import COLOURS
from unveil.playground.world import caption_templates
from unveil.playground.world.caption_templates import Language, Register
from unveil.playground.world.rendering import TONES
from unveil.prompting import expand_by_rules
from unveil.types import Item

SEED = 11  # of the worlds that prompts are said of
NEGATION, NOTHING = "negation", "red"  # the kind, and what is negated where nothing is to be seen
Right = Callable[[Item, Tensor], bool]
COUNTS = (1, 2, 3)  # of objects
SEVERAL = max(COUNTS)
_OTHERS = (1, 2, 3, 4)  # prompts before that of a clip, which it is no clip of


@dataclass(frozen=True)
class PromptKind:
    """A kind of prompts.

    Attributes:
        title, asked: in words: its name, and what a clip has to show.
        register, language: of the prompts.
        right: whether a clip shows what its prompt says.
        objects: numbers of them in its clips, each as often; chosen: which of these clips.
    """

    title: str
    asked: str
    register: Register
    right: Right
    language: Language = "en"
    objects: tuple[int, ...] = (1,)
    chosen: Callable[[Item], bool] = lambda item: not item["unseen"]


def _same(*names: str) -> Right:
    """Whether the one object of a clip has the attributes that are asked for."""
    return lambda item, clip: all(detect(clip).facts[name] == thing(item)[name] for name in names)


def _starts(item: Item, clip: Tensor) -> bool:
    """Whether the object begins in the field of the picture that is asked for."""
    found = detect_objects(clip, max_objects=1)
    if not found or not found[0].visible[0]:
        return False
    x, y = found[0].centres[0]
    return _field(x / clip.shape[3], y / clip.shape[2]) == thing(item)["start"]


def _field(x: float, y: float) -> str:
    names = (("upper left", "top", "upper right"), ("left", "centre", "right"), ("lower left", "bottom", "lower right"))
    return names[min(max(int(3 * y), 0), 2)][min(max(int(3 * x), 0), 2)]


def _ground(item: Item, clip: Tensor) -> bool:
    return temporal_consistency.ground_name(clip) == item["attributes"]["ground"]


def _things(clip: Tensor) -> dict[str, DetectedObject]:
    """The objects of a clip by their colours, which differ within one; more than any prompt asks for are seen too."""
    return {one.colour: one for one in detect_objects(clip, max_objects=SEVERAL + 2) if one.visible.mean() >= 0.5}


def _as_many(item: Item, clip: Tensor) -> bool:
    return len(_things(clip)) == len(item["attributes"]["objects"])


def _each(*names: str) -> Right:
    """Whether every object that is asked for is there with its own attributes, and no other is."""

    def right(item: Item, clip: Tensor) -> bool:
        found = _things(clip)
        wanted: Sequence[Any] = item["attributes"]["objects"]
        if len(found) != len(wanted):
            return False
        read_as = {
            colour: {"colour": colour, "shape": one.shape, "size": one.size, "motion": one.motion_name}
            for colour, one in found.items()
        }
        return all(
            one["colour"] in read_as and all(read_as[one["colour"]][name] == one[name] for name in names)
            for one in wanted
        )

    return right


def _plain_ground(item: Item) -> bool:
    return item["attributes"]["ground"] in TONES and not item["unseen"]


def _on_no_colour(item: Item) -> bool:
    return item["attributes"]["ground"] not in COLOURS and not item["unseen"]


KINDS: dict[str, PromptKind] = {
    "colour": PromptKind("Colours", "the colour", "short", _same("colour")),
    "shape": PromptKind("Shapes", "the shape", "short", _same("shape")),
    "size": PromptKind("Sizes", "the size", "dense", _same("size")),
    "motion": PromptKind("Motions", "the motion", "short", _same("motion")),
    "position": PromptKind("Places", "where the thing starts", "dense", _starts),
    "ground": PromptKind("Grounds", "the ground", "dense", _ground, chosen=_plain_ground),
    "alt-text": PromptKind("Alt-text", "colour, shape and motion", "raw", _same("colour", "shape", "motion")),
    "chinese": PromptKind("Chinese", "colour, shape and motion", "dense", _same("colour", "shape", "motion"), "zh"),
    "rare": PromptKind(
        "Combinations that training never has", "colour, shape and motion", "dense",
        _same("colour", "shape", "motion"), chosen=lambda item: bool(item["unseen"]),
    ),
    "count": PromptKind("Counts", "as many things", "short", _as_many, objects=COUNTS),
    "several": PromptKind(
        "Several things", "colour, shape and motion of both", "short", _each("colour", "shape", "motion"), objects=(2,),
    ),
    "long": PromptKind(
        "Long prompts", "colour, shape, size and motion of three", "dense",
        _each("colour", "shape", "size", "motion"), objects=(SEVERAL,),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class PromptBenchmarkSettings(SharedSettings):
    """What all kinds share, beside what every study of clips is told.

    Attributes:
        expand: whether each prompt is also told as the rules expand it.
    """

    expand: bool = True


QUICK = PromptBenchmarkSettings(count=3, sampling={"steps": 2})


def study_text(model: Model, settings: PromptBenchmarkSettings, reach: Reach = lambda done, total: None) -> VideoStudy:
    """Asks a model of clips for things of each kind and counts what is right.

    Args:
        model: of clips (3, T, H, W), with a condition `prompt`.
        settings: count, seed and the like.
        reach: told how many clips are drawn.

    Raises:
        RecipeError: another kind of model, an unknown kind, or one that clips of the model's size cannot be of.
    """
    check_model(model)
    few = StudyContext(model, replace(settings, count=2), reach)
    for kind in (KINDS[name] for name in settings.only or KINDS if name in KINDS):  # before hours that would be lost
        clips_of(few, kind)
    return run_study(model, settings, TASKS, reach)


def of_kind(kind: PromptKind, bench: StudyContext[PromptBenchmarkSettings]) -> StudyResult:
    """The share of right clips of a kind of prompts, as they are and as the rules expand them."""
    items = clips_of(bench, kind)
    texts = [prompt_of(item, kind, number) for number, item in enumerate(items)]
    real = [kind.right(item, item["pixels"]) for item in items]
    pairs = [(items[n - by], one) for by in _OTHERS if by < len(items) for n, one in enumerate(items)]
    other = [kind.right(item, one["pixels"]) for item, one in pairs]
    asked = {kind.asked: texts}
    if bench.settings.expand and kind.register != "dense":
        asked[f"{kind.asked}, expanded by the rules"] = [expand_by_rules(text).text for text in texts]
    rows: list[Finding] = []
    animations: dict[str, bytes] = {}
    for words, told in asked.items():
        made = bench.made(told)
        good = [kind.right(item, clip) for item, clip in zip(items, made, strict=True)]
        rows.append(shares(words, good, real, baselines={"others": sum(other) / len(other)}))
        animations |= {f"{words}. {name}": film for name, film in example_videos([made], good).items()}
    method = (
        f"Prompts in the register {kind.register!r}, such as {texts[0]!r}. Ceiling: the real clips that they are said "
        "of. Baseline: real clips of other prompts of the kind."
    )
    return StudyResult(kind.title, method, rows, animations=animations)


def negation(bench: StudyContext[PromptBenchmarkSettings]) -> StudyResult:
    """How often the colour that a clip has by itself is gone once a negative prompt names it."""
    items = clips_of(bench, replace(KINDS["motion"], chosen=_on_no_colour))
    texts = [text_of(item).replace(f" {thing(item)['colour']}", "") for item in items]
    plain, other = bench.made(texts), bench.made(texts, first=len(texts))
    named = [_colour(clip) or NOTHING for clip in plain]
    without = bench.made(texts, negative=named)
    good, chance = ([_another(*pair) for pair in zip(clips, named, strict=True)] for clips in (without, other))
    row = shares("a thing of another colour than it has by itself", good,
                 baselines={"other noise, no negative prompt": sum(chance) / len(chance)})  # fmt: skip
    method = (
        f"Prompts that name no colour, such as {texts[0]!r}, and a negative prompt that names the colour of what is "
        f"made of them without one, such as {named[0]!r}, from the same noise. Below those: what is made with it."
    )
    return StudyResult("Negation", method, [row], animations=example_videos([plain, without], good))


def _colour(clip: Tensor) -> str | None:
    return detect(clip).facts["colour"]


def _another(clip: Tensor, named: str) -> bool:
    """Whether there is a thing, and of a colour that was not named."""
    return _colour(clip) not in (None, named)


def clips_of(bench: StudyContext[PromptBenchmarkSettings], kind: PromptKind) -> list[Item]:
    """Real clips of a kind, of the model's size and length; those of each number of objects in turn."""

    def of(number: int) -> list[Item]:
        chosen = lambda item: len(item["attributes"]["objects"]) == number and kind.chosen(item)  # noqa: E731
        return bench.chosen(bench.model.shape[1:], SEED, chosen, {"objects": (number,)})

    each = zip(*(of(number) for number in kind.objects), strict=True)
    return [item for turn in each for item in turn][: bench.settings.count]


def prompt_of(item: Item, kind: PromptKind, number: int) -> str:
    """The prompt of a clip; the form of short and raw ones changes with its number."""
    draws = [(0.37 * (number + 1) + 0.13 * place) % 1 for place in range(caption_templates.DRAWS)]
    return caption_templates.write_caption(item["attributes"], kind.register, kind.language, draws, faults=0).text


TASKS: dict[str, Callable[[StudyContext[PromptBenchmarkSettings]], StudyResult]] = {
    **{name: partial(of_kind, kind) for name, kind in KINDS.items()}, NEGATION: negation,
}  # fmt: skip
