"""Captions of scenes of shapes, in English and in Chinese."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Literal, NamedTuple

import yaml

Language = Literal["en", "zh"]


class SceneObject(NamedTuple):
    """One object of a scene; x and y are fractions of the side. None means not mentioned."""

    kind: str | None
    colour: str | None
    size: Literal["small", "large"] | None
    x: float
    y: float


def english_caption(things: Sequence[SceneObject], *, relation: bool = False) -> str:
    """Return the caption in English: "a large red circle to the left of a small white ring".

    An object without a kind has no article: "red and a large ring".

    Args:
        things: Objects, in any order.
        relation: Whether to name the relative position of exactly two objects.
    """
    named = [_english(thing) for thing in things]
    if relation and len(things) == 2:
        return f"{named[0]} {relation_of(things[0], things[1])} {named[1]}"
    return named[0] if len(named) == 1 else ", ".join(named[:-1]) + " and " + named[-1]


def chinese_caption(things: Sequence[SceneObject], *, relation: bool = False) -> str:
    """Return the caption of `english_caption` in Chinese."""
    lexicon = chinese_words()
    named = [_chinese(thing, lexicon) for thing in things]
    if relation and len(things) == 2:
        return lexicon["relations"][relation_of(*things)].format(a=named[0], b=named[1])
    return named[0] if len(named) == 1 else lexicon["comma"].join(named[:-1]) + lexicon["last"] + named[-1]


CAPTIONS: Mapping[Language, Callable[..., str]] = {"en": english_caption, "zh": chinese_caption}


def relation_of(first: SceneObject, second: SceneObject) -> str:
    """Return the position of the first object relative to the second, in words."""
    across, down = second.x - first.x, second.y - first.y
    if abs(across) > abs(down):
        return "to the left of" if across > 0 else "to the right of"
    return "above" if down > 0 else "below"


@cache
def chinese_words() -> dict[str, Any]:
    """Return the words of Chinese captions."""
    return yaml.safe_load((resources.files("unveil") / "playground" / "scene_words.yaml").read_text("utf-8"))


def _english(thing: SceneObject) -> str:
    names = [word for word in (thing.size, thing.colour, thing.kind) if word]
    if thing.kind is None:
        return " ".join(names)
    return " ".join(["an" if names[0][0] in "aeiou" else "a", *names])


def _chinese(thing: SceneObject, lexicon: Mapping[str, Any]) -> str:
    size = lexicon["sizes"][thing.size] if thing.size else ""
    colour = lexicon["colours"][thing.colour] if thing.colour else ""
    return (
        f"{lexicon['article'] if thing.kind else ''}{size}{colour}{lexicon['kinds'][thing.kind] if thing.kind else ''}"
    )
