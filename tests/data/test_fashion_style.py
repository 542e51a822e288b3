"""Fashion-MNIST in a style: which images, and what becomes of them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unveil import data
from unveil.data import StyleConfig, apply_style
from unveil.data.fashion_mnist import FILES, Style, remove_style
from unveil.errors import RecipeError


def idx(array: Tensor) -> bytes:
    sizes = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return gzip.compress(b"\0\0\x08" + bytes([array.ndim]) + sizes + bytes(array.flatten().tolist()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty images of either part, the number of each in its first pixel."""
    place = tmp_path_factory.mktemp("fashion")
    for n, (images, answers) in enumerate(FILES.values()):
        pixels = torch.arange(60 * 28 * 28).remainder(251 + n).to(torch.uint8).view(60, 28, 28)
        pixels[:, 0, 0] = torch.arange(60)
        (place / images).write_bytes(idx(pixels))
        (place / answers).write_bytes(idx((torch.arange(60) // 6).to(torch.uint8)))
    return place


def test_the_first_of_each_class_in_turn(folder: Path):
    config = StyleConfig("inverted", count=12, judged=20, folder=str(folder))
    train, held_out = data.open(config), data.open(config, "held-out")
    assert (len(train), len(held_out)) == (12, 20)
    assert [train[n]["label"] for n in range(12)] == [*range(10), 0, 1]
    assert [255 - int(train[n]["pixels"][0, 0, 0]) for n in range(12)] == [*range(0, 60, 6), 1, 7]
    assert not torch.equal(train[0]["pixels"], held_out[0]["pixels"])  # of the two official parts


def test_styles_are_what_they_say():
    pixels = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    pixels[..., 2:6, 2:6] = 200
    assert torch.equal(apply_style(pixels, "inverted"), 255 - pixels)
    outline = apply_style(pixels, "outlined")[0, 0]
    assert int(outline[3, 3]) == 0
    assert int(outline[2, 2]) == int(outline[1, 1]) == 200
    assert int(outline[0, 0]) == 0
    stripes = apply_style(pixels, "striped")[0, 0, :, 3].tolist()
    assert stripes == [0, 0, 60, 60, 200, 200, 0, 0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"style": "outline"}, "must be one of inverted, outlined, striped.*outlined"),
        ({"count": 0}, "count = 0"),
        ({"count": 100}, "the train part has 6 of"),
    ],
)
def test_what_cannot_be_is_named(folder: Path, settings: dict[str, Any], words: str):
    with pytest.raises(RecipeError, match=words):
        data.open(StyleConfig(**settings, folder=str(folder)))


@pytest.mark.parametrize("style", ["inverted", "striped"])
def test_a_style_is_undone_but_for_rounding(style: Style):
    pixels = torch.randint(0, 256, (5, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    apart = (remove_style(apply_style(pixels, style), style).int() - pixels.int()).abs()
    assert int(apart.max()) <= 4  # a level of a darkened row stands for 1 / 0.3 of them
    assert not torch.equal(apply_style(pixels, style), pixels)


def test_what_is_lost_cannot_be_brought_back():
    with pytest.raises(RecipeError, match="inverted and striped can be undone"):
        remove_style(torch.zeros(1, 1, 28, 28, dtype=torch.uint8), "outlined")
