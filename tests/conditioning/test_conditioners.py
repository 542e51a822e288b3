"""Labels, codes and images: what reaches the network, what "none" is, and mistakes that name the nearest."""

from __future__ import annotations

import pytest
import torch

from unveil.conditioning.class_label import BinnedValue, Label
from unveil.conditioning.image import ConcatCondition
from unveil.errors import RecipeError, ShapeError

ANIMALS = ["cat", "dog", "horse"]


def test_numbers_names_and_tensors_of_labels_give_the_same_rows():
    label = Label(3, 4, names=ANIMALS)
    want = label.table.weight[[2, 0]]
    for raw in ([2, 0], ["horse", "cat"], ["2", "0"], torch.tensor([2, 0]), torch.tensor([2, 0], dtype=torch.uint8)):
        vector = label.encode(raw).vector
        assert vector is not None
        assert torch.equal(vector, want)


def test_none_has_a_row_of_its_own_with_dropout_and_no_row_without():
    label = Label(3, 4, drop=0.1)
    vector = label.null(2).vector
    assert vector is not None
    assert torch.equal(vector, label.table.weight[[3, 3]])
    assert Label(3, 4).table.weight.shape == (3, 4)
    with pytest.raises(RecipeError, match=r"trained without dropout, so it has no null label; set drop"):
        Label(3, 4).null(1)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([12], r"label 12: must be 0 to 2; nearest: 2 \(horse\)"),
        ([-1], r"label -1: must be 0 to 2; nearest: 0 \(cat\)"),
        (["hors"], r"label 'hors': must be one of cat, dog, horse; nearest: 'horse'"),
        (["7"], r"label 7: must be 0 to 2"),
        (torch.tensor([0, 5]), r"label 5: must be 0 to 2"),
        (torch.tensor([0.5]), r"must be integers \(B,\)"),
    ],
)
def test_an_unknown_label_names_the_nearest(raw, message):
    with pytest.raises(RecipeError, match=message):
        Label(3, 4, drop=0.1, names=ANIMALS).encode(raw)


def test_the_unconditional_row_is_not_a_valid_label():
    for raw in ([3], torch.tensor([1, 3])):
        with pytest.raises(RecipeError, match="label 3: must be 0 to 2"):
            Label(3, 4, drop=0.1).encode(raw)


def test_a_name_without_names_says_what_is_allowed():
    with pytest.raises(RecipeError, match="label 'cat': must be a number from 0 to 9"):
        Label(10, 4).encode(["cat"])
    with pytest.raises(RecipeError, match="2 class names given for 3 classes"):
        Label(3, 4, names=["a", "b"])


def test_values_take_the_row_of_the_nearest_code():
    angles = BinnedValue(-90, 90, 19, dim=4)  # every 10 degrees
    vector = angles.encode([-90.0, 14.9, 15.1, 90.0]).vector
    assert vector is not None
    assert torch.equal(vector, angles.rows.table.weight[[0, 10, 11, 18]])


def test_exact_look_up_takes_codes_only_and_names_the_nearest():
    angles = BinnedValue(-90, 90, 19, dim=4, lookup="exact", key="angle")
    assert angles.encode(torch.tensor([20.0])).vector is not None
    with pytest.raises(RecipeError, match=r"angle 14.9: must be from -90 to 90 in steps of 10; nearest: 10"):
        angles.encode([20.0, 14.9])


@pytest.mark.parametrize("value", [-90.01, 1e9, float("nan")])
def test_values_outside_the_range_are_refused(value):
    with pytest.raises(RecipeError, match=r"must be from -90 to 90; nearest: (-)?90"):
        BinnedValue(-90, 90, 19, dim=4).encode([value])


def test_images_of_either_range_become_channels_and_none_is_grey():
    context = ConcatCondition(3, drop=0.1, size=(4, 6))
    images = torch.randint(0, 256, (2, 3, 4, 6), dtype=torch.uint8)
    seen = context.encode(images).concat
    assert seen is not None
    torch.testing.assert_close((seen + 1) * 127.5, images.float())
    again = context.encode(list(seen)).concat
    assert again is not None
    assert torch.equal(again, seen)
    none = context.null(2).concat
    assert none is not None
    assert none.shape == seen.shape
    assert (none == 0).all()


def test_none_replaces_images_row_by_row_at_any_size():
    context = ConcatCondition(1, drop=0.5)
    condition = context.encode(torch.ones(2, 1, 5, 5)).where(torch.tensor([True, False]), context.null(2))
    assert condition.concat is not None
    assert condition.concat.sum((1, 2, 3)).tolist() == [25.0, 0.0]


def test_images_that_do_not_fit_are_named():
    context = ConcatCondition(3, key="depth")
    with pytest.raises(ShapeError, match=r"depth \(2, 1, 4, 4\): must be \(B, 3, H, W\)"):
        context.encode(torch.zeros(2, 1, 4, 4))
    with pytest.raises(ShapeError, match=r"depth torch.int64: must be uint8"):
        context.encode(torch.zeros(2, 3, 4, 4, dtype=torch.int64))


@pytest.mark.parametrize("make", [lambda d: Label(2, 4, d), lambda d: ConcatCondition(1, d)])
@pytest.mark.parametrize("drop", [-0.1, 1.0])
def test_a_share_outside_0_to_1_is_refused(make, drop):
    with pytest.raises(RecipeError, match="drop = "):
        make(drop)
