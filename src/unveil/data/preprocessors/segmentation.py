"""Regions of an image in colours of their own: segments, masks, boxes; and given images brought to size.

Hints are uint8 (3, H, W), and the same every time.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from unveil.data.preprocessors.edges import check_image
from unveil.errors import RecipeError, ShapeError, did_you_mean

Style = Literal["filled", "outlined"]
COLOURS = 1 << 24  # numbers that have a colour of their own
TOLERANCE = 0.05  # how much longer or shorter one side may be, in proportion, before an image is another one


def palette(labels: Tensor) -> Tensor:
    """The colour of each number, uint8 (3, ...) of integers (...); all differ, and 0 is black.

    The bits of a number are dealt to red, green and blue in turn, lowest first, and each colour begins with its
    highest bit, so that neighbouring numbers look different.

    Raises:
        ShapeError: No whole numbers, or below 0 or above 2**24 - 1.
    Source: the colour map of the PASCAL VOC development kit (Everingham et al. 2010).
    """
    if labels.is_floating_point() or labels.is_complex():
        raise ShapeError(f"labels {labels.dtype}: must be whole numbers, one for each pixel")
    whole = labels.to(torch.int64)
    if whole.numel() and not 0 <= int(whole.min()) <= int(whole.max()) < COLOURS:
        raise ShapeError(f"labels {int(whole.min())} to {int(whole.max())}: allowed are 0 to {COLOURS - 1}")
    colour = torch.zeros(3, *whole.shape, dtype=torch.int64)
    for bit in range(24):
        colour[bit % 3] |= (whole >> bit & 1) << (7 - bit // 3)
    return colour.to(torch.uint8)


def colours(mask: Tensor) -> Tensor:
    """A map of classes (H, W) or (1, H, W) in the colours of `palette`: uint8 (3, H, W).

    Raises:
        ShapeError: Another shape, or see `palette`.
    """
    plane = mask[0] if mask.ndim == 3 and mask.shape[0] == 1 else mask
    if plane.ndim != 2 or not plane.numel():
        raise ShapeError(f"mask {tuple(mask.shape)}: must be (H, W), a class for each pixel")
    return palette(plane)


def felzenszwalb_segments(pixels: Tensor, *, scale: float = 100.0, sigma: float = 0.8, least: int = 50) -> Tensor:
    """The regions of an image, int64 (H, W), numbered from 1 by their first pixel, row by row.

    Args:
        scale: Larger makes larger regions.
        sigma: Standard deviation of the Gaussian smoothing, in pixels.
        least: Minimum size of a region in pixels.

    Raises:
        RecipeError: A setting out of range.
        ShapeError: No image.
    Source: Felzenszwalb & Huttenlocher 2004, Efficient Graph-Based Image Segmentation.
    """
    from skimage.segmentation import felzenszwalb

    check_regions(scale, sigma, least)
    check_image(pixels)
    image = pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()
    regions: Any = felzenszwalb(image, scale=scale, sigma=sigma, min_size=least)
    _, first, inverse = np.unique(regions, return_index=True, return_inverse=True)
    order = np.empty(len(first), np.int64)
    order[first.argsort()] = np.arange(1, len(first) + 1)
    return torch.from_numpy(order[inverse].reshape(regions.shape))


def segments(pixels: Tensor, *, scale: float = 100.0, sigma: float = 0.8, least: int = 50) -> Tensor:
    """The regions of `felzenszwalb_segments` in the colours of `palette`, for when no mask is given; its arguments."""
    return palette(felzenszwalb_segments(pixels, scale=scale, sigma=sigma, least=least))


def layout(
    boxes: Tensor, labels: Tensor | None, height: int, width: int, *, style: Style = "filled", thickness: int = 2
) -> Tensor:
    """Boxes on black, in the colours of their classes: uint8 (3, height, width).

    Larger boxes lie behind smaller ones. What reaches beyond the image is cut off; no box is thinner than a pixel.

    Args:
        boxes: (N, 4) of centre x, centre y, width, height in [0, 1].
        labels: (N,), from 0; class k has colour k + 1 of `palette`, 0 being the ground's. None: all are class 0.
        style: Filled, or outlined towards the inside.
        thickness: Thickness of outlines, in pixels.

    Raises:
        ShapeError: Other shapes, or numbers that are not finite or lie outside [0, 1].
        RecipeError: An unknown style, or a thickness or a size below 1.
    """
    check_style(style, thickness)
    if height < 1 or width < 1:
        raise RecipeError(f"layout of {width} x {height} pixels: each side must be at least 1")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ShapeError(f"boxes {tuple(boxes.shape)}: must be (N, 4): centre x, centre y, width, height in [0, 1]")
    if not bool(((boxes >= 0) & (boxes <= 1)).all()):
        raise ShapeError("boxes: centre x, centre y, width and height must all lie in [0, 1]")
    classes = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.as_tensor(labels)
    if classes.shape != boxes.shape[:1]:
        raise ShapeError(f"labels {tuple(classes.shape)} for {len(boxes)} boxes: must be one for each")
    paint = palette(classes + 1)  # (3, N)
    page = torch.zeros(3, height, width, dtype=torch.uint8)
    centre, half = boxes[:, :2].double(), boxes[:, 2:].double() / 2
    sides = torch.tensor([width, height])
    low = ((centre - half) * sides).round().long().clamp(min=0).minimum(sides - 1)
    high = ((centre + half) * sides).round().long().minimum(sides).maximum(low + 1)
    areas = (high - low).prod(1)
    for row in areas.argsort(descending=True, stable=True).tolist():
        (left, top), (right, bottom) = low[row].tolist(), high[row].tolist()
        inside = page[:, top:bottom, left:right]
        colour = paint[:, row, None, None].expand_as(inside)
        if style == "filled":
            inside.copy_(colour)
            continue
        edge = torch.ones(inside.shape[1:], dtype=torch.bool)
        edge[thickness:-thickness, thickness:-thickness] = False
        inside[:, edge] = colour[:, edge]
    return page


def resize_control_image(pixels: Tensor, height: int, width: int, *, tolerance: float = TOLERANCE) -> Tensor:
    """Any image, such as depth, a pose or normals, as it is except for its size: uint8 (3, height, width).

    It is scaled evenly until it covers the wanted size, and what reaches beyond that is cut off on both sides alike.

    Args:
        pixels: Image uint8 (1 or 3, H, W).
        tolerance: Maximum relative difference of the aspect ratios.

    Raises:
        ShapeError: No image, or aspect ratios further apart; both are named.
    """
    from PIL import Image

    check_image(pixels)
    given_height, given_width = pixels.shape[1:]
    if height < 1 or width < 1:
        raise ShapeError(f"wanted size {width} x {height}: each side must be at least 1 pixel")
    theirs, ours = given_width / given_height, width / height
    if max(theirs / ours, ours / theirs) > 1 + tolerance:
        raise ShapeError(
            f"a hint of {given_width} x {given_height} has the aspect ratio {theirs:.3g}, the wanted {width} x "
            f"{height} has {ours:.3g}; crop or pad the hint to {ours:.3g} first, it is not stretched"
        )
    whole = pixels.expand(3, -1, -1).contiguous()
    if (given_height, given_width) == (height, width):
        return whole
    scale = max(width / given_width, height / given_height)
    kept_width, kept_height = width / scale, height / scale
    left, top = (given_width - kept_width) / 2, (given_height - kept_height) / 2
    box = (left, top, left + kept_width, top + kept_height)
    image = Image.fromarray(whole.permute(1, 2, 0).numpy())
    array = np.array(image.resize((width, height), Image.Resampling.BICUBIC, box=box), dtype=np.uint8)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def check_regions(scale: float, sigma: float, least: int) -> None:
    """Raises RecipeError for settings that `felzenszwalb_segments` cannot use."""
    if not 0 < scale < float("inf") or not 0 <= sigma <= 100 or least < 1:
        raise RecipeError(f"scale {scale:g}, sigma {sigma:g}, least {least}: must be above 0, in [0, 100], at least 1")


def check_style(style: str, thickness: int) -> None:
    """Raises RecipeError for an unknown style, or an outline below one pixel."""
    if style not in get_args(Style):
        raise RecipeError(
            f"style {style!r}: must be {' or '.join(get_args(Style))}{did_you_mean(style, get_args(Style))}"
        )
    if thickness < 1:
        raise RecipeError(f"thickness {thickness}: must be at least 1 pixel")
