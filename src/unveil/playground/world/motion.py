"""Trajectories of one object over the frames of a video, batched over videos.

Lengths are pixels, x to the right and y down; times are frames; angles are radians, clockwise. Every trajectory keeps
the whole object inside the image, and its motion is large enough to be visible.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unveil.playground.shapes import KINDS, SQUARE

Whole = NDArray[np.int64]
Real = NDArray[np.floating[Any]]  # float32 or float64

# The ten motions of the evaluation split, then what only some shapes show.
TEN = ("still", "left", "right", "up", "down", "diagonal", "bounce", "orbit", "grow", "shrink")
MOTIONS = (*TEN, "spin")
# What `Trajectories.turn` counts, where a motion has more than one form.
SIDES = ("left", "right", "top", "bottom")
CORNERS = ("up and to the left", "up and to the right", "down and to the left", "down and to the right")
TURNS = ("clockwise", "counter-clockwise")
SPINNING = ("square", "triangle", "cross")  # a circle and a ring look the same turned
SHORTEST = {"still": 2, "spin": 5, "bounce": 8, "orbit": 8}  # frames that a motion takes; all others 3
DRAWS = 6  # random numbers of one path

SLOW, FAST = 0.2, 0.6  # sides a second
GROWTH = 1.25  # of the radius from the middle of a video to its end
_LEAST, _LEAST_PX = 0.15, 2.4  # how far a motion goes at least, in parts of the side and in pixels
_LONG = 24  # frames in which an object may bounce or turn round twice
_TIP = 4 / 3  # how far a triangle's corners are from its centre of mass, in radii; squares and crosses less


class VideoShape(NamedTuple):
    """The size of a video in pixels, its number of frames, and its frames per second."""

    height: int
    width: int
    frames: int
    fps: int

    @property
    def side(self) -> int:
        """Return the shorter side."""
        return min(self.height, self.width)

    @property
    def seconds(self) -> float:
        """Return the time from the first to the last frame."""
        return (self.frames - 1) / self.fps


class Trajectories(NamedTuple):
    """Trajectories of M objects over T frames.

    Attributes:
        x, y, radius, angle: (M, T) float32.
        turn: (M,) variant of the motion, an index into CORNERS (diagonal), SIDES (bounce: the first wall) or TURNS
            (orbit, spin); -1 if the motion has one variant.
        bounces: (M,) number of reflections at a wall.
        speed: (M,) speed of the centre in image sides per second.
    """

    x: Real
    y: Real
    radius: Real
    angle: Real
    turn: Whole
    bounces: Whole
    speed: Real


class _Bodies(NamedTuple):
    """Objects with the same motion: half their height and width, (m,), and the random numbers of each."""

    half: Real
    draws: Real
    view: VideoShape

    @property
    def room(self) -> tuple[Real, Real]:
        """Return the range of each centre, horizontally and vertically."""
        return self.view.width - 2 * self.half, self.view.height - 2 * self.half


_Way = tuple[Real, Real, Whole, Whole]  # x and y (m, T), turn and bounces (m,)


def is_possible(motion: str, shape: str, frames: int) -> bool:
    """Return True if a shape can show this motion in `frames` frames."""
    return frames >= SHORTEST.get(motion, 3) and (motion != "spin" or shape in SPINNING)


def radii(large: NDArray[np.bool_], draw: Real, view: VideoShape) -> Real:
    """Return the radii of small and large objects in pixels. They are at least 3, and the two sizes differ clearly."""
    low, high = max(0.11 * view.side, 3 * GROWTH), max(0.14 * view.side, 3.12 * GROWTH)
    least, most = max(0.18 * view.side, 1.35 * high), max(0.23 * view.side, 1.43 * high)
    return np.where(large, least + draw * (most - least), low + draw * (high - low)).astype(np.float32)


def between_sizes(side: int) -> float:
    """Return the radius in pixels that separates small from large objects; of growing ones the mean radius counts."""
    high = max(0.14 * side, 3.12 * GROWTH)
    return (high * max(0.18 * side, 1.35 * high)) ** 0.5


def trajectories(motion: Whole, shape: Whole, radius: Real, draws: Real, view: VideoShape) -> Trajectories:
    """Return the trajectories of M objects.

    Args:
        motion: (M,) indices into MOTIONS.
        shape: (M,) indices into KINDS.
        radius: (M,) radius in pixels in the middle of the video.
        draws: (M, DRAWS) random numbers in [0, 1).
        view: Size and length of the video; at least as many frames as `is_possible` requires.
    """
    count, frames = len(motion), view.frames
    x, y = np.empty((count, frames), dtype=np.float32), np.empty((count, frames), dtype=np.float32)
    turn, bounces = np.full(count, -1, dtype=np.int64), np.zeros(count, dtype=np.int64)
    half = radius * np.where(shape == KINDS.index("square"), SQUARE, 1.0).astype(np.float32)
    grows = (motion == MOTIONS.index("grow")) | (motion == MOTIONS.index("shrink"))
    half = half * np.where(grows, GROWTH, 1.0) * np.where(motion == MOTIONS.index("spin"), _TIP, 1.0)
    for number in np.unique(motion):
        rows = np.flatnonzero(motion == number)
        bodies = _Bodies(half[rows].astype(np.float32), draws[rows], view)
        x[rows], y[rows], turn[rows], bounces[rows] = _WAYS[MOTIONS[number]](bodies)
    sizes, angle = np.repeat(radius[:, None], frames, axis=1), np.zeros_like(x)
    progress = np.linspace(-1, 1, frames, dtype=np.float32)
    for name, power in (("grow", progress), ("shrink", -progress)):
        sizes[motion == MOTIONS.index(name)] *= GROWTH**power
    spins = motion == MOTIONS.index("spin")
    angle[spins] = _turning(draws[spins], turn[spins], view)
    top = (
        radius[:, None] * (spins & (shape == KINDS.index("triangle")))[:, None] / 3
    )  # it turns about its centre of mass
    steps = np.hypot(np.diff(x), np.diff(y)).sum(1) / max(view.seconds, 1e-6) / view.side
    x += np.sin(angle) * top
    y -= np.cos(angle) * top
    return Trajectories(x, y, sizes, angle, turn, bounces, steps.astype(np.float32))


# ---------------------------------------------------------------------- one function for each motion


def _still(bodies: _Bodies) -> _Way:
    across, down = bodies.room
    frames, none = bodies.view.frames, np.zeros(len(across), dtype=np.int64)
    x, y = bodies.half + across * bodies.draws[:, 0], bodies.half + down * bodies.draws[:, 1]
    return np.repeat(x[:, None], frames, 1), np.repeat(y[:, None], frames, 1), none - 1, none


def _spin(bodies: _Bodies) -> _Way:
    x, y, _, bounces = _still(bodies)
    return x, y, _two(bodies.draws[:, 2]), bounces


def _straight(across: int, down: int, bodies: _Bodies) -> _Way:
    """Move along one axis or both: `across` and `down` are the signs of the direction, 0 for none."""
    wide, high = bodies.room
    x, y, turn, bounces = _still(bodies)
    room = np.minimum(wide, high) if across and down else wide if across else high
    travel = _travel(room, bodies.view, bodies.draws[:, 2])
    gone = travel[:, None] * np.linspace(0, 1, bodies.view.frames, dtype=np.float32)
    for place, sign, axis_room, length, draw in (
        (x, across, wide, bodies.view.width, 3),
        (y, down, high, bodies.view.height, 4),
    ):
        if sign:
            from_low = (bodies.half + (axis_room - travel) * bodies.draws[:, draw])[:, None] + gone
            place[:] = from_low if sign > 0 else length - from_low
    return x, y, turn, bounces


def _diagonal(bodies: _Bodies) -> _Way:
    candidates = [_straight(across, down, bodies) for down in (-1, 1) for across in (-1, 1)]
    turn = (bodies.draws[:, 5] * len(CORNERS)).astype(np.int64)
    rows = np.arange(len(turn))
    x, y = np.stack([way[0] for way in candidates]), np.stack([way[1] for way in candidates])
    return x[turn, rows], y[turn, rows], turn, candidates[0][3]


def _bounce(bodies: _Bodies) -> _Way:
    """Move to a wall and back along one axis; in long videos half of the objects go on to the opposite wall."""
    x, y, _, _ = _still(bodies)
    wall = (bodies.draws[:, 5] * len(SIDES)).astype(np.int64)
    wide, high = bodies.room
    room, view, last = np.where(wall < 2, wide, high), bodies.view, bodies.view.frames - 1
    once = (0.38 + 0.24 * bodies.draws[:, 2]) * last  # the frame at which it touches the wall
    least = _least(room, view) / np.minimum(once, last - once)
    most = np.maximum(room / np.maximum(once, last - once), least)
    fast = np.clip(FAST * view.side / view.fps, least, most)
    slow = np.clip(SLOW * view.side / view.fps, least, 0.6 * fast + 0.4 * least)
    speed = slow + bodies.draws[:, 3] * (fast - slow)
    twice = (bodies.draws[:, 4] < 0.5) & (view.frames >= _LONG)
    once = np.where(twice, (0.2 + 0.1 * bodies.draws[:, 2]) * last, once)
    speed = np.where(twice, room / (0.45 * last), speed)
    way = np.abs(np.arange(view.frames) - once[:, None]) * speed[:, None]
    away = room[:, None] - np.abs(room[:, None] - way % (2 * room[:, None]))  # how far from the wall
    for place, walls, length in ((x, (0, 1), view.width), (y, (2, 3), view.height)):
        near = (bodies.half[:, None] + away).astype(np.float32)
        np.copyto(place, near, where=(wall == walls[0])[:, None])
        np.copyto(place, length - near, where=(wall == walls[1])[:, None])
    return x, y, wall, 1 + twice


def _orbit(bodies: _Bodies) -> _Way:
    """Move on a circle that closes after the last frame; one turn, or two in long videos."""
    wide, high = bodies.room
    ring = np.minimum(wide, high) / 2 * (0.65 + 0.35 * bodies.draws[:, 2])
    turn = _two(bodies.draws[:, 3])
    rounds = 1 + ((bodies.draws[:, 4] < 0.5) & (bodies.view.frames >= _LONG))
    angle = 2 * np.pi * np.arange(bodies.view.frames) / bodies.view.frames * (rounds * (1 - 2 * turn))[:, None]
    angle += 2 * np.pi * bodies.draws[:, 5, None]
    x = bodies.half + ring + (wide - 2 * ring) * bodies.draws[:, 0]
    y = bodies.half + ring + (high - 2 * ring) * bodies.draws[:, 1]
    none = np.zeros(len(ring), dtype=np.int64)
    return x[:, None] + ring[:, None] * np.cos(angle), y[:, None] + ring[:, None] * np.sin(angle), turn, none


_WAYS = {
    "still": _still,
    "left": lambda bodies: _straight(-1, 0, bodies),
    "right": lambda bodies: _straight(1, 0, bodies),
    "up": lambda bodies: _straight(0, -1, bodies),
    "down": lambda bodies: _straight(0, 1, bodies),
    "diagonal": _diagonal,
    "bounce": _bounce,
    "orbit": _orbit,
    "grow": _still,
    "shrink": _still,
    "spin": _spin,
}


def min_travel(side: int) -> float:
    """Return the minimum distance of a motion, in pixels, in an image of this shorter side."""
    return max(_LEAST * side, _LEAST_PX)


def turning_points(way: Real, least: float) -> list[tuple[int, int]]:
    """Return the points where a path (N,) reverses, with at least `least` pixels before and after: (frame, side).

    They are in order. The side is 0 for a reversal at the lower end and 1 at the upper end.
    """
    turns: list[tuple[int, int]] = []
    low = high = 0  # the frames of the lowest and the highest place since it last turned
    up: bool | None = None
    for at in range(1, len(way)):
        low, high = (at if way[at] < way[low] else low), (at if way[at] > way[high] else high)
        if up is not False and way[high] - way[at] > least:
            turns += [(high, 1)] if up or way[high] - way[0] > least else []
            up, low = False, at
        elif up is not True and way[at] - way[low] > least:
            turns += [(low, 0)] if up is False or way[0] - way[low] > least else []
            up, high = True, at
    return turns


def _least(room: Real, view: VideoShape) -> Real:
    return np.minimum(room, min_travel(view.side))


def _travel(room: Real, view: VideoShape, draw: Real) -> Real:
    """Return the distance over the whole video, at speeds from SLOW to FAST, limited by the room."""
    least = _least(room, view)
    high = np.clip(FAST * view.side * view.seconds, least, room)
    low = np.clip(SLOW * view.side * view.seconds, least, 0.6 * high + 0.4 * least)
    return (low + draw * (high - low)).astype(np.float32)


def _turning(draws: Real, turn: Whole, view: VideoShape) -> Real:
    """Return the angle of each frame, (m, T): 60 to 120 degrees a second, at least 45 in all, at most 30 per frame."""
    step = np.radians(np.minimum(np.maximum((60 + 60 * draws[:, 3]) / view.fps, 45 / max(view.frames - 1, 1)), 30))
    start = 2 * np.pi * draws[:, 4]
    return (start[:, None] + (step * (1 - 2 * turn))[:, None] * np.arange(view.frames)).astype(np.float32)


def _two(draw: Real) -> Whole:
    return (draw * 2).astype(np.int64)
