"""Tasks of a study of clips in which something is changed: a thing's colour, the ground, and the size of all.

Source: Brooks et al. 2024, "Video generation models as world simulators", on editing videos and on variable durations,
resolutions and aspect ratios; edits by SDEdit: Meng et al. 2021 (arXiv:2108.01073).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unveil.analysis.video_bench import (
    LOST,
    MOVING,
    StudyContext,
    VideoStudySettings,
    example_videos,
    stack_videos,
    text_of,
    thing,
)
from unveil.analysis.video_metrics import StudyResult, means, shares
from unveil.evaluate.findings import Finding
from unveil.evaluate.judges.video_alignment import detect
from unveil.evaluate.metrics import bootstrap
from unveil.generation import video
from unveil.generation.generate import TaskSpec
from unveil.generation.long_video import VideoSpec
from unveil.playground import temporal_consistency
from unveil.playground.shapes import COLOURS
from unveil.playground.world.rendering import TONES
from unveil.types import Item, format_size

APPLIED, KEPT, FALLEN, SINGLE = 0.8, 0.8, 0.05, 0.8
AROUND = 2  # pixels around a thing that are made anew with it
SEEN = "sight in every frame"
FINE = (16, 64, 64)  # twice the resolution of the score world


class _Change(NamedTuple):
    """An edit: of which clips, under which texts, and what is to be seen of it.

    applied: whether a clip shows what is new. kept: whether it shows what is not to change, by name.
    """

    name: str
    real: Tensor
    texts: list[str]
    applied: Callable[[int, Tensor], bool]
    kept: Callable[[int, Tensor], dict[str, bool]]


def edit(bench: StudyContext[VideoStudySettings]) -> StudyResult:
    """A thing gets another colour: made again where it is, made again everywhere, or moved by a difference of texts."""
    items = bench.items(MOVING)
    real, names = stack_videos(items), list(COLOURS)
    new = [names[(names.index(thing(item)["colour"]) + 3) % len(names)] for item in items]
    change = _Change(
        "colour",
        real,
        [text_of(item, colour=colour) for item, colour in zip(items, new, strict=True)],
        lambda n, clip: detect(clip).facts["colour"] == new[n],
        lambda n, clip: _same(items[n], clip, ("shape", "motion", SEEN)) | {"ground": _ground_kept(items[n], clip)},
    )
    masks = torch.stack([temporal_consistency.object_mask(clip, AROUND) for clip in real])
    rows, curve, animations = _strengths(bench, change, masks)
    whole = _curve(bench, change, None)
    moved = bench.made(change.texts, lambda rows: _moved(bench, items, real, rows))
    rows += _applied(bench, change, moved, "by the difference of texts: ")
    rows.append(_rising("made again everywhere: new colour falls by, from strength to strength", bench, whole[0]))
    curve |= {f"everywhere, {name}": one for name, one in whole[1].items()} | curve
    method = (
        "Real clips of what moves; the text names another colour. Made again where the thing is and around it, from "
        f"noise of strength {bench.settings.strength:g} (bars), and of others; everywhere, as far as the text leads; "
        "and without noising, by the difference of what the model says under both texts. Baseline: the clip as it is."
    )
    return StudyResult("Edit the thing", method, rows, curve, animations)


def ground(bench: StudyContext[VideoStudySettings]) -> StudyResult:
    """The ground gets another colour: made again around the thing, which is held."""
    items, names = bench.items(MOVING), list(TONES)
    real = stack_videos(items)
    new = [names[(names.index(item["attributes"]["ground"]) + 2) % len(names)] for item in items]
    change = _Change(
        "ground",
        real,
        [text_of(item, ground=name) for item, name in zip(items, new, strict=True)],
        lambda n, clip: temporal_consistency.ground_name(clip) == new[n],
        lambda n, clip: _same(items[n], clip, ("colour", "shape", "motion", SEEN)),
    )
    masks = torch.stack([~temporal_consistency.object_mask(clip, 0) for clip in real])
    rows, curve, animations = _strengths(bench, change, masks)
    method = (
        "Real clips of what moves; the text names another ground. All but the thing is made again, from noise of "
        f"strength {bench.settings.strength:g} (bars), and of others. Baseline: the clip as it is."
    )
    return StudyResult("Edit the ground", method, rows, curve, animations)


def sizes(bench: StudyContext[VideoStudySettings]) -> StudyResult:
    """Clips of other sizes, aspects and lengths than the model's own, by their texts."""
    rows: list[Finding] = []
    animations: dict[str, bytes] = {}
    for size in bench.settings.sizes:
        words = f"{size[0]} frames of {format_size(size)}" if size[0] > 1 else f"pictures of {format_size(size)}"
        own, made, good = _sized(bench, words, size)
        rows += own
        animations |= {f"{words}. {told}": film for told, film in example_videos([made], good).items()}
    method = (
        "Texts of real clips of the same size; a clip for each. Width x height. Ceiling: those clips. Baseline: chance."
    )
    return StudyResult("Other sizes, aspects and lengths", method, rows, animations=animations)


