"""Free prompts are read: what is inside a model's vocabulary is found, and all else is reported."""

from __future__ import annotations

import hashlib
import json
import re
from importlib import resources

import pytest

import unveil
from tests.playground.prompt_following import LIST, free_prompts, missing, reading_of, seen, shows, videos
from unveil.checkpoints.hub import table
from unveil.playground.caption_parser import ambiguous, contradictory, language_of, parse, unparsed
from unveil.playground.prompt_reader import PlaygroundVocabulary, PromptReading, describe_omissions, read_prompt

FROZEN = (
    "41c5489a63c17db9f7aebb9bdb2d6e453e49f75e7d99243d5b85eba4f2e76d05"  # of the list, which is never changed to fit
)
PROMPTS = free_prompts()
ENGLISH = ["camera", "static", "circle", "square", "ring", "a", "red", "moves", "left", "small"]
FOLLOWED, WRONG = 0.9, 0.02


def vocabulary(name: str = "playground-video", *others: str) -> PlaygroundVocabulary:
    file = resources.files("unveil") / "assets" / "models" / name / "prompt.vocabulary.json"
    found = PlaygroundVocabulary.of([*json.loads(file.read_text("utf-8"))["tokens"], *others])
    assert found is not None
    return found


def read(prompt: str) -> PromptReading:
    return read_prompt(prompt, vocabulary())


def facts(text: str) -> dict[str, str]:
    found = parse(text)
    return {**{name: value for name, value in found.items() if name != "objects"}, **(found["objects"] or [{}])[0]}


def test_the_list_is_frozen():
    assert hashlib.sha256(LIST.read_bytes()).hexdigest() == FROZEN
    assert [sum(prompt.language == language for prompt in PROMPTS) for language in ("en", "zh")] == [100, 100]


def test_what_is_inside_is_read_and_what_is_outside_is_reported():
    known = {prompt.model: vocabulary(prompt.model) for prompt in PROMPTS}
    readings = [read_prompt(prompt.text, known[prompt.model]) for prompt in PROMPTS]
    read_right, wrong, inside = list[str](), list[str](), [prompt for prompt in PROMPTS if prompt.sees]
    for prompt, reading in zip(PROMPTS, readings, strict=True):
        if prompt.outside:
            assert not reading.is_complete, prompt
            assert describe_omissions(reading, known[prompt.model]), prompt
            continue
        found = facts(reading.text)
        if all(shows(wanted, found.get(name), name) for name, wanted in prompt.sees.items()):
            read_right.append(prompt.text)
        if not reading.is_complete:
            wrong.append(prompt.text)
    assert len(read_right) >= FOLLOWED * len(inside), {prompt.text for prompt in inside} - set(read_right)
    assert len(wrong) <= WRONG * len(inside), wrong


def test_readings_are_captions_that_the_rules_understand():
    for prompt, *_ in PROMPTS[::3]:
        text = read(prompt).text
        assert not unparsed(text) + contradictory(text) + ambiguous(text), text
        assert language_of(text) == language_of(prompt) or not text
        assert read(text).text == text  # read again, nothing changes


@pytest.mark.release  # minutes: `python -m tests.playground.prompt_following` prints the numbers
@pytest.mark.parametrize("name", ["playground-video", "playground-world"])
def test_prompts_of_the_list_are_followed(name):
    model = unveil.load(name)
    inside = [prompt for prompt in PROMPTS if prompt.sees and prompt.model == name]
    lacking = {
        prompt.text: lacks
        for prompt, pixels in zip(inside, videos(model, inside), strict=True)
        if (lacks := missing(prompt, pixels))
    }
    assert len(lacking) <= (1 - FOLLOWED) * len(inside), lacking
    assert all(not reading_of(prompt, model).is_complete for prompt in PROMPTS if prompt.outside)


def test_the_measurement_reads_videos():
    item = unveil.playground.Playground(unveil.playground.PlaygroundConfig(count=1, num_val=1))[0]
    thing = item["attributes"]["objects"][0]
    found = seen(item["pixels"])
    assert all(found[name] == thing[name] for name in ("colour", "shape", "size", "motion", "start"))
    assert found["ground"] == item["attributes"]["ground"]


