"""True attributes of a video of moving objects, in the vocabulary of captions."""

from __future__ import annotations

import numpy as np

from unveil.playground.shapes import COLOURS, KINDS
from unveil.playground.world.caption_templates import Facts
from unveil.playground.world.motion import CORNERS, MOTIONS, SIDES, TURNS, VideoShape
from unveil.playground.world.objects import SceneObjects
from unveil.playground.world.rendering import CAMERAS, GROUNDS, SceneSetup

SLOW, FAST = 0.28, 0.45  # sides per second below and above which a caption names the speed


def facts_of(cast: SceneObjects, stage: SceneSetup, view: VideoShape, row: int) -> Facts:
    """Return the true attributes of the video of index `row` in a batch."""
    there = np.flatnonzero(cast.present[row])
    return {
        "scene": "objects",
        "objects": [_thing(cast, view, row, int(slot)) for slot in there],
        "ground": GROUNDS[stage.ground[row]],
        "camera": CAMERAS[stage.camera[row]],
        "bar": "yes" if stage.bar[row, 1] > stage.bar[row, 0] else None,
    }


def _thing(cast: SceneObjects, view: VideoShape, row: int, slot: int) -> Facts:
    at = row * cast.present.shape[1] + slot
    motion = MOTIONS[cast.motion[row, slot]] if view.frames > 1 else None
    turn, speed = int(cast.paths.turn[at]), float(cast.paths.speed[at])
    forms = {"diagonal": CORNERS, "orbit": TURNS, "spin": TURNS}.get(motion or "")
    moves = motion not in (None, "still", "grow", "shrink", "spin")
    return {
        "shape": KINDS[cast.shape[row, slot]],
        "colour": list(COLOURS)[cast.colour[row, slot]],
        "size": "large" if cast.large[row, slot] else "small",
        "motion": motion,
        "turn": forms[turn] if forms else None,
        "wall": SIDES[turn] if motion == "bounce" else None,
        "bounces": int(cast.paths.bounces[at]),
        "speed": ("slow" if speed < SLOW else "fast" if speed > FAST else None) if moves else None,
        "start": _place(cast.paths.x[at, 0] / view.width, cast.paths.y[at, 0] / view.height),
        "sides_per_second": speed,
    }


def _place(x: float, y: float) -> str:
    """Return the name of the ninth of the image that contains a position."""
    names = (("upper left", "top", "upper right"), ("left", "centre", "right"), ("lower left", "bottom", "lower right"))
    return names[min(max(int(3 * y), 0), 2)][min(max(int(3 * x), 0), 2)]
