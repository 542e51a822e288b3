"""Clips as pixels: every frame at its time, whatever the container; hostile and damaged files named."""

from __future__ import annotations

import copy
import io
import os
import signal
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.io.video.tiny_videos import CODECS, make_video, number_of, one_frame, sound, spliced
from unveil.errors import DataError
from unveil.io.video import decoder_process
from unveil.io.video.containers import frames_of_gif
from unveil.io.video.reader import FrameSelection, VideoInfo, VideoLimits, VideoReader

LIMITS = VideoLimits()


@pytest.fixture(scope="module")
def decoder():
    made = VideoReader()
    yield made
    made.close()


def whole(found: VideoInfo) -> FrameSelection:
    size = (found.width, found.height)
    return FrameSelection(found.moments(), "nearest", (0.0, 0.0, *size), size)


@pytest.mark.parametrize("suffix", CODECS)
def test_every_frame_of_every_container(decoder, tmp_path, suffix):
    path = make_video(tmp_path / f"a{suffix}", 12, rate=12, size=(18, 16))
    found = decoder.probe(path, LIMITS)
    assert (found.frames, found.rate, found.width, found.height, found.orientation) == (12, 12, 18, 16, 1)
    assert found.seconds == pytest.approx(11 / 12, abs=0.001)
    pixels, times = decoder.read(path, found, whole(found), LIMITS)
    assert pixels.shape == (3, 12, 16, 18)
    assert number_of(pixels.numpy()) == list(range(12))
    np.testing.assert_allclose(times, np.arange(12) / 12)


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize("begin", [0, 5, 7, 8, 15, 31, 39])
def test_a_seek_gives_the_same_bits_as_decoding_from_the_start(decoder, tmp_path, suffix, begin):
    path = make_video(tmp_path / f"a{suffix}", 40, options={"g": "8", "bf": "2"} if suffix != ".webm" else {"g": "8"})
    found = decoder.probe(path, LIMITS)
    every, _ = decoder.read(path, found, whole(found), LIMITS)
    part = whole(found)._replace(wanted=found.moments()[begin : begin + 6])
    pixels, times = decoder.read(path, found, part, LIMITS)
    assert torch.equal(pixels, every[:, begin : begin + 6])
    np.testing.assert_allclose(times, part.wanted)


@pytest.mark.parametrize("suffix", CODECS)
def test_no_more_is_decoded_than_from_the_key_frame_on(decoder, tmp_path, monkeypatch, suffix):
    path = make_video(tmp_path / f"a{suffix}", 40, options={"g": "8"})
    found = decoder.probe(path, LIMITS)
    part = whole(found)._replace(wanted=found.moments()[30:33])
    request = LIMITS.request("read", path) | part._asdict()
    request |= {"first": found.first, "rate": found.rate, "since": found.since(part.wanted[0])}
    decoded = []
    real = decoder_process._decoded

    def counting(*given):
        for one in real(*given):
            decoded.append(one.pts)
            yield one

    monkeypatch.setattr(decoder_process, "_decoded", counting)
    _, frames = decoder_process.read(request)
    assert len(frames) == 3
    assert len(decoded) <= 8 + 3


def test_an_animation_in_gif(decoder, tmp_path):
    frames = [Image.new("RGBA", (8, 8), (200, 0, 0, 255 if number else 0)) for number in range(4)]
    for number, one in enumerate(frames):
        one.putpixel((number, 0), (0, 255, 0, 255))
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100, disposal=2)
    found = decoder.probe(tmp_path / "a.gif", LIMITS)
    assert (found.container, found.frames, found.rate, found.transparent) == ("GIF", 4, 10, True)
    pixels, _ = decoder.read(tmp_path / "a.gif", found, whole(found)._replace(background=(0, 0, 255)), LIMITS)
    assert pixels[:, 0, 4, 4].tolist() == [0, 0, 255]
    assert pixels[:, 1, 4, 4].tolist() == [200, 0, 0]


def test_a_variable_rate_is_seen_and_a_rounded_one_is_constant(decoder, tmp_path):
    found = decoder.probe(make_video(tmp_path / "a.mp4", 6, rate=24, ticks=[0, 1, 2, 4, 5, 6]), LIMITS)
    assert (found.rate, found.frames) == (None, 6)
    np.testing.assert_allclose(found.times, np.array([0, 1, 2, 4, 5, 6]) / 24)
    assert decoder.probe(make_video(tmp_path / "b.mkv", 20, rate=30), LIMITS).rate == 30  # 33, 33 and 34 ms


