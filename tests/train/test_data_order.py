"""The order of the examples depends on the seed alone."""

from __future__ import annotations

import pytest
import torch

from unveil.errors import DataError, RecipeError, ShapeError
from unveil.train.data_order import BatchSampler, EpochShuffle, check_items, collate


def test_every_item_comes_once_an_epoch_and_epochs_differ():
    order = EpochShuffle(13, seed=3)
    epochs = [[order.index(13 * epoch + place) for place in range(13)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert order.index(5) == epochs[0][5], "going back changes nothing"
    assert [EpochShuffle(13, seed=4).index(n) for n in range(13)] != epochs[0]


def test_a_set_smaller_than_a_batch_is_repeated():
    order = EpochShuffle(2, seed=0)
    assert sorted(order.index(n) for n in range(8)) == [0] * 4 + [1] * 4


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("parts", [1, 3])
def test_every_step_takes_the_same_examples_however_it_is_split(world, parts):
    split = [list(BatchSampler(5, 8, batch=24, parts=parts, rank=rank, world=world)) for rank in range(world)]
    for step in range(3):
        taken = [n for mine in split for part in mine[step * parts : (step + 1) * parts] for n in part]
        assert sorted(taken) == list(range(24 * (5 + step), 24 * (6 + step)))
    assert len({len(part) for mine in split for part in mine}) == 1


def test_starting_at_a_step_gives_the_rest_of_a_run_from_the_start():
    whole = list(BatchSampler(0, 9, batch=6, parts=2))
    assert whole[8:] == list(BatchSampler(4, 9, batch=6, parts=2))


def test_items_become_tensors_where_they_can():
    items = [
        {"x": torch.zeros(2), "label": 3, "text": "a", "w": 0.5},
        {"x": torch.ones(2), "label": 4, "text": "b", "w": 1.5},
    ]
    batch = collate([7, 8], [0, 1], items, "x", ["label", "text", "w"])
    assert batch.data.tolist() == [[0, 0], [1, 1]]
    assert batch.raw["label"].tolist() == [3, 4]
    assert batch.raw["label"].dtype == torch.int64
    assert batch.raw["text"] == ["a", "b"]
    assert batch.numbers == [7, 8]


def test_mistakes_in_items_are_named():
    with pytest.raises(DataError, match="empty"):
        check_items([], "x", [], None)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="no key 'pixel'; nearest: 'pixels'"):
        check_items([{"pixels": torch.zeros(1)}], "pixel", [], None)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="no key 'label'"):
        check_items([{"pixels": torch.zeros(1)}], "pixels", ["label"], None)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"has the shape \(3,\), the model takes \(4,\)"):
        check_items([{"x": torch.zeros(3)}], "x", [], (4,))  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"torch.int64; must be uint8 \(pixels, 0 to 255\) or floating point"):
        check_items([{"x": torch.zeros(3, dtype=torch.int64)}], "x", [], None)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"item 9: 'x' has the shape \(3,\), item 4 \(2,\)"):
        collate([0, 1], [4, 9], [{"x": torch.zeros(2)}, {"x": torch.zeros(3)}], "x", [])
