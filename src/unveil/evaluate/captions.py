"""What a caption of the playground says: the text read back into attributes, in either language and any register."""

from __future__ import annotations

import re
from functools import cache

from unveil.data.world.telling import LISTS, Facts, Language, words

_CLIP = ("ground", "camera", "bar", "scene", "line", "orbit", "walk", "fate")  # said of the clip, not of one thing
_AGAIN = ("colour", "shape", "size")  # said once of each thing: said again, the next one has begun
# What somebody may write who has not read `words.yaml`.
_ALSO: dict[Language, dict[str, tuple[str, str]]] = {
    "en": {
        "big": ("size", "large"),
        "tiny": ("size", "small"),
        "gray": ("ground", "grey"),
        "moves to the left": ("motion", "left"),
        "moves to the right": ("motion", "right"),
        "stands still": ("motion", "still"),
        "circles": ("motion", "orbit"),
    },
    "zh": {},
}


def parse(caption: str) -> Facts:
    """What a caption says, as `Caption.said` has it: "objects", a list with facts of each thing, and facts of the clip.

    Words that mean nothing here are passed over. "moves left, bounces off the left wall" is a bounce.
    """
    language: Language = "zh" if re.search(r"[\u4e00-\u9fff]", caption) else "en"
    pattern, meanings = _lexicon(language)
    things: list[Facts] = [{}]
    clip: Facts = {}
    for found in pattern.finditer(caption.lower()):
        attribute, value = meanings[found.group()]
        if attribute in _CLIP:
            clip.setdefault(attribute, value)
            continue
        if attribute in _AGAIN and attribute in things[-1]:
            things.append({})
        if attribute == "wall":
            things[-1]["motion"] = "bounce"
        if attribute == "motion" and things[-1].get("motion") == "bounce":
            continue
        if value == "bounce" or attribute not in things[-1]:
            things[-1][attribute] = value
    things = [thing for thing in things if thing]
    if "scene" in clip:  # a scene has facts of its own, and no things
        clip |= {name: value for thing in things for name, value in thing.items() if name not in ("motion", "size")}
        return {"objects": [], **clip}
    return {"objects": things, **clip}


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
    meanings |= _ALSO[language]
    edge = r"\b" if language == "en" else ""
    spelled = "|".join(re.escape(phrase) for phrase in sorted(meanings, key=len, reverse=True))
    return re.compile(f"{edge}(?:{spelled}){edge}"), meanings
