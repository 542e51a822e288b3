"""Scenes in which one object acts on its surroundings: a brush, ball and paddle, a body that hits the ground.

Every scene is planned for B videos of one size together, at least SMALLEST pixels and FRAMES frames; its images are
rendered on demand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unveil.playground.shapes import COLOURS, KINDS, PALETTE, Shapes, coverage, paint
from unveil.playground.world.caption_templates import Facts
from unveil.playground.world.motion import Real, VideoShape, Whole, turning_points
from unveil.playground.world.rendering import BAR

MIN_SIDE, MIN_FRAMES = 32, 8
DRAWS = 12  # random numbers of one video
LINES = ("straight", "wave", "loop")
PIECES = 4  # of a body that breaks
FLOOR = 0.85  # of the height, where the ground begins
_WHITE = list(COLOURS).index("white")
CLEAR = 1.0  # pixels that a ball goes before and after a bounce that can be seen
_STROKES = 12  # dabs of the brush from one frame to the next


class SceneBatch(NamedTuple):
    """B videos of one scene.

    Attributes:
        facts: True attributes.
        render: Function that returns the images, (B, T, 3, H, W) in 0 to 255, and the tracks (B, N, T, 4): x and y in
            pixels, radius in pixels, and the visible fraction.
    """

    facts: list[Facts]
    render: Callable[[], tuple[Real, Real]]


def brush(draws: Real, view: VideoShape) -> SceneBatch:
    """Plan a white brush that moves along a line and leaves a permanent trail of paint."""
    tip, half = max(3.0, 0.09 * view.side), max(1.5, 0.05 * view.side)
    line, colour = _choice(draws[:, 0], len(LINES)), _choice(draws[:, 1], _WHITE)
    begin = _line(line, draws, view, tip, np.zeros(1, dtype=np.float32))

    def draw_video() -> tuple[Real, Real]:
        canvas = _black(len(draws), view)
        x, y = np.arange(view.width, dtype=np.float32) + 0.5, np.arange(view.height, dtype=np.float32)[:, None] + 0.5
        nearest = np.full((len(draws), view.height, view.width), np.inf, dtype=np.float32)
        last = begin
        for frame in range(view.frames):
            if frame:
                gone = (frame - 1 + np.arange(1, _STROKES + 1, dtype=np.float32) / _STROKES) / (view.frames - 1)
                last = _line(line, draws, view, tip, gone)
            for across, down in zip(last[0].T, last[1].T, strict=True):
                np.minimum(nearest, (x - across[:, None, None]) ** 2 + (y - down[:, None, None]) ** 2, out=nearest)
            paint(canvas[:, frame], np.clip(half + 0.5 - np.sqrt(nearest), 0, 1).astype(np.float32), PALETTE[colour])
        way = _line(line, draws, view, tip, np.linspace(0, 1, view.frames, dtype=np.float32))
        track = _track(way[0], way[1], np.full_like(way[0], tip))
        _place(canvas, np.zeros(len(draws), dtype=np.int64), track, np.full(len(draws), _WHITE), view)
        return canvas, track[:, None]

    names = list(COLOURS)
    return SceneBatch(
        [_facts("brush", colour=names[c], line=LINES[k]) for c, k in zip(colour, line, strict=True)], draw_video
    )


def paddle(draws: Real, view: VideoShape) -> SceneBatch:
    """Plan a ball that flies between three walls and a white paddle on the left, which always reaches it in time.

    The angle of reflection equals the angle of incidence.
    """
    radius, thick, tall = max(3.0, 0.09 * view.side), max(2.0, 0.06 * view.width), 0.18 * view.height
    colour = _choice(draws[:, 0], _WHITE)
    low, room = thick + radius, view.width - thick - 2 * radius
    high = view.height - 2 * radius
    time = np.linspace(0, 1, view.frames, dtype=np.float32)
    gone = (1.2 + draws[:, 1]) * room  # pixels across in the whole video
    steep = np.minimum(np.tan(np.radians(20 + 30 * draws[:, 2])), 0.3 * high * (view.frames - 1) / gone)
    start, fall = draws[:, 4] * 2 * room, np.where(draws[:, 3] < 0.5, draws[:, 5], 1 + draws[:, 5]) * high
    x = low + _reflected(start[:, None] + gone[:, None] * time, room)
    y = radius + _reflected(fall[:, None] + (gone * steep)[:, None] * time, high)
    bounces = [sum(len(turning_points(way, CLEAR)) for way in ways) for ways in zip(x, y, strict=True)]

    def draw_video() -> tuple[Real, Real]:
        canvas = _black(len(draws), view)
        ball = _track(x, y, np.full_like(x, radius))
        _place(canvas, np.zeros(len(draws), dtype=np.int64), ball, colour, view)
        middle = y.clip(tall, view.height - tall)
        bar = rectangle(np.zeros_like(x), np.full_like(x, thick), middle - tall, middle + tall, view)
        canvas += bar[:, :, None] * (PALETTE[_WHITE][:, None, None] - canvas)
        return canvas, np.stack([ball, _track(np.full_like(x, thick / 2), middle, np.full_like(x, tall))], axis=1)

    names = list(COLOURS)
    facts = [_facts("paddle", colour=names[c], bounces=n) for c, n in zip(colour, bounces, strict=True)]
    return SceneBatch(facts, draw_video)


def impact(draws: Real, view: VideoShape) -> SceneBatch:
    """Plan a body that falls to the ground, where it breaks into four pieces or stays whole."""
    last, floor = view.frames - 1, FLOOR * view.height
    colour, shape = _choice(draws[:, 0], len(COLOURS)), _choice(draws[:, 1], len(KINDS))
    breaks = draws[:, 2] < 0.5
    radius = (0.16 + 0.04 * draws[:, 3])[:, None] * view.side
    small = 0.45 * radius
    apart = np.minimum(2 * small + 0.12 * view.side, (view.width - 2 * small - 2) / (PIECES - 1))
    edge = (PIECES - 1) / 2 * apart + small
    x = edge + draws[:, 4, None] * (view.width - 2 * edge)
    hit = (0.4 + 0.2 * draws[:, 5])[:, None] * last
    time = np.arange(view.frames, dtype=np.float32)
    y = radius + 1 + (floor - 2 * radius - 1) * np.minimum(time / hit, 1) ** 2
    since = np.clip((time - hit) / (last - hit) / 0.8, 0, 1)  # of the pieces' flight

    def draw_video() -> tuple[Real, Real]:
        canvas = _black(len(draws), view)
        ground = np.clip(np.arange(view.height, dtype=np.float32) + 1 - floor, 0, 1)[:, None]
        canvas += ground * (np.array(BAR, dtype=np.float32)[:, None, None] - canvas)
        broken = breaks[:, None] & (time > hit)
        whole = _track(np.repeat(x, view.frames, 1), y, np.repeat(radius, view.frames, 1))
        _place(canvas, shape, whole, colour, view, there=~broken)
        for piece in range(PIECES):
            way = (piece - (PIECES - 1) / 2) * apart
            rise = (0.15 + 0.1 * (piece % 2)) * view.height * 4 * since * (1 - since)
            places = _track(x + way * (0.8 + 0.2 * since), floor - small - rise, np.repeat(small, view.frames, 1))
            _place(canvas, shape, places, colour, view, there=broken)
        return canvas, whole[:, None]

    names = list(COLOURS)
    facts = [
        _facts("impact", colour=names[c], shape=KINDS[k], fate="breaks" if b else "lands", hit=float(when))
        for c, k, b, when in zip(colour, shape, breaks, hit[:, 0], strict=True)
    ]
    return SceneBatch(facts, draw_video)


def _line(line: Whole, draws: Real, view: VideoShape, tip: float, gone: Real) -> tuple[Real, Real]:
    """Return the brush's position after fractions of its path (K,) in [0, 1]: x and y, (B, K)."""
    wide, high = view.width - 2 * tip, view.height - 2 * tip
    back = draws[:, 2, None] < 0.5
    across = np.where(back, 1 - gone, gone)
    y = [
        draws[:, 3, None] + (draws[:, 4] - draws[:, 3])[:, None] * gone,
        0.5 + (0.25 + 0.25 * draws[:, 3, None]) * np.sin(2 * np.pi * (1.5 * gone + draws[:, 4, None])),
        0.5 + (0.35 + 0.15 * draws[:, 3, None]) * np.sin(2 * np.pi * (across + draws[:, 4, None])),
    ]
    ring = 0.5 + (0.35 + 0.15 * draws[:, 5, None]) * np.cos(2 * np.pi * (across + draws[:, 4, None]))
    rows = np.arange(len(line))
    x = np.stack([across, across, ring])[line, rows]
    return (tip + wide * x).astype(np.float32), (tip + high * np.stack(y)[line, rows]).astype(np.float32)


