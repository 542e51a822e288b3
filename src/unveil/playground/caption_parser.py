"""What a caption of the playground says: the text read back into attributes, in either language and any register.

Words are read as the playground's captions, and people, put them: what is between two pauses ("and", a comma) belongs
to the thing that is named there, and where none is, to the one before. Where that leaves open which thing is meant,
`unclear` says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from unveil.playground.world.caption_templates import LISTS, OPPOSITE, Facts, Language, words

# Said of the clip, not of one thing.
_CLIP = ("ground", "camera", "bar", "scene", "line", "orbit", "front", "walk", "fate")
_ADJECTIVES = ("size", "colour")
# The wall that a thing comes to on its way.
_AHEAD = {"left": "left", "right": "right", "up": "top", "down": "bottom", "diagonal": None}
_PAUSE: dict[Language, re.Pattern[str]] = {
    "en": re.compile(r"[,.;:]|\b(?:and|then)\b"),
    "zh": re.compile("[\uff0c\u3002\uff1b\u3001,.;\u548c]"),
}
_BOTH = "\u548c"  # "and", between two things, of which what follows is said of either
_KNOWN: dict[Language, re.Pattern[str]] = {
    "en": re.compile(r"\b(?:the|this|that)\b"),
    "zh": re.compile("[\u8fd9\u90a3\u8be5]"),
}
_LETTERS = re.compile(r"[^\W_]+")


class _Said(NamedTuple):
    """One phrase that means something, and where it stands."""

    attribute: str
    value: str
    begin: int
    end: int


class _Read(NamedTuple):
    """What a caption says. other: attributes with two values. unclear: attributes of no one knows which thing."""

    facts: Facts
    other: list[str]
    unclear: list[str]


def language_of(caption: str) -> Language:
    """Chinese where there is a Chinese character, else English."""
    return "zh" if re.search(r"[\u4e00-\u9fff]", caption) else "en"


def parse(caption: str) -> Facts:
    """What a caption says, as `Caption.said` has it: "objects", a list with facts of each thing, and facts of the clip.

    Words that mean nothing here are passed over. "moves left, bounces off the left wall" is a bounce.
    """
    return _read(caption).facts


def twice(caption: str) -> list[str]:
    """Attributes of which a caption says two values of one thing, or of the clip; `parse` has the first one.

    Which of them is meant is not known: "moves up and down", "a red and blue circle". A bounce is no other motion
    than the way that leads to the wall.
    """
    return _read(caption).other


def unclear(caption: str) -> list[str]:
    """Attributes of which it is not clear whose they are, such as the size in "a red circle, large and a blue ring".

    "shape": it is not clear how many things there are: "a circle, the circle moves left" may be of two or of one.
    """
    return _read(caption).unclear


def unread(caption: str) -> list[str]:
    """The words and numbers of a caption that mean nothing to `parse` and may mean something; articles do not.

    Nor do the words of alt-text ("clip 0231"), those of a scene's sentence where it is this scene, and "moves" before
    what says which way. A bare "left" before a thing with an article is a place, and is among them.
    """
    language, text = language_of(caption), caption.lower()
    said = list(_said(text, language))
    left = _without(text, said)
    for pattern in _passed_over(language):
        left = pattern.sub(" ", left)
    plain = _plain(language, next((one.value for one in said if one.attribute == "scene"), ""))
    if language == "en":
        goes = _verbs() if _all_go(text, said) else frozenset[str]()
        found = [word for word in _LETTERS.findall(left) if word not in plain and word not in goes]
    else:
        parts = _LETTERS.findall("".join(" " if sign in plain else sign for sign in left))
        found = [part for part in parts if part not in _plain("en", "")]
    return found or [text[one.begin : one.end] for one in said if _is_place(text, one, said, language)]


# ---------------------------------------------------------------------- whose what is said is


def _read(caption: str) -> _Read:
    language, text = language_of(caption), caption.lower()
    said, other, unsure = list(_said(text, language)), list[str](), list[str]()
    clip: Facts = {}
    for one in said:
        if one.attribute in _CLIP and clip.setdefault(one.attribute, one.value) != one.value:
            other.append(one.attribute)
    things = _things(text, [one for one in said if one.attribute not in _CLIP], language, unsure)
    facts = [_facts(thing, other) for thing in things]
    if "scene" in clip:  # a scene has facts of its own, and no things
        own = _implied(language, clip["scene"])
        for name, value in [entry for thing in facts for entry in thing.items()]:
            if own.get(name) == value:
                continue
            if name in ("motion", "size") or clip.setdefault(name, value) != value:
                other.append(name)
        return _Read({"objects": [], **clip}, other, [])
    if len(facts) > 1:
        unsure += ["shape" for thing in facts if "shape" not in thing]
        unsure += _again(text, things, facts, language)
    return _Read({"objects": facts, **clip}, other, unsure)


def _things(text: str, said: Sequence[_Said], language: Language, unsure: list[str]) -> list[list[_Said]]:
    """What is said of each thing, in the order of the caption."""
    parts = list(_parts(text, said, language))
    things: list[list[_Said]] = []
    ahead: list[_Said] = []  # what is said before its thing
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
            all(one.attribute in _ADJECTIVES for one in part) and number + 1 < len(parts) and _names(parts[number + 1])
        ):
            following = {one.attribute for one in _split(parts[number + 1])[0]}
            for one in part:  # "a red circle and a big, blue ring"
                before, after = one.attribute in {own.attribute for own in things[-1]}, one.attribute in following
                if before == after:
                    unsure.append(one.attribute)
                (ahead if before else things[-1]).append(one)
        else:
            things[-1] += part
    return [*things, ahead] if ahead else things


def _parts(text: str, said: Sequence[_Said], language: Language) -> Iterator[list[_Said]]:
    """What is said between two pauses."""
    part: list[_Said] = []
    for one in said:
        if part and _PAUSE[language].search(text, part[-1].end, one.begin):
            yield part
            part = []
        part.append(one)
    if part:
        yield part


def _split(part: Sequence[_Said]) -> list[list[_Said]]:
    """What is said in one breath of each thing there: its adjectives stand before it, and all else behind."""
    found: list[list[_Said]] = []
    begin = 0
    shapes = [place for place, one in enumerate(part) if one.attribute == "shape"]
    for place in shapes[1:]:
        first = place
        while part[first - 1].attribute in _ADJECTIVES:
            first -= 1
        found.append([*part[begin:first]])
        begin = first
    return [*found, [*part[begin:]]]


def _names(part: Sequence[_Said]) -> bool:
    return any(one.attribute == "shape" for one in part)


def _facts(thing: Sequence[_Said], other: list[str]) -> Facts:
    """What is said of one thing; `other` takes what is said otherwise as well."""
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
    """What is unclear where several things are named: whether one is meant again, and of how many something is said."""
    for place, (thing, own) in enumerate(zip(things, facts, strict=True)):
        begin = things[place - 1][-1].end if place else 0
        known = _KNOWN[language].search(text, begin, thing[0].begin)
        for before in facts[:place]:
            alike = own.get("shape") == before.get("shape") and own.get("colour") in (None, before.get("colour"))
            if alike and (known or "colour" not in own):
                yield "shape"
        if language == "zh" and place and _BOTH in text[begin : thing[0].begin]:
            named = next((at for at, one in enumerate(thing) if one.attribute == "shape"), 0)
            if facts[place - 1].keys() <= {*_ADJECTIVES, "shape"}:
                yield from (one.attribute for one in thing[named + 1 :])
    if language == "en" and re.search(r"\bare\b", text):
        yield "motion"


@cache
def _implied(language: Language, scene: str) -> Facts:
    """What the words of a scene's own sentence would say of a thing: the ball of a game is no circle asked for."""
    fixed = re.sub(r"\{\w+\}", " ", words(language)["sentences"][scene]).lower()
    return {one.attribute: one.value for one in _said(fixed, language)}


