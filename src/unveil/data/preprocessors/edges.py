"""Edges, straight lines and scribbles of an image: control images, white on black.

Images are uint8 (1 or 3, H, W); what is drawn of them is uint8 (3, H, W) of the same size, and the same every time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unveil.errors import RecipeError, ShapeError

# ITU-R BT.601, the weights that decoding to one channel uses
_GREY = (0.299, 0.587, 0.114)


def canny(pixels: Tensor, *, low: float = 100.0, high: float = 200.0, sigma: float = 1.0) -> Tensor:
    """Edges one pixel thick, uint8 (3, H, W), 255 on an edge.

    A colour image is read as its grey one: an edge between colours that are equally bright is none.

    Args:
        low, high: Thresholds of the gradient by Sobel's filters, in [0, 255], low at most high. Pixels above `high`
            are edges, and pixels above `low` are edges if they touch one. A sharp step of 80 grey values has a
            gradient of about 200 after smoothing with sigma 1.
        sigma: Standard deviation of the Gaussian smoothing, in pixels; 0 disables it.

    Raises:
        RecipeError: Thresholds or sigma out of range.
        ShapeError: No image.
    Source: Canny 1986, A Computational Approach to Edge Detection.
    """
    return _white(_canny(pixels, low, high, sigma))


def lines(
    pixels: Tensor,
    *,
    low: float = 50.0,
    high: float = 100.0,
    votes: int = 10,
    length: int = 10,
    gap: int = 2,
    seed: int = 0,
) -> Tensor:
    """Draw the straight lines of `hough_lines`, one pixel thick: uint8 (3, H, W); its arguments."""
    from skimage.draw import line

    segments = hough_lines(pixels, low=low, high=high, votes=votes, length=length, gap=gap, seed=seed)
    drawn = np.zeros(pixels.shape[1:], bool)
    for x0, y0, x1, y1 in segments.tolist():
        drawn[line(y0, x0, y1, x1)] = True
    return _white(drawn)


def hough_lines(
    pixels: Tensor,
    *,
    low: float = 50.0,
    high: float = 100.0,
    votes: int = 10,
    length: int = 10,
    gap: int = 2,
    seed: int = 0,
) -> Tensor:
    """The ends of the straight lines among the edges: int64 (N, 4) of x0, y0, x1, y1 in pixels.

    Args:
        low, high: Thresholds of `canny`.
        votes: Pixels that must lie on a line before it is followed.
        length: Minimum length of a line, in pixels.
        gap: Maximum gap within a line, in pixels.
        seed: Seed of the order in which pixels vote.

    Raises:
        RecipeError: A setting out of range.
        ShapeError: No image.
    Source: Matas, Galambos & Kittler 2000, Robust Detection of Lines Using the Progressive Probabilistic Hough
        Transform.
    """
    from skimage.transform import probabilistic_hough_line

    check_lines(votes, length, gap, seed)
    edges = _canny(pixels, low, high, 1.0)
    if not edges.any():
        return torch.zeros(0, 4, dtype=torch.int64)
    segments: Any = probabilistic_hough_line(edges, threshold=votes, line_length=length, line_gap=gap, rng=seed)
    return torch.tensor(sorted((*start, *end) for start, end in segments), dtype=torch.int64).reshape(-1, 4)


def scribble(pixels: Tensor, *, low: float = 25.0, high: float = 60.0, sigma: float = 3.0, width: int = 4) -> Tensor:
    """The outlines of what is large, as if drawn with a thick pen: uint8 (3, H, W).

    Edges of the strongly smoothed image, those left out that are shorter than a thirtieth of its longer side.

    Args:
        low, high, sigma: As for `canny`; more smoothing leaves less detail.
        width: Stroke width in pixels.

    Raises:
        RecipeError: A setting out of range.
        ShapeError: No image.
    Source: Zhang, Rao & Agrawala 2023, ControlNet, appendix (arXiv:2302.05543), which draws scribbles by such steps.
    """
    from scipy import ndimage

    check_stroke_width(width)
    edges = _canny(pixels, low, high, sigma)
    labels: NDArray[np.int32] = ndimage.label(edges, np.ones((3, 3), bool))[0]  # pyright: ignore
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    long_edges = (sizes >= max(2, max(edges.shape) / 30))[labels]
    return _white(
        np.asarray(ndimage.binary_dilation(long_edges, _pen(width)), bool) if long_edges.any() else long_edges
    )


def to_luma(pixels: Tensor) -> NDArray[np.float64]:
    """Brightness in [0, 255], (H, W), of uint8 (1 or 3, H, W).

    Raises:
        ShapeError: No such image.
    """
    check_image(pixels)
    planes = pixels.to(torch.float64).numpy()
    return planes[0] if len(planes) == 1 else np.tensordot(_GREY, planes, 1)


def check_image(pixels: Tensor) -> None:
    """Raises ShapeError for anything but uint8 (1 or 3, H, W)."""
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or 0 in pixels.shape:
        raise ShapeError(f"image {pixels.dtype} {tuple(pixels.shape)}: must be uint8 (1 or 3, H, W)")


def check_thresholds(low: float, high: float, sigma: float = 0.0) -> None:
    """Raises RecipeError unless 0 <= low <= high <= 255 and sigma is finite and not negative."""
    if not 0 <= low <= 255 or not 0 <= high <= 255:
        raise RecipeError(f"thresholds low {low:g}, high {high:g}: each must lie in [0, 255]; 100 and 200 are usual")
    if low > high:
        raise RecipeError(f"thresholds low {low:g}, high {high:g}: low must be at most high; exchange them")
    if not 0 <= sigma <= 100:
        raise RecipeError(f"sigma {sigma:g}: must lie in [0, 100] pixels; 1 is usual")


def check_lines(votes: int, length: int, gap: int, seed: int) -> None:
    """Raises RecipeError for settings that `hough_lines` cannot use."""
    for name, value, least in (("votes", votes, 1), ("length", length, 1), ("gap", gap, 0), ("seed", seed, 0)):
        if value < least:
            raise RecipeError(f"{name} {value}: must be at least {least}")


def check_stroke_width(width: int) -> None:
    """Raises RecipeError for a pen below one pixel."""
    if width < 1:
        raise RecipeError(f"width {width}: must be at least 1 pixel")


def _canny(pixels: Tensor, low: float, high: float, sigma: float) -> NDArray[np.bool_]:
    from skimage import feature

    check_thresholds(low, high, sigma)
    bright = to_luma(pixels)
    # a threshold of 0 would call the rounding of the smoothing an edge
    mask = feature.canny(bright, sigma, max(low, 1e-3), max(high, 1e-3), mode="nearest")
    return np.asarray(mask, bool)


def _pen(width: int) -> NDArray[np.bool_]:
    """A disc of that many pixels across."""
    at = np.arange(width) - (width - 1) / 2
    return at[:, None] ** 2 + at**2 <= (width / 2) ** 2


def _white(drawn: NDArray[np.bool_]) -> Tensor:
    return torch.from_numpy(drawn.astype(np.uint8) * np.uint8(255)).expand(3, -1, -1).contiguous()
