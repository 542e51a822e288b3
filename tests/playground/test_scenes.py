"""Scenes are what their captions, boxes and masks say, and a pure function of seed and number."""

import re

import numpy as np
import pytest
import torch

from unveil import data, playground
from unveil.errors import RecipeError, ShapeError
from unveil.playground.scene_captions import SceneObject, chinese_caption, english_caption
from unveil.playground.scenes import CLASSES, OVERLAP, uniforms
from unveil.playground.shapes import COLOURS, KINDS, PALETTE, Shapes, boxes, coverage

SIDE = 48
THING = re.compile(rf"a (small|large) ({'|'.join(COLOURS)}) ({'|'.join(KINDS)})")


@pytest.fixture(scope="module")
def scenes():
    return data.open(playground.ScenesConfig(size=SIDE, count=300)).__getitems__(range(300))


def test_a_scene_is_a_pure_function_of_seed_and_number(scenes):
    again = data.open(playground.ScenesConfig(size=SIDE, count=300))
    for number in (0, 7, 299):
        alone = again[number]
        assert alone["text"] == scenes[number]["text"]
        for key in ("pixels", "boxes", "mask", "kinds", "colours"):
            assert torch.equal(alone[key], scenes[number][key])
    assert torch.equal(again[-1]["pixels"], scenes[299]["pixels"])
    other = data.open(playground.ScenesConfig(size=SIDE, seed=1))
    assert not torch.equal(other[0]["pixels"], scenes[0]["pixels"])
    with pytest.raises(IndexError):
        again[300]


def test_the_parts_share_no_scene():
    train, held_out = (
        data.open(playground.ScenesConfig(count=200, num_val=200), part) for part in ("train", "held-out")
    )
    seen = {item["pixels"].numpy().tobytes() for part in (train, held_out) for item in part.__getitems__(range(200))}
    assert len(seen) == 400


def test_draws_are_uniform_and_independent():
    draws = uniforms(3, np.arange(20_000, dtype=np.uint64), 8).astype(np.float64)
    assert abs(draws.mean() - 0.5) < 0.003
    assert abs(draws.var() - 1 / 12) < 0.001
    assert np.abs(np.corrcoef(draws.T) - np.eye(8)).max() < 0.03
    assert np.abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.03
    assert 0 <= draws.min() < draws.max() < 1


def test_each_object_has_its_colour_inside_its_mask_and_box(scenes):
    for item in scenes:
        pixels, mask = item["pixels"].numpy().astype(int), item["mask"].numpy()
        assert pixels.shape == (3, SIDE, SIDE)
        rows_of = (item[key].numpy() for key in ("kinds", "colours", "boxes"))
        for kind, colour, (x, y, width, height) in zip(*rows_of, strict=True):
            left, right = (x - width / 2) * SIDE, (x + width / 2) * SIDE
            top, bottom = (y - height / 2) * SIDE, (y + height / 2) * SIDE
            assert min(left, top) >= -1e-3
            assert max(right, bottom) <= SIDE + 1e-3
            near = np.abs(pixels - PALETTE[colour].astype(int)[:, None, None]).max(0) < 24
            rows, columns = np.nonzero(near & (mask == kind + 1))
            assert len(rows) > 6, item["text"]
            assert columns.min() >= left - 1
            assert columns.max() <= right
            assert rows.min() >= top - 1
            assert rows.max() <= bottom
    everything = np.concatenate([item["mask"].numpy().ravel() for item in scenes])
    assert set(np.unique(everything)) == set(range(len(CLASSES)))


def test_captions_name_what_is_there(scenes):
    for item in scenes:
        mentioned = [(colour, kind) for _, colour, kind in THING.findall(item["text"])]
        true = [(list(COLOURS)[c], KINDS[k]) for c, k in zip(item["colours"], item["kinds"], strict=True)]
        assert mentioned == true, item["text"]
        assert item["label"] == item["kinds"][0]
        if " left of " in item["text"]:
            assert item["boxes"][0, 0] < item["boxes"][1, 0]
        if " above " in item["text"]:
            assert item["boxes"][0, 1] < item["boxes"][1, 1]
    phrases = " ".join(item["text"] for item in scenes)
    for phrase in ("to the left of", "to the right of", "above", "below", " and ", ", a"):
        assert phrase in phrases


