from __future__ import annotations

import math

import pytest
import torch

from unveil.errors import ShapeError
from unveil.playground.scene_iou import box_iou, class_iou, detect_boxes, matched_iou, matched_ious
from unveil.playground.scenes import Scenes, ScenesConfig

LEFT = torch.tensor([0.25, 0.5, 0.5, 1.0])
RIGHT = torch.tensor([0.75, 0.5, 0.5, 1.0])
WHOLE = torch.tensor([0.5, 0.5, 1.0, 1.0])


def test_iou_of_known_boxes():
    got = box_iou(torch.stack([LEFT, WHOLE]), torch.stack([LEFT, RIGHT, WHOLE]))
    torch.testing.assert_close(got, torch.tensor([[1.0, 0.0, 0.5], [0.5, 0.5, 1.0]]))


def test_matching_does_not_depend_on_order_and_misses_count_nothing():
    both = torch.stack([LEFT, RIGHT])
    assert matched_iou(both, both.flip(0)) == pytest.approx(1)
    assert matched_iou(both[:1], both) == pytest.approx(0.5)  # one is missing
    assert matched_iou(torch.stack([LEFT, RIGHT, WHOLE]), both) == pytest.approx(2 / 3)  # one is extra
    nothing = torch.zeros(0, 4)
    assert matched_iou(nothing, nothing) == 1
    assert matched_iou(nothing, both) == 0


def test_the_best_matching_is_not_the_greedy_one():
    # greedily, WHOLE takes the better of two and leaves LEFT with nothing
    wide = torch.tensor([0.45, 0.5, 0.9, 1.0])
    made, true = torch.stack([wide, LEFT]), torch.stack([WHOLE, LEFT])
    assert matched_iou(made, true) == pytest.approx((0.9 + 1) / 2)


def test_class_iou_of_a_known_confusion():
    true = torch.tensor([[0, 0, 1, 1]])
    made = torch.tensor([[0, 1, 1, 1]])
    got = class_iou(made, true, 3)
    assert got[:2].tolist() == pytest.approx([0.5, 2 / 3])
    assert math.isnan(got[2])


@pytest.mark.parametrize("size", [32, 64])
def test_objects_of_a_scene_are_seen_where_they_are(size: int):
    items = Scenes(ScenesConfig(size=size, count=60)).__getitems__(range(60))
    made, true = [detect_boxes(item["pixels"]) for item in items], [item["boxes"] for item in items]
    assert [len(one) for one in made] == [len(one) for one in true]
    assert matched_ious(made, true).mean() > 0.88
    assert matched_ious(made, true).min() > 0.7
    moved = [detect_boxes(item["pixels"].roll(size // 4, 2)) for item in items]
    assert matched_ious(moved, true).mean() < 0.4


def test_an_image_without_objects_shows_none():
    assert detect_boxes(torch.full((3, 32, 32), 60, dtype=torch.uint8)).shape == (0, 4)
    with pytest.raises(ShapeError, match="must be uint8"):
        detect_boxes(torch.zeros(3, 32, 32))


def test_wrong_shapes_are_named():
    with pytest.raises(ShapeError, match=r"boxes \(2, 3\): must be \(N, 4\)"):
        box_iou(torch.zeros(2, 3), torch.zeros(1, 4))
    with pytest.raises(ShapeError, match="1 sets of boxes made, 2 true"):
        matched_ious([torch.zeros(0, 4)], [torch.zeros(0, 4)] * 2)
    with pytest.raises(ShapeError, match="the shapes must agree"):
        class_iou(torch.zeros(1, 2, 2), torch.zeros(1, 2, 3), 2)
