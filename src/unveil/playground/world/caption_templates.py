"""Captions of a video from its true attributes: three styles in English and Chinese.

"raw" resembles the alt-text of the web, with wrong or missing attributes. "short" names the object and its motion.
"dense" also states the start, the speed, the contacts, the background and the camera.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Literal, NamedTuple

import yaml

from unveil.playground.scene_captions import chinese_words

CaptionStyle = Literal["raw", "short", "dense"]
Language = Literal["en", "zh"]
REGISTERS: tuple[CaptionStyle, ...] = ("raw", "short", "dense")
LANGUAGES: tuple[Language, ...] = ("en", "zh")
Facts = dict[str, Any]  # of a video, or of one of its objects: attribute -> value, as `words.yaml` names both
Draws = Sequence[float]  # in [0, 1)

MISSING, WRONG = 0.2, 0.15  # of the attributes of raw captions
DRAWS = 12  # random numbers of one caption
# The lists of `words.yaml` by the attribute whose values they name.
LISTS = {
    "size": "sizes",
    "colour": "colours",
    "shape": "shapes",
    "motion": "motions",
    "turn": "turns",
    "wall": "walls",
    "speed": "speeds",
    "start": "places",
    "ground": "grounds",
    "camera": "cameras",
    "bar": "bars",
    "scene": "scenes",
    "line": "lines",
    "orbit": "orbits",
    "front": "fronts",
    "walk": "walks",
    "fate": "fates",
}
_RAW = ("colour", "shape", "size", "motion", "line", "orbit", "walk", "fate")  # what alt-text may name


class SceneCaption(NamedTuple):
    """A caption, and the attributes that it states: "objects", one dict per named object, and facts of the video."""

    text: str
    facts: Facts


@cache
def words(language: Language) -> dict[str, Any]:
    """Return the lists of `words.yaml`, attribute -> value -> phrases, and the rest: "also", "sentences" and others."""
    text = (resources.files("unveil") / "playground" / "world" / "words.yaml").read_text("utf-8")
    table = yaml.safe_load(text)[language]
    if language == "zh":  # names are defined once
        scene_words = chinese_words()
        for name, source in (("sizes", "sizes"), ("colours", "colours"), ("shapes", "kinds")):
            table[name] = {value: [phrase] for value, phrase in scene_words[source].items()}
    extras = {name: table.get(name, "") for name in ("also", "plain", "goes", "passed over", "sentences")}
    return {attribute: table[name] for attribute, name in LISTS.items()} | extras


def phrase(language: Language, attribute: str, value: str, *, raw: bool = False) -> str:
    """Return the phrase of a value, as part of a sentence or as a word of alt-text."""
    return words(language)[attribute][value][-1 if raw else 0]


def write_caption(
    facts: Facts, register: CaptionStyle, language: Language, draws: Draws, *, faults: float = 1.0
) -> SceneCaption:
    """Write a caption of a video.

    Args:
        facts: True attributes of the video, as `Playground` returns them.
        register: Style of the caption.
        language: "en" or "zh".
        draws: DRAWS numbers in [0, 1), which choose the template and the errors of raw captions.
        faults: Factor of MISSING and WRONG for raw captions; 0 leaves them complete and correct.
    """
    if register == "raw":
        return _raw(facts, language, draws, faults)
    if facts["scene"] != "objects":
        return _scene(facts, register, language)
    return _short(facts, language, draws) if register == "short" else _dense(facts, language)


def _raw(facts: Facts, language: Language, draws: Draws, faults: float) -> SceneCaption:
    things: list[Facts] = facts.get("objects", []) or [facts]
    thing, sentences = things[0], words(language)["sentences"]
    wrong, missing = faults * WRONG, faults * MISSING
    names = [name for name in _RAW if thing.get(name) is not None]
    claimed: Facts = {}
    for number, name in enumerate(names):
        values, value = list(words(language)[name]), thing[name]
        draw = draws[number]
        if draw < wrong:
            value = values[(values.index(value) + 1 + int(draw / wrong * (len(values) - 1))) % len(values)]
        if draw >= wrong + missing or draw < wrong:
            claimed[name] = value
    if not claimed and names:
        claimed["shape" if "shape" in names else names[0]] = thing["shape" if "shape" in names else names[0]]
    order = sorted(claimed, key=lambda name: draws[4 + names.index(name)])
    spoken = [phrase(language, name, claimed[name], raw=True) for name in order]
    clip: Facts = {}
    if facts["scene"] != "objects":
        clip["scene"] = facts["scene"]
        spoken.insert(0, phrase(language, "scene", facts["scene"], raw=True))
        clip |= claimed
    form = sentences["raw"][int(draws[8] * len(sentences["raw"]))]
    text = form.format(number=f"{int(draws[9] * 10_000):04d}", words=sentences["space"].join(spoken))
    return SceneCaption(text, {"objects": [claimed] if facts["scene"] == "objects" else [], **clip})


def _short(facts: Facts, language: Language, draws: Draws) -> SceneCaption:
    """Return the object and its motion; two of three captions state its size, one of three the background."""
    form, sentences = int(draws[0] * 3), words(language)["sentences"]
    names = ("colour", "shape", "motion") if form == 0 else ("size", "colour", "shape", "motion")
    claimed = [{name: thing[name] for name in names if thing.get(name) is not None} for thing in facts["objects"]]
    spoken: list[str] = []
    for thing in claimed:
        named = _named(thing, language, "bare" if form == 0 else "thing")
        if "motion" in thing:
            named = sentences["moves"].format(thing=named, motion=phrase(language, "motion", thing["motion"]))
        spoken.append(named)
    text, clip = _joined(spoken, sentences), Facts()
    if form == 2:
        clip["ground"] = facts["ground"]
        text = sentences["over"].format(text=text, ground=phrase(language, "ground", facts["ground"], raw=True))
    return SceneCaption(text, {"objects": claimed, **clip})


def _dense(facts: Facts, language: Language) -> SceneCaption:
    sentences = words(language)["sentences"]
    spoken: list[str] = []
    for thing in facts["objects"]:
        named = _named(thing, language, "thing")
        motion = _motion(thing, language, sentences) if thing.get("motion") is not None else None
        place = phrase(language, "start", thing["start"])
        if motion is None:
            spoken.append(sentences["moves"].format(thing=named, motion=place))
        else:
            spoken.append(sentences["starts"].format(thing=named, place=place, motion=motion))
    rest = sentences["comma"] + phrase(language, "bar", "yes") if facts.get("bar") else ""
    text = sentences["stop"].format(
        text=_joined(spoken, sentences),
        rest=rest,
        ground=phrase(language, "ground", facts["ground"]),
        camera=phrase(language, "camera", facts["camera"]),
    )
    claimed = [
        {name: value for name, value in thing.items() if name in LISTS and value is not None}
        for thing in facts["objects"]
    ]
    clip = {name: facts[name] for name in ("ground", "camera", "bar") if facts.get(name)}
    return SceneCaption(text, {"objects": claimed, **clip})


def _scene(facts: Facts, register: CaptionStyle, language: Language) -> SceneCaption:
    """Return the caption of a scene other than "objects"."""
    sentences = words(language)["sentences"]
    claimed = {
        name: value for name, value in facts.items() if name in LISTS and name not in ("front", "ground", "camera")
    }
    text = sentences[facts["scene"]].format(**{name: phrase(language, name, value) for name, value in claimed.items()})
    if register == "dense" and "front" in facts:
        claimed["front"] = facts["front"]
        text = sentences["ahead"].format(text=text, front=phrase(language, "front", facts["front"]))
    if register == "dense" and "ground" in facts:
        claimed["ground"] = facts["ground"]
        text = sentences["over"].format(text=text, ground=phrase(language, "ground", facts["ground"], raw=True))
    return SceneCaption(text, {"objects": [], **claimed})


def _named(thing: Mapping[str, str], language: Language, form: str) -> str:
    names = {name: phrase(language, name, thing[name]) for name in ("size", "colour", "shape") if name in thing}
    return words(language)["sentences"][form].format(**names)


def _motion(thing: Facts, language: Language, sentences: Mapping[str, Any]) -> str:
    """Return the phrase of an object's motion with speed, direction and walls."""
    text = phrase(language, "motion", thing["motion"])
    if thing.get("speed"):
        text = sentences["sped"].format(motion=text, speed=phrase(language, "speed", thing["speed"]))
    if thing.get("turn"):
        text = sentences["turned"].format(motion=text, turn=phrase(language, "turn", thing["turn"]))
    if thing.get("wall"):
        wall = phrase(language, "wall", thing["wall"])
        other = phrase(language, "wall", OPPOSITE[thing["wall"]])
        text = sentences["again" if thing["bounces"] > 1 else "bounced"].format(motion=text, wall=wall, other=other)
    return text


def _joined(spoken: Sequence[str], sentences: Mapping[str, Any]) -> str:
    if len(spoken) == 1:
        return spoken[0]
    return sentences["comma"].join(spoken[:-1]) + sentences["last"] + spoken[-1]


OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
