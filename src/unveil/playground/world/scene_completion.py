"""A clip that is only partly told, imagined as a whole: what is not said is drawn as the playground draws it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unveil.playground.scenes import uniforms
from unveil.playground.shapes import COLOURS, KINDS
from unveil.playground.world import rendering as staging
from unveil.playground.world.attributes import facts_of
from unveil.playground.world.caption_templates import Facts
from unveil.playground.world.motion import CORNERS, MOTIONS, SPINNING, TEN, TURNS, Real, View
from unveil.playground.world.objects import PER_OBJECT, Things, placed
from unveil.playground.world.special_scenes import DRAWS as SHOT_DRAWS
from unveil.playground.world.special_scenes import Shot

TRIED = 512  # clips that are drawn; the first of those that show most of what is said is taken
_PICKS = 4  # random numbers of a thing: colour, shape, size, motion
# What a thing may do of which this is said: an attribute, or the value of a turn.
_SHOWN_BY: Mapping[str, tuple[str, ...]] = {
    "wall": ("bounce",),
    "speed": ("left", "right", "up", "down", "diagonal", "bounce", "orbit"),
    "bar": ("left", "right", "up", "down"),
    "camera": ("still",),
    **{turn: ("diagonal",) for turn in CORNERS},
    **{turn: ("orbit", "spin") for turn in TURNS},
}


def imagined(said: Facts, view: View, seed: int, shots: Mapping[str, Callable[[Real, View], Shot]]) -> Facts:
    """The facts of a clip of which some are said; these stay as they are, whatever the playground could show.

    Args:
        said: as `Caption.said` has it, at least one object or a scene.
        view: size and length of the clip.
        seed: of what is not said.
        shots: the scenes that are not of objects, by name.
    """
    if (scene := said.get("scene", "objects")) != "objects":
        facts = shots[scene](uniforms(seed, _numbers(), SHOT_DRAWS), view).facts
        best = max(facts, key=lambda one: _agreement(said, one))
        return {**best, **{name: value for name, value in said.items() if name != "objects"}}
    things: Sequence[Facts] = said["objects"]
    drawn = _drawn(said, view, seed)
    if not drawn:  # no clip has room for all of them, but words have
        alone = [imagined({**said, "objects": [one]}, view, seed + number, shots) for number, one in enumerate(things)]
        return {**alone[0], "objects": [thing for one in alone for thing in one["objects"]]}
    best = max(drawn, key=lambda one: _agreement(said, one))
    told = [{**own, **one} for own, one in zip(best["objects"], things, strict=True)]
    return {**best, **{name: value for name, value in said.items() if name != "objects"}, "objects": told}


def _drawn(said: Facts, view: View, seed: int) -> list[Facts]:
    """What the playground draws of things of which some is said, where there is room for all."""
    things, numbers = said["objects"], _numbers()
    picks = uniforms(seed, numbers, _PICKS * len(things)).reshape(TRIED, len(things), _PICKS)
    cast = placed(
        _things(said, picks, view),
        np.ones((TRIED, len(things)), dtype=bool),
        uniforms(seed + 1, numbers, len(things) * PER_OBJECT).reshape(TRIED, len(things), PER_OBJECT),
        view,
    )
    shares = staging.Shares(
        float(said.get("ground") in staging.PATTERNS),
        float("bar" in said),
        float(said.get("camera", "static") != "static"),
    )
    cast, stage = staging.stage(cast, uniforms(seed + 2, numbers, staging.DRAWS), view, shares)
    return [facts_of(cast, stage, view, int(row)) for row in np.flatnonzero(cast.present.all(1))]


def _numbers() -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.arange(TRIED, dtype=np.uint64)


def _agreement(said: Facts, facts: Facts) -> int:
    """How much of what is said a clip shows."""
    found = sum(facts.get(name) == value for name, value in said.items() if name != "objects")
    for own, one in zip(facts.get("objects", []), said.get("objects", []), strict=False):
        found += sum(own.get(name) == value for name, value in one.items())
    return found


def _things(said: Facts, picks: Real, view: View) -> Things:
    """What the things of each clip are: as is said, and else drawn, no colour twice."""
    objects: Sequence[Facts] = said["objects"]
    count = len(objects)
    colour, shape, motion = (np.zeros((TRIED, count), dtype=np.int64) for _ in range(3))
    large = np.zeros((TRIED, count), dtype=bool)
    for row in range(TRIED):
        taken = {one["colour"] for one in objects if "colour" in one}
        for slot, one in enumerate(objects):
            hue, kind, size, what = picks[row, slot].tolist()
            free = [name for name in COLOURS if name not in taken] or list(COLOURS)
            name = one.get("colour") or free[int(hue * len(free))]
            taken.add(name)
            moves = _motions(one, said, view)
            does = moves[int(what * len(moves))]
            kinds = SPINNING if does == "spin" else KINDS
            form = one.get("shape") or kinds[int(kind * len(kinds))]
            colour[row, slot], shape[row, slot] = list(COLOURS).index(name), KINDS.index(form)
            motion[row, slot] = MOTIONS.index(does)
            large[row, slot] = one["size"] == "large" if "size" in one else size < 0.5
    return Things(shape, colour, large, motion)


def _motions(one: Facts, said: Facts, view: View) -> tuple[str, ...]:
    """What a thing may do: what is said, or what goes with what else is said."""
    if "motion" in one:
        return (one["motion"],)
    found: tuple[str, ...] = TEN if view.frames > 1 else ("still",)
    around = {name: said[name] for name in ("bar", "camera") if said.get(name, "static") != "static"}
    for name, value in {**one, **around}.items():
        shown = _SHOWN_BY.get(name) or _SHOWN_BY.get(str(value)) or found
        found = tuple(motion for motion in shown if motion in (*found, "spin")) or found
    return tuple(motion for motion in found if motion != "spin" or one.get("shape", "square") in SPINNING)
