"""Bad input ends in one message that names the file and what to do, changes nothing, and has a control.

The control is the reader that people write: every file whose name ends in .png, without a look into it.
"""

import contextlib
import ctypes
import gc
import json
import os
import pickle
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unveil import data
from unveil.data.image_decoding import DecodeOptions, read_image
from unveil.errors import DataError, RecipeError


def naive(folder: Path) -> list[str]:
    """The images of a folder, as most scripts list them."""
    return sorted(path.name for path in folder.glob("*.png"))


def state(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def config(folder: Path, **given: object) -> data.FolderConfig:
    return data.FolderConfig(path=str(folder), size=8, **given)


def chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def black_png(width: int, height: int) -> bytes:
    """One bit per pixel and all rows alike: little on disk, much in memory."""
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size + bytes([1, 0, 0, 0, 0]))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


def truncated(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:6000])


def text_bomb(path: Path) -> None:
    """A small image with a comment of 10 MB, packed."""
    comment = b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 10_000_000)
    whole = black_png(8, 8)
    path.write_bytes(whole[:33] + chunk(*comment) + whole[33:])


FAULTS = {
    "a folder": (lambda path: path.mkdir(), "a folder, not an image; rename it or move its content"),
    "truncated": (truncated, "cannot be decoded: .*; the file is damaged: fetch it again or remove it"),
    "0 bytes": (lambda path: path.write_bytes(b""), "0 bytes: an empty file; fetch it again or remove it"),
    "text": (lambda path: path.write_text("hello\n"), "its content is text, not PNG, JPEG or WebP; convert it"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps([1])), "its content is a pickle, not PNG, JPEG or WebP"),
    "a GIF": (lambda path: Image.new("RGB", (8, 8)).save(path, "GIF"), "its content is GIF, not PNG, JPEG or WebP"),
    "noise": (lambda path: path.write_bytes(b"\xfe\xed" * 50), "its content is of an unknown kind"),
    "only a head": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "damaged PNG: .*; export it again"),
    "a text bomb": (text_bomb, "damaged PNG: Decompressed data too large"),
    "a fifo": (lambda path: os.mkfifo(path), "not a regular file; remove it"),
    "a dead link": (lambda path: path.symlink_to("gone.png"), "cannot be read: No such file"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "cannot be read: "),
    "a link out": (lambda path: path.symlink_to("/etc/hostname"), "a link that leaves the folder, which is not foll"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_stops_training_by_name(fault, folder, paint, cache):
    for number in range(3):
        paint(f"{number}.png")
    assert len(data.check_images_or_raise(config(folder)).entries) == 3  # control: without the fault all is well
    make, message = FAULTS[fault]
    make(folder / "bad.png")
    assert "bad.png" in naive(folder)  # control: a listing by name takes it for an image
    before, kept = state(folder), state(cache)
    with pytest.raises(DataError, match=rf"(?s)1 of 4 files cannot be used \(25 %.*bad\.png: {message}") as caught:
        data.open(config(folder))
    assert caught.value.exit_code == 4
    assert str(folder) in str(caught.value)
    assert state(folder) == before
    assert state(cache) == kept
    report = data.check_images(config(folder))  # the check itself goes on and names it
    assert [path for path, _ in report.refused] == ["bad.png"]
    assert len(report.entries) == 3


def test_few_bad_files_are_left_out_with_a_warning(folder, paint, caplog):
    for number in range(3):
        paint(f"{number}.png")
    (folder / "bad.png").write_text("hello")
    images = data.ImageFolderDataset(
        config(folder, val_fraction=0), report=data.check_images_or_raise(config(folder), max_bad=0.25)
    )
    assert len(images) == 3
    assert "1 of 4 files left out" in caplog.text
    assert "bad.png: its content is text" in caplog.text


def test_missing_and_empty_folders(folder, tmp_path, cache):
    with pytest.raises(DataError, match=rf"{tmp_path}/imaged: no such folder; nearest: 'images'; give a folder"):
        data.open(config(tmp_path / "imaged"))
    with pytest.raises(DataError, match=rf"{folder}: no image in it \(PNG, JPEG or WebP\); check the path"):
        data.open(config(folder))
    (folder / "notes.md").write_text("nothing here")
    (folder / ".hidden.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"no image in it .*; it holds 1 other files, such as notes.md"):
        data.open(config(folder))
    with pytest.raises(DataError, match="a file, not a folder"):
        data.open(config(folder / "notes.md"))
    assert not state(cache)
    assert sorted(state(folder)) == [str(folder / ".hidden.png"), str(folder / "notes.md")]


def peak_mb() -> float:
    """Most memory that this process has held since its peak was forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def grown_mb(work: Callable[[], object]) -> float:
    """That this process grew by at most, meanwhile."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # freed pages that malloc holds would hide what work takes
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = peak_mb()
    work()
    return peak_mb() - before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux")
def test_an_image_of_169_million_pixels_is_refused_before_it_is_decoded(folder, monkeypatch):
    (folder / "bomb.png").write_bytes(black_png(13_000, 13_000))
    assert (folder / "bomb.png").stat().st_size < 1e6

    def ours() -> None:
        start = time.process_time()
        with pytest.raises(DataError) as caught:
            read_image(folder, "bomb.png", DecodeOptions(8))
        assert time.process_time() - start < 0.05
        assert str(caught.value) == (
            f"{folder}/bomb.png: 13000 x 13000 = 169,000,000 pixels: the limit is 100,000,000; "
            "make the image smaller, or raise max_pixels if it is meant to be so large"
        )

    def plain() -> None:
        with Image.open(folder / "bomb.png") as image:
            image.resize((8, 8))  # nearest: only the decoding counts

    assert grown_mb(ours) < 64
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # else Pillow warns, and decodes it all the same
    assert grown_mb(plain) > 120  # control, with a byte for each pixel


def test_the_pixel_limit_is_in_the_list_and_can_be_raised(folder, paint):
    paint("large.png", 40, 30)
    with pytest.raises(
        DataError, match=r"large.png: 40 x 30 = 1,200 pixels: the limit is 1,000; make the image smaller"
    ):
        data.open(config(folder, max_pixels=1000))
    assert len(data.check_images_or_raise(config(folder, max_pixels=1200)).entries) == 1


def with_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 1
    return exif


@pytest.mark.parametrize(
    ("name", "options", "head"),
    [
        ("a.png", {}, 33),
        ("a.jpg", {"quality": 80}, None),  # its size may stand anywhere
        ("lossless.webp", {"lossless": True}, 30),
        ("lossy.webp", {"quality": 50}, 30),
        ("extended.webp", {"quality": 50, "exif": with_exif()}, 30),
    ],
)
def test_the_limit_holds_for_every_format_from_its_first_bytes(folder, name, options, head):
    Image.new("RGB", (40, 30), "red").save(folder / name, **options)
    assert read_image(folder, name, DecodeOptions(8, max_pixels=1200)).shape == (3, 8, 8)  # control
    (folder / name).write_bytes((folder / name).read_bytes()[:head])
    with pytest.raises(DataError, match="40 x 30 = 1,200 pixels: the limit is 1,199"):
        read_image(folder, name, DecodeOptions(8, max_pixels=1199))


def metadata(folder: Path, *lines: object) -> None:
    (folder / "metadata.jsonl").write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n"
    )


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/hostname", "a/../../secret.png", "..\\secret.png", "C:\\x.png", "\\\\host\\x.png"]
)
def test_metadata_that_leaves_the_folder_is_refused_whole(folder, paint, name):
    paint("good.png")
    paint("../secret.png")
    metadata(folder, {"file_name": "good.png"}, {"file_name": name})
    opened: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        real = Path.open
        patch.setattr(
            Path, "open", lambda path, *given, **options: opened.append(path) or real(path, *given, **options)
        )
        with pytest.raises(DataError) as caught:
            data.check_images(config(folder))
    assert f"metadata.jsonl line 2: file_name {name!r} leaves the folder; name files inside {folder}" in str(
        caught.value
    )
    assert {path.name for path in opened} <= {"metadata.jsonl"}
    assert (folder / "../secret.png").read_bytes()  # control: joined as it stands, the first name is a readable file
    metadata(folder, {"file_name": "good.png"})
    assert len(data.check_images_or_raise(config(folder)).entries) == 1  # control


