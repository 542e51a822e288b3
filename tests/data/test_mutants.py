"""A folder of damaged and unusual images: each is used, or is set aside with its path and a reason."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from unveil import data
from unveil.data.image_decoding import DecodeOptions, read_image
from unveil.errors import DataError

SECONDS = 5.0  # of CPU for one file


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, "JPEG", exif=exif)


def originals() -> dict[str, bytes]:
    """Intact files of every kind, by name; all of them are images that training may use."""
    colour = Image.fromarray(noise(20, 24))
    alpha = Image.fromarray(noise(20, 24, 4))
    grey = (noise(20, 24, 1)[..., 0].astype(np.uint16)) * 257
    frames = [Image.fromarray(noise(12, 12 + 0 * number)) for number in range(3)]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return {
        "plain.png": encoded(colour, "PNG"),
        "plain.jpg": encoded(colour, "JPEG"),
        "plain.webp": encoded(colour, "WEBP", lossless=True),
        "wrong-extension.png": encoded(colour, "JPEG"),
        "cmyk.jpg": encoded(colour.convert("CMYK"), "JPEG"),
        "16-bit.png": encoded(Image.fromarray(grey), "PNG"),
        "palette.png": encoded(colour.convert("P"), "PNG", transparency=3),
        "alpha.png": encoded(alpha, "PNG"),
        "alpha.webp": encoded(alpha, "WEBP"),
        "turned.jpg": turned(colour),
        "animated.webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "animated.png": encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "profile.png": encoded(colour, "PNG", icc_profile=profile),
        "profile.jpg": encoded(colour, "JPEG", icc_profile=profile),
        "1x1.png": encoded(Image.fromarray(noise(1, 1)), "PNG"),
        "20000x1.png": encoded(Image.fromarray(noise(1, 20_000)), "PNG", compress_level=1),
        "1x20000.jpg": encoded(Image.fromarray(noise(20_000, 1)), "JPEG"),
    }


def mutants(count: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents: cut off, emptied, with flipped bits, or with another extension."""
    chosen, kinds = np.random.default_rng(1), list(originals().items())
    for number in range(count):
        name, content = kinds[number % len(kinds)]
        mutant = bytearray(content)
        what = ["cut", "bits", "bits", "empty"][number // len(kinds) % 4]
        if what == "cut":
            mutant = mutant[: chosen.integers(len(mutant))]
        elif what == "empty" and chosen.random() < 0.3:
            mutant.clear()
        else:
            for _ in range(chosen.integers(1, 5)):
                mutant[chosen.integers(min(len(mutant), 1500))] ^= 1 << int(chosen.integers(8))
        stem, _, ending = name.partition(".")
        yield f"{number:05d}-{stem}.{'jpg' if chosen.random() < 0.1 else ending}", bytes(mutant)


def config(folder: Path, **given: object) -> data.FolderConfig:
    return data.FolderConfig(path=str(folder), size=8, **given)


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.release)])
def test_every_mutant_is_used_or_set_aside_with_its_path_and_a_reason(folder, cache, count):
    for name, content in mutants(count):
        (folder / name).write_bytes(content)
    report = data.check_images(config(folder))
    refused = dict(report.refused)
    used = {entry.path for entry in report.entries} | {path for path, _ in report.refused}
    assert used == {path.name for path in folder.iterdir()}
    assert count * 0.2 < len(refused) < count * 0.8, "the test has no power"
    assert all(len(reason) > 10 for reason in refused.values())
    for path in sorted(folder.iterdir()):  # each of them as training reads it
        begun, reason = time.process_time(), None
        try:
            assert read_image(folder, path.name, DecodeOptions(8)).shape == (3, 8, 8)
        except DataError as problem:
            reason = str(problem).removeprefix(f"{path}: ")
        assert reason == refused.get(path.name)
        assert time.process_time() - begun < SECONDS
    with pytest.raises(DataError, match=rf"{len(refused)} of {count} files cannot be used") as stopped:
        data.check_images_or_raise(config(folder))
    assert sorted(refused)[0] in str(stopped.value)
    images = data.ImageFolderDataset(
        config(folder, val_fraction=0), report=data.check_images_or_raise(config(folder), max_bad=1)
    )
    assert len(images) == count - len(refused)
    for index in range(0, len(images), 7):
        assert images[index]["pixels"].shape == (3, 8, 8)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_unusual_images_that_are_intact_are_used(folder, cache, fit):
    for name, content in originals().items():
        (folder / name).write_bytes(content)
    report = data.check_images_or_raise(config(folder, fit=fit))
    assert report.refused == []
    images = data.ImageFolderDataset(config(folder, fit=fit, val_fraction=0), report=report)
    assert [tuple(item["pixels"].shape) for item in images] == [(3, 8, 8)] * len(originals())


def test_a_colour_profile_changes_nothing(folder, cache):
    for name in ("plain.png", "profile.png"):
        (folder / name).write_bytes(originals()[name])
    first, second = (read_image(folder, name, DecodeOptions(None)) for name in ("plain.png", "profile.png"))
    assert first.equal(second)


@pytest.mark.parametrize(("bad", "goes_on"), [(1, True), (2, False)])
def test_one_percent_of_bad_files_is_left_out_by_default_and_more_stop_the_run(
    folder, paint, caplog, cache, bad, goes_on
):
    whole = paint("0.png").read_bytes()
    (folder / "0.png").unlink()
    for number in range(100):
        (folder / f"{number:02d}.png").write_bytes(whole[:-30] if number < bad else whole + bytes(number))
    if goes_on:
        assert len(data.check_images_or_raise(config(folder)).entries) == 99
        assert "1 of 100 files left out" in caplog.text
        assert "00.png: " in caplog.text
    else:
        with pytest.raises(DataError, match=r"(?s)2 of 100 files cannot be used \(2 %; max_bad allows 1 %.*01\.png: "):
            data.open(config(folder))
