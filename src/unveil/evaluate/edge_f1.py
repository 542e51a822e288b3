"""How well the edges of one picture are those of another, within a few pixels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unveil.types import RecipeError, ShapeError


class Agreement(NamedTuple):
    """Shares in [0, 1].

    precision: of the edge pixels found, those near a true one. recall: of the true ones, those near one found.
    f1: the harmonic mean of both.
    """

    precision: float
    recall: float
    f1: float


def agreement(found: Tensor, true: Tensor, *, tolerance: float = 1.0) -> Agreement:
    """Of two pictures of edges how far they agree.

    A pixel is near another at a Euclidean distance of at most `tolerance`. Where there is no edge to find and none
    was found, all is 1; where only one of both has edges, all is 0.

    Args:
        found, true: (H, W), or (C, H, W) with the same in every channel; a pixel that is not 0 is an edge.
        tolerance: in pixels; 0 counts exact hits only.

    Raises:
        ShapeError: pictures of two sizes, or none.
        RecipeError: a tolerance below 0.
    Source: Martin, Fowlkes & Malik 2004, Learning to Detect Natural Image Boundaries, section 3; pixels are near or
        not, and are not matched one to one.
    """
    return _shares([_counts(found, true, tolerance)])


def agreement_of(pairs: Iterable[tuple[Tensor, Tensor]], *, tolerance: float = 1.0) -> Agreement:
    """The same over many pairs of (found, true), each edge pixel counting alike.

    Raises:
        ShapeError, RecipeError: as `agreement`; or there is no pair.
    """
    counts = [_counts(found, true, tolerance) for found, true in pairs]
    if not counts:
        raise ShapeError("no pair of edge pictures: at least one is needed")
    return _shares(counts)


def _counts(found: Tensor, true: Tensor, tolerance: float) -> tuple[int, int, int, int]:
    """Edge pixels found, those of them that are near; true ones, those of them that are near."""
    if not 0 <= tolerance < float("inf"):
        raise RecipeError(f"tolerance {tolerance:g}: pixels, at least 0; 1 or 2 is usual")
    first, second = _edges(found), _edges(true)
    if first.shape != second.shape:
        raise ShapeError(f"edges of {first.shape} and {second.shape} pixels: must be pictures of one size")
    hits = int((first & _near(second, tolerance)).sum())
    covered = int((second & _near(first, tolerance)).sum())
    return int(first.sum()), hits, int(second.sum()), covered


def _shares(counts: list[tuple[int, int, int, int]]) -> Agreement:
    found, hits, true, covered = (sum(column) for column in zip(*counts, strict=True))
    if not found and not true:
        return Agreement(1.0, 1.0, 1.0)
    precision, recall = (hits / found if found else 0.0), (covered / true if true else 0.0)
    return Agreement(precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0)


def _edges(picture: Tensor) -> NDArray[np.bool_]:
    if picture.ndim not in (2, 3) or not picture.numel():
        raise ShapeError(f"edges {tuple(picture.shape)}: must be (H, W) or (C, H, W)")
    drawn = (picture != 0).cpu()
    return (drawn if drawn.ndim == 2 else drawn.any(0)).numpy()


def _near(edges: NDArray[np.bool_], tolerance: float) -> NDArray[np.bool_]:
    """Which pixels lie within the tolerance of an edge."""
    from scipy import ndimage

    if not edges.any():
        return edges
    distance: Any = ndimage.distance_transform_edt(~edges)
    return np.asarray(distance <= tolerance)
