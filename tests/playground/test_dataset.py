"""The playground shows what its facts say, says what it shows, and is a pure function of seed and number."""

import time

import numpy as np
import pytest
import torch

from unveil import data, playground
from unveil.errors import RecipeError
from unveil.model.config import recipe_names  # noqa: F401 - the sections of all kinds are made
from unveil.model.config.data import Data
from unveil.playground.dataset import MOTIONS, Playground
from unveil.playground.eval_prompts import dataset_prompts, eval_prompts
from unveil.playground.shapes import COLOURS, KINDS, PALETTE
from unveil.playground.world.motion import TEN, VideoShape, between_sizes, is_possible, min_travel, radii, trajectories
from unveil.playground.world.objects import is_held_out_combination

WIDE = {
    "min_size": 16,
    "max_size": 96,
    "aspect": 2.0,
    "frames": (1, 2, 5, 9, 16, 33),
    "fps": (4, 8, 16),
    "objects": (1, 2, 3),
    "motions": MOTIONS,
    "p_pattern": 0.4,
    "p_occluder": 0.4,
    "p_camera": 0.4,
    "languages": ("en", "zh"),
}
SHOTS = ("brush", "pillars", "paddle", "corridor", "impact")


@pytest.fixture(scope="module")
def score():
    return data.open(playground.PlaygroundConfig(count=400)).__getitems__(range(400))


def of(motion, shape, *, size=32, frames=16, fps=8, count=200, height=None):
    """Paths of one motion, drawn at random."""
    view, draws = (
        VideoShape(height or size, size, frames, fps),
        np.random.default_rng(0).random((count, 8), dtype=np.float32),
    )
    radius = radii(draws[:, 6] < 0.5, draws[:, 7], view)
    kinds = np.full(count, KINDS.index(shape))
    return trajectories(np.full(count, MOTIONS.index(motion)), kinds, radius, draws[:, :6], view), view


def test_a_clip_is_a_pure_function_of_seed_and_number():
    for config in (playground.PlaygroundConfig(**WIDE), playground.PlaygroundConfig(scenes=("objects", *SHOTS))):
        together = data.open(config).__getitems__(range(24))
        for number in (0, 7, 23):
            alone = data.open(config)[number]
            assert torch.equal(alone["pixels"], together[number]["pixels"])
            assert torch.equal(alone["track"], together[number]["track"])
            assert alone["text"] == together[number]["text"]
            annotations = data.open(config).annotations([number])[0]
            assert {key: alone[key] for key in annotations} == annotations
    world = data.open(playground.PlaygroundConfig())
    other = data.open(playground.PlaygroundConfig(seed=1))
    assert not torch.equal(other[0]["pixels"], world[0]["pixels"])
    assert torch.equal(world[-1]["pixels"], world[len(world) - 1]["pixels"])
    with pytest.raises(IndexError, match="video 1000000 of 1000000"):
        world[1_000_000]


def test_the_score_world_is_what_it_is_fixed_to(score):
    for item in score:
        assert item["pixels"].shape == (3, 16, 32, 32)
        assert item["pixels"].dtype == torch.uint8
        assert len(item["attributes"]["objects"]) == 1
        assert item["fps"] == 8
    things = [item["attributes"]["objects"][0] for item in score]
    assert {thing["motion"] for thing in things} == set(TEN)
    assert {thing["colour"] for thing in things} == set(COLOURS)
    assert {thing["shape"] for thing in things} == set(KINDS)
    assert {thing["size"] for thing in things} == {"small", "large"}
    assert {item["register"] for item in score} == {"raw", "short", "dense"}


def test_training_never_has_a_held_out_combination_and_every_attribute_has_some(score):
    assert not any(item["unseen"] for item in score)
    out = [(c, k, m) for c in COLOURS for k in KINDS for m in TEN if is_held_out_combination(c, k, m)]
    assert 32 <= len(out) <= 48
    for place, known in enumerate((COLOURS, KINDS, TEN)):
        assert {each[place] for each in out} == set(known)
    annotations = data.open(playground.PlaygroundConfig(**WIDE)).annotations(range(2000))
    assert not any(item["unseen"] for item in annotations)
    held = data.open(playground.PlaygroundConfig(num_val=2000), "held-out").annotations(range(2000))
    assert 0.07 < np.mean([item["unseen"] for item in held]) < 0.14


