"""Classification of an object's motion from its trajectory, and of the camera's motion over a checkered ground."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unveil.playground.scene_iou import DARK
from unveil.playground.shapes import Array
from unveil.playground.world.motion import CORNERS, GROWTH, SIDES, TURNS, VideoShape, min_travel, turning_points
from unveil.playground.world.rendering import CELLS

_STILL = 0.4  # of the least way that things go: below that they stay where they are
_GROWN = np.log(GROWTH)  # of the logarithm of the radius over the video; things that grow reach twice this
_ROUND = 4.2  # radians about the centre: a circle is more, an arc less
_UNROUND = 0.25  # of its radius, by which a circle's points may lie off it
_SLANT = 0.45  # of the longer way, that the shorter one of a diagonal has at least
_FLICKER = 4.0  # levels of the checker's wave, below which the ground is taken to be plain
_REGULAR = 0.3  # of the ground's variation: in a checker the wave has more, in other grounds less


class DetectedMotion(NamedTuple):
    """Detected motion of an object.

    Attributes:
        name: Name of the motion.
        turn: Shape of a turn, a name of CORNERS or TURNS, or None.
        walls: Sides of the frame at which it bounces, in order.
        speed: Speed along its path, in image sides per second.
    """

    name: str
    turn: str | None
    walls: tuple[str, ...]
    speed: float


def motion_of(at: NDArray[np.int64], x: Array, y: Array, radius: Array, view: VideoShape) -> DetectedMotion | None:
    """Classify the motion of an object that is visible in the frames `at` (N,).

    x, y and radius are (N,) in pixels. Spinning is not distinguished from standing still. Returns None if fewer than
    two frames show the object.
    """
    if len(at) < 2:
        return None
    least = _STILL * min_travel(view.side)
    wide, high = np.ptp(x), np.ptp(y)
    speed = _speed(at, x, y, view)
    if max(wide, high) < least:
        grown = float(np.polyfit(at, np.log(np.maximum(radius, 0.5)), 1)[0] * (view.frames - 1))
        name = "still" if abs(grown) < _GROWN else "grow" if grown > 0 else "shrink"
        return DetectedMotion(name, None, (), speed)
    turned = _turned(x, y)
    if turned is not None and min(wide, high) > _SLANT * max(wide, high):
        return DetectedMotion("orbit", TURNS[0] if turned > 0 else TURNS[1], (), speed)
    across = wide > high
    way = x if across else y
    back = np.ptp(way) - abs(way[-1] - way[0])
    if back > least:
        walls = turning_points(way, least)
        return DetectedMotion("bounce", None, tuple(SIDES[2 * (not across) + side] for _, side in walls), speed)
    if min(wide, high) > _SLANT * max(wide, high):
        return DetectedMotion("diagonal", CORNERS[2 * bool(y[-1] > y[0]) + bool(x[-1] > x[0])], (), speed)
    names = ("left", "right") if across else ("up", "down")
    return DetectedMotion(names[int(way[-1] > way[0])], None, (), speed)


def pan_of(frames: NDArray[np.uint8]) -> Array:
    """Return the camera's displacement to the right since the first of the frames (T, H, W, 3), in pixels: (T,).

    A checkered background has two periods in its width, and their phase gives its position. Over other backgrounds the
    displacement is 0.
    """
    count, height, width, _ = frames.shape
    dark = frames.max(-1) < DARK
    if count < 2 or dark.sum() < width:
        return np.zeros(count, dtype=np.float32)
    tones = frames.astype(np.float32) - frames[dark].mean(0)
    axis = np.linalg.eigh(np.cov(tones[dark].T))[1][:, -1]  # along which the ground's colours differ most
    cell = width / CELLS
    rows = 1 - 2 * (np.floor((np.arange(height) + 0.5) / cell) % 2)
    fields = np.where(dark, tones @ axis, 0) * rows[:, None]
    columns = fields.sum(1) / np.maximum(dark.sum(1), 1)  # (T, W)
    wave = columns @ np.exp(-2j * np.pi * (np.arange(width) + 0.5) / (2 * cell)) / width
    if np.abs(wave).min() < max(_FLICKER, _REGULAR * np.abs(tones[dark] @ axis).mean()):
        return np.zeros(count, dtype=np.float32)
    phase = np.unwrap(np.angle(wave))
    return ((phase - phase[0]) / (2 * np.pi) * 2 * cell).astype(np.float32)


def camera_of(pan: Array, side: int) -> str:
    """Classify a camera's displacement as a name of CAMERAS."""
    if np.ptp(pan) < _STILL * min_travel(side):
        return "static"
    if abs(pan[-1] - pan[0]) < 0.5 * np.ptp(pan):
        return "away"
    return "right" if pan[-1] > pan[0] else "left"


def _speed(at: NDArray[np.int64], x: Array, y: Array, view: VideoShape) -> float:
    steps = np.hypot(np.diff(x), np.diff(y)) / np.diff(at)
    return float(np.median(steps)) * view.fps / view.side


def _turned(x: Array, y: Array) -> float | None:
    """Return the angle of a circular trajectory in radians, clockwise; None if it is not circular."""
    if len(x) < 6:
        return None
    rows = np.stack([x, y, np.ones_like(x)], axis=1).astype(np.float64)
    solved = np.linalg.lstsq(rows, (x**2 + y**2).astype(np.float64), rcond=None)[0]
    across, down = x - solved[0] / 2, y - solved[1] / 2
    away = np.hypot(across, down)
    turned = np.unwrap(np.arctan2(down, across))
    whole = float(turned[-1] - turned[0])
    return whole if abs(whole) > _ROUND and away.std() < _UNROUND * away.mean() else None
