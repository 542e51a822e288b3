"""Reader of free prompts: what people type becomes a caption in the words of a playground model.

Spelling is corrected, synonyms, inflected words and everyday verbs are replaced, and everything that the model cannot
draw is listed, so that it can be reported in one sentence before the work.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from unveil.nn.tokenizer import tokenize
from unveil.playground.caption_parser import ambiguous, contradictory, language_of, parse, unparsed
from unveil.playground.prompt_directions import WAYS, Course, course_of
from unveil.playground.prompt_tokens import EMOJI, NEAREST, NUMBER, PAUSE, UNKNOWN, Word, has_emoji, split_prompt
from unveil.playground.world.caption_templates import LANGUAGES, LISTS, Facts, Language, phrase, words

_ADJECTIVES = ("size", "colour", NEAREST, "dull", "shade")
_FILLING = ("article", "known", "plain", "copula", "shade")
_COLOURED = ("colour", NEAREST, "dull")
_MOVING = ("left", "right", "up", "down", "diagonal", "bounce", "orbit")  # motions that have a speed
_SCENES: Mapping[str, tuple[str, ...]] = {
    "brush": ("colour", "line"),
    "pillars": ("orbit",),
    "paddle": ("colour",),
    "corridor": ("walk", "colour"),
    "impact": ("colour", "shape", "fate"),
}
_LEAST_SHAPES = 3  # that a model knows which learned the playground's captions
_MAX_LISTED = 6  # things that a sentence lists


class PromptReading(NamedTuple):
    """A prompt as a model of the playground reads it.

    Attributes:
        prompt: The original prompt.
        text: Caption of what the model can draw of it; empty if that is nothing.
        changes: Words that were replaced, such as "smal -> small" and "pink -> red".
        omitted: What will not be drawn.
    """

    prompt: str
    text: str
    changes: tuple[str, ...] = ()
    omitted: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """True if all of the prompt will be drawn."""
        return bool(self.text) and not self.omitted


@dataclass(frozen=True)
class PlaygroundVocabulary:
    """The part of the playground's language that a model's vocabulary contains.

    Attributes:
        values: Values of each attribute whose phrase the model knows, by language.
        others: Further words that the model learned, from captions of other videos.
    """

    values: Mapping[Language, Mapping[str, tuple[str, ...]]]
    others: frozenset[str] = frozenset()

    @classmethod
    def of(cls, tokens: Collection[str]) -> PlaygroundVocabulary | None:
        """Return the vocabulary of a model by its tokens; None if it did not learn the playground's captions."""
        there = frozenset(tokens)
        values: dict[Language, Mapping[str, tuple[str, ...]]] = {}
        for language in LANGUAGES:
            table = _known_values(language, there)
            if table["camera"] and len(table["shape"]) >= _LEAST_SHAPES:
                values[language] = table
        others = frozenset(token for token in there if not token.isdigit()) - _playground_tokens()
        return cls(values, others) if values else None

    def language(self, prompt: str) -> Language:
        """Return the language of a prompt if the model knows it, else the model's own."""
        language = language_of(prompt)
        return language if language in self.values else next(iter(self.values))

    def summary(self) -> str:
        """Return what the model can draw, in a few words."""
        table = self.values.get("en") or next(iter(self.values.values()))
        motions = [_MOTION_NAMES[name] for name in table["motion"] if name in _MOTION_NAMES]
        grounds = [name for name in table["ground"] if name != "checker"]
        text = f"one {_either(table['shape'])}, small or large, in {_either(table['colour'])}"
        text += f", which {_either(motions)}" if motions else ""
        return f"{text}, on a {_either(grounds)} background" if grounds else text


@cache
def _playground_tokens() -> frozenset[str]:
    """Return the tokens of all captions of the playground."""
    texts: list[str] = []
    for language in LANGUAGES:
        table = words(language)
        texts += [phrase for attribute in LISTS for phrases in table[attribute].values() for phrase in phrases]
        sentences = table["sentences"].values()
        texts += [form for entry in sentences for form in ([entry] if isinstance(entry, str) else entry)]
    return frozenset(token for text in texts for token in tokenize(text)) | {"mov"}


