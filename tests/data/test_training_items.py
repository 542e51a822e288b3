"""Data sets of users for training: tuples, iterables, arrays, images, ranges of values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from unveil.data import training_items as module
from unveil.data.training_items import training_items
from unveil.errors import RecipeError, ShapeError

SHAPE = (3, 4, 6)
PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
FIRST = torch.from_numpy(PIXELS).permute(2, 0, 1)


def first(dataset: Any, **how: Any) -> dict[str, Any]:
    return dict(training_items(dataset, "pixels", **{"shape": SHAPE, "conditions": ["label"], **how})[0])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from ((FIRST + n, n) for n in range(3))


def stream() -> Iterator[Any]:
    yield from Stream()


def test_dicts_of_tensors_are_used_as_they_are():
    dataset = [{"pixels": FIRST, "label": 2}]
    assert training_items(dataset, "pixels", shape=SHAPE, conditions=["label"]) is dataset


@pytest.mark.parametrize(
    "dataset",
    [
        [(FIRST, 2)],
        [(Image.fromarray(PIXELS), np.int64(2))],
        [(PIXELS, torch.tensor(2), "further values are left out")],
        [{"pixels": PIXELS, "label": 2}],
        TensorDataset(FIRST[None], torch.tensor([2])),
    ],
)
def test_items_become_dicts_of_tensors(dataset):
    item = first(dataset)
    assert torch.equal(item["pixels"], FIRST)
    assert item["label"] == 2


@pytest.mark.parametrize("dataset", [Stream(), stream, stream(), [*stream()]])
def test_iterables_are_read_into_memory(dataset):
    items = training_items(dataset, "pixels", shape=SHAPE, conditions=["label"])
    assert len(items) == 3
    assert [items[n]["label"] for n in range(3)] == [0, 1, 2]
    assert torch.equal(items[2]["pixels"], FIRST + 2)


def test_data_alone_is_an_item_of_a_model_without_conditions():
    assert torch.equal(first([PIXELS], conditions=[])["pixels"], FIRST)
    assert torch.equal(first([(PIXELS, 5)], conditions=[])["pixels"], FIRST)
    points = torch.randn(5, 2)
    assert torch.equal(first(points, conditions=[], shape=(2,))["pixels"], points[0])


def test_arrays_and_images_get_the_shape_of_the_model():
    assert torch.equal(first([(FIRST.numpy(), 0)])["pixels"], FIRST), "channels first already"
    assert first([(Image.fromarray(PIXELS), 0)], shape=(1, 4, 6))["pixels"].shape == (1, 4, 6)
    assert first([(Image.fromarray(PIXELS[..., 0]), 0)])["pixels"].shape == SHAPE
    assert first([(PIXELS[..., 0], 0)], shape=(1, 4, 6))["pixels"].shape == (1, 4, 6)
    video = np.zeros((2, 4, 6, 3), np.uint8)
    assert first([(video, 0)], shape=(3, 2, 4, 6))["pixels"].shape == (3, 2, 4, 6)
    assert torch.equal(first([PIXELS], shape=None, conditions=[])["pixels"], FIRST)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 1), (-2, 2)])
def test_a_stated_range_is_scaled(low, high):
    pixels = torch.linspace(low, high, 72).reshape(SHAPE)
    scaled = first([(pixels, 0)], value_range=(low, high))["pixels"]
    torch.testing.assert_close(scaled, torch.linspace(-1, 1, 72).reshape(SHAPE))
    assert first([(FIRST, 0)], value_range=(low, high))["pixels"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("highest", "message"),
    [
        (255.0, r"'pixels': floats from 0 to 255 in 2 items.*value_range=\(0, 255\) to scale them, or give uint8"),
        (1.0, r"floats from 0 to 1 .*value_range=\(0, 1\) to scale them, or value_range=\(-1, 1\) to keep them"),
        (4000.0, r"value_range=\(0, 4000\)"),
    ],
)
def test_images_of_floats_without_a_clear_range_are_refused(highest, message):
    pixels = torch.linspace(0, highest, 72).reshape(SHAPE)
    for dataset in ([(pixels * 0, 0), (pixels, 0)], [{"pixels": pixels * 0.1}, {"pixels": pixels}]):
        with pytest.raises(ShapeError, match=message):
            first(dataset)
        first(dataset, asks_range=False)
    first([(pixels, 0), (pixels - 1, 0)])
    first([pixels[0, 0]], conditions=[], shape=(6,))


class Two:
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return (FIRST, 0) if index == 0 else (FIRST / 100 - 0.5,)


@pytest.mark.parametrize(
    ("dataset", "how", "error", "message"),
    [
        ([(FIRST,)], {}, RecipeError, r"item 0 is \(Tensor\); the model takes \(pixels, label\)"),
        ([FIRST], {}, RecipeError, r"item 0 is \(Tensor\); the model takes \(pixels, label\)"),
        ([("a.png", 0)], {}, RecipeError, "item 0, 'pixels': str; must be a tensor, an array or a PIL image"),
        ("photos", {}, RecipeError, "dataset 'photos': a path; open it"),
        (DataLoader([1]), {}, RecipeError, "a DataLoader; give its data set, loader.dataset"),
        ({"pixels": FIRST}, {}, RecipeError, "dataset: a dict; give a list"),
        (3, {}, RecipeError, r"dataset: int; must have len\(\) and \[index\]"),
        ([(FIRST, 0)], {"value_range": (1, 0)}, RecipeError, r"value_range = \(1, 0\): the lowest value, then"),
        (
            [(FIRST.float(), 0)],
            {"value_range": (0, 1)},
            ShapeError,
            r"item 0, 'pixels': values from 0 to 71, outside of value_range = \(0, 1\)",
        ),
    ],
)
def test_what_cannot_be_used_is_named(dataset, how, error, message):
    with pytest.raises(error, match=message):
        first(dataset, **how)


def test_a_later_item_is_named():
    items = training_items(Two(), "pixels", shape=SHAPE, conditions=["label"])
    with pytest.raises(RecipeError, match=r"item 1 is \(Tensor\)"):
        items[1]


def test_an_endless_iterable_is_refused(monkeypatch):
    def endless() -> Iterator[Any]:
        while True:
            yield FIRST, 0

    monkeypatch.setattr(module, "COLLECTED_BYTES", 10_000)
    with pytest.raises(RecipeError, match=r"has not ended after \d+ items.*itertools.islice"):
        first(endless)
