"""Prompt expansion by rules: every attribute of the prompt stays, and the additions are what the playground shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from unveil import data, playground
from unveil.playground.caption_parser import contradictory, language_of, parse, unparsed
from unveil.playground.dataset import MOTIONS
from unveil.playground.world.caption_templates import LANGUAGES
from unveil.prompting import dropped_attributes, expand_by_rules

SCENES = ("objects", "objects", "brush", "pillars", "paddle", "corridor", "impact")


def video_prompts(count: int, language: Any) -> Iterator[str]:
    """Captions of all scenes, of up to three objects, raw ones with their faults among them."""
    config = playground.PlaygroundConfig(
        frames=(16,),
        scenes=SCENES,
        objects=(1, 2, 3),
        motions=MOTIONS,
        p_pattern=0.3,
        p_occluder=0.3,
        p_camera=0.3,
        languages=(language,),
        seed=5,
    )
    return (item["text"] for item in data.open(config).annotations(range(count)))


def check_nothing_is_lost(prompts: Iterator[str]) -> None:
    for prompt in prompts:
        found = expand_by_rules(prompt)
        assert found.by == "rules", found
        assert not dropped_attributes(parse(prompt), parse(found.text)), found
        assert not unparsed(found.text), found
        assert not contradictory(found.text), found
        assert language_of(found.text) == language_of(prompt)
        assert expand_by_rules(found.text).text == found.text  # what is dense has nothing to be filled in


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_attribute_is_kept(language):
    check_nothing_is_lost(video_prompts(150, language))


@pytest.mark.release  # as the test before it, which `make test` runs
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_attribute_of_two_thousand_prompts_is_kept(language):
    check_nothing_is_lost(video_prompts(2000, language))


@pytest.mark.parametrize(
    ("prompt", "thing"),
    [
        ("a red circle moving left to right", {"colour": "red", "shape": "circle", "motion": "right"}),
        ("a red circle moves from right to left", {"motion": "left"}),
        ("\u4e00\u4e2a\u7ea2\u8272\u5706\u5f62\u4ece\u5de6\u5411\u53f3\u79fb\u52a8", {"motion": "right"}),
        ("a red ball moves left", {"colour": "red", "shape": "circle", "motion": "left"}),
        ("\u7ea2\u8272\u5c0f\u7403\u5411\u5de6\u79fb\u52a8", {"shape": "circle", "size": "small", "motion": "left"}),
        ("a green cross on grey ground", {"colour": "green", "shape": "cross"}),
    ],
)  # fmt: skip
def test_words_of_people_mean_what_they_mean(prompt, thing):
    found = expand_by_rules(prompt)
    assert found.by == "rules", found
    (expanded,) = parse(found.text)["objects"]
    assert thing.items() <= expanded.items()


@pytest.mark.parametrize(
    "prompt",
    [
        "red circles on black",
        "a red circle moves up and down",
        "a red circle moves left then right",
        "a red and blue circle",
        "\u7ea2\u8272\u548c\u84dd\u8272\u7684\u5706\u5f62",  # the same
        "\u4ece\u5de6\u51fa\u53d1\u7684\u7ea2\u8272\u5706\u5f62",  # a red circle that sets out from the left
        "a gray circle",
        "\u7070\u8272\u5706\u5f62",  # the same
        "a small and large ring",
        "not a red circle",
        "\u6ca1\u6709\u7ea2\u8272\u7684\u5706\u5f62",  # the same
        "a red circle from the left",
        "three red circles",
        "a red circle, red background, blue background",
    ],
)
def test_what_is_not_understood_is_left_as_it_was_typed(prompt):
    found = expand_by_rules(prompt)
    assert (found.text, found.by) == (prompt, "")
    assert found.note.startswith(("the rules do not know", "it says more than one"))


@pytest.mark.parametrize(
    ("prompt", "things"),
    [
        ("a circle and a red square", [{"shape": "circle"}, {"shape": "square", "colour": "red"}]),
        ("a ring and a small blue square", [{"shape": "ring"}, {"size": "small", "colour": "blue"}]),
        ("a red circle and a spinning blue square", [{"colour": "red"}, {"colour": "blue", "motion": "spin"}]),
        ("a big, red circle and a small, blue ring", [{"size": "large", "colour": "red"}, {"size": "small"}]),
        ("a red circle is large and a blue ring is small", [{"size": "large"}, {"size": "small", "shape": "ring"}]),
        ("a spinning blue square and a bouncing red ring", [{"motion": "spin"}, {"motion": "bounce"}]),
        ("\u5706\u5f62\u548c\u7ea2\u8272\u6b63\u65b9\u5f62",
         [{"shape": "circle"}, {"shape": "square", "colour": "red"}]),
        # a red circle and a blue square that moves left; a red circle, at the lower right there is a blue square
        ("\u4e00\u4e2a\u7ea2\u8272\u5706\u5f62\u548c\u4e00\u4e2a\u5411\u5de6\u79fb\u52a8\u7684\u84dd\u8272\u6b63\u65b9\u5f62",
         [{"colour": "red"}, {"colour": "blue", "motion": "left"}]),
        ("\u4e00\u4e2a\u7ea2\u8272\u5706\u5f62\uff0c\u5728\u53f3\u4e0b\u89d2\u6709\u4e00\u4e2a\u84dd\u8272\u6b63\u65b9\u5f62",
         [{"colour": "red"}, {"colour": "blue", "start": "lower right"}]),
        ("a red circle moves left and bounces", [{"motion": "bounce", "wall": "left"}]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_attributes_belong_to_their_object(prompt, things, seed):
    found = expand_by_rules(prompt, seed)
    assert found.by == "rules", found
    expanded = parse(found.text)["objects"]
    assert len(expanded) == len(things)
    assert all(own.items() <= one.items() for own, one in zip(things, expanded, strict=True)), found
    original = parse(prompt)["objects"]  # the original prompt without additions
    assert all(own.items() <= one.items() for own, one in zip(things, original, strict=True))


@pytest.mark.parametrize(
    "prompt",
    [
        "a red circle and a blue square. the red circle moves left",
        "a red circle, the ball moves left",
        "a red circle, large and a blue square",
        "a red circle and a blue square are still",
        "a green circle moves down the red square",
        "\u7ea2\u8272\u5706\u5f62\uff0c\u5706\u5f62\u53d8\u5927",  # a red circle, the circle grows
        "\u7ea2\u8272\u5706\u5f62\u548c\u84dd\u8272\u6b63\u65b9\u5f62\u5411\u5de6\u79fb\u52a8",  # both move left
        "a red square spins and bounces",
        "a red circle moves up off the left wall",
        "a red circle moves left, bounces off the right wall",
        "a red circle bounces off the left wall and off the top wall",
        "a large red square hits the ground",
        "a red circle and a blue square hits the ground",
        "a red circle to the left of a blue square",
        "the left circle is red",
        "a large red right triangle",
        "a red circle starts left",
        "a red circle on green triangle",
        "a small red circle in a large blue square",
        "a red square in a circle",
        "a red ring around a blue square",
        "a red circle moves around",
        "a red circle falls",
        "a clipped red circle",
        "2 red ball",
        "3\u4e2a\u7ea2\u8272\u5706\u5f62",  # three of them
        "\u7ea2\u8272\u5706\u5f62\u672a\u5411\u5de6\u79fb\u52a8",  # does not move left
        "\u7ea2\u8272\u5706\u5f62\u5728\u5de6",  # is on the left
        "\u7ea2\u8272\u5706\u5f62\u5728\u84dd\u8272\u6b63\u65b9\u5f62\u91cc",  # inside
        "\u7ea2\u8272\u5706\u5f62\u843d\u4e0b",  # falls
    ],
)
def test_what_could_mean_something_else_is_left_as_it_was_typed(prompt):
    for seed in range(3):
        found = expand_by_rules(prompt, seed)
        assert (found.text, found.by) == (prompt, "")
        assert found.note


def test_the_ball_of_a_game_is_no_circle():
    assert parse("a paddle keeps a red ball in play") == {"objects": [], "scene": "paddle", "colour": "red"}
    assert parse("\u7403\u62cd\u63a5\u4f4f\u7ea2\u8272\u5c0f\u7403") == {
        "objects": [],
        "scene": "paddle",
        "colour": "red",
    }


def test_what_is_filled_in_is_possible():
    """Of a thing that starts somewhere and goes somewhere, the way there is free."""
    wrong = {"left": ("left", "upper left", "lower left"), "up": ("upper left", "top", "upper right")}
    for seed in range(40):
        for motion, places in wrong.items():
            thing = parse(expand_by_rules(f"a large red circle moves {motion}", seed).text)["objects"][0]
            assert thing["start"] not in places
            assert "wall" not in thing
            assert "turn" not in thing
            ground = parse(expand_by_rules("a red circle moves up", seed).text)["ground"]
            assert ground != "red"  # it would not be seen


def test_another_seed_fills_in_otherwise_and_the_same_one_alike():
    texts = {expand_by_rules("red circle moves up", seed).text for seed in range(12)}
    assert len(texts) > 6
    assert expand_by_rules("red circle moves up", 3) == expand_by_rules("red circle moves up", 3)


@pytest.mark.parametrize(
    ("prompt", "motion"),
    [
        ("a red circle passes behind a grey bar", ("left", "right", "up", "down")),
        ("a green cross, camera pans left", ("still",)),
        ("a blue square turns up and to the left", ("diagonal",)),
        ("a cyan ring off the left wall", ("bounce",)),
    ],
)
def test_the_rest_of_the_prompt_decides_the_motion(prompt, motion):
    prompt = prompt.replace("turns ", "")
    for seed in range(10):
        assert parse(expand_by_rules(prompt, seed).text)["objects"][0]["motion"] in motion


def test_expansion_adds_no_motion_to_an_image_unless_the_prompt_has_it():
    assert "motion" not in parse(expand_by_rules("a large blue square on green", frames=1).text)["objects"][0]
    assert parse(expand_by_rules("a large blue square moves up", frames=1).text)["objects"][0]["motion"] == "up"
    assert "motion" in parse(expand_by_rules("a large blue square on green").text)["objects"][0]


@pytest.mark.parametrize(
    ("prompt", "note"),
    [
        ("a red dog runs left", "the rules do not know 'dog', 'runs'"),
        ("一只红色的狗向左移动", "the rules do not know '狗'"),
        ("ein roter Kreis", "the rules do not know 'ein', 'roter', 'kreis'"),
        ("красный круг", "the rules do not know 'красный', 'круг'"),
        ("a red circle on white", "the rules do not know 'on'"),
        ("black background", "it names no thing that the rules know"),
        ("", "it names no thing that the rules know"),
    ],
)
def test_what_the_rules_do_not_know_is_left_as_it_is(prompt, note):
    found = expand_by_rules(prompt)
    assert (found.text, found.by, found.note) == (prompt, "", note)


def test_impossible_scenes_are_reported_in_the_words_of_the_prompt():
    """The playground shows no such video, but the prompt requests it."""
    text = expand_by_rules("a small red circle starts at the centre left and moves left").text
    assert text.startswith("a small red circle starts at the centre left and moves left")


def test_objects_without_room_together_are_listed_one_by_one():
    crowd = [{"shape": "circle", "colour": "red"}, {"shape": "ring", "colour": "cyan"}] * 3
    text = " and ".join(f"a large {one['colour']} {one['shape']} bounces" for one in crowd)
    found = expand_by_rules(text)
    assert found.by == "rules"
    assert len(parse(found.text)["objects"]) == 6


@pytest.mark.parametrize(
    ("expanded", "missing"),
    [
        ("a small red circle moves left", []),
        ("a small red circle moves right", ["motion"]),
        ("a small blue circle", ["colour", "motion"]),
        ("a small red circle moves left and a blue ring", ["objects"]),
        ("a cat", ["objects"]),
    ],
)
def test_what_is_lost_is_named(expanded, missing):
    assert dropped_attributes(parse("a small red circle moves left"), parse(expanded)) == missing