def test_the_colour_is_where_the_track_says(score):
    for item in score[:100]:
        colour = PALETTE[list(COLOURS).index(item["attributes"]["objects"][0]["colour"])]
        pixels = item["pixels"].permute(1, 2, 3, 0).numpy().astype(float)
        rows = np.abs(pixels - colour).max(-1) < 24
        for mask, (x, y, radius, seen) in zip(rows, item["track"][0].tolist(), strict=True):
            down, across = np.nonzero(mask)
            assert seen == 1
            assert np.abs(across + 0.5 - x).max() < radius + 0.5
            assert np.abs(down + 0.5 - y).max() < radius + 0.5


@pytest.mark.parametrize("size", [16, 32, 96])
@pytest.mark.parametrize("frames", [3, 8, 33])
@pytest.mark.parametrize("motion", MOTIONS)
def test_motions_stay_in_the_image_and_go_far_enough(motion, frames, size):
    for shape in KINDS:
        if not is_possible(motion, shape, frames):
            continue
        found, view = of(motion, shape, size=size, frames=frames)
        assert found.radius.min() >= 3
        half = found.radius * (0.86 if shape == "square" else 1.0)
        if motion != "spin":
            assert (found.x - half).min() > -1e-3
            assert (found.x + half).max() < size + 1e-3
            assert (found.y - half).min() > -1e-3
            assert (found.y + half).max() < size + 1e-3
        way = np.maximum(np.ptp(found.x, 1), np.ptp(found.y, 1))
        if motion in ("still", "grow", "shrink", "spin"):
            assert way.max() < (1e-3 if motion != "spin" else size / 4)
        else:
            assert way.min() > 0.6 * min_travel(view.side)


