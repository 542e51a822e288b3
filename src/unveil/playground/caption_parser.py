"""Parser of playground captions: it converts text of any style, in English or Chinese, to attributes.

A caption is split at pauses ("and", a comma). The phrases of a part belong to the object that is named there; in a part
without an object, to the previous object. If the object of a phrase is unclear, `ambiguous` reports it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from unveil.playground.world.caption_templates import LISTS, OPPOSITE, Facts, Language, words

# Said of the video, not of one thing.
_CLIP = ("ground", "camera", "bar", "scene", "line", "orbit", "front", "walk", "fate")
_ADJECTIVES = ("size", "colour")
# The wall that a thing comes to on its way.
_AHEAD = {"left": "left", "right": "right", "up": "top", "down": "bottom", "diagonal": None}
_PAUSE: dict[Language, re.Pattern[str]] = {
    "en": re.compile(r"[,.;:]|\b(?:and|then)\b"),
    "zh": re.compile("[\uff0c\u3002\uff1b\u3001,.;\u548c]"),
}
_BOTH = "\u548c"  # "and" between two objects; what follows applies to both
_KNOWN: dict[Language, re.Pattern[str]] = {
    "en": re.compile(r"\b(?:the|this|that)\b"),
    "zh": re.compile("[\u8fd9\u90a3\u8be5]"),
}
_LETTERS = re.compile(r"[^\W_]+")


class _Said(NamedTuple):
    """A phrase with its meaning and position."""

    attribute: str
    value: str
    begin: int
    end: int


class _Read(NamedTuple):
    """Parsed caption. `other` has the attributes with two values, `unclear` those whose object is ambiguous."""

    facts: Facts
    other: list[str]
    unclear: list[str]


def language_of(caption: str) -> Language:
    """Return "zh" if the caption has a Chinese character, else "en"."""
    return "zh" if re.search(r"[\u4e00-\u9fff]", caption) else "en"


def parse(caption: str) -> Facts:
    """Return the attributes that a caption states, as `SceneCaption.facts`: "objects", and facts of the whole video.

    Words without meaning are ignored. "moves left, bounces off the left wall" is a bounce.
    """
    return _read(caption).facts


def contradictory(caption: str) -> list[str]:
    """Return the attributes with two values for one object, or for the video; `parse` takes the first one.

    Examples: "moves up and down", "a red and blue circle". A bounce and the direction that leads to the wall are one
    motion.
    """
    return _read(caption).other


def ambiguous(caption: str) -> list[str]:
    """Return the attributes whose object is ambiguous, such as the size in "a red circle, large and a blue ring".

    "shape" means that the number of objects is unclear: "a circle, the circle moves left" has one or two.
    """
    return _read(caption).unclear


def unparsed(caption: str) -> list[str]:
    """Return the words and numbers of a caption that `parse` does not understand; articles are ignored.

    Words of alt-text ("video 0231"), fixed words of a scene's sentence in this scene, and "moves" before a direction
    are understood. A bare "left" before an object with an article is a position, and is returned.
    """
    language, text = language_of(caption), caption.lower()
    phrases = list(_said(text, language))
    left = _without(text, phrases)
    for pattern in _passed_over(language):
        left = pattern.sub(" ", left)
    plain = _plain(language, next((phrase.value for phrase in phrases if phrase.attribute == "scene"), ""))
    if language == "en":
        goes = _verbs() if _all_go(text, phrases) else frozenset[str]()
        leftover = [word for word in _LETTERS.findall(left) if word not in plain and word not in goes]
    else:
        parts = _LETTERS.findall("".join(" " if sign in plain else sign for sign in left))
        leftover = [part for part in parts if part not in _plain("en", "")]
    return leftover or [
        text[phrase.begin : phrase.end] for phrase in phrases if _is_place(text, phrase, phrases, language)
    ]


# ---------------------------------------------------------------------- binding of attributes to objects


def _read(caption: str) -> _Read:
    language, text = language_of(caption), caption.lower()
    phrases, other, unsure = list(_said(text, language)), list[str](), list[str]()
    clip: Facts = {}
    for phrase in phrases:
        if phrase.attribute in _CLIP and clip.setdefault(phrase.attribute, phrase.value) != phrase.value:
            other.append(phrase.attribute)
    things = _things(text, [phrase for phrase in phrases if phrase.attribute not in _CLIP], language, unsure)
    facts = [_facts(thing, other) for thing in things]
    if "scene" in clip:  # a scene has facts of its own, and no things
        implied = _implied(language, clip["scene"])
        for name, value in [entry for thing in facts for entry in thing.items()]:
            if implied.get(name) == value:
                continue
            if name in ("motion", "size") or clip.setdefault(name, value) != value:
                other.append(name)
        return _Read({"objects": [], **clip}, other, [])
    if len(facts) > 1:
        unsure += ["shape" for thing in facts if "shape" not in thing]
        unsure += _again(text, things, facts, language)
    return _Read({"objects": facts, **clip}, other, unsure)


def _things(text: str, phrases: Sequence[_Said], language: Language, unsure: list[str]) -> list[list[_Said]]:
    """Group the phrases by object, in the order of the caption."""
    parts = list(_parts(text, phrases, language))
    things: list[list[_Said]] = []
    ahead: list[_Said] = []  # phrases before their object
    for number, part in enumerate(parts):
        if _names(part):
            (first, *rest) = _split(part)
            if rest and first[-1].attribute != "shape":  # "moves down the red square"
                unsure.append("shape")
            things += [[*ahead, *first], *rest]
            ahead = []
        elif not things:
            ahead += part
        elif (
            all(phrase.attribute in _ADJECTIVES for phrase in part)
            and number + 1 < len(parts)
            and _names(parts[number + 1])
        ):
            following = {phrase.attribute for phrase in _split(parts[number + 1])[0]}
            for phrase in part:  # "a red circle and a big, blue ring"
                before, after = (
                    phrase.attribute in {earlier.attribute for earlier in things[-1]},
                    phrase.attribute in following,
                )
                if before == after:
                    unsure.append(phrase.attribute)
                (ahead if before else things[-1]).append(phrase)
        else:
            things[-1] += part
    return [*things, ahead] if ahead else things


def _parts(text: str, phrases: Sequence[_Said], language: Language) -> Iterator[list[_Said]]:
    """Yield the phrases between two pauses."""
    part: list[_Said] = []
    for phrase in phrases:
        if part and _PAUSE[language].search(text, part[-1].end, phrase.begin):
            yield part
            part = []
        part.append(phrase)
    if part:
        yield part


def _split(part: Sequence[_Said]) -> list[list[_Said]]:
    """Split a part at its shapes: adjectives stand before a shape, everything else behind it."""
    groups: list[list[_Said]] = []
    begin = 0
    shapes = [place for place, phrase in enumerate(part) if phrase.attribute == "shape"]
    for place in shapes[1:]:
        first = place
        while part[first - 1].attribute in _ADJECTIVES:
            first -= 1
        groups.append([*part[begin:first]])
        begin = first
    return [*groups, [*part[begin:]]]


def _names(part: Sequence[_Said]) -> bool:
    return any(phrase.attribute == "shape" for phrase in part)


def _facts(thing: Sequence[_Said], other: list[str]) -> Facts:
    """Return the attributes of one object; `other` collects attributes with a second value."""
    facts: Facts = {}
    way: str | None = None  # that it bounces on
    for attribute, value, *_ in thing:
        if attribute == "wall" or value == "bounce":
            before = facts.get("motion", "bounce")
            if before != "bounce" and before not in _AHEAD:
                other.append("motion")
            way = _AHEAD.get(before, way)
            facts["motion"] = "bounce"
            if attribute == "wall" and value not in (first := facts.setdefault("wall", value), OPPOSITE[first]):
                other.append("wall")  # off one wall, then off the one across
        elif attribute == "motion" and facts.get("motion") == "bounce":
            if value not in _AHEAD:
                other.append("motion")
        elif facts.setdefault(attribute, value) != value:
            other.append(attribute)
    if way is not None and facts.setdefault("wall", way) != way:
        other.append("motion")  # it went to another wall
    return facts


def _again(text: str, things: Sequence[Sequence[_Said]], facts: Sequence[Facts], language: Language) -> Iterator[str]:
    """Yield the attributes that are ambiguous because several objects are named."""
    for place, (thing, attributes) in enumerate(zip(things, facts, strict=True)):
        begin = things[place - 1][-1].end if place else 0
        determiner = _KNOWN[language].search(text, begin, thing[0].begin)
        for before in facts[:place]:
            alike = attributes.get("shape") == before.get("shape") and attributes.get("colour") in (
                None,
                before.get("colour"),
            )
            if alike and (determiner or "colour" not in attributes):
                yield "shape"
        if language == "zh" and place and _BOTH in text[begin : thing[0].begin]:
            named = next((at for at, phrase in enumerate(thing) if phrase.attribute == "shape"), 0)
            if facts[place - 1].keys() <= {*_ADJECTIVES, "shape"}:
                yield from (phrase.attribute for phrase in thing[named + 1 :])
    if language == "en" and re.search(r"\bare\b", text):
        yield "motion"


@cache
def _implied(language: Language, scene: str) -> Facts:
    """Return the attributes that the fixed words of a scene's sentence would imply, such as the ball of a game."""
    fixed = re.sub(r"\{\w+\}", " ", words(language)["sentences"][scene]).lower()
    return {phrase.attribute: phrase.value for phrase in _said(fixed, language)}


