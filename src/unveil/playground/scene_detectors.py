"""Detectors of the playground's other scenes: trails, reflections, camera yaw, walks in a corridor, fractures."""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from unveil.playground.detector import (
    MIN_PIXELS,
    DetectedObject,
    colours_of,
    detect_objects,
    nearest_palette_colour,
    to_frames,
)
from unveil.playground.scene_iou import colour_mixtures, ground_of
from unveil.playground.shapes import COLOURS, PALETTE, Array
from unveil.playground.world.camera_scenes import PERIOD, PILLARS, corridor_geometry, render_pillars
from unveil.playground.world.motion import VideoShape, turning_points
from unveil.playground.world.rendering import BAR
from unveil.playground.world.special_scenes import CLEAR, FLOOR

_WHITE = list(COLOURS).index("white")
_PIECE = 4  # pixels of a piece of what broke
_BROKEN = 3  # pieces, at least
_EDGE = 0.3  # of the image's width: as near to a side a thing is when it is seen last, and first again
_GREY = 16  # levels by which what is grey as a bar differs from it at most
_SEEN = 2  # pixels of a row in which a pillar has a place
_DEPTHS = (1.0, 1.0 + PERIOD)  # range of the corridor's walls that is measured: near, and one period


class Trail(NamedTuple):
    """Trail of a brush.

    Attributes:
        colour: Colour of the paint.
        remaining: Fraction of all pixels ever painted that are still painted in the last frame.
        new: Fraction of these pixels that are not yet painted in the first frame.
    """

    colour: str
    remaining: float
    new: float


class Rebounds(NamedTuple):
    """Reflections of a ball.

    Attributes:
        bounces: Number of reflections.
        error: Maximum difference between the angles of its straight segments, in degrees.
        ways: Number of straight segments that are long enough for an angle.
    """

    bounces: int
    error: float
    ways: int


class Yaw(NamedTuple):
    """Yaw of a camera within a ring of pillars.

    Attributes:
        degrees: (T,) yaw of the camera, unwrapped.
        residual: Position error of the pillars in pixels. A missing or invisible pillar counts
            as a quarter of the image width.
    """

    degrees: Array
    residual: float


def trail(pixels: Tensor) -> Trail | None:
    """Detect the trail of a brush; None if nothing is painted. The brush hides the pixels below it."""
    frames = to_frames(pixels)
    ground = ground_of(frames)
    best, share = colour_mixtures(frames, ground)
    painted = frames[(share > 0.5) & (best != _WHITE)]
    if len(painted) < MIN_PIXELS:
        return None
    colour = int(nearest_palette_colour((painted.astype(np.float32) - ground).sum(0), ground))
    best, share = colour_mixtures(frames, ground, np.isin(np.arange(len(PALETTE)), (colour, _WHITE)))
    solid = share > 0.5
    paint = solid & (best == colour)
    tip = ndimage.binary_dilation(solid & (best == _WHITE), np.ones((1, 3, 3), dtype=bool))[-1]
    # painted in two frames that follow each other; single ones may flicker
    ever = ndimage.minimum_filter1d(paint.astype(np.uint8), 2, axis=0).any(0) & ~tip
    last, first = (float((paint[k] & ever).sum() / max(ever.sum(), 1)) for k in (-1, 0))
    return Trail(list(COLOURS)[colour], last, 1 - first)


def rebounds(pixels: Tensor, *, fps: int = 8) -> Rebounds | None:
    """Measure the flight of the ball in ball and paddle; None if most frames do not show it.

    The angle of reflection equals the angle of incidence, so that all segments of its path have the same slope.
    """
    balls = [thing for thing in detect_objects(pixels, fps=fps, max_objects=2) if thing.colour != list(COLOURS)[_WHITE]]
    if not balls or balls[0].visible.mean() < 0.5:
        return None
    centres = balls[0].centres[balls[0].visible]
    turns = [turning_points(centres[:, axis], CLEAR) for axis in (0, 1)]
    frames = sorted(frame for axis in turns for frame, _ in axis)
    steps = np.abs(np.diff(centres, axis=0))
    # the steps before and after a turn may hold some of both ways
    parts = zip([0, *(frame + 1 for frame in frames)], [*(frame - 1 for frame in frames), len(steps)], strict=True)
    angles = [np.degrees(np.arctan2(*steps[a:b].mean(0)[::-1])) for a, b in parts if b - a >= 2]
    return Rebounds(len(frames), float(max(angles) - min(angles)) if angles else 0.0, len(angles))


