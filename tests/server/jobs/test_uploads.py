"""Uploads: stored files, their names, and files that are refused before decoding."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.errors import DataError, OutOfResources
from unveil.io.images import png
from unveil.io.video.writer import write_video
from unveil.server.jobs import outputs as module
from unveil.server.jobs.outputs import INFO_SUFFIX, UploadedFile, UploadStore, names_in


def image(side: int = 8) -> bytes:
    return png(torch.zeros(3, side, side, dtype=torch.uint8))


def clip(path) -> bytes:
    pytest.importorskip("av")
    shades = torch.arange(4, dtype=torch.uint8)[:, None, None] * 60
    write_video(path, shades.expand(3, 4, 16, 16), 8.0, None)
    return path.read_bytes()


def bomb(side: int) -> bytes:
    """A PNG with this size in its header and only a few bytes of pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_file_is_named_by_its_content_and_kept_once(inputs: UploadStore, tmp_path):
    kept = inputs.store(image())
    assert (kept.kind, kept.width, kept.height, kept.frames) == ("image", 8, 8, 1)
    assert inputs.store(image()) == kept
    assert inputs.path(kept.name).read_bytes() == image()
    video = inputs.store(clip(tmp_path / "a.gif"))
    assert (video.kind, video.width, video.height, video.frames) == ("video", 16, 16, 4)
    assert video.seconds == pytest.approx(3 / 8, abs=0.01)
    assert video.name.endswith(".gif")
    assert inputs.info(video.name) == video
    assert sorted(path.name for path in inputs.folder.iterdir()) == sorted(
        f"{one.name}{end}" for one in (kept, video) for end in ("", INFO_SUFFIX)
    )


def test_an_upload_knows_its_length_at_another_frame_rate():
    def video(frames: int, seconds: float | None) -> UploadedFile:
        return UploadedFile("a.mp4", "video", 8, 8, frames, seconds)

    assert [video(31, 1.0).frames_at(rate) for rate in (None, 30, 10, 8, 60)] == [31, 31, 11, 9, 61]
    assert video(16, 1.87).frames_at(8) == 16  # GIF counts hundredths of a second
    assert video(1, 0.0).frames_at(8) == 1
    assert video(31, None).frames_at(10) == 31  # an image, or stored before lengths were


def test_an_upload_without_disk_space_is_stored_when_sent_again(inputs: UploadStore, tmp_path, monkeypatch):
    content = clip(tmp_path / "a.gif")

    def full(path):
        raise OutOfResources("the disk is full")

    monkeypatch.setattr(module, "staged", full)
    with pytest.raises(OutOfResources):
        inputs.store(content)
    assert not list(inputs.folder.glob("*"))
    monkeypatch.undo()
    kept = inputs.store(content)
    assert inputs.info(kept.name) == kept


def test_the_first_frame_of_a_video_is_upright(inputs: UploadStore, tmp_path):
    pytest.importorskip("av")
    from tests.io.video.tiny_videos import make_video

    kept = inputs.store(make_video(tmp_path / "a.mp4", size=(32, 16), turn=90).read_bytes())
    assert (kept.width, kept.height) == inputs.cover(kept.name).size == (16, 32)
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(out, "JPEG", exif=exif)
    turned = inputs.store(out.getvalue())
    assert (turned.width, turned.height) == (4, 8)
    with pytest.raises(DataError, match="is not a video"):
        inputs.cover(turned.name)


def webp(frames: int) -> bytes:
    out = io.BytesIO()
    every = [Image.fromarray(np.full((8, 8, 3), 60 * k, np.uint8)) for k in range(frames)]
    every[0].save(out, "WEBP", save_all=True, append_images=every[1:])
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"<svg onload=alert(1)>", "PNG, JPEG"),
        (b"\x80\x04\x95", "pickle"),
        (b"PK\x03\x04", "zip"),
        (image()[:40], "damaged"),
        (bomb(13_000), "13000"),
        (bomb(100_000), "100000"),
        (webp(3), "of 3 frames"),
        (b"GIF89a" + b"\0" * 100, "ends|damaged|truncated"),
    ],
)
def test_neither_image_nor_video_is_refused_and_not_stored(inputs: UploadStore, content: bytes, message: str):
    with pytest.raises(DataError, match=message):
        inputs.store(content)
    assert not inputs.folder.exists() or not list(inputs.folder.iterdir())


@pytest.mark.parametrize("name", ["", ".", "../jobs.sqlite3", "/etc/passwd", "a.png", "0" * 32 + ".png", "0" * 32])
def test_no_other_name_is_a_file(inputs: UploadStore, name: str):
    inputs.store(image())
    with pytest.raises(DataError, match="no file with this name was uploaded"):
        inputs.path(name)


def test_unreferenced_uploads_are_deleted_after_a_day(inputs: UploadStore):
    names = [inputs.store(image(side)).name for side in (8, 16, 24)]
    for name in names[:2]:
        for end in ("", INFO_SUFFIX):
            os.utime(inputs.folder / f"{name}{end}", (0, 0))
    assert names_in({"change": {"picture": names[0]}, "known": [{"at": 0, "picture": "x"}]}) == {names[0]}
    assert inputs.sweep({names[0]}) == 1
    left = {path.name for path in inputs.folder.iterdir()}
    assert left == {f"{name}{end}" for name in (names[0], names[2]) for end in ("", INFO_SUFFIX)}
