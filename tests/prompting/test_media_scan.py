"""A look round a folder: every image, some frames of every clip, and what is neither."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("av")

from tests.io.video.tiny_videos import make_video, number_of
from unveil.errors import DataError
from unveil.prompting.media_scan import MediaReader, scan_folder

BAD = {"bad.mp4": "its content is text", "empty.png": "empty"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_video(tmp_path / "b" / "long.mp4", 12, rate=12)
    make_video(tmp_path / "one.webm", 1)
    make_video(tmp_path / "varied.mkv", 5, rate=10, ticks=[0, 1, 2, 6, 10])
    make_video(tmp_path / "turned.mp4", 3, size=(32, 16), turn=90)
    Image.fromarray(np.full((600, 1200, 3), 90, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.full((10, 20), 90, np.uint8)).save(tmp_path / "grey.jpg")
    (tmp_path / "a.txt").write_text("my image\n")
    (tmp_path / "bad.mp4").write_bytes(b"no clip")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "notes.md").write_text("notes")
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (0, 90, 200)]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:], duration=100)
    (tmp_path / "link.png").symlink_to("/etc/hostname")
    return tmp_path


def test_images_and_videos_are_found_with_their_captions_and_others_are_named(folder):
    seen = scan_folder(folder)
    names = ["a.png", "b/long.mp4", "bad.mp4", "empty.png", "grey.jpg", "moves.gif", "one.webm", "turned.mp4"]
    assert [one.path for one in seen.entries] == [*names, "varied.mkv"]
    assert [one.text for one in seen.entries] == ["my image", *[None] * 8]
    assert seen.refused == [("link.png", seen.refused[0][1])]


def test_some_frames_of_each_evenly_spread_upright_and_small(folder):
    seen = scan_folder(folder)
    looker = MediaReader(seen, 4)
    found = {one.path: looker(one) for one in seen.entries if one.path not in BAD}
    named = {one.path: one for one in seen.entries}
    slower = looker(named["b/long.mp4"], 4.0)  # brought to another rate
    assert (number_of(slower.pixels.numpy()), slower.rate) == ([0, 3, 6, 9], pytest.approx(4))
    assert number_of(looker(named["b/long.mp4"], 12.0).pixels.numpy()) == [0, 4, 7, 11]
    assert looker(named["varied.mkv"], 90.0).rate == pytest.approx(3 / 1.0)
    looker.close()
    long = found["b/long.mp4"]
    assert number_of(long.pixels.numpy()) == [0, 4, 7, 11]
    assert long.rate == pytest.approx(3 / (11 / 12))
    assert found["varied.mkv"].rate == pytest.approx(3 / 1.0)
    assert (found["one.webm"].pixels.shape, found["one.webm"].rate) == ((3, 1, 16, 16), 1.0)
    assert found["moves.gif"].pixels.shape == (3, 3, 8, 8)
    assert found["turned.mp4"].pixels.shape == (3, 3, 32, 16)
    assert found["grey.jpg"].pixels.shape == (3, 1, 10, 20)
    assert found["a.png"].pixels.shape == (3, 1, 256, 512)
    assert all(one.pixels.dtype == torch.uint8 for one in found.values())


def test_unreadable_and_vanished_files_are_reported(folder):
    seen = scan_folder(folder)
    (folder / "one.webm").unlink()
    looker, named = MediaReader(seen, 4), {one.path: one for one in seen.entries}
    for path, why in {**BAD, "one.webm": "No such file"}.items():
        with pytest.raises(DataError, match=why):
            looker(named[path])
    looker.close()


def test_unreadable_metadata_is_the_reported_reason(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png"')
    with pytest.raises(DataError, match=r"metadata.jsonl line 1: not JSON"):
        scan_folder(folder)
    (folder / "metadata.csv").write_text("file_name\na.png\n")
    with pytest.raises(DataError, match=r"both metadata.jsonl and metadata.csv; keep one of them"):
        scan_folder(folder)


def test_sub_folders_that_training_takes_as_classes_are_known(tmp_path):
    for name in ("x/a.png", "y/b.png", "y/more/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(tmp_path / name)
    seen = scan_folder(tmp_path)
    assert (seen.table, seen.classes) == (None, {"x/a.png": "x", "y/b.png": "y", "y/more/c.png": "y"})
    make_video(tmp_path / "x" / "one.mp4", 2)  # clips, which all lie in one
    assert scan_folder(tmp_path).classes == seen.classes
    (tmp_path / "metadata.csv").write_text("file_name\nx/a.png\n")
    seen = scan_folder(tmp_path)
    assert (seen.table, seen.classes, [one.path for one in seen.entries]) == ("metadata.csv", {}, ["x/a.png"])


def test_folders_without_anything(tmp_path):
    with pytest.raises(DataError, match="contains neither an image nor a video"):
        scan_folder(tmp_path)
    with pytest.raises(DataError, match="nowhere"):
        scan_folder(tmp_path / "nowhere")
