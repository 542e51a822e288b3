"""What a caption of the playground says: the text read back into attributes, in either language and any register."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise

from unveil.data.world.telling import LISTS, Facts, Language, words

# Said of the clip, not of one thing.
_CLIP = ("ground", "camera", "bar", "scene", "line", "orbit", "front", "walk", "fate")
_AGAIN = ("colour", "shape", "size")  # said once of each thing: said again, the next one has begun


def language_of(caption: str) -> Language:
    """Chinese where there is a Chinese character, else English."""
    return "zh" if re.search(r"[\u4e00-\u9fff]", caption) else "en"


def unread(caption: str) -> list[str]:
    """The words of a caption that mean nothing to `parse` and may mean something; numbers and articles do not."""
    language = language_of(caption)
    left = _lexicon(language)[0].sub(" ", caption.lower())
    if language == "en":
        return [word for word in re.findall(r"[^\W\d_]+", left) if word not in _plain(language)]
    parts = re.findall(r"[^\W\d_]+", "".join(" " if sign in _plain(language) else sign for sign in left))
    return [part for part in parts if part not in _plain("en")]


def parse(caption: str) -> Facts:
    """What a caption says, as `Caption.said` has it: "objects", a list with facts of each thing, and facts of the clip.

    Words that mean nothing here are passed over. "moves left, bounces off the left wall" is a bounce.
    """
    return _read(caption)[0]


def twice(caption: str) -> list[str]:
    """Attributes of which a caption says two values of one thing, or of the clip; `parse` has the first one.

    Which of them is meant is not known: "moves up and down", "a red and blue circle". A bounce is no other motion
    than the way that leads to the wall.
    """
    return _read(caption)[1]


def _read(caption: str) -> tuple[Facts, list[str]]:
    language = language_of(caption)
    pattern, meanings = _lexicon(language)
    things: list[Facts] = [{}]
    clip: Facts = {}
    other: list[str] = []
    said = [meanings[found.group()] for found in pattern.finditer(caption.lower())]
    for (attribute, value), (after, _) in pairwise([*said, ("", "")]):
        if attribute in _CLIP:
            if clip.setdefault(attribute, value) != value:
                other.append(attribute)
            continue
        # "a red circle and a small blue ring": what follows the size tells that it is another's
        whose = after if attribute == "size" and after in _AGAIN else attribute
        if attribute in _AGAIN and (attribute in things[-1] or whose in things[-1]):
            if things[-1].keys() <= {"colour", "size"} and attribute in things[-1]:
                other.append(attribute)  # nothing was said of what has the first one
            things.append({})
        if attribute == "wall":
            things[-1]["motion"] = "bounce"
        if attribute == "motion" and things[-1].get("motion") == "bounce":
            continue
        if value == "bounce" or attribute not in things[-1]:
            things[-1][attribute] = value
        elif things[-1][attribute] != value and attribute != "wall":  # off one wall, then off the other
            other.append(attribute)
    things = [thing for thing in things if thing]
    if "scene" in clip:  # a scene has facts of its own, and no things
        own = _implied(language, clip["scene"])
        clip |= {
            name: value
            for thing in things
            for name, value in thing.items()
            if name not in ("motion", "size") and own.get(name) != value
        }
        return {"objects": [], **clip}, other
    return {"objects": things, **clip}, other


@cache
def _implied(language: Language, scene: str) -> Facts:
    """What the words of a scene's own sentence would say of a thing: the ball of a game is no circle asked for."""
    pattern, meanings = _lexicon(language)
    fixed = re.sub(r"\{\w+\}", " ", words(language)["sentences"][scene]).lower()
    return dict(meanings[found.group()] for found in pattern.finditer(fixed))


@cache
def _lexicon(language: Language) -> tuple[re.Pattern[str], dict[str, tuple[str, str]]]:
    """All phrases, the longest first, and what each means."""
    known = words(language)
    meanings = {
        phrase: (attribute, value)
        for attribute in LISTS
        for value, phrases in known[attribute].items()
        for phrase in phrases
    }
    for attribute, values in known["also"].items():
        meanings |= {phrase: (attribute, value) for value, phrases in values.items() for phrase in phrases}
    edge = r"\b" if language == "en" else ""
    spelled = "|".join(re.escape(phrase) for phrase in sorted(meanings, key=len, reverse=True))
    return re.compile(f"{edge}(?:{spelled}){edge}"), meanings


@cache
def _plain(language: Language) -> frozenset[str]:
    """Words, or signs of Chinese, that say nothing by themselves."""
    sentences = words(language)["sentences"]
    forms = " ".join(form for one in sentences.values() for form in (one if isinstance(one, list) else [one]))
    forms = re.sub(r"\{\w+\}", " ", forms).lower() + " " + words(language)["plain"]
    return frozenset(re.findall(r"[a-z]+", forms) if language == "en" else forms)
