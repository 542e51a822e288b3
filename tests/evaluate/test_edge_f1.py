"""Precision, recall and F1 of edges, counted by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unveil.errors import RecipeError, ShapeError
from unveil.evaluate.edge_f1 import edge_f1, pooled_edge_f1


def line(*columns: int) -> Tensor:
    """Vertical lines of 10 pixels on 10 x 30."""
    image = torch.zeros(10, 30, dtype=torch.uint8)
    image[:, list(columns)] = 255
    return image


def test_shares_are_those_counted_by_hand():
    assert edge_f1(line(5), line(5), tolerance=0) == (1, 1, 1)
    assert edge_f1(line(6), line(5), tolerance=0) == (0, 0, 0)
    assert edge_f1(line(6), line(5), tolerance=1) == (1, 1, 1)
    assert edge_f1(line(5, 20), line(5)) == pytest.approx((0.5, 1, 2 / 3))
    assert edge_f1(line(5), line(5, 20)) == pytest.approx((1, 0.5, 2 / 3))
    assert edge_f1(line(5, 10, 15), line(5, 20)) == pytest.approx((1 / 3, 1 / 2, 0.4))


def test_near_is_a_distance():
    found, true = torch.zeros(9, 9), torch.zeros(9, 9)
    found[4, 4] = true[5, 5] = 1
    assert edge_f1(found, true, tolerance=1.4).f1 == 0
    assert edge_f1(found, true, tolerance=math.sqrt(2)).f1 == 1


def test_an_image_without_edges():
    assert edge_f1(line(), line()) == (1, 1, 1)
    assert edge_f1(line(), line(5)) == (0, 0, 0)
    assert edge_f1(line(5), line()) == (0, 0, 0)


def test_pixels_of_many_pairs_count_alike():
    pairs = [(line(5, 20), line(5)), (line(5), line(5))]
    assert pooled_edge_f1(pairs) == pytest.approx((2 / 3, 1, 0.8))
    coloured = [(a.expand(3, -1, -1), b[None]) for a, b in pairs]
    assert pooled_edge_f1(coloured) == pooled_edge_f1(pairs)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ShapeError, match=r"edges of \(10, 30\) and \(10, 29\) pixels"):
        edge_f1(line(5), line(5)[:, :-1])
    with pytest.raises(ShapeError, match="must be"):
        edge_f1(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ShapeError, match="no pair"):
        pooled_edge_f1([])
    with pytest.raises(RecipeError, match="tolerance -1"):
        edge_f1(line(5), line(5), tolerance=-1)
