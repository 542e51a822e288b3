"""Training on one's own videos: a folder of mixed sizes, rates and rotations is checked, trained on and sampled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.io.video.tiny_videos import frame, make_video
from unveil.data.video_folder import VideoDataset, VideoFolderConfig
from unveil.io.video.reader import VideoLimits, VideoReader

SIZES = [(16, 16), (24, 16), (16, 32), (48, 32), (34, 20), (20, 46)]
RATES = [6, 8, 12, 24, 25]
TURNS = [None, None, 90, 180, 270]
FITTED = ["--size", "24", "--resize-mode", "aspect", "--frames", "8", "--fps", "8", "--resample", "nearest"]


def one_scene(number: int, width: int, height: int) -> np.ndarray:
    """A grey that rises and falls, without a jump that is a change of scene."""
    return frame(abs(number % 38 - 19), width, height)


def write_videos(folder: Path, count: int) -> Path:
    """Captioned MP4 files; every tenth has frames of unlike length."""
    for number in range(count):
        rate = RATES[number % len(RATES)]
        path = folder / f"{number:02}.mp4"
        ticks = [frame + frame // 3 for frame in range(rate + 4)] if number % 10 == 9 else None
        look = {"size": SIZES[number % len(SIZES)], "turn": TURNS[number // 3 % 5], "draw": one_scene}
        make_video(path, rate + 4, rate=rate, ticks=ticks, **look)
        path.with_suffix(".txt").write_text(f"a grey square grows {'slowly' if rate < 10 else 'quickly'}")
    return folder


def test_sizes_from_headers_are_those_of_decoded_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path / "cache"))
    folder = write_videos(tmp_path / "videos", 10)
    settings: dict[str, Any] = {"frames": 8, "fps": 8, "resample": "nearest", "too_short": "keep", "val_fraction": 0}
    for how in ({"size": 24, "fit": "aspect", "size_multiple": 8}, {"size": 24, "fit": "pad"}, {"size": "native"}):
        clips = VideoDataset(VideoFolderConfig(str(folder), **settings, **how))
        assert clips.sizes().tolist() == [list(clips[n]["pixels"].shape[1:]) for n in range(len(clips))]
    assert len({tuple(size) for size in clips.sizes().tolist()}) > 5


@pytest.mark.slow
def test_fifty_files_go_through_check_training_and_sampling(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path / "cache"))
    folder = write_videos(tmp_path / "videos", 50)
    checked = cli("data", "check", folder, *FITTED, "--json")
    assert checked.code == 0, checked.err
    assert checked.json["usable"] == 50
    assert not checked.json["unreadable"]
    assert "cut" not in checked.json["actions"]  # all frames are used
    assert {"retime", "turn"} <= checked.json["actions"].keys()
    trained = cli(
        "train", "own-videos", "--quick", f"data.path={folder}", "train.steps=200", "--output-dir", "run", "--json"
    )
    assert trained.code == 0, trained.err
    assert trained.json["step"] == 200
    assert trained.json["loss"] < 1
    made = cli("video", "a grey square grows slowly", "--model", "run", "--size", "32x16", "-o", "made.mp4")
    assert made.code == 0, made.err
    written = VideoReader().probe(tmp_path / "made.mp4", VideoLimits())
    assert (written.width, written.height, written.frames) == (32, 16, 8)