def test_caption_sentences():
    things = [SceneObject("circle", "red", "large", 0.2, 0.5), SceneObject("ring", "blue", "small", 0.8, 0.4)]
    assert english_caption(things[:1]) == "a large red circle"
    assert english_caption(things, relation=True) == "a large red circle to the left of a small blue ring"
    assert english_caption(things[::-1], relation=True) == "a small blue ring to the right of a large red circle"
    assert english_caption([*things, SceneObject("cross", "white", "small", 0.5, 0.9)]) == (
        "a large red circle, a small blue ring and a small white cross"
    )


def test_captions_that_say_some_of_it():
    things = [SceneObject(None, "red", None, 0.2, 0.5), SceneObject("ring", None, "small", 0.8, 0.4)]
    assert english_caption(things) == "red and a small ring"
    assert english_caption([SceneObject("ring", "orange", None, 0, 0)]) == "an orange ring"
    assert chinese_caption(things) == "\u7ea2\u8272\u548c\u4e00\u4e2a\u5c0f\u7684\u5706\u73af"
    whole, some = (data.open(playground.ScenesConfig(count=300, mentioned=mentioned)) for mentioned in ("all", "some"))
    named = 0
    for number in range(300):
        one, other = whole[number], some[number]
        assert torch.equal(one["pixels"], other["pixels"])
        assert bool(one["mentioned"].all())
        assert bool(other["mentioned"].any(1).all())
        for kind, colour, mentioned in zip(other["kinds"], other["colours"], other["mentioned"], strict=True):
            assert not mentioned[1] or list(COLOURS)[colour] in other["text"]
            assert not mentioned[2] or KINDS[kind] in other["text"]
        for word, column in ((list(COLOURS), 1), (KINDS, 2)):
            assert sum(other["text"].count(one) for one in word) == int(other["mentioned"][:, column].sum())
        named += int(other["mentioned"].sum())
    assert 0.4 < named / sum(3 * len(whole[n]["mentioned"]) for n in range(300)) < 0.7


def test_captions_in_both_languages():
    english, other, both = (data.open(playground.ScenesConfig(count=200, language=one)) for one in ("en", "zh", "both"))
    found = [tuple(one.facts(n)["text"] for one in (english, other, both)) for n in range(200)]
    assert all(en.isascii() and not zh.isascii() and mixed in (en, zh) for en, zh, mixed in found)
    assert 60 < sum(mixed == en for en, _, mixed in found) < 140


def test_facts_equal_those_of_items_except_for_images():
    scenes = data.open(playground.ScenesConfig(count=20, mentioned="some", language="both"))
    for number in (0, 7, 19):
        item, facts = scenes[number], scenes.facts(number)
        assert item.keys() - facts.keys() == {"pixels", "mask"}
        assert item["text"] == facts["text"]
        assert all(torch.equal(item[key], facts[key]) for key in ("boxes", "kinds", "mentioned", "layout"))


def test_counts_kinds_and_colours_all_occur_and_colours_differ_within_a_scene(scenes):
    counts = np.bincount([len(item["boxes"]) for item in scenes], minlength=4)
    assert counts[0] == 0
    assert (counts[1:] > 50).all()
    assert (np.bincount(torch.cat([item["kinds"] for item in scenes]), minlength=5) > 60).all()
    assert (np.bincount(torch.cat([item["colours"] for item in scenes]), minlength=8) > 30).all()
    assert all(len(set(item["colours"].tolist())) == len(item["colours"]) for item in scenes)


