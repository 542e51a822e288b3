"""Backgrounds, occluding bar and camera of a video of moving objects, and its rendering."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unveil.playground.scenes import rotated_coordinate
from unveil.playground.shapes import AREAS, COLOURS, PALETTE, Shapes, coverage, paint
from unveil.playground.world.motion import MOTIONS, Real, VideoShape, Whole, min_travel
from unveil.playground.world.objects import SceneObjects

# Plain grounds; all grounds stay below 100 in every channel, so that objects stand out from each of them.
TONES = {
    "black": (0, 0, 0),
    "grey": (62, 62, 62),
    "red": (92, 20, 24),
    "green": (20, 74, 32),
    "blue": (20, 34, 92),
    "purple": (66, 28, 84),
}
PATTERNS = ("gradient", "checker")
GROUNDS = (*TONES, *PATTERNS)
CAMERAS = ("static", "left", "right", "away")  # away: to the right until nothing is seen, and back
BAR = (88.0, 88.0, 88.0)
LOST = 0.25  # an object of which less is seen counts as hidden
DRAWS = 12  # random numbers of a stage
_TONES = np.array(list(TONES.values()), dtype=np.float32)
CELLS = 4  # fields of a checker in the width
_AWAY = 12  # frames that the way there and back takes at least


class SceneSetup(NamedTuple):
    """Surroundings of the objects of B videos.

    Attributes:
        ground: (B,) indices into GROUNDS.
        camera: (B,) indices into CAMERAS.
        draws: (B, DRAWS) random numbers.
        pan: (B, T) displacement of the camera to the right in pixels.
        bar: (B, 2) start and end of a grey bar along the path of the object behind it; equal if there is no bar.
        upright: (B,) True for a vertical bar.
    """

    ground: Whole
    camera: Whole
    draws: Real
    pan: Real
    bar: Real
    upright: NDArray[np.bool_]


class SceneProbabilities(NamedTuple):
    """Probabilities of a patterned background, an occluding bar and a moving camera, where they fit."""

    patterned: float
    occluded: float
    panned: float


def set_up_scene(
    cast: SceneObjects, draws: Real, view: VideoShape, shares: SceneProbabilities
) -> tuple[SceneObjects, SceneSetup]:
    """Choose background, camera and bar of B videos, and return the objects in the camera's view.

    A camera moves over checkered backgrounds and static objects. A bar occludes one object that moves along an axis, if
    there is room for the whole object on both sides.

    Args:
        cast: Objects.
        draws: (B, DRAWS) random numbers.
        view: Size and length of the video.
        shares: Probabilities of the variants.
    """
    plain = np.where(draws[:, 1] < 0.5, 0, 1 + (draws[:, 2] * (len(TONES) - 1)).astype(np.int64))
    tints = np.array([list(TONES).index(hue) if hue in TONES else 0 for hue in COLOURS])
    same = ((tints[cast.colour] == plain[:, None]) & cast.present).any(1)
    ground = np.where(same, 0, plain)  # nothing stands before its own colour
    patterned = draws[:, 0] < shares.patterned
    ground = np.where(patterned, len(TONES) + (draws[:, 1] < 0.5), ground)
    cast, camera, pan = _camera(cast, (draws[:, 3] < shares.panned), draws[:, 4:7], view)
    ground = np.where(camera > 0, GROUNDS.index("checker"), ground)
    bar, upright = _bar(cast, (draws[:, 7] < shares.occluded) & (camera == 0), draws[:, 8], view)
    return cast, SceneSetup(ground, camera, draws, pan, bar, upright)


def render(cast: SceneObjects, stage: SceneSetup, view: VideoShape) -> tuple[Real, Real]:
    """Return images of B videos, (B, T, 3, H, W) in 0 to 255, and visible fractions of the objects, (B, N, T)."""
    batch, count = cast.present.shape
    side, frames = np.float32(view.side), view.frames
    canvas = _ground(stage, view)
    x, y, radius, angle = (field.reshape(batch, count, frames) for field in cast.paths[:4])
    behind = _behind(stage, view)
    seen = np.ones((batch, count, frames), dtype=np.float32)
    masked = np.flatnonzero((stage.bar[:, 1] > stage.bar[:, 0]) | (stage.camera > 0))
    for slot in range(count):
        rows = np.flatnonzero(cast.present[:, slot])
        kinds = np.repeat(cast.shape[rows, slot], frames)
        places = (field[rows, slot].ravel() for field in (x / side, y / side, radius / side, angle))
        covered = coverage(Shapes(kinds, *places), view.height, view.width).reshape(-1, frames, *canvas.shape[-2:])
        here = np.flatnonzero(np.isin(rows, masked))
        if len(here):
            covered[here] *= 1 - behind[rows[here], None]
            area = AREAS[cast.shape[rows[here], slot], None] * radius[rows[here], slot] ** 2
            seen[rows[here], slot] = (covered[here].sum((-1, -2)) / area).clip(0, 1)
        hues = PALETTE[cast.colour[rows, slot]].repeat(frames, 0)
        if len(rows) == batch:
            paint(canvas.reshape(-1, *canvas.shape[2:]), covered.reshape(-1, *covered.shape[2:]), hues)
        else:
            part = canvas[rows].reshape(-1, *canvas.shape[2:])
            paint(part, covered.reshape(-1, *covered.shape[2:]), hues)
            canvas[rows] = part.reshape(len(rows), *canvas.shape[1:])
    return canvas, seen


def _camera(
    cast: SceneObjects, wanted: NDArray[np.bool_], draws: Real, view: VideoShape
) -> tuple[SceneObjects, Whole, Real]:
    """Choose the camera's motion, its displacement (B, T), and the objects' positions in its view."""
    batch, count = cast.present.shape
    fixed = np.isin(cast.motion, [MOTIONS.index(name) for name in ("still", "spin")]) | ~cast.present
    x, reach = cast.paths.x.reshape(batch, count, -1), cast.paths.radius.reshape(batch, count, -1) * 4 / 3
    low = np.where(cast.present[..., None], x - reach, np.inf).min((1, 2))
    high = np.where(cast.present[..., None], x + reach, -np.inf).max((1, 2))
    room, least = view.width - (high - low), max(min_travel(view.side), 2.4)
    can = wanted & fixed.all(1) & (view.frames >= 3)
    away = can & (draws[:, 0] < 0.5) & (view.frames >= _AWAY)
    camera = np.where((4 * draws[:, 0]) % 1 < 0.5, 1, 2)
    camera = np.where(away, 3, np.where(can & (room > least), camera, 0))
    travel = np.clip(least + draws[:, 1] * (room - least), 0, 0.2 * view.width * (view.frames - 1))
    progress = np.linspace(0, 1, view.frames)
    across = travel[:, None] * progress * np.select([camera == 1, camera == 2], [-1, 1], 0)[:, None]
    begin = np.where(camera == 1, 0, travel) + draws[:, 2] * (room - travel) - low  # of the things, seen in frame 0
    pan = np.where(away[:, None], (high[:, None] + 2) * (1 - np.abs(2 * progress - 1)), across).astype(np.float32)
    shift = np.where(np.isin(camera, (1, 2)), begin, 0)[:, None] - pan
    shift = np.repeat(shift.astype(np.float32), count, axis=0)
    return cast._replace(paths=cast.paths._replace(x=cast.paths.x + shift)), camera, pan


def _bar(cast: SceneObjects, wanted: NDArray[np.bool_], draw: Real, view: VideoShape) -> tuple[Real, NDArray[np.bool_]]:
    batch, count = cast.present.shape
    lone, motion = cast.present.sum(1) == 1, cast.motion[:, 0]
    upright = np.isin(motion, [MOTIONS.index(name) for name in ("left", "right")])
    flat = np.isin(motion, [MOTIONS.index(name) for name in ("up", "down")])
    x, y, radius = (field.reshape(batch, count, -1)[:, 0] for field in cast.paths[:3])
    way = np.where(upright[:, None], x, y)
    low, high = way.min(1) + radius[:, 0], way.max(1) - radius[:, 0]  # what lies between is free at both ends
    room = high - low
    width = np.minimum((2.2 + 0.6 * draw) * radius[:, 0], room)  # all of it goes behind
    there = wanted & lone & (upright | flat) & (room > 2 * radius[:, 0])
    middle = (low + high) / 2
    bar = np.stack([middle - width / 2, middle + width / 2], axis=1) * there[:, None]
    return bar.astype(np.float32), upright


def _behind(stage: SceneSetup, view: VideoShape) -> Real:
    """Return the fraction of each pixel that the bar covers, (B, H, W)."""

    def reach(size: int) -> Real:
        at = np.arange(size, dtype=np.float32)
        return np.clip(np.minimum(stage.bar[:, 1:], at + 1) - np.maximum(stage.bar[:, :1], at), 0, 1)

    upright, lying = reach(view.width)[:, None, :], reach(view.height)[:, :, None]
    return np.where(stage.upright[:, None, None], upright, lying).astype(np.float32)


def _ground(stage: SceneSetup, view: VideoShape) -> Real:
    """Return the backgrounds, (B, T, 3, H, W)."""
    batch = len(stage.ground)
    canvas = np.empty((batch, view.frames, 3, view.height, view.width), dtype=np.float32)
    canvas[:] = _TONES[np.minimum(stage.ground, len(TONES) - 1)][:, None, :, None, None]
    for number, name in enumerate(PATTERNS, start=len(TONES)):
        rows = np.flatnonzero(stage.ground == number)
        if len(rows):
            first, second = _pair(stage.draws[rows, 9:])
            blend = _gradient(stage.draws[rows, 11], view) if name == "gradient" else _checker(stage.pan[rows], view)
            canvas[rows] = (first + (second - first) * blend[:, :, None]).astype(np.float32)
    bars = np.flatnonzero(stage.bar[:, 1] > stage.bar[:, 0])
    if len(bars):
        behind = _behind(stage, view)[bars, None, None]
        canvas[bars] += behind * (np.array(BAR, dtype=np.float32)[:, None, None] - canvas[bars])
    return canvas


def _pair(draws: Real) -> tuple[Real, Real]:
    """Return two different plain tones, (m, 1, 3, 1, 1) each."""
    first = (draws[:, 0] * len(TONES)).astype(np.int64)
    second = (first + 1 + (draws[:, 1] * (len(TONES) - 1)).astype(np.int64)) % len(TONES)
    return _TONES[first][:, None, :, None, None], _TONES[second][:, None, :, None, None]


def _gradient(turn: Real, view: VideoShape) -> Real:
    """Return a gradient from 0 to 1 across the image in a direction, (m, 1, H, W)."""
    x, y = (((np.arange(size) + 0.5) / size - 0.5).astype(np.float32) for size in (view.width, view.height))
    return (rotated_coordinate(x, y, turn)[:, None] + np.float32(0.5)).clip(0, 1)


def _checker(pan: Real, view: VideoShape) -> Real:
    """Return an antialiased checkerboard of 0 and 1, moving against the camera: (m, T, H, W)."""
    cell = view.width / CELLS

    def wave(at: Real) -> Real:  # from -1 to 1, changing sign at the edges of fields, a pixel wide
        away = cell / 2 - np.abs(at % (2 * cell) - cell / 2)
        away = np.where(at % (2 * cell) > 1.5 * cell, at % (2 * cell) - 2 * cell, away)
        return np.clip(2 * away, -1, 1)

    across = wave(np.arange(view.width) + 0.5 + pan[..., None])[:, :, None, :]
    down = wave(np.arange(view.height, dtype=np.float32) + 0.5)[:, None]
    return ((1 + across * down) / 2).astype(np.float32)
