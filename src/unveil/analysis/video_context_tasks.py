"""Tasks of a study of clips in which frames are given: pictures that move, clips that go on, loops, and connections.

Source: Brooks et al. 2024, "Video generation models as world simulators", on prompting with images and videos.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unveil.analysis.video_bench import (
    LOOPING,
    LOST,
    MOVING,
    StudyContext,
    VideoStudySettings,
    example_videos,
    stack_videos,
    text_of,
    thing,
)
from unveil.analysis.video_metrics import StudyResult, means, ratios, shares
from unveil.evaluate.findings import Finding
from unveil.evaluate.judges.video_alignment import Detection, detect
from unveil.generation import video
from unveil.generation.conditioning_frames import conditioned_generation, keyframes
from unveil.generation.generate import TaskSpec
from unveil.generation.long_video import Direction
from unveil.generation.prompt_schedule import prompt_schedule
from unveil.playground import temporal_consistency
from unveil.types import Item

GIVEN = 8  # frames of a clip that goes on
ENDS, BETWEEN = 4, 8  # frames known of each side of a bridge, and those between
OPEN = 10  # frames of a clip that is closed to a loop
KEPT, STRAYED, STRAYED_GOAL, SEAM, ABRUPT, RISING = 0.95, 0.4, 0.25, 1.5, 2.0, 0.8


def picture(bench: StudyContext[VideoStudySettings]) -> StudyResult:
    """Clips that begin with a picture: what is in it keeps its colour and shape."""
    items = bench.items()
    real = stack_videos(items)
    made = bench.made(
        [text_of(item) for item in items], lambda rows: video.inpaint_frames(bench.model, real[rows][:, :, :1], [0])
    )
    ended = bench.made(
        [text_of(item) for item in items], lambda rows: video.inpaint_frames(bench.model, real[rows][:, :, -1:], [-1])
    )
    looks, true, still = (
        [detect(one) for one in clips[:, :, 1:]] for clips in (made, real, real[:, :, :1].expand_as(real))
    )
    back = [detect(one) for one in ended[:, :, :-1]]
    rows = [
        _kept("colour kept", items, looks, true, still, ("colour",), KEPT),
        _kept("shape kept", items, looks, true, still, ("shape",), KEPT),
        _kept("motion as asked", items, looks, true, still, ("motion",)),
        _kept("colour, shape and motion", items, looks, true, still, ("colour", "shape", "motion")),
        _kept("colour and shape kept, the last frame given", items, back, true, still, ("colour", "shape")),
        shares("the picture comes out to the bit", _equal(made[:, :, :1], real[:, :, :1])),
    ]
    method = "The first frame of a real clip is given, and its text; read back from the frames that were made."
    good = [_has(item, seen, ("colour", "shape", "motion")) for item, seen in zip(items, looks, strict=True)]
    return StudyResult("Picture to clip", method, rows, animations=example_videos([real, made], good, range(1, 16)))


def extended(bench: StudyContext[VideoStudySettings]) -> StudyResult:
    """Clips that go on, and clips that are led up to: where a thing is, against where it truly was."""
    items = bench.items(MOVING)
    real, texts = stack_videos(items), [text_of(item) for item in items]
    rows: list[Finding] = []
    animations: dict[str, bytes] = {}
    for direction in ("forward", "backward"):
        found, film = _extended(bench, items, real, texts, direction)
        rows += found
        animations |= film
    method = (
        f"Half of a real clip of what moves is given, {GIVEN} frames, and its text; places in the frames that were "
        "made against those in the real clip. Where nothing is seen, it counts as half a side off. Ceiling: how far "
        "the detector is from the truth in real clips. Baseline: the last known frame stays."
    )
    return StudyResult("Extend", method, rows, animations=animations)


def _extended(
    bench: StudyContext[VideoStudySettings],
    items: Sequence[Item],
    real: Tensor,
    texts: Sequence[str],
    direction: Direction,
) -> tuple[list[Finding], dict[str, bytes]]:
    ahead = direction == "forward"
    length = real.shape[2]
    given = real[:, :, :GIVEN] if ahead else real[:, :, -GIVEN:]
    new = slice(GIVEN, length) if ahead else slice(0, length - GIVEN)
    made = bench.filmed(
        texts,
        lambda rows: video.extend(bench.model, given[rows], length - GIVEN, direction=direction, context=GIVEN),
    )
    true = [temporal_consistency.centres(one) for one in real]
    ours = [
        temporal_consistency.mean_position_error(temporal_consistency.centres(one[:, new]), where[new], LOST)
        for one, where in zip(made, true, strict=True)
    ]
    edge = GIVEN - 1 if ahead else length - GIVEN
    frozen = [
        temporal_consistency.mean_position_error(np.repeat(where[edge : edge + 1], length - GIVEN, 0), where[new], LOST)
        for where in true
    ]
    off = [where - item["track"][0, :, :2].numpy() for where, item in zip(true, items, strict=True)]
    noise = [temporal_consistency.mean_position_error(one[new], one.mean(0, keepdims=True), LOST) for one in off]
    seed, looks = bench.settings.seed, [detect(one) for one in made[:, :, new]]
    kept = [_has(item, seen, ("colour", "shape")) for item, seen in zip(items, looks, strict=True)]
    least = float(np.mean(frozen))
    rows = [
        ratios(
            f"{direction}: error over that of freezing", ours, frozen, seed, bar=STRAYED, rule="at most",
            ceiling=float(np.mean(noise)) / least, baselines={"freeze": 1.0},
        ),
        means(
            f"{direction}: error of places", ours, seed, unit="px", ceiling=float(np.mean(noise)), rule="at most",
            baselines={"freeze": least},
        ),
        shares(f"{direction}: colour and shape kept", kept),
    ]  # fmt: skip
    good = [mine <= STRAYED * theirs for mine, theirs in zip(ours, frozen, strict=True)]
    animations = example_videos([real, made], good, range(*new.indices(length)))
    return rows, {f"{direction.capitalize()}. {words}": film for words, film in animations.items()}


def loop(bench: StudyContext[VideoStudySettings]) -> StudyResult:
    """Clips without a seam: made as a ring from text alone, and a real clip closed by frames between its ends."""
    items = bench.items(LOOPING)
    real, texts = stack_videos(items), [text_of(item) for item in items]
    ring, plain = bench.made(texts, lambda rows: video.loop(bench.model)), bench.made(texts)
    part = real[:, :, :OPEN]
    bridge = bench.filmed(
        texts, lambda rows: video.interpolate_between(bench.model, part[rows], part[rows], BETWEEN, context=ENDS)
    )
    closed = torch.cat([part, bridge[:, :, ENDS : ENDS + BETWEEN]], dim=2)
    seed = bench.settings.seed
    within = float(
        np.mean([temporal_consistency.relative_jump(float(own.max()), own) for own in (_steps(one) for one in real)])
    )
    cuts = [_seam(clip) for clip in part]
    rings = [_seam(clip) if _goes(clip) else max(_seam(clip), least) for clip, least in zip(ring, cuts, strict=True)]
    bridges = [_jump(_around(clip), range(OPEN - 1, closed.shape[2])) for clip in closed]
    cut, again, open_cut = (float(np.mean([_seam(clip) for clip in clips])) for clips in (real, plain, part))
    held = [max(_seam(clip), least) for clip, least in zip(real[:, :, :1].expand_as(real), cuts, strict=True)]
    beside = {"real clip again": cut, "same model, no ring": again, "a frame held": float(np.mean(held))}
    looks = [detect(one) for one in ring]
    asked = [_has(item, seen, ("colour", "shape", "motion")) for item, seen in zip(items, looks, strict=True)]
    rows = [
        means(
            "ring: step at the seam over the median step",
            rings,
            seed,
            bar=SEAM,
            rule="at most",
            ceiling=within,
            baselines=beside,
        ),
        shares("ring: clips whose seam is within the bar", [one <= SEAM for one in rings]),
        shares("ring: colour, shape and motion as asked", asked),
        means(
            "bridge: largest step of what closes the loop over the median step", bridges, seed, bar=SEAM,
            rule="at most", ceiling=within, baselines={"hard cut": open_cut},
        ),
        shares("bridge: clips within the bar", [one <= SEAM for one in bridges]),
    ]  # fmt: skip
    method = (
        f"Texts of what goes round or to and fro. Ring: {real.shape[2]} frames made as a circle; real clips of what "
        f"goes round come back in as many frames by themselves. Where its thing is "
        "not seen in every frame, or stands still, the seam counts as at least that of a hard cut. "
        f"Bridge: {OPEN} frames of a real clip, then {BETWEEN} "
        "between their end and their beginning. Ceiling: the largest step inside a real clip over its median. Hard "
        "cut: what is given begins again."
    )
    animations = {
        f"Ring. {w}": f for w, f in example_videos([ring.repeat(1, 1, 2, 1, 1)], [one <= SEAM for one in rings]).items()
    }
    made = range(OPEN, closed.shape[2])
    animations |= {
        f"Bridge. {w}": f for w, f in example_videos([closed], [one <= SEAM for one in bridges], made).items()
    }
    return StudyResult("Loop", method, rows, animations=animations)


def connect(bench: StudyContext[VideoStudySettings]) -> StudyResult:
    """Clips that begin as one clip and end as another of another colour: by a bridge, and both blended."""
    pairs = bench.pairs()
    first, last = (stack_videos([pair[side] for pair in pairs]) for side in (0, 1))
    texts = [[text_of(pair[side]) for pair in pairs] for side in (0, 1)]
    told = [lambda rows, own=own: {"prompt": own[rows]} for own in texts]

    def bridge(rows: slice) -> TaskSpec:
        known = torch.cat([first[rows][:, :, -ENDS:], last[rows][:, :, :ENDS]], dim=2)
        at = [*range(ENDS), *range(-ENDS, 0)]
        along = torch.linspace(0, 1, BETWEEN + 2, dtype=torch.float64)[1:-1]
        whole = torch.cat([torch.zeros(ENDS, dtype=torch.float64), along, torch.ones(ENDS, dtype=torch.float64)])
        before = prompt_schedule([one(rows) for one in told], torch.stack([1 - whole, whole]))
        return conditioned_generation(bench.model, keyframes(known, at, 2 * ENDS + BETWEEN), "bridge", {}, before)

    def blend(rows: slice) -> TaskSpec:
        return video.crossfade(bench.model, first[rows], last[rows], texts=[one(rows) for one in told])

    ends = torch.cat([first[:, :, -ENDS:], last[:, :, :ENDS]], dim=2)
    simple = {"hard cut": torch.cat([first[:, :, -8:], last[:, :, :8]], 2), "cross-fade": _faded(ends)}
    edges = [0, -1]
    given = torch.stack([first[:, :, 0], last[:, :, -1]], 2)
    blended = {"hard cut": torch.cat([first[:, :, :8], last[:, :, 8:]], 2), "cross-fade": _mixed(first, last)}
    rows: list[Finding] = []
    animations: dict[str, bytes] = {}
    for name, edit, kept, at, others in (
        ("bridge", bridge, ends, [*range(ENDS), *range(-ENDS, 0)], simple),
        ("blend", blend, given, edges, blended),
    ):
        made = bench.made(texts[0], edit)
        new = range(ENDS, ENDS + BETWEEN) if name == "bridge" else range(1, made.shape[2] - 1)
        found, good = _connected(bench, name, made, _equal(made[:, :, at], kept), new, (first, last), others)
        rows += found
        animations |= {
            f"{name.capitalize()}. {w}": f for w, f in example_videos([others["cross-fade"], made], good, new).items()
        }
    method = (
        "Pairs of real clips of what moves, over one ground, of unlike colours. Bridge: the last frames of one and the "
        f"first of the other are given, {BETWEEN} between are made. Blend: both at once, mixed, noised and made again; "
        "the first frame of one and the last of the other are given. Above: a cross-fade."
    )
    return StudyResult("Connect", method, rows, animations=animations)


def _connected(
    bench: StudyContext[VideoStudySettings],
    name: str,
    made: Tensor,
    equal: list[bool],
    new: range,
    ends: tuple[Tensor, Tensor],
    others: dict[str, Tensor],
) -> tuple[list[Finding], list[bool]]:
    """The rows of a way to connect, and which clips are as the bars ask."""
    seed, near = bench.settings.seed, slice(new.start - 1, new.stop + 1)
    colours = [(_hue(a), _hue(b)) for a, b in zip(*ends, strict=True)]

    def rises(clips: Tensor) -> list[float]:
        return [
            temporal_consistency.rank_monotonicity(temporal_consistency.colour_progress(clip[:, near], *own))
            for clip, own in zip(clips, colours, strict=True)
        ]

    def single(clips: Tensor) -> list[float]:
        return [
            float((temporal_consistency.object_counts(clip[:, new.start : new.stop]) == 1).mean()) for clip in clips
        ]

    abrupt, rising = [min(temporal_consistency.abruptness(clip), 100.0) for clip in made], rises(made)
    real = [temporal_consistency.abruptness(clip) for clip in ends[0]]
    trivial = {
        key: [min(temporal_consistency.abruptness(clip), 100.0) for clip in clips] for key, clips in others.items()
    }
    rows = [
        shares(f"{name}: ends equal the given clips to the bit", equal, bar=1.0),
        means(
            f"{name}: largest change from frame to frame over the median one", abrupt, seed, bar=ABRUPT, rule="at most",
            ceiling=float(np.mean(real)), baselines={key: float(np.mean(one)) for key, one in trivial.items()},
        ),
        means(
            f"{name}: colour goes from the first to the last (Spearman)", rising, seed, bar=RISING,
            baselines={key: float(np.mean(rises(clips))) for key, clips in others.items()},
        ),
        means(
            f"{name}: frames between that show one thing", single(made), seed, unit="%",
            ceiling=float(np.mean(single(ends[0]))),
            baselines={key: float(np.mean(single(clips))) for key, clips in others.items()},
        ),
    ]  # fmt: skip
    return rows, [a <= ABRUPT and r >= RISING for a, r in zip(abrupt, rising, strict=True)]


# ---------------------------------------------------------------------- details


def _kept(
    measure: str,
    items: Sequence[Item],
    looks: Sequence[Detection],
    true: Sequence[Detection],
    still: Sequence[Detection],
    names: Sequence[str],
    bar: float | None = None,
) -> Finding:
    """A row of how many clips are read as their real ones are, beside those themselves and frozen pictures."""
    ours, ceiling, frozen = (
        [_has(item, seen, names) for item, seen in zip(items, own, strict=True)] for own in (looks, true, still)
    )
    return shares(measure, ours, ceiling, bar=bar, baselines={"freeze": sum(frozen) / len(frozen)})


def _has(item: Item, seen: Detection, names: Sequence[str]) -> bool:
    """Whether a clip is read as this one is in these attributes."""
    return all(seen.facts[name] == thing(item)[name] for name in names)


def _equal(made: Tensor, given: Tensor) -> list[bool]:
    return [torch.equal(one, other) for one, other in zip(made, given, strict=True)]


def _steps(clip: Tensor) -> np.ndarray:
    return temporal_consistency.steps(temporal_consistency.centres(clip), LOST)


def _around(clip: Tensor) -> np.ndarray:
    """The steps of a clip that is played in a circle, the one from its end to its beginning last."""
    places = temporal_consistency.centres(clip)
    return temporal_consistency.steps(np.concatenate([places, places[:1]]), LOST)


def _jump(around: np.ndarray, at: range) -> float:
    """The largest of some steps over the median one of the others."""
    others = np.delete(around, list(at))
    return temporal_consistency.relative_jump(float(around[list(at)].max()), others)


def _seam(clip: Tensor) -> float:
    """The step from a clip's end to its beginning over the median one."""
    around = _around(clip)
    return _jump(around, range(len(around) - 1, len(around)))


def _goes(clip: Tensor) -> bool:
    """Whether a thing is seen in every frame, and goes somewhere."""
    steps = _steps(clip)
    return bool(steps.max() < LOST and steps.max() > temporal_consistency.MIN_STEP)


def _hue(clip: Tensor) -> np.ndarray:
    return np.nanmean(temporal_consistency.hues(clip), axis=0).astype(np.float32)


def _mixed(first: Tensor, last: Tensor) -> Tensor:
    """A cross-fade of clips of one length."""
    share = torch.linspace(0, 1, first.shape[2]).view(1, 1, -1, 1, 1)
    return torch.lerp(first.float(), last.float(), share).round().to(torch.uint8)


def _faded(ends: Tensor) -> Tensor:
    """The known frames of a bridge with a cross-fade of the two nearest between them."""
    share = torch.linspace(0, 1, BETWEEN + 2)[1:-1].view(1, 1, -1, 1, 1)
    before, after = ends[:, :, ENDS - 1 : ENDS].float(), ends[:, :, ENDS : ENDS + 1].float()
    return torch.cat(
        [ends[:, :, :ENDS], torch.lerp(before, after, share).round().to(torch.uint8), ends[:, :, ENDS:]], 2
    )