def yaw(pixels: Tensor) -> Yaw:
    """Measure the camera's yaw in a ring of pillars, to a degree, from the pixel row through the pillars' middle."""
    frames = to_frames(pixels)
    _, height, width, _ = frames.shape
    rows = frames[:, height // 2 - 1 : height // 2 + 1].astype(np.float32).mean(1)  # (T, W, 3)
    references, (middles, shown) = _rows(height, width)
    apart = np.stack([np.abs(references - row).mean((1, 2)) for row in rows])  # (T, 360)
    best = apart.argmin(1)
    centres, seen = _centres(rows)
    away = np.abs(centres - middles[best])
    away[((seen >= _SEEN) & (shown[best] < 1)) | ((shown[best] >= _SEEN) & (seen < 1))] = width / 4
    degrees = np.unwrap(best.astype(np.float64), period=360)
    return Yaw(degrees.astype(np.float32), float(np.nanmean(away)) if np.isfinite(centres).any() else float("inf"))


def corridor_progress(pixels: Tensor) -> Array:
    """Return the distance walked in a corridor since the first frame, (T,); backward is negative.

    The unit is half the corridor's width. Steps of less than half the distance between doors are distinguished from
    backward steps.
    """
    frames = to_frames(pixels)
    count, height, width, _ = frames.shape
    depth, _, tone, light = corridor_geometry(VideoShape(height, width, count, 8))
    near = (depth >= _DEPTHS[0]) & (depth < _DEPTHS[1])
    lit = frames[:, near].astype(np.float32) / light[near, None]
    colour = ((lit - tone[near, None]) ** 2).sum(-1)
    doors = lit[colour > np.quantile(colour, 0.8)]
    grey = PALETTE.mean(0)
    towards = (np.median(doors, axis=0) if len(doors) else grey) - tone[near, None]
    share = ((lit - tone[near, None]) * towards).sum(-1) / np.maximum((towards**2).sum(-1), 1)
    weight = depth[near] ** 3  # as many pixels for each depth
    wave = (share.clip(0, 1) * weight) @ np.exp(-2j * np.pi * depth[near] / PERIOD)
    phase = np.unwrap(np.angle(wave))
    return ((phase - phase[0]) / (2 * np.pi) * PERIOD).astype(np.float32)


def occlusion(pixels: Tensor, thing: DetectedObject) -> Literal["behind", "outside"] | None:
    """Return where an object is while it is not visible: behind a bar, or outside the image.

    Returns None if it is always visible, disappears more than once, is missing in the first or last frame, or
    disappears without an occluder.
    """
    gone = np.flatnonzero(~thing.visible)
    if not (len(gone) and thing.visible[0] and thing.visible[-1]) or gone[-1] - gone[0] + 1 != len(gone):
        return None
    frames = to_frames(pixels)
    before, after = thing.centres[gone[0] - 1], thing.centres[gone[-1] + 1]
    x, y = np.clip((before + after) / 2, 1, np.array(frames.shape[2:0:-1]) - 2).astype(np.int64)
    looked = np.append(gone, 0)  # of the image at first, too
    between = np.median(frames[looked][:, y - 1 : y + 2, x - 1 : x + 2], axis=(1, 2))
    if np.abs(between - BAR).mean(-1).max() <= _GREY:
        return "behind"
    width = frames.shape[2]
    left = np.array([before[0], after[0]])
    return "outside" if min(left.max(), (width - left).max()) <= _EDGE * width else None


def fracture_frame(pixels: Tensor) -> int | None:
    """Return the first frame from which a body stays in pieces; None if it stays whole."""
    frames = to_frames(pixels)
    counts, best, solid = colours_of(frames)
    if not counts.any():
        return None
    body = solid & (best == counts.argmax())
    pieces = np.array([_pieces(mask[: int(FLOOR * mask.shape[0]) + 1]) for mask in body])
    apart = pieces >= _BROKEN
    if np.median(pieces[-max(len(pieces) // 4, 1) :]) < _BROKEN:
        return None
    return int(np.flatnonzero(apart)[0])


def _pieces(mask: NDArray[np.bool_]) -> int:
    parts, _ = ndimage.label(mask, np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
    return int((np.bincount(parts.ravel())[1:] >= _PIECE).sum())


@cache
def _rows(height: int, width: int) -> tuple[Array, tuple[Array, NDArray[np.int64]]]:
    """Return the pixel row through the middle of the pillars at each degree, (360, W, 3), and its `_centres`."""
    angles = np.radians(np.arange(360))[:, None]
    rows = np.concatenate(
        [
            render_pillars(part, VideoShape(height, width, 1, 8))[0][:, 0, :, height // 2]
            for part in np.array_split(angles, 12)
        ]
    ).transpose(0, 2, 1)
    return rows, _centres(rows)


def _centres(rows: Array) -> tuple[Array, NDArray[np.int64]]:
    """Return the position of each pillar in rows (N, W, 3), and the number of its pixels, (N, pillars) each.

    Positions are x in pixels, NaN if fewer than two pixels show the pillar.
    """
    near = ((rows[:, :, None] - PALETTE[:PILLARS]) ** 2).sum(-1)  # (N, W, pillars)
    mask = (near.argmin(-1)[..., None] == np.arange(PILLARS)) & (near < 60.0**2)
    count = mask.sum(1)
    middle = (mask * (np.arange(rows.shape[1])[:, None] + 0.5)).sum(1) / np.maximum(count, 1)
    return np.where(count >= _SEEN, middle, np.nan), count