@pytest.mark.parametrize("turn", [(90, 8), (180, 3), (270, 6)])
def test_rotation_and_non_square_pixels_are_reported(decoder, tmp_path, turn):
    angle, exif = turn
    assert decoder.probe(make_video(tmp_path / "a.mp4", 3, turn=angle), LIMITS).orientation == exif
    found = decoder.probe(make_video(tmp_path / "b.mp4", 3, size=(16, 32), wide=Fraction(2, 1)), LIMITS)
    assert (found.pixel_aspect, found.square_pixel_size) == (2, (32, 32))


def test_a_rotation_by_other_than_a_quarter_is_refused(decoder, tmp_path):
    with pytest.raises(DataError, match=r"turned by -?4[45] degrees.*export it upright"):
        decoder.probe(make_video(tmp_path / "a.mp4", 3, turn=45), LIMITS)


def damaged(tmp_path: Path, name: str) -> Path:
    path = tmp_path / "a.mp4"
    if name == "text":
        path.write_text("not a video")
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "sound only":
        sound(path)
    elif name == "truncated":
        raw = make_video(tmp_path / "whole.mp4").read_bytes()
        path.write_bytes(raw[: len(raw) // 2])
    elif name == "truncated webm":
        raw = make_video(tmp_path / "whole.webm", 40).read_bytes()
        path.write_bytes(raw[: len(raw) - 40])
    elif name == "size changes":
        spliced(path.with_suffix(".webm"), [(16, 16), (32, 32)]).rename(path)
    elif name == "no frame":
        make_video(path, 0)
    elif name == "bomb":
        one_frame(path, "libx264", "mp4", 8192)
    elif name == "another codec":
        one_frame(path, "ffv1", "matroska", 16)
    return path


FAULTS = {
    "text": "its content is text, not MP4, MOV, WebM, MKV or GIF; convert",
    "empty": "0 bytes: an empty file",
    "sound only": "holds sound only; remove it",
    "truncated": "truncated: .* bytes are there; fetch it again",
    "truncated webm": "truncated: .* bytes are there; fetch it again",
    "size changes": "its size changes from 16 x 16 to 32 x 32 at frame 4; cut it there",
    "no frame": "no frame in it|holds no images",
    "bomb": "8192 x 8192 = 67,108,864 pixels a frame: the limit is 8,294,400; .* raise max_pixels",
    "another codec": "codec is ffv1, which is not on the list: av1, gif, h264.*convert it",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_file_is_named_and_the_next_is_read(decoder, tmp_path, name):
    with pytest.raises(DataError, match=FAULTS[name]):
        decoder.probe(damaged(tmp_path, name), LIMITS)
    assert decoder.probe(make_video(tmp_path / "good.mp4", 3), LIMITS).frames == 3


def test_limits_of_frames_and_seconds(decoder, tmp_path):
    path = make_video(tmp_path / "a.mp4", 24)
    with pytest.raises(DataError, match=r"longer than 23 frames; cut it.*raise max_frames"):
        decoder.probe(path, VideoLimits(frames=23))
    with pytest.raises(DataError, match=r"longer than 1\.5 seconds; cut it.*raise max_seconds"):
        decoder.probe(path, VideoLimits(seconds=1.5))
    assert decoder.probe(path, VideoLimits(frames=24, seconds=2)).frames == 24  # control


def gif(count: int) -> bytes:
    """An animation with colours of each frame's own, and a long comment."""
    out = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (20 * number, 200, 0)) for number in range(count)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:], duration=100, comment=b"c" * 600)
    return out.getvalue()


def test_what_says_that_it_is_too_long_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(decoder_process, "_decoded", lambda *given: pytest.fail("it was decoded"))
    (tmp_path / "a.gif").write_bytes(gif(6))
    for path in (tmp_path / "a.gif", make_video(tmp_path / "a.mp4", 6)):
        with pytest.raises(decoder_process.Refused, match=r"longer than 5 frames; cut it"):
            decoder_process.probe(VideoLimits(frames=5).request("probe", path))
        with pytest.raises(pytest.fail.Exception, match="it was decoded"):
            decoder_process.probe(VideoLimits(frames=6).request("probe", path))


def test_all_frames_of_an_animation_count_towards_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoder_process, "_decoded", lambda *given: pytest.fail("it was decoded"))
    content = bytearray(gif(6))
    content[6:10] = (3300).to_bytes(2, "little") * 2
    (tmp_path / "a.gif").write_bytes(content)
    limits = VideoLimits(pixels=4000 * 4000)
    with pytest.raises(decoder_process.Refused, match=r"6 frames of 3300 x 3300 = 65,340,000 pixels: the limit of an"):
        decoder_process.probe(limits.request("probe", tmp_path / "a.gif"))
    content[6:10] = (3200).to_bytes(2, "little") * 2  # 61 million
    (tmp_path / "a.gif").write_bytes(content)
    with pytest.raises(pytest.fail.Exception, match="it was decoded"):
        decoder_process.probe(limits.request("probe", tmp_path / "a.gif"))


