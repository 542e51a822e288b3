"""Timeline of a video: which frames are given, edited or generated, as text and as a strip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from markupsafe import Markup

from unveil.studio.i18n import Translator
from unveil.studio.job_html import safe_text

FrameState = Literal["known", "changed", "made"]
LOOP_FROM_PROMPT = "video-loop from a prompt"  # the task video-loop without an input video
CELLS = 240  # maximum number of cells of a strip; in longer videos a cell covers several frames


class FrameSpan(NamedTuple):
    """A range of consecutive frames in one state."""

    what: FrameState
    frames: int


def frame_spans(
    task: str,
    frames: int,
    clips: Sequence[int],
    at: int | None,
    form: Mapping[str, Any],
    scenes: Sequence[Mapping[str, Any]] = (),
) -> list[FrameSpan]:
    """Return the frame ranges of a video in order.

    Args:
        task: Name of the task, or `LOOP_FROM_PROMPT`.
        frames: Number of generated frames, or length of the video.
        clips: Lengths of the input videos.
        at: Index of the keyframe; None: no keyframe.
        form: Fields of the page, of which `direction` and `joint` are used.
        scenes: Scenes of a storyboard, with their last frames.
    """
    generated, inputs = FrameSpan("made", frames), [FrameSpan("known", count) for count in clips]
    match task:
        case "video-extend" if inputs:
            return [inputs[0], generated] if form["direction"] == "forward" else [generated, inputs[0]]
        case "video-loop" if inputs:
            return [inputs[0], generated]
        case "video-join" if len(inputs) > 1 and form["joint"] == "blend":
            return [FrameSpan("changed", max(clips))]
        case "video-interpolate" | "video-join" if len(inputs) > 1:
            return [inputs[0], generated, inputs[1]]
        case "video-edit" | "video-upscale" if inputs:
            return [FrameSpan("changed", clips[0])]
        case "video-storyboard":
            return [FrameSpan("made", max((int(scene["last"]) + 1 for scene in scenes), default=frames))]
        case _:
            return [generated] if at is None else _around(frames, at)


def _around(frames: int, at: int) -> list[FrameSpan]:
    """Return ranges with a single conditioning frame."""
    place = min(max(at if at >= 0 else frames + at, 0), frames - 1)
    spans = [FrameSpan("made", place), FrameSpan("known", 1), FrameSpan("made", frames - place - 1)]
    return [span for span in spans if span.frames]


def timeline_html(spans: Sequence[FrameSpan], tr: Translator) -> Markup:
    """Return a strip of cells with a text alternative and a legend."""
    names = {"known": tr("conditioning"), "changed": tr("edited"), "made": tr("generated")}
    parts, place = list[str](), 0
    for span in spans:
        last = place + span.frames - 1
        parts.append(tr("frames {first} to {last} {what}", first=place, last=last, what=names[span.what]))
        place += span.frames
    words, each = "; ".join(parts), max(1, -(-place // CELLS))
    cells = Markup("").join(
        Markup('<span class="{}"></span>').format(span.what) for span in spans for _ in range(-(-span.frames // each))
    )
    legend = Markup("").join(
        Markup('<span class="timeline-key {}"></span>{}').format(key, safe_text(name))
        for key, name in names.items()
        if any(span.what == key for span in spans)
    )
    return Markup('<div class="timeline" role="img" aria-label="{}">{}</div><p class="legend">{}: {}</p>').format(
        safe_text(words), cells, safe_text(tr("{count} frames", count=place)), legend
    )
