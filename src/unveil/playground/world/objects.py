"""Who plays in a clip: shapes, colours, sizes and motions of its objects, and places where they do not meet."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unveil.data.tensor_dataset import Part, is_held_out
from unveil.playground.shapes import COLOURS, KINDS
from unveil.playground.world.motion import DRAWS, MOTIONS, Paths, Real, View, Whole, paths, possible, radii

_TRIES = 8  # places tried for each object but the first before it is left out
_GAP = 1.0  # pixels that stay between two objects
PER_OBJECT = 4 + _TRIES * DRAWS  # random numbers: shape and motion, size, radius, one in reserve; paths


class Things(NamedTuple):
    """What the objects of B clips are, (B, N) each: shape into KINDS, colour into COLOURS, motion into MOTIONS."""

    shape: Whole
    colour: Whole
    large: NDArray[np.bool_]
    motion: Whole


class Cast(NamedTuple):
    """The objects of B clips, (B, N) each; present is False where an object found no place.

    The first four as in `Things`. paths: of B * N objects, flat.
    """

    shape: Whole
    colour: Whole
    large: NDArray[np.bool_]
    motion: Whole
    present: NDArray[np.bool_]
    paths: Paths


def held_out(colour: str, shape: str, motion: str) -> bool:
    """Whether no training clip shows a thing of this colour and shape in this motion: one of ten, by its hash."""
    return is_held_out(f"{motion} {colour} {shape}")


def cast(
    draws: Real, hues: Whole, wanted: Whole, view: View, motions: Sequence[str], *, part: Part = "held-out"
) -> Cast:
    """Draws the objects of B clips.

    Args:
        draws: (B, N * PER_OBJECT) in [0, 1).
        hues: (B, N) the colour of each object, all different within a clip.
        wanted: (B,) how many objects, 1 to N.
        motions: which may occur, if the clip is long enough; in one frame nothing moves.
        part: "train" never has a combination that is held out.
    """
    batch, count = hues.shape
    own = draws.reshape(batch, count, PER_OBJECT)
    table, sizes = _pairs(tuple(motions), view.frames, part)
    pick = (own[..., 0] * sizes[hues]).astype(np.int64)
    shape, motion = table[hues, pick, 0], table[hues, pick, 1]
    large = own[..., 1] < 0.5
    return placed(Things(shape, hues, large, motion), np.arange(count) < wanted[:, None], own, view)


def placed(things: Things, present: NDArray[np.bool_], draws: Real, view: View) -> Cast:
    """Finds the objects of B clips their ways, on which they do not meet.

    Args:
        things: what they are; each motion one that is possible.
        present: (B, N) which there are; one that finds no place is not in the clip.
        draws: (B, N, PER_OBJECT) in [0, 1), of which the first two are not looked at.
        view: size and length.
    """
    shape, _, large, motion = things
    batch, count = shape.shape
    radius = radii(large, draws[..., 2], view)
    tries = draws[..., 4:].reshape(batch, count, _TRIES, DRAWS)
    present = present.copy()
    found: list[Paths] = []
    for slot in range(count):
        number = 1 if slot == 0 else _TRIES
        ways = paths(
            np.repeat(motion[:, slot], number),
            np.repeat(shape[:, slot], number),
            np.repeat(radius[:, slot], number),
            tries[:, slot, :number].reshape(-1, DRAWS),
            view,
        )
        free = np.ones((batch, number), dtype=bool)
        for other in range(slot):
            free &= _apart(ways, found[other], number) | ~present[:, other, None]
        chosen = np.arange(batch) * number + free.argmax(1)
        found.append(Paths._make(field[chosen] for field in ways))
        present[:, slot] &= free.any(1)
    together = Paths._make(np.stack(same, axis=1).reshape(-1, *same[0].shape[1:]) for same in zip(*found, strict=True))
    return Cast(*things, present, together)


def _apart(ways: Paths, other: Paths, number: int) -> NDArray[np.bool_]:
    """Which of each clip's tries (B * number, T) keep clear of its other object (B, T) in all frames: (B, number)."""
    x, y, radius = (field.reshape(-1, number, field.shape[-1]) for field in (ways.x, ways.y, ways.radius))
    apart = np.maximum(np.abs(x - other.x[:, None]), np.abs(y - other.y[:, None]))
    return np.asarray((apart > radius + other.radius[:, None] + _GAP).all(-1))


@cache
def _pairs(motions: tuple[str, ...], frames: int, part: Part) -> tuple[Whole, Whole]:
    """Of each colour the pairs of shape and motion that may be drawn, (8, most, 2), and how many they are, (8,)."""
    rows: list[list[tuple[int, int]]] = []
    for colour in COLOURS:
        pairs = [
            (number, MOTIONS.index(motion))
            for number, shape in enumerate(KINDS)
            for motion in motions
            if possible(motion, shape, frames) and not (part == "train" and held_out(colour, shape, motion))
        ]
        # one frame shows no motion, and so no combination with one
        rows.append(pairs or [(number, MOTIONS.index("still")) for number in range(len(KINDS))])
    table = np.zeros((len(rows), max(map(len, rows)), 2), dtype=np.int64)
    for row, pairs in enumerate(rows):
        table[row, : len(pairs)] = pairs
    return table, np.array([len(pairs) for pairs in rows])
