"""Completion of partly specified videos: missing attributes are sampled from the playground's distribution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unveil.playground.scenes import uniforms
from unveil.playground.shapes import COLOURS, KINDS
from unveil.playground.world import rendering as staging
from unveil.playground.world.attributes import facts_of
from unveil.playground.world.caption_templates import Facts
from unveil.playground.world.motion import CORNERS, MOTIONS, SPINNING, TEN, TURNS, Real, VideoShape
from unveil.playground.world.objects import PER_OBJECT, ObjectAttributes, place_objects
from unveil.playground.world.special_scenes import DRAWS as SHOT_DRAWS
from unveil.playground.world.special_scenes import SceneBatch

TRIED = 512  # candidate videos; the first that shows most of the given attributes is taken
_PICKS = 4  # random numbers of a thing: colour, shape, size, motion
# Motions that an attribute, or the value of a turn, implies.
_SHOWN_BY: Mapping[str, tuple[str, ...]] = {
    "wall": ("bounce",),
    "speed": ("left", "right", "up", "down", "diagonal", "bounce", "orbit"),
    "bar": ("left", "right", "up", "down"),
    "camera": ("still",),
    **{turn: ("diagonal",) for turn in CORNERS},
    **{turn: ("orbit", "spin") for turn in TURNS},
}


def complete_scene(
    prompted: Facts, view: VideoShape, seed: int, shots: Mapping[str, Callable[[Real, VideoShape], SceneBatch]]
) -> Facts:
    """Complete partly specified attributes of a video; specified ones are kept even if the playground lacks them.

    Args:
        prompted: Specified attributes as in `SceneCaption.facts`, at least one object or a scene.
        view: Size and length of the video.
        seed: Seed of the missing attributes.
        shots: Special scenes by name.
    """
    if (scene := prompted.get("scene", "objects")) != "objects":
        facts = shots[scene](uniforms(seed, _numbers(), SHOT_DRAWS), view).facts
        best = max(facts, key=lambda candidate: _agreement(prompted, candidate))
        return {**best, **{name: value for name, value in prompted.items() if name != "objects"}}
    things: Sequence[Facts] = prompted["objects"]
    drawn = _drawn(prompted, view, seed)
    if not drawn:  # no video has room for all of them, but words have
        alone = [
            complete_scene({**prompted, "objects": [candidate]}, view, seed + number, shots)
            for number, candidate in enumerate(things)
        ]
        return {**alone[0], "objects": [thing for candidate in alone for thing in candidate["objects"]]}
    best = max(drawn, key=lambda candidate: _agreement(prompted, candidate))
    completed = [{**drawn_object, **candidate} for drawn_object, candidate in zip(best["objects"], things, strict=True)]
    return {**best, **{name: value for name, value in prompted.items() if name != "objects"}, "objects": completed}


def _drawn(prompted: Facts, view: VideoShape, seed: int) -> list[Facts]:
    """Sample candidate videos with the specified attributes, as far as all objects fit."""
    things, numbers = prompted["objects"], _numbers()
    picks = uniforms(seed, numbers, _PICKS * len(things)).reshape(TRIED, len(things), _PICKS)
    cast = place_objects(
        _things(prompted, picks, view),
        np.ones((TRIED, len(things)), dtype=bool),
        uniforms(seed + 1, numbers, len(things) * PER_OBJECT).reshape(TRIED, len(things), PER_OBJECT),
        view,
    )
    shares = staging.SceneProbabilities(
        float(prompted.get("ground") in staging.PATTERNS),
        float("bar" in prompted),
        float(prompted.get("camera", "static") != "static"),
    )
    cast, stage = staging.set_up_scene(cast, uniforms(seed + 2, numbers, staging.DRAWS), view, shares)
    return [facts_of(cast, stage, view, int(row)) for row in np.flatnonzero(cast.present.all(1))]


def _numbers() -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.arange(TRIED, dtype=np.uint64)


def _agreement(prompted: Facts, facts: Facts) -> int:
    """Return the number of specified attributes that a video shows."""
    matches = sum(facts.get(name) == value for name, value in prompted.items() if name != "objects")
    for shown, wanted in zip(facts.get("objects", []), prompted.get("objects", []), strict=False):
        matches += sum(shown.get(name) == value for name, value in wanted.items())
    return matches


def _things(prompted: Facts, picks: Real, view: VideoShape) -> ObjectAttributes:
    """Return the objects' attributes: specified, or sampled with different colours."""
    objects: Sequence[Facts] = prompted["objects"]
    count = len(objects)
    colour, shape, motion = (np.zeros((TRIED, count), dtype=np.int64) for _ in range(3))
    large = np.zeros((TRIED, count), dtype=bool)
    for row in range(TRIED):
        taken = {thing["colour"] for thing in objects if "colour" in thing}
        for slot, thing in enumerate(objects):
            hue, kind, size, what = picks[row, slot].tolist()
            free = [name for name in COLOURS if name not in taken] or list(COLOURS)
            name = thing.get("colour") or free[int(hue * len(free))]
            taken.add(name)
            moves = _motions(thing, prompted, view)
            does = moves[int(what * len(moves))]
            kinds = SPINNING if does == "spin" else KINDS
            form = thing.get("shape") or kinds[int(kind * len(kinds))]
            colour[row, slot], shape[row, slot] = list(COLOURS).index(name), KINDS.index(form)
            motion[row, slot] = MOTIONS.index(does)
            large[row, slot] = thing["size"] == "large" if "size" in thing else size < 0.5
    return ObjectAttributes(shape, colour, large, motion)


def _motions(thing: Facts, prompted: Facts, view: VideoShape) -> tuple[str, ...]:
    """Return the motions that the specified attributes of an object allow."""
    if "motion" in thing:
        return (thing["motion"],)
    allowed: tuple[str, ...] = TEN if view.frames > 1 else ("still",)
    around = {name: prompted[name] for name in ("bar", "camera") if prompted.get(name, "static") != "static"}
    for name, value in {**thing, **around}.items():
        shown = _SHOWN_BY.get(name) or _SHOWN_BY.get(str(value)) or allowed
        allowed = tuple(motion for motion in shown if motion in (*allowed, "spin")) or allowed
    return tuple(motion for motion in allowed if motion != "spin" or thing.get("shape", "square") in SPINNING)