def _place(
    canvas: Real, shape: Whole, track: Real, colour: Whole, view: VideoShape, *, there: NDArray[np.bool_] | None = None
) -> None:
    """Render an object of each video at the positions of its track (B, T, 4), in the frames that show it."""
    frames, side = view.frames, np.float32(view.side)
    x, y, radius = (track[..., field].ravel() / side for field in range(3))
    covered = coverage(Shapes(np.repeat(shape, frames), x, y, radius, np.zeros_like(x)), view.height, view.width)
    if there is not None:
        covered *= there.reshape(-1, 1, 1)
    paint(canvas.reshape(-1, *canvas.shape[2:]), covered, np.repeat(PALETTE[colour], frames, axis=0))


def rectangle(left: Real, right: Real, top: Real, bottom: Real, view: VideoShape) -> Real:
    """Return the fraction of each pixel that an upright rectangle covers: edges (B, T), result (B, T, H, W)."""

    def reach(low: Real, high: Real, size: int) -> Real:
        at = np.arange(size, dtype=np.float32)
        return np.clip(np.minimum(high[..., None], at + 1) - np.maximum(low[..., None], at), 0, 1)

    return reach(left, right, view.width)[:, :, None, :] * reach(top, bottom, view.height)[..., None]


def _reflected(way: Real, room: float) -> Real:
    """Return a straight path folded into [0, room]."""
    return room - np.abs(room - way % (2 * room))


def _track(x: Real, y: Real, radius: Real) -> Real:
    return np.stack(np.broadcast_arrays(x, y, radius, np.ones_like(x)), axis=-1).astype(np.float32)


def _black(count: int, view: VideoShape) -> Real:
    return np.zeros((count, view.frames, 3, view.height, view.width), dtype=np.float32)


def _choice(draw: Real, count: int) -> Whole:
    return (draw * count).astype(np.int64)


def _facts(scene: str, **attributes: object) -> Facts:
    return {"scene": scene, **attributes}
