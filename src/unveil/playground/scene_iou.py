"""IoU of predicted boxes and masks, and of detected objects, with the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from unveil.errors import ShapeError
from unveil.playground.shapes import KINDS, PALETTE, SQUARE, Shapes, coverage

DARK = 110  # grounds of scenes are darker than this in every channel, objects brighter in one
MIN_PIXELS = 10  # pixels of an object; the smallest of 32 x 32 scenes have twice as many


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersection over union of every pair of boxes, (N, M) in [0, 1].

    Args:
        first: Boxes (N, 4) of centre x, centre y, width, height.
        second: Boxes (M, 4) in the same form.
    """
    (low1, high1), (low2, high2) = _corners(first)[:, :, None], _corners(second)[:, None]
    shared = (torch.minimum(high1, high2) - torch.maximum(low1, low2)).clamp(min=0).prod(-1)
    areas = first[:, 2:].clamp(min=0).prod(-1)[:, None] + second[:, 2:].clamp(min=0).prod(-1)
    return shared / (areas - shared).clamp(min=1e-12)


def matched_iou(predicted: Tensor, true: Tensor) -> float:
    """Return the mean IoU of the best one-to-one matching; an unmatched box, missing or extra, counts as 0.

    Two empty sets have an IoU of 1.

    Source: the Hungarian matching of Carion et al. 2020, eq. 1 (arXiv:2005.12872), on IoU only.
    """
    most = max(len(predicted), len(true))
    if not most:
        return 1.0
    iou = box_iou(predicted.double(), true.double()).numpy()
    rows, columns = linear_sum_assignment(iou, maximize=True)
    return float(iou[rows, columns].sum()) / most


def matched_ious(predicted: Sequence[Tensor], true: Sequence[Tensor]) -> Tensor:
    """Return `matched_iou` of the boxes of each image, (B,) float64."""
    if len(predicted) != len(true):
        raise ShapeError(f"{len(predicted)} sets of boxes made, {len(true)} true ones: one for each image")
    return torch.tensor([matched_iou(m, t) for m, t in zip(predicted, true, strict=True)], dtype=torch.float64)


class DetectedObjects(NamedTuple):
    """The N objects of an image: boxes (N, 4), and int64 indices (N,) into KINDS and COLOURS."""

    boxes: Tensor
    kinds: Tensor
    colours: Tensor


def detect_boxes(pixels: Tensor) -> Tensor:
    """Return the boxes (N, 4) of the objects of a scene; see `detect_scene`."""
    return detect_scene(pixels).boxes


