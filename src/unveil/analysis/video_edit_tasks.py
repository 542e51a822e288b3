"""Tasks of a study of video models that change something: an object's colour, the background, or the size.

Source: Brooks et al. 2024, "Video generation models as world simulators", on editing videos and on variable durations,
resolutions and aspect ratios; edits by SDEdit: Meng et al. 2021 (arXiv:2108.01073).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unveil.analysis.video_study import (
    LOST,
    MOVING,
    StudyContext,
    StudyResult,
    VideoTaskSettings,
    caption_of,
    example_videos,
    means,
    object_of,
    shares,
    stack_videos,
)
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

MIN_APPLIED, MIN_PRESERVED, MAX_FALL, MIN_SINGLE = 0.8, 0.8, 0.05, 0.8
MARGIN = 2  # pixels around an object that are generated again with it
VISIBLE = "visibility in every frame"
DOUBLE_SIZE = (16, 64, 64)  # twice the resolution of the evaluation videos


class _Edit(NamedTuple):
    """An edit of real videos.

    Attributes:
        name: Attribute that changes.
        real: Videos before the edit, (N, 3, T, H, W).
        prompts: Prompts with the new value.
        is_applied: Returns True if the n-th video shows the new value.
        preserved: Returns by name which attributes of the n-th video are still the same.
    """

    name: str
    real: Tensor
    prompts: list[str]
    is_applied: Callable[[int, Tensor], bool]
    preserved: Callable[[int, Tensor], dict[str, bool]]


def edit(context: StudyContext[VideoTaskSettings]) -> StudyResult:
    """Measure a change of the object's colour: by SDEdit in its region, by SDEdit everywhere, and by FlowEdit."""
    items = context.items(MOVING)
    real, names = stack_videos(items), list(COLOURS)
    new = [names[(names.index(object_of(item)["colour"]) + 3) % len(names)] for item in items]
    change = _Edit(
        "colour",
        real,
        [caption_of(item, colour=colour) for item, colour in zip(items, new, strict=True)],
        lambda n, frames: detect(frames).attributes["colour"] == new[n],
        lambda n, frames: (
            _matches(items[n], frames, ("shape", "motion", VISIBLE))
            | {"background": temporal_consistency.ground_name(frames) == items[n]["attributes"]["ground"]}
        ),
    )

    def flow_edit(rows: slice) -> TaskSpec:
        source = {"prompt": [caption_of(item) for item in items[rows]]}
        return video.flow_edit_video(context.model, real[rows], source, strength=context.settings.strength)

    masks = torch.stack([temporal_consistency.object_mask(frames, MARGIN) for frames in real])
    findings, curve, animations = _by_strength(context, change, masks)
    global_hits, global_curve, _ = _edits(context, change, None)
    findings += _edit_findings(context, change, context.generate(change.prompts, flow_edit), "FlowEdit: ")
    findings.append(_largest_fall("everywhere: new colour falls by, from strength to strength", context, global_hits))
    curve |= {f"everywhere, {name}": numbers for name, numbers in global_curve.items()} | curve
    method = (
        "Real videos of moving objects; the prompt names another colour. SDEdit in the region of the object with "
        f"strength {context.settings.strength:g} (bars) and with others; SDEdit everywhere; and FlowEdit, which "
        "follows the difference of the predictions under both prompts without noising. Baseline: the unchanged video."
    )
    return StudyResult("Edit the object", method, findings, curve, animations)


def background(context: StudyContext[VideoTaskSettings]) -> StudyResult:
    """Measure a change of the background's colour: everything except the object is generated again."""
    items, names = context.items(MOVING), list(TONES)
    real = stack_videos(items)
    new = [names[(names.index(item["attributes"]["ground"]) + 2) % len(names)] for item in items]
    change = _Edit(
        "background",
        real,
        [caption_of(item, ground=name) for item, name in zip(items, new, strict=True)],
        lambda n, frames: temporal_consistency.ground_name(frames) == new[n],
        lambda n, frames: _matches(items[n], frames, ("colour", "shape", "motion", VISIBLE)),
    )
    masks = torch.stack([~temporal_consistency.object_mask(frames, 0) for frames in real])
    findings, curve, animations = _by_strength(context, change, masks)
    method = (
        "Real videos of moving objects; the prompt names another background. SDEdit of everything except the object "
        f"with strength {context.settings.strength:g} (bars) and with others. Baseline: the unchanged video."
    )
    return StudyResult("Edit the background", method, findings, curve, animations)


