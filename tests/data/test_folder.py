"""The layouts of a folder, the split, and items that are the same from any worker."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader

from unveil import data
from unveil.errors import DataError, RecipeError


def config(folder: Path, **given: object) -> data.FolderConfig:
    return data.FolderConfig(**({"path": str(folder), "size": 8, "val_fraction": 0} | given))


def test_a_plain_folder(folder, paint):
    paint("b.jpg", 20, 10), paint("a.png"), paint("deep/er/c.webp"), paint(".hidden/d.png"), paint(".e.png")
    images = data.open(config(folder))
    assert [entry.path for entry in images.entries] == ["a.png", "b.jpg", "deep/er/c.webp"]
    item = images[1]
    assert set(item) == {"pixels"}
    assert item["pixels"].shape == (3, 8, 8)
    assert images.classes is None


def test_class_folders(folder, paint):
    paint("dog/a.png"), paint("cat/a.png"), paint("cat/more/b.png")
    images = data.open(config(folder))
    assert images.classes == ["cat", "dog"]
    assert [(entry.path, images[i]["label"]) for i, entry in enumerate(images.entries)] == [
        ("cat/a.png", 0),
        ("cat/more/b.png", 0),
        ("dog/a.png", 1),
    ]
    ordered = data.open(config(folder, classes=("dog", "bird", "cat")))
    assert [ordered[i]["label"] for i in range(3)] == [2, 2, 0]
    assert "label" not in data.open(config(folder, labels="none"))[0]
    shutil.rmtree(folder / "dog")
    assert data.open(config(folder)).classes is None  # one folder alone is not a class
    assert data.open(config(folder, labels="folders")).classes == ["cat"]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata(folder, paint, kind):
    paint("x/a.png"), paint("b.png"), paint("unnamed.png")
    if kind == "jsonl":
        rows = [{"file_name": "b.png", "text": "two, really", "label": "dog"}, {"file_name": "x/a.png", "label": "cat"}]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        (folder / "metadata.csv").write_text('file_name,text,label\nb.png,"two, really",dog\nx/a.png,,cat\n')
    images = data.open(config(folder))
    assert images.classes == ["cat", "dog"]
    assert [(images[i]["text"], images[i]["label"]) for i in range(2)] == [("two, really", 1), ("", 0)]
    assert images.report.missing == ["x/a.png"]
    assert images.report.ignored == [("unnamed.png", f"not named in metadata.{kind}")]


def test_numbers_as_labels_stay_what_they_are(folder, paint):
    paint("a.png"), paint("b.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "label": 3}\n{"file_name": "b.png", "label": 0}\n')
    images = data.open(config(folder))
    assert images.classes == ["0", "1", "2", "3"]
    assert [images[i]["label"] for i in range(2)] == [3, 0]


def test_the_same_image_with_fewer_pixels(folder, paint):
    paint("cat/a.png"), paint("dog/b.png")
    item = data.open(config(folder, low_res=2))[1]
    assert list(item) == ["pixels", "low", "label"]
    area = functional.interpolate(item["pixels"][None] / 127.5 - 1, (2, 2), mode="area")[0]
    torch.testing.assert_close(item["low"], area)
    assert "low" not in data.open(config(folder))[0]


@pytest.mark.parametrize(("low", "nearest"), [(3, 2), (8, 4), (0, 1)])
def test_a_smaller_size_that_does_not_divide_is_refused(low, nearest):
    with pytest.raises(RecipeError, match=f"low {low}: must divide the size, 8 pixels, .*nearest: {nearest}"):
        data.FolderConfig("here", 8, low_res=low)
    with pytest.raises(RecipeError, match="low 9: must divide the size, 28 pixels, and be below it; nearest: 7"):
        data.FashionConfig(low_res=9)


def test_captions_of_the_same_name(folder, paint):
    paint("a.png"), paint("b.png")
    (folder / "a.txt").write_text("\ufeffa red\n ball \n")
    images = data.open(config(folder))
    assert [images[i]["text"] for i in range(2)] == ["a red ball", ""]
    assert images.report.missing == ["b.png"]


def test_unicode_paths(tmp_path, folder, paint):
    paint("猫/白い 猫.png"), paint("собака/ü.png")
    (folder / "猫/白い 猫.txt").write_text("一只猫", encoding="utf-8")
    moved = tmp_path / "图片"
    folder.rename(moved)
    images = data.open(config(moved))
    assert images.classes == ["собака", "猫"]
    assert images[1]["text"] == "一只猫"
    assert "白い 猫.png" in images.report.to_text()


def test_links_inside_the_folder_are_followed(folder, paint):
    paint("a.png")
    (folder / "b.png").symlink_to("a.png")
    images = data.open(config(folder))
    assert torch.equal(images[0]["pixels"], images[1]["pixels"])


def test_an_image_without_an_extension_is_found(folder, paint):
    paint("a.png").rename(folder / "a")
    assert [entry.path for entry in data.open(config(folder)).entries] == ["a"]


def test_the_splits_are_disjoint_and_other_files_do_not_move_an_image(folder, paint):
    for number in range(60):
        paint(f"{number:03}.png")
    parts = [data.open(config(folder, val_fraction=0.25), part).entries for part in ("train", "held-out")]
    held_out = {entry.path for entry in parts[1]}
    assert len(parts[0]) + len(parts[1]) == 60
    assert 5 <= len(held_out) <= 25
    assert not held_out & {entry.path for entry in parts[0]}
    chosen = sorted(held_out)[0]
    shutil.copy(folder / chosen, folder / "copy.png")  # a copy goes where the original is
    (folder / "059.png").rename(folder / "renamed.png")
    paint("new.png")
    again = {entry.path for entry in data.open(config(folder, val_fraction=0.25), "held-out").entries}
    assert held_out - {"059.png"} | {"copy.png"} <= again
    assert again <= held_out | {"copy.png", "new.png", "renamed.png"}


def test_a_small_folder_still_has_one_validation_image_when_requested(folder, paint):
    for number in range(3):
        paint(f"{number}.png")
    assert len(data.open(config(folder, val_fraction=0.01), "held-out")) == 1
    assert len(data.open(config(folder, val_fraction=0.01))) == 2
    with pytest.raises(DataError, match=r"no image for the held-out part of 3 \(val_fraction 0\); use more images"):
        data.open(config(folder, val_fraction=0), "held-out")


def test_held_out_images_are_decoded_exactly(folder, paint):
    for number in range(8):
        paint(f"{number}.jpg", 400, 300, seed=number)
    fast, exact = (
        data.open(config(folder, size=16, val_fraction=0.4, decode=decode), "held-out") for decode in ("fast", "exact")
    )
    assert all(torch.equal(fast[i]["pixels"], exact[i]["pixels"]) for i in range(len(exact)))
    fast, exact = (data.open(config(folder, size=16, val_fraction=0.4, decode=decode)) for decode in ("fast", "exact"))
    assert not all(torch.equal(fast[i]["pixels"], exact[i]["pixels"]) for i in range(len(exact)))  # control


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # of newer Pythons, about any process with threads
def test_workers_see_the_same_items(folder, paint):
    for number in range(10):
        paint(f"{number}.png", 20, 20)
    images = data.open(config(folder))
    alone, by_two = (
        [batch["pixels"] for batch in DataLoader(images, batch_size=4, num_workers=workers)] for workers in (0, 2)
    )
    assert all(torch.equal(one, other) for one, other in zip(alone, by_two, strict=True))
