"""Scenes with a camera that moves in space: a ring of pillars, seen from outside, and a corridor."""

from __future__ import annotations

import numpy as np

from unveil.playground.shapes import COLOURS, PALETTE
from unveil.playground.world.motion import Real, VideoShape
from unveil.playground.world.special_scenes import SceneBatch, rectangle

PILLARS = 6  # in a ring of radius 1, in the palette's order, anticlockwise seen from above
AWAY = 2.6  # of the camera from the ring's middle
_HALF = 0.16  # of a pillar's width
_TALL = 0.5  # half of a pillar's height
_ASIDE = 0.25  # of the way to the next pillar, that the camera begins beside the one in front at most
ORBITS, WALKS = ("left", "right"), ("forward", "backward")
DOOR, PERIOD = 0.4, 2.0  # of a door's depth, and from one door to the next; a corridor is 2 wide
_FOG = 5.0  # depth over which light falls to a third


def focal_length(view: VideoShape) -> float:
    """Return the focal length in pixels at which the whole ring is visible."""
    widest = 1 / (AWAY**2 - 1) ** 0.5 + _HALF / (AWAY - 1)
    return min(view.width / 2 / widest, view.height / 2 / (_TALL / (AWAY - 1) * 1.25))


def pillars(draws: Real, view: VideoShape) -> SceneBatch:
    """Plan a ring of six pillars of different colours; the camera orbits the ring and points at its centre.

    The camera starts in front of a pillar that captions can name. A ring seen from any angle would be six times as
    hard to recognise in noise.
    """
    right = draws[:, 0] < 0.5
    step = np.radians(np.minimum((60 + 120 * draws[:, 1]) / (view.frames - 1), 12))
    front = (PILLARS * draws[:, 2]).astype(np.int64)
    start = 2 * np.pi / PILLARS * (front + (2 * draws[:, 3] - 1) * _ASIDE)
    yaw = start[:, None] + np.where(right, step, -step)[:, None] * np.arange(view.frames)

    names = list(COLOURS)
    facts = [
        {"scene": "pillars", "orbit": ORBITS[int(side)], "front": names[first], "yaw": np.degrees(angles).tolist()}
        for side, first, angles in zip(right, front, yaw, strict=True)
    ]
    return SceneBatch(facts, lambda: render_pillars(yaw, view))


def render_pillars(yaw: Real, view: VideoShape) -> tuple[Real, Real]:
    """Render the pillars from directions (B, T) in radians: images (B, T, 3, H, W), tracks (B, pillars, T, 4)."""
    canvas = np.zeros((*yaw.shape, 3, view.height, view.width), dtype=np.float32)
    places = 2 * np.pi * np.arange(PILLARS) / PILLARS - yaw[..., None]  # (B, T, pillars)
    depth = AWAY - np.cos(places)
    scale = focal_length(view) / depth
    x, wide, tall = view.width / 2 + np.sin(places) * scale, _HALF * scale, _TALL * scale
    order = np.argsort(-depth, axis=-1)  # the nearest last
    for rank in range(PILLARS):
        pillar = order[..., rank, None]
        across, half, high = (np.take_along_axis(field, pillar, -1)[..., 0] for field in (x, wide, tall))
        covered = rectangle(across - half, across + half, view.height / 2 - high, view.height / 2 + high, view)
        canvas += covered[:, :, None] * (PALETTE[pillar[..., 0]][..., None, None] - canvas)
    track = np.stack([x, np.full_like(x, view.height / 2), wide, np.ones_like(x)], axis=-1)
    return canvas, track.transpose(0, 2, 1, 3).astype(np.float32)


def corridor(draws: Real, view: VideoShape) -> SceneBatch:
    """Plan a corridor with coloured door frames; the camera moves forward or backward, starting just past a door.

    With a random start between two doors, noise that hides the start would also hide the direction, and the word for
    the direction would hardly ever help a model to denoise.
    """
    colour = (draws[:, 0] * len(COLOURS)).astype(np.int64)
    forward = draws[:, 1] < 0.5
    step = np.maximum((0.6 + draws[:, 2]) / view.fps, 0.8 / (view.frames - 1)).clip(0.05, PERIOD / 4)
    gone = np.where(forward, step, -step)[:, None] * np.arange(view.frames) + PERIOD / 4 * draws[:, 3, None]

    def draw_video() -> tuple[Real, Real]:
        depth, blur, tone, light = corridor_geometry(view)
        at = (depth + gone[..., None, None].astype(np.float32)) % PERIOD
        door = np.clip((DOOR / 2 - np.abs(at - PERIOD / 2)) / blur + 0.5, 0, 1)
        canvas = tone + door[:, :, None] * (PALETTE[colour][:, None, :, None, None] - tone)
        return canvas * light, np.zeros((len(draws), 0, view.frames, 4), dtype=np.float32)

    names = list(COLOURS)
    facts = [
        {"scene": "corridor", "colour": names[c], "walk": WALKS[int(not ahead)], "gone": way.tolist()}
        for c, ahead, way in zip(colour, forward, gone, strict=True)
    ]
    return SceneBatch(facts, draw_video)


def corridor_geometry(view: VideoShape) -> tuple[Real, Real, Real, Real]:
    """Return the geometry of the corridor at each pixel, (H, W) each.

    The values are the depth of the walls along the corridor's axis, the range of depth that the pixel covers, the tone
    of the walls, and their brightness, 1 at a depth of 1.
    """
    x = (np.arange(view.width, dtype=np.float32) + 0.5 - view.width / 2) / (view.side / 2)
    y = ((np.arange(view.height, dtype=np.float32) + 0.5 - view.height / 2) / (view.side / 2))[:, None]
    depth = 1 / np.maximum(np.abs(x), np.abs(y))
    tone = np.where(np.abs(x) >= np.abs(y), 62.0, np.where(y > 0, 38.0, 50.0)).astype(np.float32)
    light = np.exp((1 - np.maximum(depth, 1)) / _FOG)
    return depth, np.maximum(depth**2 / (view.side / 2), 0.02), tone, light
