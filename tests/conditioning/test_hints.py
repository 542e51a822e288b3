"""Hints against images whose edges, lines and regions are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unveil.data.preprocessors import edges, segmentation
from unveil.data.preprocessors.registry import (
    PREPROCESSORS,
    BoxPreprocessor,
    CannyPreprocessor,
    MaskPreprocessor,
    ResizePreprocessor,
)
from unveil.errors import RecipeError, ShapeError


def step(height: int = 32, width: int = 40, at: int = 20, to: int = 255) -> Tensor:
    image = torch.zeros(1, height, width, dtype=torch.uint8)
    image[..., at:] = to
    return image


def square() -> Tensor:
    image = torch.zeros(1, 64, 64, dtype=torch.uint8)
    image[:, 16:48, 16:48] = 200
    return image


def noise() -> Tensor:
    return torch.randint(0, 256, (3, 37, 53), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_an_edge_lies_where_the_step_is():
    for sigma in (0.0, 1.0, 2.0):
        found = edges.canny(step(), sigma=sigma)
        columns = found[0].nonzero()[:, 1].unique().tolist()
        assert set(columns) <= {19, 20}
        assert found[0, 1:-1].any(1).all()


def test_thresholds_are_of_the_gradient_by_sobel():
    """Unsmoothed, a step of h has the gradient 4 h; with sigma 1 it is about 2.5 h."""
    assert not edges.canny(step(to=49), sigma=0).any()
    assert edges.canny(step(to=51), sigma=0).any()
    assert not edges.canny(step(to=78)).any()
    assert edges.canny(step(to=84)).any()


def test_a_weak_edge_counts_where_it_goes_on_from_a_strong_one():
    image = step(to=35)
    image[:, :16, 20:] = 60
    assert edges.canny(image, sigma=0)[0, 24].any()
    assert not edges.canny(step(to=35), sigma=0).any()


def test_a_square_has_four_lines():
    found = edges.hough_lines(square())
    sides = {("x", round(x0 / 31)) if abs(x0 - x1) <= 2 else ("y", round(y0 / 31)) for x0, y0, x1, y1 in found.tolist()}
    assert len(sides) == 4, found
    assert all(min(abs(x0 - x1), abs(y0 - y1)) <= 2 for x0, y0, x1, y1 in found.tolist())
    assert len(edges.hough_lines(square(), length=60)) == 0


def test_a_scribble_is_thick_and_leaves_out_what_is_small():
    image = square()
    thin, thick = edges.scribble(image, width=1), edges.scribble(image, width=6)
    assert thick[0].sum() > 4 * thin[0].sum() > 0
    speck = torch.zeros_like(image)
    speck[:, 30:32, 30:32] = 255
    assert not edges.scribble(speck).any()
    assert edges.canny(speck).any()


def test_a_region_of_one_colour_is_one():
    found = segmentation.felzenszwalb_segments(square(), sigma=0.0)
    assert found.unique().tolist() == [1, 2]
    assert bool((found[16:48, 16:48] == 2).all())
    assert int((found == 2).sum()) == 32 * 32


@pytest.mark.parametrize("kind", ["canny", "lines", "scribble", "segments"])
def test_hints_keep_the_size_and_are_the_same_every_time(kind: str):
    draw = PREPROCESSORS[kind]()
    for image in (noise(), noise()[:1], torch.zeros(3, 1, 1, dtype=torch.uint8)):
        before = image.clone()
        first = draw({"pixels": image})
        assert (first.dtype, first.shape) == (torch.uint8, (3, *image.shape[1:]))
        assert torch.equal(first, draw({"pixels": image}))
        assert torch.equal(image, before)
    assert draw({"pixels": noise()}).any()


@pytest.mark.parametrize("kind", ["canny", "lines", "scribble"])
def test_a_flat_image_has_no_edges(kind: str):
    for value in (0, 77, 255):
        flat = torch.full((3, 24, 24), value, dtype=torch.uint8)
        assert not PREPROCESSORS[kind](low=0, high=0)({"pixels": flat}).any()


def test_colours_are_fixed_and_differ():
    colours = segmentation.palette(torch.arange(4096))
    assert colours[:, :5].T.tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert len(colours.T.unique(dim=0)) == 4096
    mask = torch.tensor([[0, 1], [2, 3]], dtype=torch.uint8)
    assert torch.equal(MaskPreprocessor()({"mask": mask}), colours[:, :4].reshape(3, 2, 2))


def test_boxes_lie_where_they_say():
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.25], [0.5, 0.5, 0.1, 0.1]])
    labels = torch.tensor([0, 2])
    page = segmentation.layout(boxes, labels, 40, 80)
    assert page[:, 20, 30].tolist() == [128, 0, 0]
    assert page[:, 20, 40].tolist() == segmentation.palette(torch.tensor(3)).tolist()  # the smaller one in front
    covered = (page != 0).any(0).nonzero()
    assert (covered.min(0).values.tolist(), covered.max(0).values.tolist()) == ([15, 20], [24, 59])
    assert torch.equal(page, segmentation.layout(boxes.flip(0), labels.flip(0), 40, 80))
    outlined = segmentation.layout(boxes[:1], None, 40, 80, style="outlined", thickness=1)
    assert int((outlined != 0).any(0).sum()) == 2 * (10 + 40) - 4
    assert not segmentation.layout(torch.zeros(0, 4), None, 4, 4).any()


def test_an_input_image_is_cropped_and_never_stretched():
    image = noise()
    assert torch.equal(segmentation.resize_control_image(image, 37, 53), image)
    assert torch.equal(segmentation.resize_control_image(image[:1], 37, 53), image[:1].expand(3, -1, -1))
    ramp = torch.arange(100, dtype=torch.uint8).expand(1, 50, 100)
    half = segmentation.resize_control_image(ramp, 25, 50)[0, 12]
    assert (half.float() - (2 * torch.arange(50) + 0.5)).abs().max() <= 1.0
    with pytest.raises(ShapeError, match=r"100 x 50 has the aspect ratio 2, the wanted 50 x 50 has 1; crop or pad"):
        segmentation.resize_control_image(ramp, 50, 50)
    assert ResizePreprocessor(tolerance=2.0)({"pixels": torch.zeros(3, 50, 50), "given": ramp}).shape == (3, 50, 50)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("canny", {"low": 200, "high": 100}, "low 200, high 100: low must be at most high"),
        ("canny", {"low": -1}, r"must lie in \[0, 255\]"),
        ("canny", {"high": 256}, r"must lie in \[0, 255\]"),
        ("canny", {"high": float("nan")}, r"must lie in \[0, 255\]"),
        ("canny", {"sigma": -1}, "sigma -1"),
        ("lines", {"length": 0}, "length 0: must be at least 1"),
        ("lines", {"gap": -1}, "gap -1: must be at least 0"),
        ("scribble", {"width": 0}, "width 0: must be at least 1"),
        ("segments", {"scale": 0}, "scale 0"),
        ("boxes", {"style": "fill"}, "style 'fill': must be filled or outlined; nearest: 'filled'"),
        ("given", {"tolerance": -1}, "tolerance -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(kind: str, settings: dict[str, float], message: str):
    with pytest.raises(RecipeError, match=message):
        PREPROCESSORS[kind](**settings)


def test_values_that_are_not_images_are_refused():
    for wrong in (torch.zeros(3, 8, 8), torch.zeros(8, 8, dtype=torch.uint8), torch.zeros(4, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ShapeError, match=r"must be uint8 \(1 or 3, H, W\)"):
            CannyPreprocessor()({"pixels": wrong})
    with pytest.raises(RecipeError, match="an item has no 'boxes'; nearest: 'box'; it has pixels, box"):
        BoxPreprocessor()({"pixels": step(), "box": 1})
    with pytest.raises(ShapeError, match="must all lie in"):
        segmentation.layout(torch.tensor([[0.5, 0.5, float("nan"), 0.1]]), None, 8, 8)
    with pytest.raises(ShapeError, match="allowed are 0 to"):
        segmentation.colours(torch.full((2, 2), -1))
    with pytest.raises(ShapeError, match=r"labels \(2,\) for 1 boxes"):
        segmentation.layout(torch.full((1, 4), 0.5), torch.zeros(2, dtype=torch.int64), 8, 8)
