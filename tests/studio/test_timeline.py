"""Timelines of video tasks: conditioning frames, edited frames and generated frames."""

from __future__ import annotations

import pytest

pytest.importorskip("markupsafe")

from unveil.studio.i18n import Translator
from unveil.studio.timeline import LOOP_FROM_PROMPT, frame_spans, timeline_html

FORWARD, BACKWARD = {"direction": "forward"}, {"direction": "backward"}


@pytest.mark.parametrize(
    ("task", "clips", "at", "form", "expected"),
    [
        ("video-generate", (), None, {}, [("made", 8)]),
        ("video-generate", (), 0, {}, [("known", 1), ("made", 7)]),
        ("video-generate", (), -1, {}, [("made", 7), ("known", 1)]),
        ("video-generate", (), 3, {}, [("made", 3), ("known", 1), ("made", 4)]),
        ("video-generate", (), 99, {}, [("made", 7), ("known", 1)]),
        ("video-extend", (5,), None, FORWARD, [("known", 5), ("made", 8)]),
        ("video-extend", (5,), None, BACKWARD, [("made", 8), ("known", 5)]),
        ("video-loop", (5,), None, {}, [("known", 5), ("made", 8)]),
        ("video-interpolate", (5, 6), None, {}, [("known", 5), ("made", 8), ("known", 6)]),
        ("video-join", (5, 6), None, {"joint": "bridge"}, [("known", 5), ("made", 8), ("known", 6)]),
        ("video-join", (5, 6), None, {"joint": "blend"}, [("changed", 6)]),
        ("video-edit", (5,), None, {}, [("changed", 5)]),
        ("video-upscale", (5,), None, {}, [("changed", 5)]),
        (LOOP_FROM_PROMPT, (), None, {}, [("made", 8)]),
        ("video-extend", (), None, FORWARD, [("made", 8)]),  # the clip is not given yet
    ],
)
def test_the_frames_of_a_video_task(task, clips, at, form, expected):
    assert frame_spans(task, 8, clips, at, form) == expected


def test_a_storyboard_is_as_long_as_its_scenes():
    assert frame_spans("video-storyboard", 8, (), None, {}, [{"last": 3}, {"last": 11}]) == [("made", 12)]


def test_the_timeline_has_a_text_alternative():
    shown = timeline_html(frame_spans("video-extend", 500, [20], None, FORWARD), Translator("en"))
    assert 'aria-label="frames 0 to 19 conditioning; frames 20 to 519 generated"' in shown
    assert shown.count('<span class="known"></span>') + shown.count('<span class="made"></span>') <= 241
    assert "520 帧" in timeline_html(frame_spans("video-extend", 500, [20], None, FORWARD), Translator("zh"))