@pytest.mark.parametrize(
    ("prompt", "text", "changes"),
    [
        ("a smal rde circel moves lefft", "a small red circle moves left",
         "smal -> small, rde -> red, circel -> circle, lefft -> left"),
        ("orange triangle falls from the top to the bottom",
         "an orange triangle starts at the top centre and moves down", ""),
        ("a big gray-ish pink ring in the corner", "a large red ring at the upper left", "pink -> red"),
        ("a red dot on a gray background", "a red circle, grey background", ""),
        ("a red dot on gray", "a red dot on gray", ""),  # a caption already
        ("teal box jumping quickly", "a cyan square bounces fast off the top wall", "teal -> cyan"),
        ("the ball drops", "a circle moves down", ""),
        ("teh rign goes off to the rihgt", "a ring moves right", "teh -> the, rign -> ring, rihgt -> right"),
        ("sqaur, purpul, dowm", "a purple square moves down", "sqaur -> square, purpul -> purple, dowm -> down"),
        ("a round cross circling", "a cross moves in a circle", ""),
        ("a ring at the left edge is moving", "a ring starts at the centre left and moves right", ""),
        ("a ring circles clockwise", "a ring moves in a circle clockwise", ""),
        ("a square that gets bigger", "a square grows", ""),
        ("grn cros dwn", "a green cross moves down", "grn -> green, cros -> cross, dwn -> down"),
        ("slooowly a red ball sinks", "a red circle moves down slowly", "slooowly -> slowly"),
    ],
)  # fmt: skip
def test_words_of_people_become_those_of_the_model(prompt, text, changes):
    found = read(prompt)
    assert (found.text, ", ".join(found.changes)) == (text, changes)


@pytest.mark.parametrize(
    ("prompt", "omitted"),
    [
        ("a black square on white background", ["a background 'white'", "an object in 'black'"]),
        ("a square grows and a triangle shrinks", ["a second object (triangle)"]),
        ("three red circles", ["more than one object (three)"]),
        ("red circles", ["more than one object (circles)"]),
        ("a cat wearing a hat", ["'cat'", "'wearing'", "'hat'"]),
        ("a red circle \U0001f680", ["emoji \U0001f680"]),
        ("a red and blue circle", ["more than one colour (blue)"]),
        ("a big small circle", ["more than one size (small)"]),
        ("a circle moves left, then right", ["more than one direction"]),
        ("a circle grows and moves left", ["more than one motion"]),
        ("not a circle", ["'not a circle' (negations are not read)"]),
        ("a circle becomes blue", ["a change of colour or shape"]),
        ("a spinning square", ["'spinning'"]),
        ("a red circle, camera pans left", ["'camera pans left'"]),
        ("", []),
        ("...", []),
    ],
)
def test_what_will_not_be_drawn_is_reported(prompt, omitted):
    found = read(prompt)
    assert not found.is_complete
    assert list(found.omitted) == omitted
    sentence = describe_omissions(found, vocabulary())
    assert all(text in sentence for text in omitted)
    assert "this model draws one circle, square, triangle, cross or ring" in sentence
    assert "nearest" not in sentence
    named = re.findall("unveil get ([a-z0-9-]+)", sentence)
    assert [table.published_models()[name].makes for name in named] == ["images", "videos"]


def test_the_part_that_can_be_drawn_is_read_all_the_same():
    assert read("a red circle and a blue square move left").text.startswith("a red circle")
    assert read("a shiny xylophone and a small ring going up").text == "a small ring moves up"  # one unknown word


@pytest.mark.parametrize("word", ["bed", "bug", "king", "pig", "gift", "road", "feast", "snow", "skill", "town", "cat"])
def test_words_in_use_are_not_misspellings(word):
    assert read(f"a {word}") == PromptReading(f"a {word}", "", (), (repr(word),))


def test_what_another_model_knows_decides():
    world = vocabulary("playground-world")
    assert read_prompt("red circle, camera pans left", world).is_complete
    assert read_prompt("walk forward down a hallway with red doors", world).text == "corridor forward red"
    english = PlaygroundVocabulary.of(ENGLISH)
    assert english is not None
    assert read_prompt("\u5c0f\u7ea2\u5706\u5f80\u5de6", english).text == "a small red circle moves left"
    assert PlaygroundVocabulary.of({"red", "circle", "shirt"}) is None


def test_words_learned_from_other_captions_leave_the_prompt_unchanged():
    own = vocabulary("playground-video", "dog", "sqare")
    assert read_prompt("a dog runs left", own) == PromptReading("a dog runs left", "a dog runs left")
    assert read_prompt("a sqare", own).text == "a sqare"