def test_directions_go_where_they_say():
    for motion, axis, sign in (("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)):
        found, _ = of(motion, "ring", height=48)
        steps = np.diff([found.x, found.y][axis])
        assert (sign * steps > 0).all()
        assert np.ptp([found.y, found.x][axis], axis=1).max() < 1e-4


def test_bounces_happen_well_inside_the_clip():
    found, _ = of("bounce", "circle", frames=16)
    assert (found.bounces == 1).all()
    for x, y in zip(found.x, found.y, strict=True):
        way = x if np.ptp(x) > np.ptp(y) else y
        way = way if way[1] > way[0] else -way
        assert 4 <= way.argmax() <= 11
    assert set(of("bounce", "circle", frames=33)[0].bounces.tolist()) == {1, 2}


def test_orbits_close_and_growth_is_as_stated():
    found, _ = of("orbit", "circle", frames=16)
    steps = np.hypot(np.diff(found.x), np.diff(found.y))
    close = np.hypot(found.x[:, 0] - found.x[:, -1], found.y[:, 0] - found.y[:, -1])
    assert np.abs(close - steps[:, 0]).max() < 1e-3
    for motion, ratio in (("grow", 1.25**2), ("shrink", 1.25**-2)):
        radius = of(motion, "ring")[0].radius
        assert np.allclose(radius[:, -1] / radius[:, 0], ratio, rtol=1e-4)


def test_the_two_sizes_are_apart_at_every_side():
    draw = np.linspace(0, 0.999, 50, dtype=np.float32)
    for side in range(16, 97, 8):
        view = VideoShape(side, side, 16, 8)
        small, large = radii(np.zeros(50, dtype=bool), draw, view), radii(np.ones(50, dtype=bool), draw, view)
        assert small.max() * 1.1 < between_sizes(side) < large.min() / 1.1


def test_objects_keep_apart_and_differ_in_colour():
    items = data.open(playground.PlaygroundConfig(**(WIDE | {"p_camera": 0.0}), count=200)).__getitems__(range(200))
    assert {len(item["track"]) for item in items} == {1, 2, 3}
    for item in items:
        things = item["attributes"]["objects"]
        assert len({thing["colour"] for thing in things}) == len(things) == len(item["track"])
        for i, one in enumerate(item["track"]):
            for other in item["track"][:i]:
                apart = (one[:, :2] - other[:, :2]).abs().amax(1)
                assert (apart > one[:, 2] + other[:, 2]).all()


def test_hidden_objects_are_reported():
    config = playground.PlaygroundConfig(
        min_size=64, max_size=64, p_occluder=1.0, motions=("left", "right", "up", "down")
    )
    items = data.open(config).__getitems__(range(80))
    behind = [item for item in items if item["attributes"]["bar"]]
    assert len(behind) > 15
    for item in behind:
        seen = item["track"][0, :, 3]
        assert seen[0] > 0.95
        assert seen[-1] > 0.95
        assert seen.min() < 0.05
    assert "passes behind a grey bar" in " ".join(item["text"] for item in behind)
    away = data.open(playground.PlaygroundConfig(p_camera=1.0, motions=("still",), min_size=48, max_size=48))
    gone = [item for item in away.__getitems__(range(60)) if item["attributes"]["camera"] == "away"]
    assert len(gone) > 8
    for item in gone:
        assert item["track"][0, 7:9, 3].max() < 0.05
        assert torch.allclose(item["track"][0, 0], item["track"][0, -1], atol=1e-3)


@pytest.mark.parametrize("scene", SHOTS)
def test_other_scenes_have_facts_and_clips(scene):
    world = data.open(playground.PlaygroundConfig(scenes=(scene,), frames=(8, 16), languages=("en", "zh")))
    for item in world.__getitems__(range(12)):
        assert item["attributes"]["scene"] == scene
        assert item["pixels"].shape[0] == 3
        assert item["pixels"].float().std() > 5
        assert not torch.equal(item["pixels"][:, 0], item["pixels"][:, -1])
        assert item["track"].shape[1:] == (item["pixels"].shape[1], 4)


def test_images_are_items_of_rank_three_without_motion():
    config = playground.PlaygroundConfig(frames=(1,), caption_styles=("short", "dense"))
    items = data.open(config).__getitems__(range(40))
    assert all(item["pixels"].shape == (3, 32, 32) for item in items)
    assert not any("move" in item["text"] or "stays" in item["text"] for item in items)
    assert data.open(playground.PlaygroundConfig(frames=(1, 16)))[0]["pixels"].ndim == 4


@pytest.mark.parametrize("faults", [1.0, 0.4, 0.0])
def test_raw_captions_are_wrong_or_short_of_attributes_as_often_as_stated(faults):
    items = data.open(playground.PlaygroundConfig(caption_styles=("raw",), caption_error_rate=faults)).annotations(
        range(3000)
    )
    right, wrong, missing = 0, 0, 0
    for item in items:
        thing, mentioned = item["attributes"]["objects"][0], item["mentioned"]["objects"][0]
        for name in ("colour", "shape", "size", "motion"):
            missing += name not in mentioned
            right += mentioned.get(name) == thing[name]
            wrong += name in mentioned and mentioned[name] != thing[name]
    count = 4 * len(items)
    assert right + wrong + missing == count
    assert (wrong + missing) / count == pytest.approx(0.35 * faults, abs=0.02 * faults)
    assert wrong / count == pytest.approx(0.15 * faults, abs=0.02 * faults)


def test_short_and_dense_captions_say_nothing_but_the_truth():
    for item in data.open(playground.PlaygroundConfig(**WIDE | {"caption_styles": ("short", "dense")})).annotations(
        range(1000)
    ):
        for thing, mentioned in zip(item["attributes"]["objects"], item["mentioned"]["objects"], strict=True):
            assert mentioned.items() <= thing.items()


def test_scenes_are_drawn_where_they_have_room_and_as_often_as_they_are_named():
    config = playground.PlaygroundConfig(
        min_size=16, max_size=32, frames=(1, 8, 16), scenes=("objects", "objects", "brush", "impact"), objects=(1, 1, 3)
    )
    world = data.open(config)
    annotations = world.annotations(range(1200))
    scenes = [item["attributes"]["scene"] for item in annotations]
    roomy = [bool(side >= 32 and frames >= 8) for frames, side, _ in world.sizes()[:1200].tolist()]
    assert {scene for scene, fits in zip(scenes, roomy, strict=True) if not fits} == {"objects"}
    shares = [scene for scene, fits in zip(scenes, roomy, strict=True) if fits]
    assert shares.count("objects") / len(shares) == pytest.approx(1 / 2, abs=0.1)
    assert shares.count("brush") / len(shares) == pytest.approx(1 / 4, abs=0.1)
    things = [len(item["attributes"]["objects"]) for item in annotations if item["attributes"]["scene"] == "objects"]
    assert set(things) == {1, 2, 3}  # where three have no room there are fewer
    assert 0.05 < 1 - things.count(1) / len(things) < 0.36


def test_prompts_of_the_score_are_fixed_and_split():
    lists = {name: eval_prompts(name) for name in ("validation", "seen", "held-out")}
    for name, own in lists.items():
        assert len(own) == 500
        assert own == eval_prompts(name)
        assert [sum(p.caption_style == r for p in own) for r in ("raw", "short", "dense")] == [167, 167, 166]
        for prompt in own:
            assert {"colour", "shape", "motion"} <= prompt.attributes.keys()
            combination = (prompt.attributes[key] for key in ("colour", "shape", "motion"))
            assert is_held_out_combination(*combination) == (name == "held-out")
        assert {p.attributes["motion"] for p in own} == set(TEN)
    assert {p.text for p in lists["validation"]} != {p.text for p in lists["seen"]}
    assert len(eval_prompts("seen", language="zh", count=20)) == 20
    with pytest.raises(RecipeError, match="list 'heldout': must be one of validation, seen, held-out; nearest"):
        eval_prompts("heldout")  # pyright: ignore[reportArgumentType]


def test_drawing_is_fast_enough_to_train_on():
    world = Playground(playground.PlaygroundConfig(frames=(8,)))
    world.__getitems__(range(64))
    begun = time.process_time()
    world.__getitems__(range(64, 320))
    assert (time.process_time() - begun) / 256 < 0.004  # seconds a clip; 0.0004 on a quiet core


def test_a_recipe_takes_it():
    from pydantic import TypeAdapter

    section = TypeAdapter(Data).validate_python({"kind": "playground", "frames": [1, 9], "objects": [1, 2]})
    assert section.build() == playground.PlaygroundConfig(frames=(1, 9), objects=(1, 2))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min_size": 30}, "min_size 30: must be 16 to 96 by 8; nearest: 32"),
        ({"max_size": 104}, "max_size 104: must be 16 to 96 by 8; nearest: 96"),
        ({"min_size": 64}, "min_size 64: must not be above max_size 32"),
        ({"aspect": 3.0}, "aspect 3.0: the longer side over the shorter must be 1 to 2"),
        ({"frames": (34,)}, "frames: 34 is none of 1 to 33"),
        ({"frames": ()}, "frames: empty"),
        ({"fps": (24,)}, "fps: 24 is none of 4, 8, 16"),
        ({"motions": ("lefft",)}, "motions: 'lefft' is none of .*nearest: 'left'"),
        ({"frames": (4,), "motions": ("orbit",)}, "frames 4: none of the motions orbit can be seen"),
        (
            {"scenes": ("brush",), "frames": (4,)},
            "scenes brush with sides of 32 and 4 frames: they take at least 32.*or add 'objects'",
        ),
        ({"objects": (1, 4)}, "objects: 4 is none of 1 to 3"),
        ({"p_camera": 1.5}, "p_camera 1.5: a part of the videos"),
        ({"caption_error_rate": -0.1}, "caption_error_rate -0.1: a part of those that raw captions"),
        ({"count": 0}, "count 0, num_val 1000, seed 0"),
    ],
)
def test_impossible_worlds_are_refused(given, message):
    with pytest.raises(RecipeError, match=message):
        playground.PlaygroundConfig(**given)