def sizes(context: StudyContext[VideoTaskSettings]) -> StudyResult:
    """Measure videos of other sizes, aspect ratios and lengths than the model's own, from prompts."""
    findings: list[Finding] = []
    animations: dict[str, bytes] = {}
    for size in context.settings.sizes:
        name = f"{size[0]} frames of {format_size(size)}" if size[0] > 1 else f"images of {format_size(size)}"
        size_findings, videos, correct = _measure_size(context, name, size)
        findings += size_findings
        animations |= {f"{name}. {caption}": image for caption, image in example_videos([videos], correct).items()}
    method = (
        "One video for each prompt of real videos of the same size. Width x height. Ceiling: the real videos. "
        "Baseline: chance."
    )
    return StudyResult("Other sizes, aspect ratios and lengths", method, findings, animations=animations)


def double_resolution(context: StudyContext[VideoTaskSettings]) -> StudyResult:
    """Measure videos of twice the resolution, with and without scaled token positions, and by upscaling."""
    findings: list[Finding] = []
    animations: dict[str, bytes] = {}
    for name, spacing, bar, upscale in (
        ("positions scaled", 0.5, MIN_SINGLE, False),
        ("positions unchanged", 1.0, None, False),
        ("upscaled", 1.0, None, True),
    ):
        name_findings, videos, correct = _measure_size(context, name, DOUBLE_SIZE, spacing, bar, upscale=upscale)
        findings += name_findings
        examples = example_videos([videos], correct)
        animations |= {f"{name.capitalize()}. {caption}": image for caption, image in examples.items()}
    method = (
        "As for other sizes, at 64 x 64. With scaled positions the tokens of a video extend over the same range as "
        "those of a 32 x 32 video. Upscaled, as `unveil video` does at this size: generated at 32 x 32, upscaled, and "
        "denoised again in windows."
    )
    return StudyResult("Twice the resolution", method, findings, animations=animations)


# ---------------------------------------------------------------------- edits


def _by_strength(
    context: StudyContext[VideoTaskSettings], change: _Edit, masks: Tensor
) -> tuple[list[Finding], dict[str, dict[str, float]], dict[str, bytes]]:
    """Findings of an edit in a region, the shares by strength, and animations of the strength with bars."""
    hits, curve, videos = _edits(context, change, masks)
    judged = videos[context.settings.strength]
    findings = _edit_findings(context, change, judged, "", MIN_APPLIED, MIN_PRESERVED)
    findings.append(_largest_fall(f"new {change.name} falls by, from strength to strength", context, hits, MAX_FALL))
    correct = [
        change.is_applied(n, frames) and all(change.preserved(n, frames).values()) for n, frames in enumerate(judged)
    ]
    return findings, curve, example_videos([change.real, judged], correct)


def _edits(
    context: StudyContext[VideoTaskSettings], change: _Edit, masks: Tensor | None
) -> tuple[Tensor, dict[str, dict[str, float]], dict[float, Tensor]]:
    """SDEdit with each strength: which videos show the new value (S, N), the shares, and the videos."""
    hits: list[list[bool]] = []
    curve: dict[str, dict[str, float]] = {}
    by_strength: dict[float, Tensor] = {}
    for strength in context.settings.strengths:
        by_strength[strength] = videos = context.generate(
            change.prompts,
            lambda rows, strength=strength: video.sdedit_video(
                context.model, change.real[rows], strength, None if masks is None else masks[rows]
            ),
        )
        hits.append([change.is_applied(n, frames) for n, frames in enumerate(videos)])
        preserved = [change.preserved(n, frames) for n, frames in enumerate(videos)]
        curve[f"strength {strength:g}"] = {
            f"new {change.name}": float(np.mean(hits[-1])),
            **{f"{name} kept": float(np.mean([same[name] for same in preserved])) for name in preserved[0]},
            "path": float(np.mean(_position_errors(change.real, videos))),
        }
    return torch.tensor(hits).double(), curve, by_strength


