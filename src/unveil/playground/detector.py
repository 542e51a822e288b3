"""Rule-based detector of playground objects: colour, shape, size and motion. It has no learned parameters.

Each pixel is assigned to the palette colour that explains it best as a mixture with the background. All pixels of one
colour form an object. The object's shape is the best-fitting template; its motion follows from its positions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from unveil.errors import ShapeError
from unveil.playground.motion_detector import DetectedMotion, camera_of, motion_of, pan_of
from unveil.playground.scene_iou import DARK, colour_mixtures, ground_of
from unveil.playground.shape_classifier import TRACE, likeness, rotation_of
from unveil.playground.shapes import AREAS, COLOURS, KINDS, PALETTE, Array
from unveil.playground.world.motion import TURNS, VideoShape, between_sizes
from unveil.playground.world.rendering import LOST

MIN_PIXELS = 8  # pixels of an object in a frame; the smallest ring has three times as many
_FAINT = 0.12  # of the largest colour's pixels: what is less comes from its edges
_WITHIN = np.array([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])  # connected within a frame
_UNCUT = 0.95  # of an object's largest area
_LOOKS = 6  # frames that are classified by shape
_CHANGE = 0.12  # of an object's area: a change of what stays in place, above which it may be turning
_TURNED = 25  # degrees in the whole video: what spins turns by more


class DetectedObject(NamedTuple):
    """Detected object of a video.

    Attributes:
        colour, shape, size: Names.
        motion: Name of the motion; None in a single frame.
        visible: (T,) whether each frame shows the object.
        centres: (T, 2), x and y in pixels; NaN if it is not visible.
        radius: (T,) in pixels; NaN if it is not visible.
    """

    colour: str
    shape: str
    size: str
    motion: DetectedMotion | None
    visible: NDArray[np.bool_]
    centres: Array
    radius: Array

    @property
    def motion_name(self) -> str | None:
        """Return the name of the motion."""
        return None if self.motion is None else self.motion.name


def detect_objects(pixels: Tensor, *, fps: int = 8, max_objects: int = 3) -> list[DetectedObject]:
    """Detect at most `max_objects` objects of a video, in descending order of their pixels.

    Args:
        pixels: uint8 (3, T, H, W), or (3, H, W).
        fps: Frames per second, for speeds.
        max_objects: Maximum number of objects; 1 takes the most frequent colour as the only object.

    Raises:
        ShapeError: The pixels have another type or shape.
    """
    frames = to_frames(pixels)
    counts, best, solid = colours_of(frames)
    pan = pan_of(frames)
    if camera_of(pan, min(frames.shape[1:3])) == "static":
        pan = np.zeros_like(pan)  # indistinguishable from noise
    objects: list[DetectedObject] = []
    for colour in counts.argsort()[::-1][:max_objects]:
        if counts[colour]:
            thing = _thing(frames, int(colour), solid & (best == colour), fps, pan)
            objects += [] if thing is None else [thing]
    return objects


def colours_of(frames: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Detect the palette colours of a video (T, H, W, 3).

    Compressed video stores colour at half the resolution, so thin lines have a wrong colour; the mean colour of
    connected pixels is right.

    Returns:
        The number of pixels of each colour, and for each pixel (T, H, W) its colour and whether the object covers more
        than half of it.
    """
    ground = ground_of(frames)
    solid = colour_mixtures(frames, ground)[1] > 0.5
    parts, count = ndimage.label(solid, _WITHIN)  # pyright: ignore[reportGeneralTypeIssues]
    around = ndimage.maximum_filter(parts, size=(1, 3, 3))
    every = np.arange(1, count + 1)
    apart = frames.astype(np.float32) - ground
    sums = [ndimage.sum_labels(apart[..., channel], around, every) for channel in range(3)]
    sizes = ndimage.sum_labels(solid, parts, every)
    totals = np.bincount(
        nearest_palette_colour(np.stack(sums, axis=-1).astype(np.float32), ground),
        weights=sizes,
        minlength=len(PALETTE),
    )
    there = totals >= max(MIN_PIXELS, _FAINT * totals.max())
    if not there.any():
        return np.zeros(len(PALETTE), dtype=np.int64), np.zeros(solid.shape, dtype=np.int64), solid & False
    best = colour_mixtures(frames, ground, there)[0]
    return np.bincount(best[solid], minlength=len(PALETTE)), best, solid


