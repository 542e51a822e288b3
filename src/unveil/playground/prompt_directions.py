"""Places and directions of a free prompt: "in the top left corner", "from left to right", "off the left wall"."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from unveil.playground.prompt_tokens import Word

WAYS = {"left": "left", "right": "right", "up": "top", "down": "bottom"}  # direction -> side of the image ahead
_TOWARDS = {side: way for way, side in WAYS.items()}
_OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
_LINKS = ("article", "known", "plain", "copula", "shade", "at")
_PLACED = ("side", "centre", "corner", "edge", "wall", "direction")


class Course(NamedTuple):
    """Places and directions of a prompt.

    Attributes:
        ways: One direction, or a horizontal and a vertical one.
        start: Place of the first frame, as in `words.yaml`; None if it is not stated.
        walls: Sides of the image that are hit.
        omitted: What contradicts itself.
        first_motion: "way" if the directions come before the other motions.
    """

    ways: tuple[str, ...] = ()
    start: str | None = None
    walls: tuple[str, ...] = ()
    omitted: tuple[str, ...] = ()
    first_motion: str = ""


class _Part(NamedTuple):
    """One phrase of a place: its preposition, what it names, and its begin and end among the words."""

    preposition: str
    sides: tuple[str, ...]
    nouns: tuple[str, ...]  # kinds of words besides the sides
    directions: tuple[str, ...]
    begin: int
    end: int


def course_of(prompt_words: Sequence[Word]) -> Course:
    """Return the places and directions of a prompt.

    Args:
        prompt_words: Words of the prompt without those of the background and of further objects.
    """
    parts = _parts(prompt_words)
    ways: list[str] = []
    origins: list[str] = []
    places: list[str] = []
    walls: list[str] = []
    omitted: list[str] = []
    for number, part in enumerate(parts):
        following = parts[number + 1] if number + 1 < len(parts) else None
        role = _role(prompt_words, part, following)
        if role == "wall":
            walls += part.sides or part.directions
        elif role == "from":
            origins += [*(_TOWARDS[side] for side in part.sides), *part.directions]
        elif role == "to":
            ways += [*(_TOWARDS[side] for side in part.sides), *part.directions]
            if "centre" in part.nouns and not part.sides:
                omitted.append("a motion to the centre")
        elif role == "place":
            places.append(_place(part))
    first = min((part.begin for part in parts if part.directions or part.sides), default=len(prompt_words))
    verb = min((at for at, word in enumerate(prompt_words) if word.kind == "motion"), default=len(prompt_words))
    chosen, conflict = _consistent(ways)
    if not chosen and origins and not any(word.kind == "motion" for word in prompt_words):
        chosen, _ = _consistent([_OPPOSITE[way] for way in origins])
    if conflict:
        omitted.append("more than one direction")
    if not places and origins and chosen:
        places += _origin(origins, chosen)
    start, twice = _one_place(places)
    omitted += ["more than one place"] if twice else []
    return Course(tuple(chosen), start, tuple(walls), tuple(omitted), "way" if first < verb else "")


def _parts(prompt_words: Sequence[Word]) -> list[_Part]:
    parts: list[_Part] = []
    at = 0
    while at < len(prompt_words):
        part = _part(prompt_words, at)
        if part is None:
            at += 1
        else:
            parts.append(part)
            at = part.end
    return parts


def _part(prompt_words: Sequence[Word], begin: int) -> _Part | None:
    """Return the phrase of a place or direction that begins at a word; None if there is none."""
    at, preposition = begin, ""
    if prompt_words[at].kind in ("to", "from", "at", "hit"):
        preposition = prompt_words[at].kind
        at += 1
        while at < len(prompt_words) and prompt_words[at].kind in ("article", "known", "plain", "to", "at", "shade"):
            preposition = (
                prompt_words[at].kind if prompt_words[at].kind == "to" and preposition in ("at", "hit") else preposition
            )
            at += 1
    if at < len(prompt_words) and prompt_words[at].kind == "sky" and preposition in ("from", "to"):
        return _Part(preposition, ("top",), (), (), begin, at + 1)
    sides: list[str] = []
    nouns: list[str] = []
    directions: list[str] = []
    first = at
    while at < len(prompt_words):
        kind = prompt_words[at].kind
        of_wall = (
            prompt_words[at].text == "\u7684"
            and at + 1 < len(prompt_words)
            and prompt_words[at + 1].kind in ("wall", "corner")
        )
        if kind == "side":
            sides.append(prompt_words[at].value)
        elif (
            kind == "direction"
            and not sides
            and not nouns
            and not directions
            and not _is_verb(prompt_words[at], preposition)
        ):
            directions.append(prompt_words[at].value)
        elif kind in ("centre", "corner", "edge", "wall"):
            nouns.append(kind)
        elif not of_wall or at == first:
            break
        at += 1
    if not sides and not directions and not {"centre", "corner"} & set(nouns):
        return None
    return _Part(preposition, tuple(sides), tuple(nouns), tuple(directions), begin, at)


def _is_verb(word: Word, preposition: str) -> bool:
    """Return True for a verb behind "from", in contrast to a place: "falls", not "up"."""
    return preposition == "from" and word.text not in ("up", "down")


def _role(prompt_words: Sequence[Word], part: _Part, following: _Part | None) -> str:
    """Return what a phrase states: "wall", "from", "to" or "place"."""
    leads = following is not None and following.preposition == "to" and following.begin == part.end
    if part.preposition == "hit" or "wall" in part.nouns:
        return "wall" if part.sides or part.directions else "none"
    if part.preposition in ("from", "to"):
        return part.preposition
    if part.directions:
        return "from" if leads and part.preposition == "at" else "to"
    if leads:
        return "from"
    if part.preposition == "at" or ({"centre", "corner"} & set(part.nouns) and not part.sides):
        return "place"
    before = prompt_words[part.begin - 1] if part.begin else None
    behind = prompt_words[part.end] if part.end < len(prompt_words) else None
    if prompt_words[part.begin].language == "zh":
        return "place" if part.nouns else "to"
    moving = before is not None and before.kind in ("go", "direction", "speed")
    if moving or (before is not None and before.kind == "also" and not part.nouns):
        return "to"
    adjective = behind is not None and behind.kind in ("size", "colour", "nearest", "shape")
    definite = before is not None and before.kind in ("article", "known")
    if part.nouns or (adjective and definite) or {"top", "bottom"} & set(part.sides):
        return "place"
    return "to"


def _consistent(ways: Sequence[str]) -> tuple[list[str], bool]:
    """Return the first direction along each axis, and whether others contradict them."""
    across = [way for way in dict.fromkeys(ways) if way in ("left", "right")]
    upright = [way for way in dict.fromkeys(ways) if way in ("up", "down")]
    return [*across[:1], *upright[:1]], len(across) > 1 or len(upright) > 1


def _origin(origins: Collection[str], ways: Sequence[str]) -> list[str]:
    """Return the place that a motion sets out from, if it is opposite to the direction along every axis."""
    if {_OPPOSITE[way] for way in ways} != set(origins):
        return []
    return [_named_place(tuple(WAYS[way] for way in origins))]


def _place(part: _Part) -> str:
    if not part.sides:
        return "centre" if "centre" in part.nouns else "upper left"  # any corner
    return _named_place(part.sides)


def _named_place(sides: Sequence[str]) -> str:
    upright = next((side for side in sides if side in ("top", "bottom")), "")
    across = next((side for side in sides if side in ("left", "right")), "")
    if upright and across:
        return f"{'upper' if upright == 'top' else 'lower'} {across}"
    return upright or across or "centre"


def _one_place(places: Sequence[str]) -> tuple[str | None, bool]:
    """Return the first place, and whether others contradict it; the middle of a side is at this side."""
    named = list(dict.fromkeys(places))
    sides = [place for place in named if place != "centre"] or named
    return (sides[0] if sides else None), len(sides) > 1