def test_no_two_boxes_overlap_beyond_the_bound():
    largest = 0.0
    for item in data.open(playground.ScenesConfig(size=16, count=400, objects=6)).__getitems__(range(400)):
        for i, one in enumerate(item["boxes"]):
            for other in item["boxes"][:i]:
                shared = ((one[2:] + other[2:]) / 2 - (one[:2] - other[:2]).abs()).clamp(min=0)
                shared = torch.minimum(shared, torch.minimum(one[2:], other[2:])).prod()
                largest = max(largest, float(shared / min(one[2:].prod(), other[2:].prod())))
    assert 0 < largest <= OVERLAP + 1e-4


@pytest.mark.parametrize("kind", range(len(KINDS)))
@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_boxes_are_tight_and_coverage_is_antialiased(kind, angle):
    one = Shapes(np.array([kind]), *(np.array([value], dtype=np.float32) for value in (0.47, 0.52, 0.3, angle)))
    [box], [covered] = boxes(one), coverage(one, 200, 200)
    rows, columns = np.nonzero(covered > 0.5)
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 200
    assert np.abs(found - [*(box[:2] - box[2:] / 2), *(box[:2] + box[2:] / 2)]).max() < 2 / 200
    # at half a pixel's resolution the area stays, which it would not without soft edges
    small = coverage(one, 20, 20)[0].sum() * 100
    assert small == pytest.approx(covered.sum(), rel=0.03)


@pytest.mark.parametrize(
    ("kind", "area"),
    [(0, np.pi), (1, 4 * 0.86**2), (2, 2.0), (3, 4 * (2 * 0.34 - 0.34**2)), (4, np.pi * (1 - 0.54**2))],
)
def test_areas_are_those_of_the_shapes(kind, area):
    one = Shapes(np.array([kind]), *(np.array([value], dtype=np.float32) for value in (0.5, 0.5, 0.4, 0.3)))
    assert coverage(one, 256, 256).sum() / (0.4 * 256) ** 2 == pytest.approx(area, rel=0.005)


def test_boxes_states_go_round(scenes):
    states = torch.stack([data.boxes_to_state(item["boxes"], 4) for item in scenes])
    assert states.shape == (300, 4, 5)
    assert -1 <= float(states.min()) < float(states.max()) == 1
    for item, found in zip(scenes, data.state_to_boxes(states), strict=True):
        assert torch.allclose(found, item["boxes"], atol=1e-6)
    with pytest.raises(ShapeError, match="3 boxes for 2 slots: raise slots"):
        data.boxes_to_state(torch.rand(3, 4), 2)
    assert data.boxes_to_state(torch.zeros(0, 4), 2)[:, 4].tolist() == [-1, -1]


def test_mask_states_go_round(scenes):
    mask = torch.stack([item["mask"] for item in scenes[:8]])
    state = data.mask_to_state(mask, len(CLASSES))
    assert state.shape == (8, 6, SIDE, SIDE)
    assert set(state.unique().tolist()) == {-1.0, 1.0}
    noisy = state + 0.3 * torch.randn(state.shape, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    assert torch.equal(data.state_to_mask(noisy), mask)
    with pytest.raises(ShapeError, match="mask with classes 0 to 5: allowed are 0 to 3"):
        data.mask_to_state(torch.arange(6).reshape(2, 3), 4)


def test_a_scene_may_carry_its_state():
    boxes_state = data.open(playground.ScenesConfig(state="boxes", slots=5))[3]
    assert torch.equal(boxes_state["state"], data.boxes_to_state(boxes_state["boxes"], 5))
    assert data.open(playground.ScenesConfig(state="mask"))[3]["state"].shape == (6, 32, 32)
    assert "state" not in data.open(playground.ScenesConfig())[3]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 8}, "size 8: shapes are indistinguishable below 16 pixels"),
        ({"objects": 9}, "objects 9: must be 1 to 8"),
        ({"state": "boxes", "objects": 5}, "slots 4: must hold all 5 objects"),
        ({"count": 0}, "count 0, num_val 1000: each part needs"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_impossible_scenes_are_refused(given, message):
    with pytest.raises(RecipeError, match=message):
        playground.ScenesConfig(**given)