def detect_scene(pixels: Tensor) -> DetectedObjects:
    """Detect the objects of a scene: connected pixels that a palette colour covers by at least half.

    Each pixel is explained as a mixture of the background and one colour. The kind of an object is that of the shape
    whose coverage of the object's box is closest.

    Args:
        pixels: uint8 (3, H, W).

    Raises:
        ShapeError: The pixels have another type or number of channels.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ShapeError(f"a scene {pixels.dtype} {tuple(pixels.shape)}: must be uint8 (3, H, W)")
    seen = pixels.permute(1, 2, 0).numpy()
    ground = ground_of(seen)
    best, share = colour_mixtures(seen, ground)
    covered = share > 0.5
    sides = np.array([seen.shape[1], seen.shape[0]] * 2)
    boxes: list[Tensor] = []
    kinds: list[int] = []
    colours: list[int] = []
    for colour in range(len(PALETTE)):
        share_of_colour = colour_mixtures(seen, ground, np.arange(len(PALETTE)) == colour)[
            1
        ]  # at its edge another may explain more
        parts, _ = ndimage.label(covered & (best == colour), np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
        for number, place in enumerate(ndimage.find_objects(parts), 1):
            if (parts == number).sum() >= MIN_PIXELS:
                (top, bottom), (left, right) = ((extent.start, extent.stop) for extent in place)
                box = np.array([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]) / sides
                near = ndimage.binary_dilation(parts == number, np.ones((3, 3)))
                boxes.append(torch.from_numpy(box).float())
                kinds.append(_kind(share_of_colour * near, box))
                colours.append(colour)
    return DetectedObjects(
        torch.stack(boxes) if boxes else torch.zeros(0, 4),
        torch.tensor(kinds, dtype=torch.long),
        torch.tensor(colours, dtype=torch.long),
    )


def _kind(share: NDArray[np.floating[Any]], box: NDArray[np.float64]) -> int:
    """Return the shape of about this box whose coverage is closest to that of the pixels (H, W)."""
    height, width = share.shape
    half = float(box[2:].max()) / 2 + np.array([-0.5, -0.25, 0, 0.25]) / min(height, width)  # its edge is soft
    kinds = np.repeat(np.arange(len(KINDS)), len(half))
    radius = (half[None] / np.array([SQUARE if kind == "square" else 1.0 for kind in KINDS])[:, None]).ravel()
    x, y, radius, angle = (
        np.broadcast_to(value, kinds.shape).astype(np.float32) for value in (box[0], box[1], radius, 0.0)
    )
    drawn = coverage(Shapes(kinds, x, y, radius, angle), height, width)
    return int(kinds[((drawn - share) ** 2).sum((1, 2)).argmin()])


def ground_of(seen: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the median dark colour of an image (..., 3) as its background: (3,); black if nothing is dark."""
    dark = seen[seen.max(-1) < DARK]
    return np.median(dark, axis=0).astype(np.float32) if len(dark) else np.zeros(3, dtype=np.float32)


def colour_mixtures(
    seen: NDArray[np.uint8], ground: NDArray[np.float32], among: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Explain every pixel (..., 3) as a mixture of the background and the best-fitting palette colour.

    Args:
        seen: Pixels.
        ground: Background colour (3,).
        among: (colours,) mask of the palette colours that may occur; None for all.

    Returns:
        The index of the colour in the palette, and its share in [0, 1], (...) each.
    """
    allowed = np.arange(len(PALETTE)) if among is None else np.flatnonzero(among)
    towards = PALETTE[allowed] - ground  # (colours, 3)
    apart = seen.astype(np.float32) - ground
    share = (apart @ (towards / (towards**2).sum(1, keepdims=True)).T).clip(0, 1)  # (..., colours)
    # what is left of a pixel's distance from the ground, except for that distance itself, which is the same for all
    away = share**2 * (towards**2).sum(1) - 2 * share * (apart @ towards.T)
    best = away.argmin(-1)
    return allowed[best], np.take_along_axis(share, best[..., None], -1)[..., 0]


def class_iou(predicted: Tensor, true: Tensor, classes: int) -> Tensor:
    """Return the intersection over union of each class over all pixels of all images, (classes,) float64.

    Its mean is the mIoU. A class that occurs in neither argument is NaN.

    Args:
        predicted: Predicted class maps, integers (..., H, W).
        true: True class maps of the same shape.
        classes: Number of classes; values are 0 to classes - 1.

    Source: Long et al. 2015, section 5 (arXiv:1411.4038).
    """
    if predicted.shape != true.shape:
        raise ShapeError(f"class maps {tuple(predicted.shape)} made, {tuple(true.shape)} true: the shapes must agree")
    pairs = true.flatten().numpy().astype(np.int64) * classes + predicted.flatten().numpy().astype(np.int64)
    counts = torch.from_numpy(np.bincount(pairs, minlength=classes**2)).reshape(classes, classes).double()
    both = counts.diagonal()
    return both / (counts.sum(0) + counts.sum(1) - both)


def _corners(boxes: Tensor) -> Tensor:
    """Return the lower and upper corners of boxes, (2, N, 2)."""
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ShapeError(f"boxes {tuple(boxes.shape)}: must be (N, 4): centre x, centre y, width, height")
    half = boxes[:, 2:].clamp(min=0) / 2
    return torch.stack([boxes[:, :2] - half, boxes[:, :2] + half])
