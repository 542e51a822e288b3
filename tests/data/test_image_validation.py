"""The report of a folder: counts, changes with their reasons, duplicates; and that it is not made twice."""

import json
import os
import shutil

import pytest

from unveil import data
from unveil.data import image_decoding


def config(folder, **given):
    return data.FolderConfig(path=str(folder), size=8, **given)


def test_counts_sizes_modes_captions_classes(folder, paint):
    paint("cat/a.png", 8, 8), paint("cat/b.jpg", 100, 50, mode="L"), paint("dog/c.webp", 8, 8)
    (folder / "cat/a.txt").write_text("a cat")
    (folder / "dog/c.txt").write_text("a sleeping dog")
    (folder / "readme.md").write_text("mine")
    report = data.check_images(config(folder))
    report_dict = json.loads(json.dumps(report.to_dict()))
    assert (report_dict["found"], report_dict["usable"], report_dict["layout"]) == (3, 3, "classes")
    assert report_dict["formats"] == {"PNG": 1, "JPEG": 1, "WebP": 1}
    assert report_dict["modes"] == {"RGB": 2, "L": 1}
    assert report_dict["sizes"] == {"8 x 8": 2, "100 x 50": 1}
    assert report_dict["short_sides"] == {"1-31": 2, "32-63": 1}
    assert report_dict["classes"] == {"cat": 2, "dog": 1}
    assert report_dict["captions"] == {"with": 2, "shortest": 5, "median": 5, "longest": 14, "missing": ["cat/b.jpg"]}
    assert report_dict["ignored"] == [{"path": "readme.md", "reason": "not an image (.md)"}]
    text = report.to_text()
    assert "3 images, 3 usable (classes)" in text
    assert "cat 2, dog 1" in text
    assert "cat/b.jpg: trained on with an empty caption" in text


@pytest.mark.parametrize(
    ("size", "given", "actions", "reason"),
    [
        ((8, 8), {}, None, None),
        ((16, 16), {}, ["reduce"], "16 x 16: to 8 x 8"),
        ((4, 4), {}, ["enlarge"], "4 x 4: to 8 x 8"),
        ((16, 8), {}, ["crop"], "16 x 8: 50 % cut off left and right"),
        ((16, 32), {}, ["reduce", "crop"], "16 x 32: 50 % cut off top and bottom, to 8 x 8"),
        ((6, 16), {}, ["enlarge", "crop"], "6 x 16: 62.5 % cut off top and bottom, to 8 x 8"),
        ((16, 8), {"fit": "pad"}, ["reduce", "pad"], "16 x 8: to 8 x 4, white added to 8 x 8"),
        ((8, 4), {"fit": "pad"}, ["pad"], "8 x 4: white added to 8 x 8"),
        ((16, 8), {"fit": "stretch"}, ["reduce", "stretch"], "16 x 8: to 8 x 8"),
        ((4, 4), {"undersized": "drop"}, ["drop"], r"4 x 4, smaller than 8 pixels \(undersized: drop\)"),
    ],
)
def test_every_change_is_named_with_its_reason(folder, paint, size, given, actions, reason):
    paint("same.png", 8, 8, seed=1), paint("a.png", *size, seed=2)
    report_dict = data.check_images(config(folder, **given)).to_dict()
    if actions is None:
        assert report_dict["changed"] == []
    else:
        [change] = report_dict["changed"]
        assert (change["path"], change["actions"]) == ("a.png", actions)
        assert change["reason"] == reason.replace("\\", "")


def test_nothing_is_enlarged_or_left_out_silently(folder, paint, caplog):
    paint("small.png", 4, 4), paint("large.png", 8, 8)
    assert len(data.check_images_or_raise(config(folder)).entries) == 2
    assert "1 of 2 images enlarged" in caplog.text
    assert "small.png: 4 x 4: to 8 x 8" in caplog.text
    caplog.clear()
    assert [entry.path for entry in data.check_images_or_raise(config(folder, undersized="drop")).entries] == [
        "large.png"
    ]
    assert "1 of 2 images left out" in caplog.text
    caplog.clear()
    (folder / "small.png").unlink()
    data.check_images_or_raise(config(folder))
    assert not caplog.records  # control


def test_exact_duplicates_are_grouped_across_names(folder, paint):
    paint("a.png", seed=1), paint("b.png", seed=2), paint("c.png", seed=3)
    shutil.copy(folder / "a.png", folder / "z.jpg")
    report = data.check_images(config(folder))
    assert report.duplicates == [["a.png", "z.jpg"]]
    assert len({path.name for path in folder.iterdir()}) == 4  # control: the names show nothing
    assert "a.png: equal to z.jpg" in report.to_text()


def test_animations_and_rotated_images_are_named(folder, paint):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 16)).save(folder / "turned.jpg", exif=exif)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.png", save_all=True, append_images=frames[1:])
    report = data.check_images(config(folder))
    assert (report.turned, report.animated) == (["turned.jpg"], ["moving.png"])
    assert report.sizes[16, 8] == 1  # as shown, not as stored


@pytest.fixture
def decoded(monkeypatch):
    """How many images have been decoded since."""
    counted = []
    real = image_decoding.load_pixels
    from unveil.data.image_folder import check_images

    def counting(image):
        counted.append(image)
        return real(image)

    monkeypatch.setitem(check_images.__globals__, "load_pixels", counting)
    return counted


def test_an_unchanged_folder_is_not_decoded_again(folder, paint, cache, decoded):
    for number in range(3):
        paint(f"{number}.png")
    first = data.check_images(config(folder))
    assert len(decoded) == 3
    assert data.check_images(config(folder)).to_dict() == first.to_dict()
    assert (
        data.check_images(config(folder, fit="pad")).num_files == 3
    )  # how images are used needs no second look at them
    assert len(decoded) == 3
    os.utime(folder / "1.png", (1, 1))
    data.check_images(config(folder))
    assert len(decoded) == 6
    for damaged in ('{"version": 1, "looks": {"0.png": [["PNG"], 3]}}', '{"version": 1, "looks": {}}', "[", "[]"):
        for kept in (cache / "checks").iterdir():
            kept.write_text(damaged)  # as if it were not there
        decoded.clear()
        assert data.check_images(config(folder)).to_dict() == first.to_dict()
        assert len(decoded) == 3


def test_bad_files_are_looked_at_again(folder, paint, cache, decoded):
    paint("a.png")
    (folder / "bad.png").write_bytes(b"")
    for _ in range(2):
        assert len(data.check_images(config(folder)).refused) == 1
    assert len(decoded) == 2
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_written_does_not_matter(folder, paint, monkeypatch, tmp_path):
    paint("a.png")
    (tmp_path / "blocker").write_text("a file")
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path / "blocker" / "cache"))
    assert data.check_images(config(folder)).num_files == 1


def test_progress_counts_to_the_end_and_may_stop_the_check(folder, paint):
    for number in range(20):
        paint(f"{number}.png")
    report_dict = []
    data.check_images(config(folder, max_pixels=10_000), progress=lambda done, total: report_dict.append((done, total)))
    assert report_dict == [(16, 20), (20, 20)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.check_images(config(folder, max_pixels=20_000), progress=stop)