# ---------------------------------------------------------------------- words


def _said(text: str, language: Language) -> Iterator[_Said]:
    """Yield every meaningful phrase of a lower-case text."""
    pattern, meanings = _lexicon(language)
    for match in pattern.finditer(text):
        yield _Said(*meanings[match.group()], *match.span())


def _without(text: str, phrases: Sequence[_Said]) -> str:
    for phrase in phrases:
        text = text[: phrase.begin] + " " * (phrase.end - phrase.begin) + text[phrase.end :]
    return text


def _is_place(text: str, phrase: _Said, phrases: Sequence[_Said], language: Language) -> bool:
    """Return True if a bare "left" may be a position instead of a direction; likewise "on green" before an object."""
    if language == "en" and phrase.attribute == "ground":
        after = next((other for other in phrases if other.begin >= phrase.end), None)
        return (
            after is not None and after.attribute in (*_ADJECTIVES, "shape") and text[phrase.end : after.begin] == " "
        )
    if language != "en" or phrase.attribute != "motion" or text[phrase.begin : phrase.end] not in _AHEAD:
        return False
    part = next((part for part in _parts(text, phrases, language) if phrase in part), [phrase])
    before = [other for other in part if other.begin < phrase.begin]
    since = text[max((other.end for other in phrases if other.end <= part[0].begin), default=0) : phrase.begin]
    return bool(re.search(r"\b(?:starts?|at)\s*$", since)) or (
        not _names(before) and bool(re.search(r"\b(?:a|an|the)\b", since))
    )


