"""Captions are read back as what they say, in both languages and all registers."""

from itertools import product

import pytest

from unveil import data, playground
from unveil.playground.caption_parser import parse
from unveil.playground.dataset import MOTIONS
from unveil.playground.shapes import COLOURS, KINDS
from unveil.playground.world.caption_templates import DRAWS, LANGUAGES, LISTS, REGISTERS, words, write_caption
from unveil.playground.world.rendering import GROUNDS


def facts(colour, shape, size, motion):
    turns = {"diagonal": "up and to the left", "orbit": "clockwise", "spin": "counter-clockwise"}
    thing = {"colour": colour, "shape": shape, "size": size, "motion": motion, "turn": turns.get(motion)}
    thing |= {
        "wall": "left" if motion == "bounce" else None,
        "bounces": 1,
        "speed": "fast" if motion else None,
        "start": "lower right",
    }
    return {"scene": "objects", "objects": [thing], "ground": "blue", "camera": "static", "bar": None}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("register", REGISTERS)
def test_every_combination_goes_round(register, language):
    for colour, shape, size, motion in product(COLOURS, KINDS, ("small", "large"), (*MOTIONS, None)):
        true = facts(colour, shape, size, motion)
        for form in (0.1, 0.5, 0.9):
            written = write_caption(true, register, language, [form] * DRAWS, faults=0)
            assert parse(written.text) == written.facts, written.text
            parsed = written.facts["objects"][0]
            assert (parsed["colour"], parsed["shape"], parsed.get("motion")) == (colour, shape, motion)


@pytest.mark.parametrize("scene", ["objects", "brush", "pillars", "paddle", "corridor", "impact"])
def test_captions_of_all_scenes_go_round(scene):
    config = playground.PlaygroundConfig(
        min_size=32,
        max_size=96,
        aspect=2.0,
        frames=(8, 16, 33),
        scenes=(scene,),
        objects=(1, 2, 3),
        motions=MOTIONS,
        p_pattern=0.5,
        p_occluder=0.5,
        p_camera=0.5,
        languages=LANGUAGES,
    )
    for item in data.open(config).annotations(range(600)):
        assert parse(item["text"]) == item["mentioned"], item["text"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_values_have_the_same_words(language):
    parsed = [
        (phrase, attribute)
        for attribute in LISTS
        for phrases in words(language)[attribute].values()
        for phrase in set(phrases)
    ]
    assert len(parsed) == len(set(parsed))
    assert set(words(language)["ground"]) == set(GROUNDS)
    assert set(words(language)["motion"]) == set(MOTIONS)


@pytest.mark.parametrize(
    ("caption", "things", "rest"),
    [
        (
            "a small red circle moves left",
            [{"size": "small", "colour": "red", "shape": "circle", "motion": "left"}],
            {},
        ),
        ("a large blue square on green", [{"size": "large", "colour": "blue", "shape": "square"}], {"ground": "green"}),
        (
            "a small red circle starts at the centre right and moves left, bounces off the left wall. "
            "black background, camera static",
            [
                {
                    "size": "small",
                    "colour": "red",
                    "shape": "circle",
                    "start": "right",
                    "motion": "bounce",
                    "wall": "left",
                }
            ],
            {"ground": "black", "camera": "static"},
        ),
        (
            "Red circle moves up, and a blue ring grows",
            [
                {"colour": "red", "shape": "circle", "motion": "up"},
                {"colour": "blue", "shape": "ring", "motion": "grow"},
            ],
            {},
        ),
        (
            "a red circle moves up and a small blue ring",
            [
                {"colour": "red", "shape": "circle", "motion": "up"},
                {"size": "small", "colour": "blue", "shape": "ring"},
            ],
            {},
        ),
        (
            "\u7ea2\u8272\u5706\u5f62\u548c\u5c0f\u7684\u84dd\u8272\u5706\u73af",
            [{"colour": "red", "shape": "circle"}, {"size": "small", "colour": "blue", "shape": "ring"}],
            {},
        ),
        ("clip 0231 circle", [{"shape": "circle"}], {}),
        ("nothing of this kind", [], {}),
    ],
)
def test_sentences(caption, things, rest):
    assert parse(caption) == {"objects": things, **rest}