def nearest_palette_colour(apart: Array, ground: Array) -> NDArray[np.int64]:
    """Return the index of the palette colour nearest in direction to a difference from the ground (..., 3): (...)."""
    towards = PALETTE - ground
    return (apart @ (towards / np.linalg.norm(towards, axis=1, keepdims=True)).T).argmax(-1)


def to_frames(pixels: Tensor) -> NDArray[np.uint8]:
    """Convert a video (3, T, H, W) or an image (3, H, W) to frames (T, H, W, 3).

    Raises:
        ShapeError: The pixels are not uint8, or have another shape.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim not in (3, 4) or pixels.shape[0] != 3:
        raise ShapeError(f"a video {pixels.dtype} {tuple(pixels.shape)}: must be uint8 (3, T, H, W) or (3, H, W)")
    clip = pixels if pixels.ndim == 4 else pixels[:, None]
    return clip.permute(1, 2, 3, 0).cpu().numpy()


def colour_coverage(frames: NDArray[np.uint8], colour: int, mask: NDArray[np.bool_]) -> Array:
    """Return the fraction of each pixel that a colour covers, (T, H, W) in [0, 1]; 0 outside the mask."""
    near = np.asarray(ndimage.binary_dilation(mask, np.ones((1, 3, 3))), dtype=np.bool_)
    around = frames[~near & (frames.max(-1) < DARK)]
    ground = np.median(around, axis=0) if len(around) else np.zeros(3)
    towards = (PALETTE[colour] - ground).astype(np.float32)
    share = ((frames.astype(np.float32) - ground.astype(np.float32)) @ (towards / (towards**2).sum())).clip(0, 1)
    patterned = len(around) > 0 and np.abs(around - ground).max(-1).mean() > 8
    return share * (near & (frames.max(-1) >= DARK) if patterned else near)


def _thing(
    frames: NDArray[np.uint8], colour: int, mask: NDArray[np.bool_], fps: int, pan: Array
) -> DetectedObject | None:
    """Return the object of one colour, or None if it is never completely visible."""
    count, height, width = mask.shape
    share = colour_coverage(frames, colour, mask)
    area = share.sum((1, 2))
    # a wash over a ground of another colour has pixels of this one, but none of them is of it
    there = (mask.sum((1, 2)) >= MIN_PIXELS) & (share.max((1, 2)) > TRACE)
    if not there.any():
        return None
    visible = there & (area >= LOST * np.median(area[there]))
    x = (share.sum(1) * (np.arange(width) + 0.5)).sum(1) / np.maximum(area, 1e-6)
    y = (share.sum(2) * (np.arange(height) + 0.5)).sum(1) / np.maximum(area, 1e-6)
    whole = visible & (area >= 0.85 * np.median(area[visible]))
    looked = np.flatnonzero(whole)[np.unique(np.linspace(0, whole.sum() - 1, _LOOKS).round().astype(int))]
    kind = int(np.sum([likeness(share[t])[:, 0] for t in looked], axis=0).argmax())
    radius = np.sqrt(area / AREAS[kind])
    # what the image's edge cuts seems to be elsewhere
    uncut = visible & (area >= _UNCUT * area.max())
    at = np.flatnonzero(uncut if pan.any() and uncut.sum() > 1 else visible)
    motion = motion_of(at, x[at] + pan[at], y[at], radius[at], VideoShape(height, width, count, fps))
    if motion is not None and motion.name == "still" and _changes(share[whole]) > _CHANGE:
        turned = rotation_of(share[whole])
        if turned is not None and abs(turned.degrees) > _TURNED:
            kind, radius = turned.kind, np.sqrt(area / AREAS[turned.kind])
            motion = motion._replace(name="spin", turn=TURNS[int(turned.degrees < 0)])
    middle = float(np.exp(np.log(radius[whole]).mean()))
    size = "large" if middle > between_sizes(min(height, width)) else "small"
    centres = np.where(visible[:, None], np.stack([x, y], axis=1), np.nan).astype(np.float32)
    sizes = np.where(visible, radius, np.nan).astype(np.float32)
    return DetectedObject(list(COLOURS)[colour], KINDS[kind], size, motion, visible, centres, sizes)


def _changes(shares: Array) -> float:
    """Return the mean fraction of an object's area that differs from the middle frame."""
    middle = shares[len(shares) // 2]
    return float(np.abs(shares - middle).sum((1, 2)).mean() / middle.sum())
