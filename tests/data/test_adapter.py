"""Data sets of users, and the sections of recipes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from unveil import data
from unveil.errors import DataError, RecipeError, ShapeError

COLOURS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def one(value: object, key: str = "image") -> dict:
    return data.adapt_dataset([{"image": value, "label": 3, "note": "mine"}], key)[0]


def test_images_of_every_kind_become_pixels():
    expected = torch.from_numpy(COLOURS).permute(2, 0, 1)
    for value in (Image.fromarray(COLOURS), COLOURS, expected):
        item = one(value)
        assert torch.equal(item["pixels"], expected)
        assert (item["label"], item["note"], "image" in item) == (3, "mine", False)
    assert one(COLOURS[..., 0])["pixels"].shape == (1, 4, 6)
    assert one(Image.fromarray(COLOURS).convert("L"))["pixels"].shape == (1, 4, 6)
    assert one(Image.fromarray(COLOURS).convert("P"))["pixels"].shape == (3, 4, 6)


def test_sixteen_bits_and_what_is_transparent_are_as_in_folders():
    ramp = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    assert one(ramp)["pixels"].tolist() == [[[0, 100, 255]]]
    assert one(Image.new("RGBA", (1, 1), (0, 0, 0, 0)))["pixels"].flatten().tolist() == [255, 255, 255]
    assert one(Image.new("LA", (1, 1), (10, 255)))["pixels"].flatten().tolist() == [10]


def test_floats_pass_as_they_are_whatever_their_shape():
    for shape in ((3, 4, 6), (4, 5), (7,), (3, 2, 4, 4)):
        value = torch.rand(shape, dtype=torch.float64) * 2 - 1
        assert torch.equal(one(value)["pixels"], value.float())
    assert one(np.zeros((1, 2, 2), dtype=np.float32))["pixels"].dtype == torch.float32


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.tensor([0.0, float("nan")]), DataError, "item 0, 'image': holds NaN or infinite values"),
        (torch.tensor([0.0, 255.0]), ShapeError, r"values from 0 to 255; floats must lie in \[-1, 1\]"),
        (torch.zeros(4, 6, 3, dtype=torch.uint8), None, ""),
        (torch.zeros(40, 60, 3, dtype=torch.uint8), ShapeError, r"uint8 tensor \(40, 60, 3\); must be \(C, H, W\)"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), ShapeError, "torch.int64; must be uint8 in 0 to 255 or floats"),
        (np.zeros(5, dtype=np.uint8), ShapeError, r"uint8 array \(5,\); must be \(H, W\) or \(H, W, C\)"),
        ("a.png", ShapeError, "str; must be a PIL image, an array or a tensor"),
    ],
)
def test_what_cannot_be_used_is_named(value, error, message):
    if error is None:
        one(value)
        return
    with pytest.raises(error, match=message):
        one(value)


def test_a_wrong_key_names_the_nearest():
    with pytest.raises(RecipeError, match="item 0 has no 'images'; nearest: 'image'; it has image, label, note"):
        one(COLOURS, "images")


def test_classes_and_length_are_the_sources():
    class Mine(list):
        classes = ("a", "b")

    adapted = data.adapt_dataset(Mine([{"image": COLOURS}] * 5), "image")
    assert (len(adapted), adapted.classes) == (5, ("a", "b"))


def test_a_recipes_section_opens_by_its_kind(folder, paint):
    paint("a.png")
    section = SimpleNamespace(kind="folder", path=str(folder), size=8, channels=1, val_fraction=0.0)
    assert data.open(section)[0]["pixels"].shape == (1, 8, 8)
    assert data.to_config(section) == data.FolderConfig(path=str(folder), size=8, channels=1, val_fraction=0.0)
    assert len(data.open(SimpleNamespace(kind="scenes", count=3))) == 3
    with pytest.raises(
        RecipeError,
        match=r"must be annotated-folder, digits, fashion, fashion-style, folder, latents, playground, .*; nearest: 'f",
    ):
        data.open(SimpleNamespace(kind="folders"))
