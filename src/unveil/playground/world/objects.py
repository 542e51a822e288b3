"""Random objects of a video: shapes, colours, sizes and motions, and trajectories without overlap."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unveil.data.tensor_dataset import Split, is_held_out
from unveil.playground.shapes import COLOURS, KINDS
from unveil.playground.world.motion import (
    DRAWS,
    MOTIONS,
    Real,
    Trajectories,
    VideoShape,
    Whole,
    is_possible,
    radii,
    trajectories,
)

_TRIES = 8  # places tried for each object but the first before it is left out
_GAP = 1.0  # pixels that stay between two objects
PER_OBJECT = 4 + _TRIES * DRAWS  # random numbers: shape and motion, size, radius, one in reserve; paths


class ObjectAttributes(NamedTuple):
    """Attributes of the objects of B videos, (B, N) each; shape, colour and motion index KINDS, COLOURS and MOTIONS."""

    shape: Whole
    colour: Whole
    large: NDArray[np.bool_]
    motion: Whole


class SceneObjects(NamedTuple):
    """The objects of B videos, (B, N) each.

    Attributes:
        shape, colour, large, motion: As in `ObjectAttributes`.
        paths: Trajectories of B * N objects, flat.
        present: False if no free trajectory was found.
    """

    shape: Whole
    colour: Whole
    large: NDArray[np.bool_]
    motion: Whole
    present: NDArray[np.bool_]
    paths: Trajectories


def is_held_out_combination(colour: str, shape: str, motion: str) -> bool:
    """Return True if no training video shows this combination; a hash selects one of ten."""
    return is_held_out(f"{motion} {colour} {shape}")


def sample_objects(
    draws: Real, hues: Whole, wanted: Whole, view: VideoShape, motions: Sequence[str], *, part: Split = "held-out"
) -> SceneObjects:
    """Sample the objects of B videos.

    Args:
        draws: (B, N * PER_OBJECT) random numbers in [0, 1).
        hues: (B, N) colour of each object, all different within a video.
        wanted: (B,) number of objects, 1 to N.
        motions: Allowed motions, if the video is long enough; in a single frame nothing moves.
        part: Split; "train" never contains a held-out combination.
    """
    batch, count = hues.shape
    object_draws = draws.reshape(batch, count, PER_OBJECT)
    table, sizes = _pairs(tuple(motions), view.frames, part)
    pick = (object_draws[..., 0] * sizes[hues]).astype(np.int64)
    shape, motion = table[hues, pick, 0], table[hues, pick, 1]
    large = object_draws[..., 1] < 0.5
    return place_objects(
        ObjectAttributes(shape, hues, large, motion), np.arange(count) < wanted[:, None], object_draws, view
    )


def place_objects(things: ObjectAttributes, present: NDArray[np.bool_], draws: Real, view: VideoShape) -> SceneObjects:
    """Find trajectories without collisions for the objects of B videos.

    Args:
        things: Attributes of the objects; each motion must be possible.
        present: (B, N) mask of the objects; an object without a free trajectory is omitted.
        draws: (B, N, PER_OBJECT) random numbers in [0, 1), of which the first two are unused.
        view: Size and length of the video.
    """
    shape, _, large, motion = things
    batch, count = shape.shape
    radius = radii(large, draws[..., 2], view)
    tries = draws[..., 4:].reshape(batch, count, _TRIES, DRAWS)
    present = present.copy()
    placed: list[Trajectories] = []
    for slot in range(count):
        number = 1 if slot == 0 else _TRIES
        ways = trajectories(
            np.repeat(motion[:, slot], number),
            np.repeat(shape[:, slot], number),
            np.repeat(radius[:, slot], number),
            tries[:, slot, :number].reshape(-1, DRAWS),
            view,
        )
        free = np.ones((batch, number), dtype=bool)
        for other in range(slot):
            free &= _apart(ways, placed[other], number) | ~present[:, other, None]
        chosen = np.arange(batch) * number + free.argmax(1)
        placed.append(Trajectories._make(field[chosen] for field in ways))
        present[:, slot] &= free.any(1)
    together = Trajectories._make(
        np.stack(same, axis=1).reshape(-1, *same[0].shape[1:]) for same in zip(*placed, strict=True)
    )
    return SceneObjects(*things, present, together)


def _apart(ways: Trajectories, other: Trajectories, number: int) -> NDArray[np.bool_]:
    """Return which attempts (B * number, T) avoid another object (B, T) in all frames: (B, number)."""
    x, y, radius = (field.reshape(-1, number, field.shape[-1]) for field in (ways.x, ways.y, ways.radius))
    apart = np.maximum(np.abs(x - other.x[:, None]), np.abs(y - other.y[:, None]))
    return np.asarray((apart > radius + other.radius[:, None] + _GAP).all(-1))


@cache
def _pairs(motions: tuple[str, ...], frames: int, part: Split) -> tuple[Whole, Whole]:
    """Return for each colour the allowed pairs of shape and motion, (8, most, 2), and their numbers, (8,)."""
    rows: list[list[tuple[int, int]]] = []
    for colour in COLOURS:
        pairs = [
            (number, MOTIONS.index(motion))
            for number, shape in enumerate(KINDS)
            for motion in motions
            if is_possible(motion, shape, frames)
            and not (part == "train" and is_held_out_combination(colour, shape, motion))
        ]
        # one frame shows no motion, and so no combination with one
        rows.append(pairs or [(number, MOTIONS.index("still")) for number in range(len(KINDS))])
    table = np.zeros((len(rows), max(map(len, rows)), 2), dtype=np.int64)
    for row, pairs in enumerate(rows):
        table[row, : len(pairs)] = pairs
    return table, np.array([len(pairs) for pairs in rows])
