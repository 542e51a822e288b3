"""Timeline of the video tab: input videos have as many frames as at the frame rate that they are brought to."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("gradio")

from tests.studio.conftest import MARKS
from tests.studio.test_tabs import Laid, client, laid
from unveil.server.jobs.catalog import ModelInfo
from unveil.server.jobs.outputs import UploadedFile
from unveil.studio.client import StudioClient
from unveil.studio.tabs import video

__all__ = ["client", "laid"]
pytestmark = MARKS
CLIP = UploadedFile(f"{2:032x}.mp4", "video", 8, 8, 31, 1.0)  # 30 frames per second


CASES = [
    ({"task": "video-extend"}, ("prompt",), 11),
    ({"task": "video-loop"}, ("prompt",), 11),
    ({"task": "video-extend"}, ("prompt", "fps"), 31),  # the network is conditioned on the rate
    ({"task": "video-extend", "fps": "30"}, ("prompt",), 31),
    ({"task": "video-edit"}, ("prompt",), 31),
    ({"task": "video-edit", "fps": "10"}, ("prompt",), 11),
]


def test_input_videos_are_as_long_as_at_their_new_rate(laid: Laid, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(StudioClient, "store_upload", lambda self, path: CLIP if path else None)
    tab: Any = laid(video.VideoTab)
    typed = {name: getattr(part, "value", None) for name, part in tab.fields.items()}
    for fields, takes, frames in CASES:
        info = ModelInfo("videos", takes, (3, 16, 32, 32), fps=10.0)
        monkeypatch.setattr(video, "model_info", lambda entry, info=info: info)
        form = typed | {"clip": "a"} | fields
        spans = re.search(r'aria-label="frames 0 to (\d+)', tab.planned("", *form.values()))
        assert spans is not None
        assert int(spans[1]) + 1 == frames, fields