_MOTION_NAMES = {
    "still": "stays still", "left": "moves left", "right": "right", "up": "up", "down": "down",
    "diagonal": "diagonally", "bounce": "bounces", "orbit": "moves in a circle", "grow": "grows", "shrink": "shrinks",
    "spin": "spins",
}  # fmt: skip


def _known_values(language: Language, tokens: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the values of each attribute whose sentence form consists of known tokens."""
    table = words(language)
    return {
        attribute: tuple(
            value
            for value in table[attribute]
            if all(token in tokens for token in tokenize(phrase(language, attribute, value)))
        )
        for attribute in ("size", "colour", "shape", "motion", "turn", "wall", "speed", "start", "ground", "camera",
                          "bar", "scene", "line", "orbit", "walk", "fate")
    }  # fmt: skip


def read_prompt(prompt: str, vocabulary: PlaygroundVocabulary) -> PromptReading:
    """Read a prompt.

    A caption in the playground's own words of one object that the model knows is returned unchanged, and so is a prompt
    with words that the model learned from other captions.

    Args:
        prompt: Text in English or Chinese, as people type it.
        vocabulary: What the model knows.
    """
    if _is_caption(prompt, vocabulary):
        return PromptReading(prompt, prompt)
    prompt_words, changes = split_prompt(prompt, vocabulary.others)
    if any(set(tokenize(word.text)) & vocabulary.others for word in prompt_words if word.kind in (UNKNOWN, "other")):
        return PromptReading(prompt, prompt)  # about what the model learned from other videos
    reader = _Reader(prompt_words, vocabulary.values[vocabulary.language(prompt)])
    facts = reader.read()
    text = caption_of(facts, vocabulary.language(prompt))
    changes += [change for change in reader.changes if change not in changes]
    return PromptReading(prompt, text, tuple(changes), tuple(dict.fromkeys(reader.omitted)))


def _is_caption(prompt: str, vocabulary: PlaygroundVocabulary) -> bool:
    """Return True if the rules understand all of a prompt, it names one object, and the model knows its values."""
    facts = parse(prompt)
    objects = facts["objects"]
    if language_of(prompt) not in vocabulary.values or len(objects) > 1 or not (objects or "scene" in facts):
        return False
    if unparsed(prompt) or contradictory(prompt) or ambiguous(prompt) or has_emoji(prompt):
        return False
    table = vocabulary.values[language_of(prompt)]
    stated = [*facts.items(), *(entry for thing in objects for entry in thing.items())]
    return all(value in table.get(name, (value,)) for name, value in stated if name != "objects")


def caption_of(facts: Facts, language: Language) -> str:
    """Return a caption that states attributes of one object or scene, and of the video; empty without any."""
    if "scene" in facts:
        order = ("scene", "orbit", "walk", "colour", "shape", "line", "fate", "front")
        return " ".join(phrase(language, name, facts[name], raw=True) for name in order if name in facts)
    thing: Facts = facts["objects"][0] if facts["objects"] else {}
    phrases = {name: phrase(language, name, value) for name, value in thing.items()}
    comma, gap = ("\uff0c", "") if language == "zh" else (", ", " ")
    names = [phrases[name] for name in ("size", "colour", "shape") if name in phrases]
    if language == "zh":
        parts = [phrases["start"] + "\u51fa\u53d1"] if "start" in phrases else []
        motion = "".join(phrases[name] for name in ("speed", "turn", "motion") if name in phrases)
        if "wall" in phrases:
            motion += comma + phrases["wall"]
        parts += [motion] if motion else []
        named = "".join(["\u4e00\u4e2a", *names]) if names else ""
        text = named + comma.join(parts)
    else:
        place = "starts " + phrases["start"] if "start" in phrases and "motion" in phrases else phrases.get("start", "")
        motion = gap.join(phrases[name] for name in ("motion", "speed", "turn", "wall") if name in phrases)
        named = gap.join(["an" if names[0][0] in "aeiou" else "a", *names]) if names else ""
        text = gap.join(part for part in (named, " and ".join(filter(None, (place, motion)))) if part)
    text += comma + phrase(language, "bar", "yes") if "bar" in facts and text else ""
    clip = [phrase(language, name, facts[name]) for name in ("ground", "camera") if name in facts]
    return comma.join([part for part in (text, *clip) if part])


class _Reader:
    """Reads the words of one prompt; `omitted` and `changes` collect what is reported."""

    def __init__(self, prompt_words: Sequence[Word], table: Mapping[str, tuple[str, ...]]) -> None:
        self._known = table
        self.omitted: list[str] = []
        self.changes: list[str] = []
        self._words = self._without_negated(prompt_words)
        self.named = False

    def read(self) -> Facts:
        """Return the attributes that the model can draw."""
        scene = next((word for word in self._words if word.kind == "scene"), None)
        if scene is not None and scene.value in self._known["scene"]:
            return self._scene(scene.value)
        self._report_unknown()
        clip = self._ground()
        clip |= self._camera()
        self._only_first_object()
        thing = self._named() | self._moved()
        stated = {name: value for name, value in thing.items() if self._drawn(name, value)}
        if stated.get("motion", "left") not in _MOVING:
            stated.pop("speed", None)
        if "motion" not in stated:
            stated.pop("turn", None)
        if stated.get("motion") == "orbit" and stated.get("start") == "centre":
            del stated["start"]  # that it goes around
        return {"objects": [stated] if stated else [], **clip}

    def _drawn(self, name: str, value: str) -> bool:
        """Return True if the model knows a value, else report it."""
        if value in self._known[name]:
            return True
        if name not in ("speed", "turn"):
            word = next((word.text for word in self._words if word.value == value), value)
            self.omitted.append(repr(word))
        return False

    # ------------------------------------------------------------------ what is not drawn

    def _without_negated(self, prompt_words: Sequence[Word]) -> list[Word]:
        """Return the words without those that are negated, up to the next pause."""
        remaining: list[Word] = []
        negated: list[str] = []
        inside = False
        for word in prompt_words:
            if word.kind == "not":
                inside = True
                negated.append(word.text)
            elif inside and word.kind not in (PAUSE, "also", "sequence") and word.text not in ("but", "\u7684"):
                negated.append(word.text)
            else:
                inside = False
                remaining.append(word)
        if negated:
            self.omitted.append(f"{_joined(negated)!r} (negations are not read)")
        return remaining

    def _report_unknown(self) -> None:
        emoji = "".join(word.text for word in self._words if word.kind == EMOJI)
        strange = [
            word.text
            for word in self._words
            if word.kind in (UNKNOWN, "other", "scene", "scene plain", "fate")
            or (word.kind == "line" and word.value != "straight")
        ]
        self.omitted += [repr(text) for text in dict.fromkeys(strange)]
        if emoji:
            self.omitted.append(f"emoji {emoji}")
        for at, word in enumerate(self._words):
            following = self._next(at + 1, _FILLING)
            if word.kind == "change" and following is not None and self._changed(at, following):
                self.omitted.append("a change of colour or shape")
                del self._words[at:]
                return
            counted = following is not None and following.kind in (*_ADJECTIVES, "shape", "other")
            if word.kind == NUMBER and not counted and word.text not in ("0", "1"):
                self.omitted.append(repr(word.text))

    def _changed(self, at: int, following: Word) -> bool:
        """Return True if a word such as "becomes" leads to another colour or shape."""
        if following.kind == "to":
            return True
        before = any(word.kind in (*_COLOURED, "shape", "other") for word in self._words[:at])
        return before and following.kind in (*_COLOURED, "shape", "other")

    def _next(self, at: int, skipped: Collection[str]) -> Word | None:
        return next((word for word in self._words[at:] if word.kind not in skipped), None)

    # ------------------------------------------------------------------ video

    def _scene(self, scene: str) -> Facts:
        """Return the attributes of a special scene; words of objects without a meaning in it are dropped."""
        facts: Facts = {"scene": scene}
        for word in self._words:
            kind, value = ("colour", word.value) if word.kind == NEAREST else (word.kind, word.value)
            if kind in _SCENES[scene] and kind not in facts and self._drawn(kind, value):
                facts[kind] = value
                if word.kind == NEAREST:
                    self.changes.append(f"{word.text} -> {value}")
            elif kind in (UNKNOWN, "other", EMOJI):
                self.omitted.append(repr(word.text))
        return {"objects": [], **facts}

    def _camera(self) -> Facts:
        facts: Facts = {}
        for word in self._words:
            if word.kind in ("camera", "bar"):
                if word.value in self._known[word.kind]:
                    facts.setdefault(word.kind, word.value)
                elif word.value != "static":
                    self.omitted.append(repr(word.text))
            elif word.kind == "orbit":
                self.omitted.append(repr(word.text))
        return facts

    def _ground(self) -> Facts:
        """Return the background, and drop its words."""
        for at, word in enumerate(self._words):
            place = self._ground_colour(at) if word.kind == "ground" else self._on_colour(at)
            if place is None:
                continue
            colour = self._words[place]
            first, last = min(at, place), max(at, place)
            while first and self._words[first - 1].kind in ("shade", "article", "at", "hit", "copula"):
                first -= 1
            if word.kind != "ground" and last + 1 < len(self._words) and self._words[last + 1].kind == "edge":
                last += 1
            del self._words[first : last + 1]
            self._words.insert(first, Word(PAUSE, "", ","))
            return self._ground_of(colour)
        lone = next((word for word in self._words if word.kind == "pattern"), None)
        return {} if lone is None else self._ground_of(lone)

    def _ground_of(self, colour: Word) -> Facts:
        value = "black" if colour.kind == "shade" and colour.value == "dark" else colour.value
        if value not in self._known["ground"]:
            self.omitted.append(f"a background {colour.text!r}")
            return {}
        if colour.kind == NEAREST:
            self.changes.append(f"{colour.text} -> {value}")
        return {"ground": value}

    def _ground_colour(self, at: int) -> int | None:
        """Return the place of the colour of a noun such as "background": before it, or behind it."""
        before = at - 1
        while before >= 0 and self._words[before].kind in ("plain", "copula"):
            before -= 1
        if before >= 0 and self._words[before].kind in (*_COLOURED, "pattern", "shade"):
            return before
        behind = at + 1
        while behind < len(self._words) and self._words[behind].kind in ("copula", "shade", "plain", "article", "at"):
            behind += 1
        if behind < len(self._words) and self._words[behind].kind in (*_COLOURED, "pattern"):
            following = self._words[behind + 1] if behind + 1 < len(self._words) else None
            if following is None or following.kind not in ("shape", *_ADJECTIVES, "other"):
                return behind
        return None

    def _on_colour(self, at: int) -> int | None:
        """Return the place of the colour in "on black"; None before a shape, or with a noun behind it."""
        word = self._words[at]
        if word.text not in ("on", "over", "against", "upon", "onto"):
            return None
        place = at + 1
        while place < len(self._words) and self._words[place].kind in ("article", "shade", "known"):
            place += 1
        if place >= len(self._words) or self._words[place].kind not in (*_COLOURED, "pattern"):
            return None
        following = self._words[place + 1] if place + 1 < len(self._words) else None
        if following is not None and following.kind in ("shape", *_ADJECTIVES, "other", UNKNOWN, "ground"):
            return None
        return place

    # ------------------------------------------------------------------ object

    def _only_first_object(self) -> None:
        """Drop the words of further objects, and report them and counts."""
        self._verbs()
        shapes = [at for at, word in enumerate(self._words) if word.kind == "shape"]
        for at in shapes:
            if self._words[at].text in ("round", "circular") and len(shapes) > 1:
                self._words[at] = self._words[at]._replace(kind="plain")
        shapes = [at for at, word in enumerate(self._words) if word.kind == "shape"]
        for first, at in pairwise(shapes):
            if at == first + 1:  # "a circular ring", "a round ball"
                self._words[first] = self._words[first]._replace(kind="plain")
        shapes = [at for at, word in enumerate(self._words) if word.kind == "shape"]
        for at in shapes[1:]:
            begin = at
            while begin and self._words[begin - 1].kind in (
                *_ADJECTIVES,
                "article",
                "known",
                "several",
                "plain",
                "copula",
            ):
                begin -= 1
            if self._is_other(shapes[0], begin, at):
                end = self._words[at]
                self.omitted.append(f"a second object ({end.text})")
                del self._words[begin:]
                break
        for at, word in enumerate(self._words):
            following = self._next(at + 1, _FILLING)
            named = following is not None and following.kind in (*_ADJECTIVES, "shape", "other")
            if word.kind == "several" or (word.kind == NUMBER and named and word.text not in ("0", "1")):
                self.omitted.append(f"more than one object ({word.text})")
                return
        plural = next((word for word in self._words if word.kind == "shape" and word.plural), None)
        if plural is not None:
            self.omitted.append(f"more than one object ({plural.text})")

    def _verbs(self) -> None:
        """Read "circles" and "crosses" as verbs behind an object."""
        for at, word in enumerate(self._words):
            before = any(other.kind in ("shape", "colour") for other in self._words[:at])
            follows = at and self._words[at - 1].kind in ("shape", "known")
            inflected = word.plural or word.text.endswith("ing")
            if word.kind == "shape" and inflected and before and follows and word.value in ("circle", "cross"):
                kind, value = ("motion", "orbit") if word.value == "circle" else ("go", "")
                self._words[at] = word._replace(kind=kind, value=value)

    def _is_other(self, first: int, begin: int, at: int) -> bool:
        """Return True if a further shape is another object than the first."""
        if self._words[at].value != self._words[first].value:
            return True
        colours = {word.value for word in self._words[:first] if word.kind in _COLOURED}
        added = {word.value for word in self._words[begin:at] if word.kind in _COLOURED}
        again = any(word.kind == "known" for word in self._words[begin:at])
        joined = any(word.kind in ("also", "several") for word in self._words[max(begin - 1, 0) : at])
        return bool(added - colours) or (joined and not again)

    def _named(self) -> Facts:
        """Return size, colour and shape."""
        facts: Facts = {}
        for at, word in enumerate(self._words):
            kind = "colour" if word.kind in _COLOURED else word.kind
            if kind not in ("size", "colour", "shape"):
                continue
            if kind == "size" and self._resizes(at):
                continue
            if word.kind == "dull":
                self.omitted.append(f"an object in {word.text!r}")
            elif facts.setdefault(kind, word.value) != word.value:
                self.omitted.append(f"more than one {kind} ({word.text})")
            elif word.kind == NEAREST:
                self.changes.append(f"{word.text} -> {word.value}")
        return facts

    def _resizes(self, at: int) -> bool:
        """Read "bigger" without a noun as a motion, and "from small to large"."""
        word = self._words[at]
        following = self._next(at + 1, ("article", "plain"))
        noun = following is not None and following.kind in (*_ADJECTIVES, "shape", "other")
        from_to = at and self._words[at - 1].kind == "to"
        from_to = from_to and any(w.kind == "size" and w.value != word.value for w in self._words[:at])
        if (word.comparative and not noun) or from_to:
            self._words[at] = word._replace(kind="motion", value="grow" if word.value == "large" else "shrink")
            return True
        return bool(at and self._words[at - 1].kind == "from")

    # ------------------------------------------------------------------ motion and place

    def _moved(self) -> Facts:
        """Return the motion with its direction, walls and speed, and the place."""
        course = course_of(self._words)
        self.omitted += course.omitted
        facts: Facts = {}
        if course.start is not None:
            facts["start"] = course.start
        motion = self._motion(course)
        speed = next((word.value for word in self._words if word.kind == "speed"), None)
        turn = next((word.value for word in self._words if word.kind == "turn"), None)
        if turn is not None and motion.get("motion") in (None, "orbit", "spin"):
            motion = {"motion": "orbit", **motion, "turn": turn}
        if speed is not None:
            motion["speed"] = speed
        return facts | motion

    def _motion(self, course: Course) -> Facts:
        """Combine directions and verbs to one motion; what contradicts the first one is reported."""
        verbs = [word.value for word in self._words if word.kind == "motion"]
        ways = course.ways
        facts: Facts = {}
        if "jump" in verbs and not {"left", "right"} & set(ways):
            verbs = ["bounce" if verb == "jump" else verb for verb in verbs]
            facts["wall"] = "top"
            ways = ()
        verbs = [verb for verb in verbs if verb != "jump"]
        if course.walls:
            verbs, facts["wall"] = ["bounce", *verbs], course.walls[0]
        kinds = list(dict.fromkeys(verbs))
        if "bounce" in kinds and ways:
            facts.setdefault("wall", WAYS[ways[0]])
            ways = ()
        if "diagonal" in kinds and ways:
            kinds.remove("diagonal")
            if len(ways) == 1:
                return {"motion": "diagonal"}
        moved = [*kinds, *(["way"] if ways else [])]
        if course.first_motion == "way" and ways:
            moved = ["way", *kinds]
        if len(moved) > 1:
            self.omitted.append("more than one motion")
        if not moved:
            goes = next((word.text for word in self._words if word.kind == "go"), None)
            return {} if goes is None else {"motion": self._any_way(course.start)}
        if moved[0] != "way":
            return {"motion": moved[0], **(facts if moved[0] == "bounce" else {})}
        if len(ways) == 1:
            return {"motion": ways[0]}
        upright = next(way for way in ways if way in ("up", "down"))
        across = next(way for way in ways if way in ("left", "right"))
        return {"motion": "diagonal", "turn": f"{upright} and to the {across}"}

    def _any_way(self, start: str | None) -> str:
        """Return a direction for a motion without one: away from the place where it starts."""
        away = {"left": "right", "right": "left", "top": "down", "upper": "down", "bottom": "up", "lower": "up"}
        ways = [away[side] for side in (start or "").split() if side in away]
        return ways[0] if ways else tuple(WAYS)[len(self._words) % len(WAYS)]


def describe_changes(reading: PromptReading) -> str:
    """Return the replaced words of a prompt for a message, such as "smal -> small, pink -> red"."""
    return ", ".join(reading.changes)


def describe_omissions(reading: PromptReading, vocabulary: PlaygroundVocabulary) -> str:
    """Return one sentence with what will not be drawn of a prompt, and what the model can draw; empty if all is."""
    listed = ", ".join(reading.omitted[:_MAX_LISTED])
    more = len(reading.omitted) - _MAX_LISTED
    listed += f" and {more} more" if more > 0 else ""
    if not reading.text:
        begin = "names nothing that this model can draw" + (f" ({listed})" if listed else "")
    elif listed:
        begin = f"will not be drawn: {listed}"
    else:
        return ""
    return (
        f"{begin}; this model draws {vocabulary.summary()}; for anything else download a published model: "
        "`unveil get sd15` for images, `unveil get wan` for videos"
    )


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _joined(texts: Sequence[str]) -> str:
    return " ".join(texts) if language_of("".join(texts)) == "en" else "".join(texts)
