"""Boxes and masks of COCO files and of folders of masks: they stay on their objects, whatever is done to the image."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unveil import data
from unveil.data.annotated_folder import AnnotatedFolderConfig
from unveil.data.coco import decode_runs, draw_outline, read_coco
from unveil.errors import DataError, RecipeError

RED, GREEN = (250, 0, 0), (0, 250, 0)


def scene(path: Path, size: tuple[int, int], *marks: tuple[tuple[int, int, int, int], tuple[int, int, int]]) -> None:
    """Write an image of filled boxes (left, top, width, height) on black."""
    image = np.zeros((size[1], size[0], 3), np.uint8)
    for (left, top, width, height), colour in marks:
        image[top : top + height, left : left + width] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def corners(left: float, top: float, width: float, height: float) -> list[float]:
    right, bottom = left + width, top + height
    return [left, top, right, top, right, bottom, left, bottom]


def coco(*objects: tuple[int, int, list[int]], size: tuple[int, int] = (64, 32), outlines: bool = True) -> dict:
    """Annotations of the images 1 and 2: (image, category, box)."""
    return {
        "images": [
            {"id": number, "file_name": f"{name}.png", "width": size[0], "height": size[1]}
            for number, name in ((1, "a"), (2, "b"))
        ],
        "categories": [{"id": 9, "name": "green"}, {"id": 3, "name": "red"}],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": box}
            | ({"segmentation": [corners(*box)]} if outlines else {})
            for n, (image, category, box) in enumerate(objects)
        ],
    }


@pytest.fixture
def two(folder):
    """Two images of 64 x 32 pixels with a red and a green box each."""
    marks = ([20, 4, 16, 12], [40, 20, 8, 8])
    for name in ("a", "b"):
        scene(folder / f"{name}.png", (64, 32), (marks[0], RED), (marks[1], GREEN))
    objects = [(image, kind, box) for image in (1, 2) for kind, box in zip((3, 9), marks, strict=True)]
    (folder / "boxes.json").write_text(json.dumps(coco(*objects)))
    return folder


def opened(folder: Path, **given):
    settings = {"path": str(folder), "size": 32, "annotations": "boxes.json", "val_fraction": 0} | given
    return data.AnnotatedFolder(AnnotatedFolderConfig(**settings))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [32, 16])
def test_boxes_and_masks_lie_on_their_objects(two, fit, size):
    found = opened(two, fit=fit, size=size, background="black")
    assert (found.classes, found.num_classes) == (["red", "green"], 3)
    item = found[0]
    assert item["kinds"].tolist() == [0, 1]
    assert torch.equal(item["layout"], torch.cat([item["kinds"][:, None].float(), item["boxes"]], 1))
    for channel, (x, y, w, h) in enumerate((item["boxes"] * size).tolist()):
        shown = (item["pixels"][channel] > 120).nonzero()
        low, high = shown.min(0).values.tolist(), (shown.max(0).values + 1).tolist()
        assert [y - h / 2, x - w / 2] == pytest.approx(low, abs=0.6)
        assert [y + h / 2, x + w / 2] == pytest.approx(high, abs=0.6)
        wrong = (item["mask"] == channel + 1) != (item["pixels"][channel] > 120)
        assert int(wrong.sum()) <= 0.2 * len(shown)
    assert item["mask"].dtype == torch.uint8


def test_what_a_crop_cuts_off_is_left_out(two):
    marks = [(1, 3, [0, 0, 20, 8]), (1, 9, [10, 10, 12, 8]), (1, 9, [50, 0, 14, 8])]  # the crop keeps x from 16 to 48
    (two / "boxes.json").write_text(json.dumps(coco(*marks)))
    item = opened(two)[0]
    assert item["kinds"].tolist() == [1]  # of the first a fifth is left, of the last nothing
    assert item["boxes"].tolist() == [pytest.approx([3 / 32, 14 / 32, 6 / 32, 8 / 32])]
    assert opened(two)[1]["boxes"].shape == (0, 4)  # an image without objects
    assert opened(two, state="boxes", slots=3)[1]["state"].tolist() == [[0, 0, 0, 0, -1]] * 3


def test_the_states_are_those_of_the_models(two, caplog):
    item = opened(two, state="boxes", slots=4)[0]
    assert torch.allclose(data.state_to_boxes(item["state"][None])[0], item["boxes"])
    item = opened(two, state="mask")[0]
    assert item["state"].shape == (3, 32, 32)
    assert torch.equal(data.state_to_mask(item["state"]), item["mask"])
    with caplog.at_level(logging.WARNING):
        item = opened(two, slots=1, classes=("green", "red"))[0]
    assert "2 images have more than 1 boxes, of which the smallest are left out" in caplog.text
    assert item["kinds"].tolist() == [1]  # the larger one, which is red


def test_masks_of_a_folder(two):
    (two / "masks").mkdir()
    mask = np.zeros((32, 64), np.uint8)
    mask[4:16, 20:36], mask[20:28, 40:48], mask[0, :] = 1, 2, 255
    for name in ("a", "b"):
        Image.fromarray(mask).save(two / "masks" / f"{name}.png")
    found = opened(two, annotations=None, masks="masks", void=255, num_classes=3, state="mask")
    assert len(found) == 2  # the masks below the folder are not images
    item = found[0]
    assert "boxes" not in item
    assert torch.equal(item["mask"], torch.from_numpy(mask % 255)[:, 16:48])
    assert item["state"].shape == (3, 32, 32)
    with pytest.raises(DataError, match=r"a.png: class 255; classes are 0 to 2 .*data.void=255.*values=binary"):
        opened(two, annotations=None, masks="masks", num_classes=3)[0]
    Image.fromarray((mask == 1).astype(np.uint8) * 255).save(two / "masks" / "a.png")
    item = opened(two, masks="masks", mask_values="binary")[0]  # beside boxes
    assert torch.equal(item["mask"], torch.from_numpy(mask == 1)[:, 16:48].to(torch.uint8))
    assert len(item["boxes"]) == 2
    Image.fromarray(mask[:, :40]).save(two / "masks" / "a.png")
    with pytest.raises(DataError, match=r"a.png: 40 x 32, and a.png is 64 x 32"):
        opened(two, masks="masks", void=255)[0]
    (two / "masks" / "b.png").unlink()
    with pytest.raises(DataError, match=r"(?s)1 of 2 images cannot be used.*b.png: no mask b.png in masks"):
        opened(two, masks="masks")


def test_run_lengths_as_list_and_as_text():
    wanted = np.zeros((5, 4), bool)
    wanted[1:4, 1:3] = True
    flat = wanted.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat.astype(int))) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    assert (decode_runs({"size": [5, 4], "counts": counts}) == wanted).all()
    text = ""  # written here from the description of the format
    for place, count in enumerate(counts):
        value = count - (counts[place - 2] if place > 2 else 0)
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
            if not more:
                break
    assert (decode_runs({"size": [5, 4], "counts": text}) == wanted).all()
    assert (draw_outline({"size": [5, 4], "counts": text}, (4, 5), (0, 0, 4, 5)) == wanted).all()
    for runs in ({"size": [5, 4], "counts": [3, 4]}, {"size": [5, 4], "counts": "~"}, {"size": [0, 4], "counts": []}):
        with pytest.raises(ValueError, match="runs"):
            decode_runs(runs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("categories"), "no list 'categories'; COCO's format has"),
        (lambda c: c["annotations"][0].update(image_id=5), "annotations entry 1: no entry has the image_id 5"),
        (lambda c: c["annotations"][1].update(category_id=4), "annotations entry 2: no entry has the category_id 4"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), r"annotations entry 1: bbox is \[1, 2, 3\]; must be"),
        (lambda c: c["images"][1].update(width="64"), "images entry 2: width is '64'; must be a whole number"),
        (lambda c: c["images"][1].pop("file_name"), "images entry 2 has no file_name"),
        (lambda c: c["images"].pop(1), "annotations entry 3: no entry has the image_id 2"),
        (lambda c: c["images"][1].update(width=50), "b.png: 64 x 32, and boxes.json says 50 x 32"),
    ],
)
def test_faulty_annotations_name_the_entry(two, change, words):
    content = json.loads((two / "boxes.json").read_text())
    change(content)
    (two / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=words):
        opened(two)


def test_only_images_that_are_named_are_used(two, caplog):
    content = json.loads((two / "boxes.json").read_text())
    content["images"][1]["file_name"] = "c.png"
    (two / "boxes.json").write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        assert len(opened(two)) == 1
    assert "boxes.json: 1 images not named in it:\n  b.png: left out" in caplog.text
    assert "boxes.json: 1 images named in it are not usable or not there" in caplog.text
    content["images"][0]["file_name"] = "d.png"
    (two / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"no image of the train part has annotations; check data.annotations"):
        opened(two)


def test_crowds_and_empty_boxes_are_left_out(two):
    content = coco((1, 3, [0, 0, 4, 4]), (1, 3, [1, 1, 5, 5]), (1, 9, [1, 1, 0, 5]))
    content["annotations"][0]["iscrowd"] = 1
    (two / "boxes.json").write_text(json.dumps(content))
    found = read_coco(two / "boxes.json")
    assert [item.box for item in found.images["a.png"].objects] == [(1, 1, 5, 5)]
    with pytest.raises(DataError, match="no category 'rad'; nearest: 'red'"):
        read_coco(two / "boxes.json", ["rad"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"annotations": None}, "give a COCO file, a folder of masks, or both"),
        ({"annotations": None, "masks": "m", "state": "boxes"}, "state boxes: needs annotations"),
        ({"annotations": None, "masks": "m", "state": "mask"}, "state mask: needs num_classes"),
        ({"slots": 0}, "slots 0: must be at least 1"),
        ({"num_classes": 1}, "num_classes 1: must be 2 to 256"),
    ],
)
def test_settings_that_cannot_work(folder, given, words):
    with pytest.raises(RecipeError, match=words):
        opened(folder, **given)