def _all_go(text: str, phrases: Sequence[_Said]) -> bool:
    """Return True if every "moves" is followed by a direction."""
    ways = [phrase for phrase in phrases if phrase.attribute in ("motion", "turn", "wall")]
    left = _without(text, phrases)
    for match in re.finditer(r"[a-z]+", left):
        if match.group() in _verbs():
            after = next((phrase for phrase in ways if phrase.begin >= match.end()), None)
            if after is None or _PAUSE["en"].search(text, match.end(), after.begin):
                return False
    return True


@cache
def _verbs() -> frozenset[str]:
    return frozenset(words("en")["goes"].split())


@cache
def _lexicon(language: Language) -> tuple[re.Pattern[str], dict[str, tuple[str, str]]]:
    """Return the pattern of all phrases, longest first, and their meanings; one-character motions stand alone."""
    table = words(language)
    meanings = {
        phrase: (attribute, value)
        for attribute in LISTS
        for value, phrases in table[attribute].items()
        for phrase in phrases
    }
    for attribute, values in table["also"].items():
        meanings |= {phrase: (attribute, value) for value, phrases in values.items() for phrase in phrases}
    spelled = "|".join(
        rf"(?<!\S){phrase}(?!\S)" if language == "zh" and len(phrase) == 1 and meanings[phrase][0] == "motion"
        else re.escape(phrase)
        for phrase in sorted(meanings, key=len, reverse=True)
    )  # fmt: skip
    edge = r"\b" if language == "en" else ""
    return re.compile(f"{edge}(?:{spelled}){edge}"), meanings


@cache
def _passed_over(language: Language) -> list[re.Pattern[str]]:
    """Return the patterns of text without meaning: the numbers of alt-text, and fixed phrases."""
    forms: Any = words(language)["sentences"]["raw"]
    fixed = [form.replace("{words}", "").strip() for form in forms]
    numbered = [re.escape(form).replace(re.escape("{number}"), r"\d+") for form in fixed]
    edge = r"\b" if language == "en" else ""
    return [
        re.compile(f"{edge}{pattern}{edge}") for pattern in [*numbered, *map(re.escape, words(language)["passed over"])]
    ]


@cache
def _plain(language: Language, scene: str) -> frozenset[str]:
    """Return the words, or Chinese characters, without own meaning; in a scene, including those of its sentence."""
    table = words(language)
    form = re.sub(r"\{\w+\}", " ", table["sentences"][scene]).lower() if scene else ""
    text = f"{table['plain']} {form}"
    return frozenset(re.findall(r"[a-z]+", text) if language == "en" else text)