def _edit_findings(
    context: StudyContext[VideoTaskSettings],
    change: _Edit,
    videos: Tensor,
    prefix: str,
    min_applied: float | None = None,
    min_preserved: float | None = None,
) -> list[Finding]:
    """Findings of an edit: the new value, the preserved attributes and the position error."""
    applied = [change.is_applied(n, frames) for n, frames in enumerate(videos)]
    findings = [shares(f"{prefix}new {change.name}", applied, bar=min_applied, baselines={"unchanged": 0.0})]
    ours, real = ([change.preserved(n, frames) for n, frames in enumerate(every)] for every in (videos, change.real))
    for name in ours[0]:
        truth = [same[name] for same in real]
        findings.append(
            shares(
                f"{prefix}{name} kept", [same[name] for same in ours], truth, bar=min_preserved,
                baselines={"unchanged": float(np.mean(truth))},
            )
        )  # fmt: skip
    errors = _position_errors(change.real, videos)
    return [*findings, means(f"{prefix}position error", errors, context.settings.seed, unit="px")]


def _largest_fall(
    name: str, context: StudyContext[VideoTaskSettings], hits: Tensor, bar: float | None = None
) -> Finding:
    """The largest fall of a share from one strength to the next; 0 if it only rises."""

    def fall(rows: Tensor) -> float:
        return max(0.0, float((-hits[:, rows].mean(1).diff()).max()))

    interval = bootstrap(fall, hits.shape[1], draws=500, seed=context.settings.seed)
    interval = interval._replace(low=max(0.0, interval.low))  # a symmetric interval can reach below 0
    return Finding(name, *interval, unit="%", bar=bar, rule="at most", count=hits.shape[1])


def _position_errors(real: Tensor, videos: Tensor) -> list[float]:
    """Mean distance in pixels of the object from its position in each real video."""
    return [
        temporal_consistency.mean_position_error(
            temporal_consistency.centres(frames), temporal_consistency.centres(truth), LOST
        )
        for frames, truth in zip(videos, real, strict=True)
    ]


# ---------------------------------------------------------------------- sizes


def _measure_size(
    context: StudyContext[VideoTaskSettings],
    name: str,
    size: tuple[int, int, int],
    spacing: float = 1.0,
    bar: float | None = None,
    *,
    upscale: bool = False,
) -> tuple[list[Finding], Tensor, list[bool]]:
    """Findings of videos of a size, the videos, and which match their prompts."""
    items = context.items_of_size(size)
    spec = VideoSpec(size[0], size[1:], window=size[0], spacing=spacing)
    videos = context.generate_long([caption_of(item) for item in items], lambda rows: spec, upscale=upscale)
    chance = {"colour": 1 / 8, "shape": 1 / 5} | ({"motion": 1 / 10} if size[0] > 1 else {})
    ours, truth = (
        [_matches(item, frames, tuple(chance)) for item, frames in zip(items, every, strict=True)]
        for every in (videos, stack_videos(items))
    )
    correct = [all(match.values()) for match in ours]
    findings = [
        shares(
            f"{name}: {'colour, shape and motion' if size[0] > 1 else 'colour and shape'}",
            correct,
            [all(match.values()) for match in truth],
            baselines={"chance": float(np.prod(list(chance.values())))},
        )
    ]
    single, single_real = (
        [bool((temporal_consistency.object_counts(frames) == 1).all()) for frames in every]
        for every in (videos, [item["pixels"] for item in items])
    )
    findings.append(shares(f"{name}: one object in every frame", single, single_real, bar=bar))
    for attribute, probability in chance.items():
        hits, ceiling = ([match[attribute] for match in matches] for matches in (ours, truth))
        findings.append(shares(f"{name}: {attribute}", hits, ceiling, baselines={"chance": probability}))
    return findings, videos, correct


def _matches(item: Item, frames: Tensor, names: Sequence[str]) -> dict[str, bool]:
    """By attribute, True if it equals that of the real video; for `VISIBLE`, True if every frame shows the object."""
    detection = detect(frames)
    matches = {name: detection.attributes[name] == object_of(item)[name] for name in names if name != VISIBLE}
    return matches | ({VISIBLE: detection.visible} if VISIBLE in names else {})
