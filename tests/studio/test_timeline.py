"""Timelines of video tasks: conditioning frames, edited frames and generated frames."""

from __future__ import annotations

import pytest

pytest.importorskip("markupsafe")

from unveil.studio.i18n import Translator
from unveil.studio.timeline import frame_spans, timeline_html

FORWARD, BACKWARD = {"direction": "forward"}, {"direction": "backward"}


@pytest.mark.parametrize(
    ("verb", "clips", "at", "direction", "expected"),
    [
        ("make", (), None, {}, [("made", 8)]),
        ("make", (), 0, {}, [("known", 1), ("made", 7)]),
        ("make", (), -1, {}, [("made", 7), ("known", 1)]),
        ("make", (), 3, {}, [("made", 3), ("known", 1), ("made", 4)]),
        ("make", (), 99, {}, [("made", 7), ("known", 1)]),
        ("extend", (5,), None, FORWARD, [("known", 5), ("made", 8)]),
        ("extend", (5,), None, BACKWARD, [("made", 8), ("known", 5)]),
        ("loop", (5,), None, {}, [("known", 5), ("made", 8)]),
        ("between", (5, 6), None, {}, [("known", 5), ("made", 8), ("known", 6)]),
        ("connect", (5, 6), None, {"joint": "bridge"}, [("known", 5), ("made", 8), ("known", 6)]),
        ("connect", (5, 6), None, {"joint": "blend"}, [("changed", 6)]),
        ("edit", (5,), None, {}, [("changed", 5)]),
        ("upscale", (5,), None, {}, [("changed", 5)]),
        ("ring", (), None, {}, [("made", 8)]),
        ("extend", (), None, FORWARD, [("made", 8)]),  # no video is chosen yet
    ],
)
def test_the_frames_of_a_video_task(verb, clips, at, direction, expected):
    assert frame_spans(verb, 8, clips, at, direction) == expected


def test_a_storyboard_is_as_long_as_its_scenes():
    assert frame_spans("storyboard", 8, (), None, {}, [{"last": 3}, {"last": 11}]) == [("made", 12)]


def test_the_timeline_has_a_text_alternative():
    shown = timeline_html(frame_spans("extend", 500, [20], None, FORWARD), Translator("en"))
    assert 'aria-label="frames 0 to 19 given; frames 20 to 519 generated"' in shown
    assert shown.count('<span class="known"></span>') + shown.count('<span class="made"></span>') <= 241
    assert "520 帧" in timeline_html(frame_spans("extend", 500, [20], None, FORWARD), Translator("zh"))
