"""Which frames of a clip are known, which are changed and which are made: told in words and drawn as a strip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from markupsafe import Markup

from unveil.studio.i18n import Say
from unveil.studio.job_html import plain

What = Literal["known", "changed", "made"]
CELLS = 240  # that a strip has at most; of longer clips a cell is several frames


class Span(NamedTuple):
    """Frames that follow one another and are of one kind."""

    what: What
    frames: int


def spans(
    verb: str,
    frames: int,
    clips: Sequence[int],
    at: int | None,
    said: Mapping[str, Any],
    scenes: Sequence[Mapping[str, Any]] = (),
) -> list[Span]:
    """The frames of a clip in their order.

    Args:
        verb: what is done.
        frames: how many are made, or how long the clip is.
        clips: lengths of the clips that are given.
        at: the frame that is a picture; None: none.
        said: the fields of the page; `direction` and `joint` are read.
        scenes: of a storyboard, with their last frames.
    """
    made, given = Span("made", frames), [Span("known", count) for count in clips]
    match verb:
        case "extend" if given:
            return [given[0], made] if said["direction"] == "forward" else [made, given[0]]
        case "loop" if given:
            return [given[0], made]
        case "connect" if len(given) > 1 and said["joint"] == "blend":
            return [Span("changed", max(clips))]
        case "between" | "connect" if len(given) > 1:
            return [given[0], made, given[1]]
        case "edit" | "upscale" if given:
            return [Span("changed", clips[0])]
        case "storyboard":
            return [Span("made", max((int(one["last"]) + 1 for one in scenes), default=frames))]
        case _:
            return [made] if at is None else _around(frames, at)


def _around(frames: int, at: int) -> list[Span]:
    """All frames but one are made."""
    place = min(max(at if at >= 0 else frames + at, 0), frames - 1)
    found = [Span("made", place), Span("known", 1), Span("made", frames - place - 1)]
    return [one for one in found if one.frames]


def drawn(found: Sequence[Span], say: Say) -> Markup:
    """A strip of cells with its words, which say the same."""
    names = {"known": say("known"), "changed": say("changed"), "made": say("made")}
    told, place = list[str](), 0
    for one in found:
        last = place + one.frames - 1
        told.append(say("frames {first} to {last} {what}", first=place, last=last, what=names[one.what]))
        place += one.frames
    words, each = "; ".join(told), max(1, -(-place // CELLS))
    cells = Markup("").join(
        Markup('<span class="{}"></span>').format(one.what) for one in found for _ in range(-(-one.frames // each))
    )
    legend = Markup("").join(
        Markup('<span class="timeline-key {}"></span>{}').format(key, plain(name))
        for key, name in names.items()
        if any(one.what == key for one in found)
    )
    return Markup('<div class="timeline" role="img" aria-label="{}">{}</div><p class="legend">{}: {}</p>').format(
        plain(words), cells, plain(say("{count} frames", count=place)), legend
    )
