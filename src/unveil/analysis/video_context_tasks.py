"""Tasks of a study of video models with conditioning frames: image-to-video, extension, loops and transitions.

Source: Brooks et al. 2024, "Video generation models as world simulators", on prompting with images and videos.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from unveil.analysis.video_study import (
    LOOPING,
    LOST,
    MOVING,
    StudyContext,
    StudyResult,
    VideoTaskSettings,
    caption_of,
    example_videos,
    means,
    object_of,
    ratios,
    shares,
    stack_videos,
)
from unveil.evaluate.findings import Finding
from unveil.evaluate.judges.video_alignment import Detection, detect
from unveil.generation import video
from unveil.generation.conditioning_frames import conditioned_generation, keyframes
from unveil.generation.generate import TaskSpec
from unveil.generation.long_video import Direction
from unveil.generation.prompt_schedule import prompt_schedule
from unveil.playground import temporal_consistency
from unveil.types import Item

CONTEXT = 8  # conditioning frames of an extension
ENDS, BETWEEN = 4, 8  # conditioning frames on each side of a bridge, and generated frames between them
OPEN = 10  # frames of a video that is closed to a loop
MIN_PRESERVED = 0.95  # share of videos that keep the attributes of the image
MAX_DRIFT = 0.4  # position error of an extension over that of a frozen frame
MAX_SEAM = 1.5  # step at the seam of a loop over the median step
MAX_ABRUPTNESS = 2.0  # largest change between frames of a transition over the median change
MIN_MONOTONICITY = 0.8  # rank correlation of colour and time in a transition


def image_to_video(context: StudyContext[VideoTaskSettings]) -> StudyResult:
    """Measure videos that begin or end with an image: the object keeps its colour and shape."""
    items = context.items()
    real, prompts = stack_videos(items), [caption_of(item) for item in items]
    started = context.generate(prompts, lambda rows: video.inpaint_frames(context.model, real[rows][:, :, :1], [0]))
    ended = context.generate(prompts, lambda rows: video.inpaint_frames(context.model, real[rows][:, :, -1:], [-1]))
    detections, truth, frozen = (
        [detect(frames) for frames in videos[:, :, 1:]] for videos in (started, real, real[:, :, :1].expand_as(real))
    )
    detections_before = [detect(frames) for frames in ended[:, :, :-1]]

    def preserved(name: str, detected: Sequence[Detection], *attributes: str, bar: float | None = None) -> Finding:
        ours, ceiling, baseline = (
            [_has_attributes(item, detection, attributes) for item, detection in zip(items, every, strict=True)]
            for every in (detected, truth, frozen)
        )
        return shares(name, ours, ceiling, bar=bar, baselines={"freeze": sum(baseline) / len(baseline)})

    findings = [
        preserved("colour kept", detections, "colour", bar=MIN_PRESERVED),
        preserved("shape kept", detections, "shape", bar=MIN_PRESERVED),
        preserved("motion as in the prompt", detections, "motion"),
        preserved("colour, shape and motion", detections, "colour", "shape", "motion"),
        preserved("colour and shape kept, conditioned on the last frame", detections_before, "colour", "shape"),
        shares("the image is reproduced to the bit", _equal(started[:, :, :1], real[:, :, :1])),
    ]
    method = (
        "The model is conditioned on the first frame of a real video and on its prompt. The detector reads the "
        "generated frames."
    )
    correct = [
        _has_attributes(item, detection, ("colour", "shape", "motion"))
        for item, detection in zip(items, detections, strict=True)
    ]
    animations = example_videos([real, started], correct, range(1, 16))
    return StudyResult("Image to video", method, findings, animations=animations)


def extend(context: StudyContext[VideoTaskSettings]) -> StudyResult:
    """Measure extensions in both directions: position of the object against its true position."""
    items = context.items(MOVING)
    findings: list[Finding] = []
    animations: dict[str, bytes] = {}
    for direction in ("forward", "backward"):
        direction_findings, direction_animations = _extend(context, items, direction)
        findings += direction_findings
        animations |= direction_animations
    method = (
        f"The model is conditioned on half of a real video of a moving object, {CONTEXT} frames, and on its prompt. "
        "Positions in the generated frames are compared with those in the real video. A missing object counts as half "
        "a side off. Ceiling: the detector's error on real videos. Baseline: the last conditioning frame, frozen."
    )
    return StudyResult("Extend", method, findings, animations=animations)


def _extend(
    context: StudyContext[VideoTaskSettings], items: Sequence[Item], direction: Direction
) -> tuple[list[Finding], dict[str, bytes]]:
    real, prompts = stack_videos(items), [caption_of(item) for item in items]
    forward, length = direction == "forward", real.shape[2]
    conditioning = real[:, :, :CONTEXT] if forward else real[:, :, -CONTEXT:]
    new = slice(CONTEXT, length) if forward else slice(0, length - CONTEXT)
    extended = context.generate_long(
        prompts,
        lambda rows: video.extend(
            context.model, conditioning[rows], length - CONTEXT, direction=direction, context=CONTEXT
        ),
    )
    error = temporal_consistency.mean_position_error
    truth = [temporal_consistency.centres(frames) for frames in real]
    ours = [
        error(temporal_consistency.centres(frames[:, new]), centres[new], LOST)
        for frames, centres in zip(extended, truth, strict=True)
    ]
    edge = CONTEXT - 1 if forward else length - CONTEXT
    frozen = [error(np.repeat(xy[edge : edge + 1], length - CONTEXT, 0), xy[new], LOST) for xy in truth]
    offsets = [centres - item["track"][0, :, :2].numpy() for centres, item in zip(truth, items, strict=True)]
    noise = float(np.mean([error(offset[new], offset.mean(0, keepdims=True), LOST) for offset in offsets]))
    preserved = [
        _has_attributes(item, detect(frames), ("colour", "shape"))
        for item, frames in zip(items, extended[:, :, new], strict=True)
    ]
    seed, baseline = context.settings.seed, float(np.mean(frozen))
    findings = [
        ratios(
            f"{direction}: position error over that of freezing", ours, frozen, seed, bar=MAX_DRIFT, rule="at most",
            ceiling=noise / baseline, baselines={"freeze": 1.0},
        ),
        means(
            f"{direction}: position error", ours, seed, unit="px", ceiling=noise, rule="at most",
            baselines={"freeze": baseline},
        ),
        shares(f"{direction}: colour and shape kept", preserved),
    ]  # fmt: skip
    correct = [drift <= MAX_DRIFT * limit for drift, limit in zip(ours, frozen, strict=True)]
    animations = example_videos([real, extended], correct, range(*new.indices(length)))
    return findings, _prefixed(direction.capitalize(), animations)


def loop(context: StudyContext[VideoTaskSettings]) -> StudyResult:
    """Measure seams of loops: rings that are generated from prompts, and real videos that are closed by a bridge."""
    items = context.items(LOOPING)
    real, prompts = stack_videos(items), [caption_of(item) for item in items]
    ring, plain = context.generate(prompts, lambda rows: video.loop(context.model)), context.generate(prompts)
    part = real[:, :, :OPEN]
    bridge = context.generate_long(
        prompts, lambda rows: video.interpolate_between(context.model, part[rows], part[rows], BETWEEN, context=ENDS)
    )
    closed = torch.cat([part, bridge[:, :, ENDS : ENDS + BETWEEN]], dim=2)
    seed = context.settings.seed
    inside = [temporal_consistency.relative_jump(float(steps.max()), steps) for steps in map(_steps, real)]
    ceiling = float(np.mean(inside))
    cuts = [_seam(frames) for frames in part]
    rings = [
        _seam(frames) if _is_moving(frames) else max(_seam(frames), cut) for frames, cut in zip(ring, cuts, strict=True)
    ]
    bridges = [_relative_step(_circular_steps(frames), range(OPEN - 1, closed.shape[2])) for frames in closed]
    again, no_ring, open_cut = (float(np.mean([_seam(frames) for frames in videos])) for videos in (real, plain, part))
    frozen = [max(_seam(frames), cut) for frames, cut in zip(real[:, :, :1].expand_as(real), cuts, strict=True)]
    baselines = {"real video again": again, "same model, no ring": no_ring, "a frozen frame": float(np.mean(frozen))}
    matches = [
        _has_attributes(item, detect(frames), ("colour", "shape", "motion"))
        for item, frames in zip(items, ring, strict=True)
    ]
    rings_ok, bridges_ok = ([seam <= MAX_SEAM for seam in seams] for seams in (rings, bridges))
    findings = [
        means(
            "ring: step at the seam over the median step", rings, seed, bar=MAX_SEAM, rule="at most", ceiling=ceiling,
            baselines=baselines,
        ),
        shares("ring: videos whose seam is within the bar", rings_ok),
        shares("ring: colour, shape and motion as in the prompt", matches),
        means(
            "bridge: largest step of the closing frames over the median step", bridges, seed, bar=MAX_SEAM,
            rule="at most", ceiling=ceiling, baselines={"hard cut": open_cut},
        ),
        shares("bridge: videos within the bar", bridges_ok),
    ]  # fmt: skip
    method = (
        f"Prompts of objects that bounce or orbit. Ring: {real.shape[2]} frames are generated as a circle; real videos "
        "of these motions return to their beginning in the same number of frames. If an object is not detected in "
        "every frame, or does not move, the seam counts at least as much as that of a hard cut. Bridge: "
        f"{OPEN} frames of a real video, then {BETWEEN} generated frames from its end to its beginning. Ceiling: the "
        "largest step in a real video over its median step. Hard cut: the conditioning frames start again."
    )
    animations = _prefixed("Ring", example_videos([ring.repeat(1, 1, 2, 1, 1)], rings_ok))
    animations |= _prefixed("Bridge", example_videos([closed], bridges_ok, range(OPEN, closed.shape[2])))
    return StudyResult("Loop", method, findings, animations=animations)


def connect(context: StudyContext[VideoTaskSettings]) -> StudyResult:
    """Measure transitions between two videos with objects of different colours, by a bridge and by a blend."""
    pairs = context.pairs()
    first, last = (stack_videos([pair[side] for pair in pairs]) for side in (0, 1))
    prompts = [[caption_of(pair[side]) for pair in pairs] for side in (0, 1)]
    ends = torch.cat([first[:, :, -ENDS:], last[:, :, :ENDS]], dim=2)
    end_frames = [*range(ENDS), *range(-ENDS, 0)]

    def bridge(rows: slice) -> TaskSpec:
        position = torch.linspace(0, 1, BETWEEN + 2, dtype=torch.float64)[1:-1]
        zeros = torch.zeros(ENDS, dtype=torch.float64)
        weight = torch.cat([zeros, position, 1 - zeros])
        schedule = prompt_schedule(
            [{"prompt": captions[rows]} for captions in prompts], torch.stack([1 - weight, weight])
        )
        frames = keyframes(ends[rows], end_frames, 2 * ENDS + BETWEEN)
        return conditioned_generation(context.model, frames, "bridge", {}, schedule)

    def blend(rows: slice) -> TaskSpec:
        texts = [{"prompt": captions[rows]} for captions in prompts]
        return video.crossfade(context.model, first[rows], last[rows], texts=texts)

    bridge_baselines = {
        "hard cut": torch.cat([first[:, :, -8:], last[:, :, :8]], 2),
        "cross-fade": _bridge_crossfade(ends),
    }
    share = torch.linspace(0, 1, first.shape[2]).view(1, 1, -1, 1, 1)
    blend_baselines = {
        "hard cut": torch.cat([first[:, :, :8], last[:, :, 8:]], 2),
        "cross-fade": torch.lerp(first.float(), last.float(), share).round().to(torch.uint8),
    }
    outer_frames = torch.stack([first[:, :, 0], last[:, :, -1]], 2)
    findings: list[Finding] = []
    animations: dict[str, bytes] = {}
    for name, task, conditioning, at, baselines in (
        ("bridge", bridge, ends, end_frames, bridge_baselines),
        ("blend", blend, outer_frames, [0, -1], blend_baselines),
    ):
        videos = context.generate(prompts[0], task)
        new = range(ENDS, ENDS + BETWEEN) if name == "bridge" else range(1, videos.shape[2] - 1)
        findings.append(
            shares(
                f"{name}: ends equal the conditioning frames to the bit",
                _equal(videos[:, :, at], conditioning),
                bar=1.0,
            )
        )
        further, correct = _transition(context, name, videos, new, (first, last), baselines)
        findings += further
        animations |= _prefixed(name.capitalize(), example_videos([baselines["cross-fade"], videos], correct, new))
    method = (
        "Pairs of real videos of moving objects with one background and different colours. Bridge: the model is "
        f"conditioned on the last frames of one video and the first of the other, and generates {BETWEEN} between "
        "them. Blend: both videos are mixed, noised and denoised, with the first frame of one and the last of the "
        "other as conditioning frames. Upper row: a cross-fade."
    )
    return StudyResult("Connect", method, findings, animations=animations)


def _transition(
    context: StudyContext[VideoTaskSettings],
    name: str,
    videos: Tensor,
    new: range,
    ends: tuple[Tensor, Tensor],
    baselines: Mapping[str, Tensor],
) -> tuple[list[Finding], list[bool]]:
    """Findings of a kind of transition, and which videos meet the bars."""
    seed, near = context.settings.seed, slice(new.start - 1, new.stop + 1)
    colours = [(_mean_hue(before), _mean_hue(after)) for before, after in zip(*ends, strict=True)]

    def abruptness(every: Tensor) -> list[float]:
        return [min(temporal_consistency.abruptness(frames), 100.0) for frames in every]

    def monotonicity(every: Tensor) -> list[float]:
        return [
            temporal_consistency.rank_monotonicity(temporal_consistency.colour_progress(frames[:, near], *pair))
            for frames, pair in zip(every, colours, strict=True)
        ]

    def single(every: Tensor) -> list[float]:
        counts = (temporal_consistency.object_counts(frames[:, new.start : new.stop]) for frames in every)
        return [float((count == 1).mean()) for count in counts]

    changes, rises = abruptness(videos), monotonicity(videos)
    real_changes = [temporal_consistency.abruptness(frames) for frames in ends[0]]
    findings = [
        means(
            f"{name}: largest change between frames over the median change", changes, seed, bar=MAX_ABRUPTNESS,
            rule="at most", ceiling=float(np.mean(real_changes)),
            baselines={key: float(np.mean(abruptness(every))) for key, every in baselines.items()},
        ),
        means(
            f"{name}: colour goes from the first to the last (Spearman)", rises, seed, bar=MIN_MONOTONICITY,
            baselines={key: float(np.mean(monotonicity(every))) for key, every in baselines.items()},
        ),
        means(
            f"{name}: frames between with one object", single(videos), seed, unit="%",
            ceiling=float(np.mean(single(ends[0]))),
            baselines={key: float(np.mean(single(every))) for key, every in baselines.items()},
        ),
    ]  # fmt: skip
    correct = [
        change <= MAX_ABRUPTNESS and rise >= MIN_MONOTONICITY for change, rise in zip(changes, rises, strict=True)
    ]
    return findings, correct


# ---------------------------------------------------------------------- measures


def _prefixed(prefix: str, animations: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{prefix}. {caption}": animation for caption, animation in animations.items()}


def _has_attributes(item: Item, detection: Detection, names: Sequence[str]) -> bool:
    """Return True if the detected attributes of these names equal those of the real video."""
    return all(detection.attributes[name] == object_of(item)[name] for name in names)


def _equal(videos: Tensor, others: Tensor) -> list[bool]:
    return [torch.equal(frames, other) for frames, other in zip(videos, others, strict=True)]


def _steps(frames: Tensor) -> np.ndarray:
    return temporal_consistency.step_lengths(temporal_consistency.centres(frames), LOST)


def _circular_steps(frames: Tensor) -> np.ndarray:
    """Steps of the object in a video that repeats; the last step is from its end to its beginning."""
    centres = temporal_consistency.centres(frames)
    return temporal_consistency.step_lengths(np.concatenate([centres, centres[:1]]), LOST)


def _relative_step(steps: np.ndarray, at: range) -> float:
    """The largest of the steps at these positions over the median of the others."""
    others = np.delete(steps, list(at))
    return temporal_consistency.relative_jump(float(steps[list(at)].max()), others)


def _seam(frames: Tensor) -> float:
    """The step from the end of a video to its beginning over the median step."""
    steps = _circular_steps(frames)
    return _relative_step(steps, range(len(steps) - 1, len(steps)))


def _is_moving(frames: Tensor) -> bool:
    """Return True if an object is detected in every frame and moves."""
    steps = _steps(frames)
    return bool(steps.max() < LOST and steps.max() > temporal_consistency.MIN_STEP)


def _mean_hue(frames: Tensor) -> np.ndarray:
    return np.nanmean(temporal_consistency.hues(frames), axis=0).astype(np.float32)


def _bridge_crossfade(ends: Tensor) -> Tensor:
    """The conditioning frames of a bridge with a cross-fade of the two nearest between them."""
    share = torch.linspace(0, 1, BETWEEN + 2)[1:-1].view(1, 1, -1, 1, 1)
    before, after = ends[:, :, ENDS - 1 : ENDS].float(), ends[:, :, ENDS : ENDS + 1].float()
    faded = torch.lerp(before, after, share).round().to(torch.uint8)
    return torch.cat([ends[:, :, :ENDS], faded, ends[:, :, ENDS:]], 2)