# ---------------------------------------------------------------------- words


def _said(text: str, language: Language) -> Iterator[_Said]:
    """Every phrase of a text, in small letters, that means something."""
    pattern, meanings = _lexicon(language)
    for found in pattern.finditer(text):
        yield _Said(*meanings[found.group()], *found.span())


def _without(text: str, said: Sequence[_Said]) -> str:
    for one in said:
        text = text[: one.begin] + " " * (one.end - one.begin) + text[one.end :]
    return text


def _is_place(text: str, one: _Said, said: Sequence[_Said], language: Language) -> bool:
    """Whether a bare "left" may say where a thing is and not which way it goes; likewise "on green" before a thing."""
    if language == "en" and one.attribute == "ground":
        after = next((own for own in said if own.begin >= one.end), None)
        return after is not None and after.attribute in (*_ADJECTIVES, "shape") and text[one.end : after.begin] == " "
    if language != "en" or one.attribute != "motion" or text[one.begin : one.end] not in _AHEAD:
        return False
    part = next((part for part in _parts(text, said, language) if one in part), [one])
    before = [own for own in part if own.begin < one.begin]
    since = text[max((own.end for own in said if own.end <= part[0].begin), default=0) : one.begin]
    return bool(re.search(r"\b(?:starts?|at)\s*$", since)) or (
        not _names(before) and bool(re.search(r"\b(?:a|an|the)\b", since))
    )


def _all_go(text: str, said: Sequence[_Said]) -> bool:
    """Whether every "moves" has its way beside it."""
    ways = [one for one in said if one.attribute in ("motion", "turn", "wall")]
    left = _without(text, said)
    for found in re.finditer(r"[a-z]+", left):
        if found.group() in _verbs():
            after = next((one for one in ways if one.begin >= found.end()), None)
            if after is None or _PAUSE["en"].search(text, found.end(), after.begin):
                return False
    return True


@cache
def _verbs() -> frozenset[str]:
    return frozenset(words("en")["goes"].split())


@cache
def _lexicon(language: Language) -> tuple[re.Pattern[str], dict[str, tuple[str, str]]]:
    """All phrases, the longest first, and what each means; single signs of Chinese motions stand alone in alt-text."""
    known = words(language)
    meanings = {
        phrase: (attribute, value)
        for attribute in LISTS
        for value, phrases in known[attribute].items()
        for phrase in phrases
    }
    for attribute, values in known["also"].items():
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
    """What says nothing as a whole: the numbers of alt-text, and phrases."""
    forms: Any = words(language)["sentences"]["raw"]
    fixed = [form.replace("{words}", "").strip() for form in forms]
    numbered = [re.escape(form).replace(re.escape("{number}"), r"\d+") for form in fixed]
    edge = r"\b" if language == "en" else ""
    return [re.compile(f"{edge}{one}{edge}") for one in [*numbered, *map(re.escape, words(language)["passed over"])]]


@cache
def _plain(language: Language, scene: str) -> frozenset[str]:
    """Words, or signs of Chinese, that say nothing by themselves; in a scene, those of its sentence neither."""
    known = words(language)
    form = re.sub(r"\{\w+\}", " ", known["sentences"][scene]).lower() if scene else ""
    text = f"{known['plain']} {form}"
    return frozenset(re.findall(r"[a-z]+", text) if language == "en" else text)