def twice(bench: StudyContext[VideoStudySettings]) -> StudyResult:
    """Clips of twice the resolution: places of tokens are half as far apart as in training."""
    rows: list[Finding] = []
    animations: dict[str, bytes] = {}
    for words, spacing, bar, passes in (
        ("places scaled", 0.5, SINGLE, False),
        ("places as they are", 1.0, None, False),
        ("in passes", 1.0, None, True),
    ):
        own, made, good = _sized(bench, words, FINE, spacing, bar, passes=passes)
        rows += own
        animations |= {f"{words.capitalize()}. {told}": film for told, film in example_videos([made], good).items()}
    method = (
        "As for other sizes, at 64 x 64; places scaled, the tokens of a clip reach as far as those of a 32 x 32 one; "
        "in passes, as `unveil video` does at this size: made at 32 x 32, enlarged, and made again in windows."
    )
    return StudyResult("Twice the resolution", method, rows, animations=animations)


# ---------------------------------------------------------------------- details


def _strengths(
    bench: StudyContext[VideoStudySettings], change: _Change, masks: Tensor
) -> tuple[list[Finding], dict[str, dict[str, float]], dict[str, bytes]]:
    """The rows of an edit of a region, the shares by strength, and animations of the strength that is judged."""
    hits, curve, made = _curve(bench, change, masks)
    judged = made[bench.settings.strength]
    rows = _applied(bench, change, judged, "", APPLIED, KEPT)
    rows.append(_rising(f"new {change.name} falls by, from strength to strength", bench, hits, FALLEN))
    good = [change.applied(n, clip) and all(change.kept(n, clip).values()) for n, clip in enumerate(judged)]
    return rows, curve, example_videos([change.real, judged], good)


def _curve(
    bench: StudyContext[VideoStudySettings], change: _Change, masks: Tensor | None
) -> tuple[Tensor, dict[str, dict[str, float]], dict[float, Tensor]]:
    """Of each strength which clips show what is new (S, N), the shares of what is new and kept, and the clips."""
    hits: list[list[bool]] = []
    curve: dict[str, dict[str, float]] = {}
    every: dict[float, Tensor] = {}
    for strength in bench.settings.strengths:
        every[strength] = made = bench.made(
            change.texts,
            lambda rows, strength=strength: video.sdedit_video(
                bench.model, change.real[rows], strength, None if masks is None else masks[rows]
            ),
        )
        hits.append([change.applied(n, clip) for n, clip in enumerate(made)])
        kept = [change.kept(n, clip) for n, clip in enumerate(made)]
        shares_kept = {f"{name} kept": float(np.mean([one[name] for one in kept])) for name in kept[0]}
        path = float(np.mean(_paths(change.real, made)))
        curve[f"strength {strength:g}"] = {f"new {change.name}": float(np.mean(hits[-1])), **shares_kept, "path": path}
    return torch.tensor(hits).double(), curve, every


