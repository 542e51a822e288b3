"""Clips in files: what is written is read back, with its record; a full disk leaves nothing behind."""

from __future__ import annotations

import builtins
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import interpolate

from unveil.errors import DataError, OutputError, RecipeError, ShapeError
from unveil.generation.image_output import read_generation_metadata
from unveil.io.video.reader import FrameSelection, VideoLimits, VideoReader
from unveil.io.video.writer import FORMS, write_video

FACTS = {"seed": 3, "given": {"prompt": 'a "red" circle \u4e2d\u6587'}}


def smooth(frames: int = 5, height: int = 32, width: int = 48) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    small = torch.randint(40, 216, (1, 3, 2, 3, 3), generator=draw).float()
    return interpolate(small, size=(frames, height, width), mode="trilinear")[0].to(torch.uint8)


def read(path: Path, height: int, width: int) -> torch.Tensor:
    decoder = VideoReader()
    video = decoder.probe(path, VideoLimits())
    size = (video.width, video.height)
    pixels, _ = decoder.read(
        path, video, FrameSelection(video.moments(), "nearest", (0.0, 0.0, *size), size), VideoLimits()
    )
    decoder.close()
    return pixels[..., :height, :width]


@pytest.mark.parametrize("form", ["mp4", "webm"])
@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 47)])
def test_colours_come_back(tmp_path, form, height, width):
    pixels = smooth(5, height, width)
    path = write_video(tmp_path / f"a.{form}", pixels, 8, FACTS)
    found = read(path, height, width)
    assert found.shape == pixels.shape
    assert (found.float() - pixels).abs().mean() < 4
    plain = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=torch.uint8)
    blocks = plain.T.reshape(3, 1, 1, 4).repeat_interleave(16, -1).expand(3, 4, 16, 64)
    shown = read(write_video(tmp_path / f"b.{form}", blocks, 8), 16, 64)
    assert (shown[..., 8::16].float() - blocks[..., 8::16]).abs().max() <= 4  # another matrix of YUV is 20 off


@pytest.mark.parametrize("form", ["mp4", "webm"])
def test_a_clip_in_parts_is_the_clip_and_the_same_bytes(tmp_path, form):
    pixels = smooth(6)
    whole = write_video(tmp_path / f"a.{form}", pixels, 8).read_bytes()
    parts = write_video(tmp_path / f"b.{form}", iter(pixels.split(2, dim=1)), 8).read_bytes()
    assert whole == parts
    if form == "mp4":
        assert whole.index(b"moov") < whole.index(b"mdat")  # plays before it is all there


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_record_is_read_back(tmp_path, form, channels):
    path = write_video(tmp_path / f"a.{form}", smooth()[:channels], 8, FACTS)
    assert read_generation_metadata(path) == FACTS | {"clip": {"size": [32, 48], "fps": 8}}
    with pytest.raises(DataError, match="has no metadata"):
        read_generation_metadata(write_video(tmp_path / f"b.{form}", smooth(), 8))


def test_frames_as_a_folder(tmp_path):
    from PIL import Image

    path = write_video(tmp_path / "frames", smooth(3), 8, FACTS)
    assert sorted(os.listdir(path)) == ["frame_00000.png", "frame_00001.png", "frame_00002.png"]
    with Image.open(path / "frame_00001.png") as image:
        assert image.size == (48, 32)
    assert read_generation_metadata(path / "frame_00002.png")["seed"] == 3


@pytest.mark.parametrize("rate", [8, 12, 16])
def test_a_gif_lasts_as_long_as_it_should(tmp_path, rate):
    pixels = smooth(13)
    pixels[:, :, :4, :4] = torch.arange(0, 260, 20).reshape(1, 13, 1, 1).to(torch.uint8)  # no two frames are equal
    video = VideoReader().probe(write_video(tmp_path / "a.gif", pixels, rate), VideoLimits())
    assert (video.frames, video.rate) == (13, rate)
    assert video.seconds == pytest.approx(12 / rate, abs=0.01)


@pytest.mark.parametrize(
    ("name", "pixels", "rate", "error", "words"),
    [
        ("a.avi", smooth(), 8, RecipeError, r"a.avi: a video's name ends in \.mp4, \.webm, \.gif, \.webp, \.apng"),
        ("a.mp5", smooth(), 8, RecipeError, "nearest: 'mp4'"),
        ("a.mp4", smooth(), 0, RecipeError, "rate 0: must be above 0"),
        ("a.mp4", smooth()[:2], 8, ShapeError, r"a video is uint8 \(1 or 3, T, H, W\)"),
        ("a.mp4", smooth()[:, :0], 8, ShapeError, "of no frame"),
        ("a.mp4", [smooth(), smooth(2, 16, 16)], 8, ShapeError, "must be alike"),
        ("file/a.mp4", smooth(), 8, OutputError, "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path, name, pixels, rate, error, words):
    (tmp_path / "file").write_text("x")
    with pytest.raises(error, match=words):
        write_video(tmp_path / name, pixels, rate)
    assert os.listdir(tmp_path) == ["file"]


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "av":
            raise ImportError(name)
        return real(name, *rest)

    for loaded in [name for name in sys.modules if name.split(".")[0] == "av"]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RecipeError, match=r"a \.mp4 file needs av.*pip install 'unveil\[video\]'"):
        write_video(tmp_path / "a.mp4", smooth(), 8)
    write_video(tmp_path / "a.gif", smooth(), 8)  # needs none


SAME = """
import hashlib, sys, torch
from pathlib import Path
from unveil.io.video.writer import write_video
pixels = torch.load(sys.argv[2], weights_only=True)
print(hashlib.sha256(write_video(Path(sys.argv[1]), pixels, 8).read_bytes()).hexdigest())
"""


@pytest.mark.parametrize("form", ["mp4", "webm"])
def test_the_bytes_of_a_clip_do_not_depend_on_what_memory_held_before(tmp_path, form):
    torch.save(smooth(6, 64, 64), tmp_path / "pixels.pt")
    outputs = set()
    for held in ("1", "170", "255"):  # glibc fills what it lends with this byte
        environment = {**os.environ, "MALLOC_PERTURB_": held}
        command = [sys.executable, "-c", SAME, str(tmp_path / f"a.{form}"), str(tmp_path / "pixels.pt")]
        outputs.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(outputs) == 1


FULL = """
import sys, torch
from pathlib import Path
from unveil.io.video.writer import write_video
noise = torch.randint(0, 256, (3, 8, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
for name in sys.argv[1:]:
    try:
        write_video(Path(name), noise, 8)
    except Exception as problem:
        print(f"{type(problem).__name__}: {problem}")
"""


def test_a_full_disk_leaves_the_old_clips(tmp_path):
    names = [str(tmp_path / name) for name in ("a.mp4", "a.webm", "a.gif", "a.webp", "frames")]
    for name in names:
        write_video(Path(name), smooth(), 8)
    before = sorted((path, path.is_file() and path.read_bytes()) for path in tmp_path.rglob("*"))

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    command = [sys.executable, "-c", FULL, *names]
    done = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True, check=False)
    outputs = [line.split(" (")[0] for line in done.stdout.splitlines()]
    assert outputs == [f"OutOfResources: {name}: the disk is full" for name in names], done.stderr
    assert sorted((path, path.is_file() and path.read_bytes()) for path in tmp_path.rglob("*")) == before