def test_a_link_that_is_changed_after_the_check_is_not_followed(folder, paint, tmp_path):
    paint("a.png"), paint("../secret.png")
    images = data.ImageFolderDataset(config(folder, val_fraction=0))
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match=r"a\.png: a link that leaves the folder"):
        images[0]
    (folder / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png: No such file"):
        images[0]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"file_name": "a.png"}', '{"file_name": "a.png",'], "line 2: not JSON .*every line is one object, such as"),
        (['{"file_name": "a.png"}', "", "[1]"], "line 3: list, not an object"),
        (["[" * 100_000], "line 1: not JSON"),
        ([{"filename": "b.png"}], "no column file_name, and of the columns filename none names a file of it; name the"),
        ([{"file_name": "a.png"}, {"file": "a.png"}], "line 2: no file_name; nearest: 'file'"),
        ([{"file_name": 3}], "line 1: no file_name"),
        ([{"file_name": "a.png", "text": 3}], "line 1: text is 3, not text; put it in quotes"),
        ([{"file_name": "a.png", "label": 1.5}], "line 1: label is 1.5; a label is a name or a whole number"),
        ([{"file_name": "a.png", "label": -1}], "line 1: label -1: numbers of classes are 0 to 999999"),
        ([{"file_name": "a.png\0"}], "line 1: file_name 'a.png.*' holds a zero byte"),
        ([""], "no line in it; every line names an image"),
    ],
)
def test_bad_metadata_names_file_and_line(folder, paint, lines, message):
    paint("a.png")
    metadata(folder, *lines)
    with pytest.raises(DataError, match=rf"{folder}/metadata.jsonl:? {message}"):
        data.check_images(config(folder))
    metadata(folder, {"file_name": "a.png"})
    assert len(data.check_images(config(folder)).entries) == 1  # control