def test_a_cut_clip_is_the_square_in_the_middle_of_the_whole_one():
    config = {"min_size": 16, "max_size": 32, "aspect": 2.0, "frames": (1, 3), "motions": ("left", "up")}
    whole, cut = (data.open(playground.PlaygroundConfig(**config, crop=cut)) for cut in ("none", "square"))
    sizes = cut.sizes()
    assert torch.equal(sizes[:40, 1], sizes[:40, 2])
    assert torch.equal(sizes[:40, 1], whole.sizes()[:40, 1:].amin(1))
    shapes = set()
    for number, (one, other) in enumerate(zip(whole.__getitems__(range(40)), cut.__getitems__(range(40)), strict=True)):
        frames, high, wide = one["pixels"].shape[1:]
        side = min(high, wide)
        top, left = (high - side) // 2, (wide - side) // 2
        assert torch.equal(other["pixels"], one["pixels"][:, :, top : top + side, left : left + side])
        assert [frames, side, side] == sizes[number].tolist()
        assert one["text"] == other["text"]
        shapes.add((high, wide))
    assert len(shapes) == 9
    with pytest.raises(RecipeError, match=r"crop 'sqare': must be none or square.*'square'"):
        playground.PlaygroundConfig(crop="sqare")  # pyright: ignore[reportArgumentType]


def test_prompts_of_a_world_say_what_its_first_clips_show():
    world = playground.Playground(playground.PlaygroundConfig(num_val=30), "held-out")
    found = dataset_prompts(world, 30, ["raw", "dense"])
    assert [one.caption_style for one in found] == ["raw", "dense"] * 15
    for one, item in zip(found, world.annotations(range(30)), strict=True):
        thing = item["attributes"]["objects"][0]
        assert {name: one.attributes[name] for name in ("colour", "shape", "motion")} == {
            name: thing[name] for name in ("colour", "shape", "motion")
        }
    assert found[0].text == dataset_prompts(world, 1, ["raw"])[0].text
    with pytest.raises(RecipeError, match="31 prompts of 30 videos"):
        dataset_prompts(world, 31, ["raw"])
    with pytest.raises(RecipeError, match="give objects"):
        dataset_prompts(playground.Playground(playground.PlaygroundConfig(scenes=("brush",))), 1, ["raw"])