def test_frames_of_a_gif_are_counted_by_its_blocks():
    content = gif(6)
    assert [frames_of_gif(io.BytesIO(content), most) for most in (3, 5, 6, 100)] == [4, 6, 6, 6]
    counts = [frames_of_gif(io.BytesIO(content[:end]), 100) for end in range(len(content))]
    assert counts == sorted(counts)  # one that ends early has fewer, and none is an error
    assert counts[0] == 0


def test_a_large_gif_is_named_by_the_size_that_it_says(decoder, tmp_path):
    content = bytearray(gif(1))
    content[6:10] = (4000).to_bytes(2, "little") * 2
    (tmp_path / "a.gif").write_bytes(content)
    assert decoder.probe(tmp_path / "a.gif", VideoLimits(pixels=4000 * 4000)).width == 4000  # control
    with pytest.raises(DataError, match=r"4000 x 4000 = 16,000,000 pixels a frame: the limit is 8,294,400"):
        decoder.probe(tmp_path / "a.gif", LIMITS)


def test_flipped_bytes_never_raise_anything_but_a_named_error(decoder, tmp_path):
    raw = make_video(tmp_path / "a.mp4", 6).read_bytes()
    draw = np.random.default_rng(0)
    outcomes = set()
    for _ in range(40):
        bad = bytearray(raw)
        for place in draw.integers(0, len(raw), 6):
            bad[place] = draw.integers(0, 256)
        (tmp_path / "b.mp4").write_bytes(bytes(bad))
        try:
            found = decoder.probe(tmp_path / "b.mp4", LIMITS)
            pixels, _ = decoder.read(tmp_path / "b.mp4", found, whole(found), LIMITS)
            assert pixels.shape == (3, found.frames, found.height, found.width)
            outcomes.add("read")
        except DataError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_a_child_that_dies_is_replaced(tmp_path):
    own = VideoReader()
    path = make_video(tmp_path / "a.mp4", 3)
    found = own.probe(path, LIMITS)
    assert own._child is not None
    os.kill(own._child.pid, signal.SIGKILL)
    with pytest.raises(DataError, match="decoding ended with SIGKILL"):
        own.probe(path, LIMITS)
    assert own.probe(path, LIMITS) == found
    own.close()


def test_ctrl_c_is_for_the_run_and_not_for_its_child(tmp_path):
    own = VideoReader()
    make_video(tmp_path / "a.mp4", 4)
    own.probe(tmp_path / "a.mp4", VideoLimits())
    assert own._child is not None
    assert os.getpgid(own._child.pid) != os.getpgrp()  # a terminal sends its signals to a group
    own.close()


def test_a_child_that_hangs_is_ended(tmp_path, monkeypatch):
    own = VideoReader()
    path = make_video(tmp_path / "a.mp4", 3)
    own.probe(path, LIMITS)
    assert own._child is not None
    monkeypatch.setattr(own, "_wait", 0.2)
    os.kill(own._child.pid, signal.SIGSTOP)
    with pytest.raises(DataError, match="took too much time"):
        own.probe(path, LIMITS)
    own.close()


def test_a_child_is_not_shared_with_other_processes(tmp_path):
    own = VideoReader()
    found = own.probe(make_video(tmp_path / "a.mp4", 3), LIMITS)
    other = copy.copy(own)  # as workers get it that are not forked
    assert other.probe(tmp_path / "a.mp4", LIMITS) == found
    assert own._child is not None
    assert other._child is not None
    assert other._child.pid != own._child.pid
    other.close()
    own.close()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_the_child_has_limits_and_none_of_the_users_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    own = VideoReader()
    own.probe(make_video(tmp_path / "a.mp4", 3), LIMITS)
    assert own._child is not None
    limits = Path(f"/proc/{own._child.pid}/limits").read_text()
    rows = {line[:26].strip(): line[26:].split() for line in limits.splitlines()}
    assert rows["Max address space"][0] == str(4 << 30)
    assert rows["Max file size"][0] == "0"
    assert rows["Max core file size"][0] == "0"
    assert int(rows["Max cpu time"][0]) <= 70
    assert b"SECRET_TOKEN" not in Path(f"/proc/{own._child.pid}/environ").read_bytes()
    own.close()