def test_bad_csv_names_file_and_line(folder, paint):
    paint("a.png")
    table = folder / "metadata.csv"
    for content, message in (
        ("file_name,text\na.png,one, two\n", "line 2: not 2 values, as the first line has; put values that hold a com"),
        ('file_name,text\na.png,"one\n', "line 2: not CSV"),
        ("name,text\nb.png,one\n", "no column file_name, and of the columns name, text none names a file of it"),
        (b"file_name\n\xff.png\n", "not UTF-8 text .byte 10.; save it as UTF-8"),
    ):
        table.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DataError, match=rf"metadata.csv:? {message}"):
            data.check_images(config(folder))
    table.write_text('file_name,text\na.png,"one, two"\n')
    assert data.check_images(config(folder)).captions == ["one, two"]  # control


def test_a_row_without_its_file_is_bad(folder, paint):
    paint("a.png")
    metadata(folder, {"file_name": "a.png"}, {"file_name": "b.png"})
    with pytest.raises(DataError, match=r"(?s)1 of 2 files.*b.png: named in metadata.jsonl line 2, but not there"):
        data.open(config(folder))


def test_an_unknown_label_names_the_nearest(folder, paint):
    paint("a.png")
    metadata(folder, {"file_name": "a.png", "label": "catt"})
    with pytest.raises(DataError, match="line 1: label 'catt': not one of the 2 classes; nearest: 'cat'; correct it"):
        data.check_images(config(folder, classes=("cat", "dog")))
    (folder / "metadata.jsonl").unlink()
    paint("dogs/a.png"), (folder / "a.png").unlink()
    with pytest.raises(DataError, match="dogs: class 'dogs': not one of the 2 classes; nearest: 'dog'"):
        data.check_images(config(folder, classes=("cat", "dog"), labels="folders"))


def test_an_image_outside_the_classes_and_a_row_without_label_are_bad(folder, paint):
    paint("cat/a.png"), paint("stray.png")
    assert data.check_images(config(folder, labels="folders")).refused == [
        ("stray.png", "no class: it lies beside the class folders; move it into one of them")
    ]
    metadata(folder, {"file_name": "cat/a.png", "label": "cat"}, {"file_name": "stray.png"})
    assert data.check_images(config(folder)).refused == [
        ("stray.png", "named in metadata.jsonl line 2 without a label, which others have; add it")
    ]


def test_two_metadata_files_and_absent_columns(folder, paint):
    paint("a.png")
    metadata(folder, {"file_name": "a.png", "caption": "one"})
    with pytest.raises(DataError, match="no column 'captions'; nearest: 'caption'; there are caption, file_name"):
        data.check_images(config(folder, caption_column="captions"))
    assert data.check_images(config(folder, caption_column="caption")).captions == ["one"]
    (folder / "metadata.csv").write_text("file_name\na.png\n")
    with pytest.raises(DataError, match=r"both metadata.jsonl and metadata.csv; keep one of them"):
        data.check_images(config(folder))


def test_bad_captions_are_bad_files(folder, paint):
    paint("a.png"), paint("b.png")
    (folder / "a.txt").write_bytes(b"caf\xe9")
    (folder / "b.txt").write_text("x" * 70_000)
    assert data.check_images(config(folder)).refused == [
        ("a.png", "its caption a.txt: not UTF-8 text (byte 3); save it as UTF-8"),
        ("b.png", "its caption b.txt: 70000 bytes: a caption has at most 65536"),
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 2}, "size 2: must be 4 to 4096 pixels"),
        ({"val_fraction": 1.0}, "val_fraction 1.0: a share, at least 0 and below 1"),
        ({"max_bad": -0.1}, "max_bad -0.1: a share"),
        ({"background": "snow white"}, "background 'snow white': not a colour; such as 'white' or '#ffffff'"),
        ({"max_pixels": 0}, "max_pixels 0: must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(folder, given, message):
    with pytest.raises(RecipeError, match=message):
        data.FolderConfig(**({"path": str(folder), "size": 8} | given))


def test_a_name_cannot_steer_the_terminal(folder, paint):
    paint("good.png")
    (folder / "\x1b[31mred.png").write_text("text")
    text = data.check_images(config(folder)).to_text()
    assert "\x1b" not in text
    assert r"\x1b[31mred.png" in text