def _applied(
    bench: StudyContext[VideoStudySettings],
    change: _Change,
    made: Tensor,
    words: str,
    applied: float | None = None,
    kept: float | None = None,
) -> list[Finding]:
    """What an edit changed, and what it left."""
    clips = list(enumerate(made))
    others = [change.kept(n, clip) for n, clip in clips]
    rows = [
        shares(
            f"{words}new {change.name}",
            [change.applied(n, clip) for n, clip in clips],
            bar=applied,
            baselines={"as it is": 0.0},
        )
    ]
    real = [change.kept(n, clip) for n, clip in enumerate(change.real)]
    for name in others[0]:
        rows.append(
            shares(
                f"{words}{name} kept", [one[name] for one in others], [one[name] for one in real], bar=kept,
                baselines={"as it is": float(np.mean([one[name] for one in real]))},
            )
        )  # fmt: skip
    rows.append(means(f"{words}error of places", _paths(change.real, made), bench.settings.seed, unit="px"))
    return rows


def _rising(measure: str, bench: StudyContext[VideoStudySettings], hits: Tensor, bar: float | None = None) -> Finding:
    """The largest fall of a share from one strength to the next; 0 where it only rises."""

    def fall(rows: Tensor) -> float:
        return max(0.0, float((-hits[:, rows].mean(1).diff()).max()))

    found = bootstrap(fall, hits.shape[1], draws=500, seed=bench.settings.seed)
    found = found._replace(low=max(0.0, found.low))  # an interval round the value reaches below what can be
    return Finding(measure, *found, unit="%", bar=bar, rule="at most", count=hits.shape[1])


def _moved(bench: StudyContext[VideoStudySettings], items: Sequence[Item], real: Tensor, rows: slice) -> TaskSpec:
    source = {"prompt": [text_of(item) for item in items[rows]]}
    return video.flow_edit_video(bench.model, real[rows], source, strength=bench.settings.strength)


def _paths(real: Tensor, made: Tensor) -> list[float]:
    """How far things are from where they were, in the mean of each clip, in pixels."""
    return [
        temporal_consistency.mean_position_error(
            temporal_consistency.centres(one), temporal_consistency.centres(true), LOST
        )
        for one, true in zip(made, real, strict=True)
    ]


def _same(item: Item, clip: Tensor, names: Sequence[str]) -> dict[str, bool]:
    """Whether a clip is read as a real one is in truth, by attribute; and whether every frame shows the thing."""
    seen = detect(clip)
    found = {name: seen.facts[name] == thing(item)[name] for name in names if name != SEEN}
    return found | ({SEEN: seen.visible} if SEEN in names else {})


def _ground_kept(item: Item, clip: Tensor) -> bool:
    return temporal_consistency.ground_name(clip) == item["attributes"]["ground"]


def _sized(
    bench: StudyContext[VideoStudySettings],
    words: str,
    size: tuple[int, int, int],
    spacing: float = 1.0,
    bar: float | None = None,
    *,
    passes: bool = False,
) -> tuple[list[Finding], Tensor, list[bool]]:
    """The rows of clips of a size, the clips, and which are as asked."""
    items = bench.world(size)
    shot = VideoSpec(size[0], size[1:], window=size[0], spacing=spacing)
    made = bench.filmed([text_of(item) for item in items], lambda rows: shot, passes=passes)
    names = ("colour", "shape", "motion") if size[0] > 1 else ("colour", "shape")
    guess = {"colour": 1 / 8, "shape": 1 / 5, "motion": 1 / 10}
    ours, true = (
        [_same(item, clip, names) for item, clip in zip(items, own, strict=True)] for own in (made, stack_videos(items))
    )
    together = "colour, shape and motion" if size[0] > 1 else "colour and shape"
    good = [all(one.values()) for one in ours]
    chance = float(np.prod([guess[name] for name in names]))
    rows = [shares(f"{words}: {together}", good, [all(one.values()) for one in true], baselines={"chance": chance})]
    single = [bool((temporal_consistency.object_counts(clip) == 1).all()) for clip in made]
    alone = [bool((temporal_consistency.object_counts(item["pixels"]) == 1).all()) for item in items]
    rows.append(shares(f"{words}: one thing in every frame", single, alone, bar=bar))
    for name in names:
        own = [one[name] for one in true]
        rows.append(shares(f"{words}: {name}", [one[name] for one in ours], own, baselines={"chance": guess[name]}))
    return rows, made, good
