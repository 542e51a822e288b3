"""Precision, recall and F1 of predicted edges within a tolerance of a few pixels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unveil.errors import RecipeError, ShapeError


class EdgeF1(NamedTuple):
    """Precision, recall and F1 of edge pixels, in [0, 1].

    Attributes:
        precision: Share of the predicted edge pixels near a true one.
        recall: Share of the true edge pixels near a predicted one.
        f1: Harmonic mean of both.
    """

    precision: float
    recall: float
    f1: float


def edge_f1(predicted: Tensor, true: Tensor, *, tolerance: float = 1.0) -> EdgeF1:
    """Return precision, recall and F1 of one edge image against another.

    A pixel is near another at a Euclidean distance of at most `tolerance`. If neither image has edges, all three
    numbers are 1. If only one of both has edges, all are 0.

    Args:
        predicted, true: Edge images (H, W), or (C, H, W) with equal channels; every nonzero pixel is an edge.
        tolerance: Largest distance of a hit in pixels; 0 counts exact hits only.

    Raises:
        ShapeError: The images differ in size, or are empty.
        RecipeError: The tolerance is below 0.
    Source: Martin, Fowlkes & Malik 2004, Learning to Detect Natural Image Boundaries, section 3; pixels are near or
        not, and are not matched one to one.
    """
    return _shares([_counts(predicted, true, tolerance)])


def pooled_edge_f1(pairs: Iterable[tuple[Tensor, Tensor]], *, tolerance: float = 1.0) -> EdgeF1:
    """Return precision, recall and F1 over many pairs (predicted, true), with one weight for all edge pixels.

    Raises:
        ShapeError: The list of pairs is empty, or as for `edge_f1`.
        RecipeError: As for `edge_f1`.
    """
    counts = [_counts(predicted, true, tolerance) for predicted, true in pairs]
    if not counts:
        raise ShapeError("no pair of edge images: at least one is needed")
    return _shares(counts)


def _counts(predicted: Tensor, true: Tensor, tolerance: float) -> tuple[int, int, int, int]:
    """Return the number of predicted edge pixels and of hits among them, and the same for true edge pixels."""
    if not 0 <= tolerance < float("inf"):
        raise RecipeError(f"tolerance {tolerance:g}: pixels, at least 0; 1 or 2 is usual")
    first, second = _edges(predicted), _edges(true)
    if first.shape != second.shape:
        raise ShapeError(f"edges of {first.shape} and {second.shape} pixels: must be images of one size")
    hits = int((first & _near(second, tolerance)).sum())
    covered = int((second & _near(first, tolerance)).sum())
    return int(first.sum()), hits, int(second.sum()), covered


def _shares(counts: list[tuple[int, int, int, int]]) -> EdgeF1:
    predicted, hits, true, covered = (sum(column) for column in zip(*counts, strict=True))
    if not predicted and not true:
        return EdgeF1(1.0, 1.0, 1.0)
    precision, recall = (hits / predicted if predicted else 0.0), (covered / true if true else 0.0)
    return EdgeF1(precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0)


def _edges(image: Tensor) -> NDArray[np.bool_]:
    if image.ndim not in (2, 3) or not image.numel():
        raise ShapeError(f"edges {tuple(image.shape)}: must be (H, W) or (C, H, W)")
    drawn = (image != 0).cpu()
    return (drawn if drawn.ndim == 2 else drawn.any(0)).numpy()


def _near(edges: NDArray[np.bool_], tolerance: float) -> NDArray[np.bool_]:
    """Return the mask of the pixels within the tolerance of an edge."""
    from scipy import ndimage

    if not edges.any():
        return edges
    distance: Any = ndimage.distance_transform_edt(~edges)
    return np.asarray(distance <= tolerance)
