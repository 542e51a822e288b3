"""The detector reads real clips of all sizes as what they are, before and after a video codec."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from unveil import data, playground
from unveil.analysis.detector_accuracy import BARS, encode_decode, study_detector
from unveil.analysis.detector_accuracy import DetectorSettings as Reading
from unveil.analysis.detector_accuracy import agreement as read_as_it_is
from unveil.errors import RecipeError, ShapeError
from unveil.playground.dataset import MOTIONS, TEN
from unveil.playground.detector import detect_objects, to_frames
from unveil.playground.motion_detector import camera_of, pan_of
from unveil.playground.shapes import COLOURS

SIZES = {"min_size": 16, "max_size": 96, "aspect": 2.0, "frames": (8, 12, 16, 24, 33), "fps": (4, 8, 16)}


def agreement(items, change=None):
    """The share of clips of one thing whose colour, shape, size, and motion of each kind, are read rightly."""
    right, total = Counter(), Counter()
    for item in items:
        pixels = item["pixels"] if change is None else change(item["pixels"], item["fps"])
        found = read_as_it_is(item, pixels)
        total.update(found.keys())
        right.update(name for name, hit in found.items() if hit)
    return {name: right[name] / total[name] for name in total}


def passes(found):
    assert found["colour"] >= 0.99
    assert found["shape"] >= 0.97
    assert found["size"] >= 0.97
    assert min(found.get(motion, 1) for motion in TEN) >= 0.94, found


@pytest.mark.parametrize("codec", ["none", "h264"])
def test_clips_of_mixed_sizes_are_read(codec):
    items = data.open(playground.PlaygroundConfig(**SIZES), "held-out").__getitems__(range(24))
    passes(agreement(items, encode_decode if codec == "h264" else None))


@pytest.mark.slow
@pytest.mark.parametrize("count", [150, pytest.param(500, marks=pytest.mark.release)])
def test_many_clips_of_mixed_sizes_are_read(count: int):
    pytest.importorskip("av")
    record = study_detector(Reading(count=count, seed=1))
    assert record["met"], record["found"]
    assert sum(record["found"]["h264"][name]["count"] for name in TEN) == count


def test_the_record_in_the_documentation_meets_every_bar():
    record = json.loads(Path("docs/results/detector/detector.json").read_text("utf-8"))
    assert record["met"]
    assert record["settings"]["count"] >= 500
    for own in record["found"].values():
        assert {name: row["bar"] for name, row in own.items() if row["bar"] is not None} == BARS
        assert all(row["value"] >= row["bar"] for row in own.values() if row["bar"] is not None)


def test_a_detector_study_needs_a_clip_of_each_motion():
    with pytest.raises(RecipeError, match="one of each motion"):
        Reading(count=9)


def test_pixel_noise_does_not_hurt():
    items = data.open(playground.PlaygroundConfig(), "held-out").__getitems__(range(60))
    noise = torch.Generator().manual_seed(0)

    def noisy(pixels, fps):
        return (pixels + 16 * torch.randn(pixels.shape, generator=noise)).clamp(0, 255).to(torch.uint8)

    found = agreement(items, noisy)
    assert found["colour"] == 1
    assert found["shape"] >= 0.95
    assert np.mean([found[motion] for motion in TEN]) >= 0.95


def test_patterns_bars_moving_cameras_and_spin_are_read():
    config = playground.PlaygroundConfig(**SIZES, motions=MOTIONS, p_pattern=0.5, p_occluder=0.5, p_camera=0.4)
    items = data.open(config, "held-out").__getitems__(range(60))
    found = agreement(items)
    assert found["colour"] >= 0.99
    assert found["shape"] >= 0.97
    assert np.mean([found[motion] for motion in MOTIONS]) >= 0.96, found
    for item in items:
        frames = to_frames(item["pixels"])
        assert camera_of(pan_of(frames), min(frames.shape[1:3])) == item["attributes"]["camera"]


def test_turns_walls_places_and_speed_are_read():
    for item in data.open(playground.PlaygroundConfig(min_size=48, max_size=48, motions=MOTIONS)).__getitems__(
        range(80)
    ):
        [seen], [true] = detect_objects(item["pixels"]), item["attributes"]["objects"]
        assert seen.motion is not None
        assert seen.motion.turn == true["turn"]
        assert seen.motion.walls[:1] == ((true["wall"],) if true["wall"] else ())
        assert len(seen.motion.walls) == true["bounces"]
        assert seen.visible.all()
        if true["motion"] not in ("spin", "bounce"):  # a bounce between two frames takes some of the way
            assert seen.motion.speed == pytest.approx(true["sides_per_second"], abs=0.03)
        if true["shape"] != "triangle":  # whose centre of mass is not that of its box
            assert np.abs(seen.centres - item["track"][0, :, :2].numpy()).max() < 0.5
        assert np.abs(seen.radius / item["track"][0, :, 2].numpy() - 1).max() < 0.1


def test_several_objects_are_all_read():
    config = playground.PlaygroundConfig(min_size=48, max_size=64, aspect=2.0, objects=(1, 2, 3))
    right = 0
    items = data.open(config).__getitems__(range(60))
    for item in items:
        keys = ("colour", "shape", "motion")
        true = {tuple(thing[key] for key in keys) for thing in item["attributes"]["objects"]}
        right += {(thing.colour, thing.shape, thing.motion_name) for thing in detect_objects(item["pixels"])} == true
    assert right >= 57


def test_an_object_that_vanishes_for_a_time_is_detected():
    config = playground.PlaygroundConfig(min_size=48, max_size=48, p_camera=1.0, motions=("still",))
    gone = [i for i in data.open(config).__getitems__(range(40)) if i["attributes"]["camera"] == "away"]
    for item in gone:
        [seen, *_] = detect_objects(item["pixels"])
        assert not seen.visible[7:9].any()
        assert seen.visible[[0, 15]].all()
        assert seen.motion_name == "still"


def test_nothing_is_read_where_nothing_is():
    assert detect_objects(torch.zeros(3, 8, 32, 32, dtype=torch.uint8)) == []
    assert detect_objects(torch.full((3, 4, 16, 16), 70, dtype=torch.uint8)) == []
    with pytest.raises(ShapeError, match=r"must be uint8 \(3, T, H, W\)"):
        detect_objects(torch.zeros(3, 8, 32, 32))


@pytest.mark.parametrize("seed", [790, 1481, 1768, 2475, *range(8)])
def test_fog_is_read_without_fault(seed):
    """What an untrained model makes; in the first four, pixels look like a colour that none of them holds."""
    generator = torch.Generator().manual_seed(seed)
    ground = 255 * torch.rand(3, 1, 1, 1, generator=generator)
    waves = torch.randn(1, 3, 4, 2, 2, generator=generator) * 200 * torch.rand(1, generator=generator)
    fog = ground + functional.interpolate(waves, size=(8, 16, 16), mode="trilinear")[0]
    for thing in detect_objects(fog.clamp(0, 255).to(torch.uint8)):
        assert thing.visible.any()
        assert np.isfinite(thing.centres[thing.visible]).all()


def test_an_image_has_no_motion():
    for item in data.open(playground.PlaygroundConfig(frames=(1,))).__getitems__(range(40)):
        [seen], [true] = detect_objects(item["pixels"]), item["attributes"]["objects"]
        assert (seen.colour, seen.shape, seen.size) == (true["colour"], true["shape"], true["size"])
        assert seen.motion is None
        assert seen.motion_name is None


def test_a_frozen_and_a_reversed_video_differ_from_the_true_video():
    for item in data.open(playground.PlaygroundConfig(motions=("left", "up", "grow"))).__getitems__(range(20)):
        frozen = item["pixels"][:, :1].expand(-1, 16, -1, -1)
        assert detect_objects(frozen)[0].motion_name == "still"
        back = {"left": "right", "up": "down", "grow": "shrink"}[item["attributes"]["objects"][0]["motion"]]
        assert detect_objects(item["pixels"].flip(1))[0].motion_name == back


def test_a_recoloured_object_is_read_by_its_new_colour():
    item = data.open(playground.PlaygroundConfig())[5]
    for colour, levels in COLOURS.items():
        bright = (item["pixels"].amax(0) > 110)[None]
        pixels = torch.where(bright, torch.tensor(levels, dtype=torch.uint8)[:, None, None, None], 0)
        assert detect_objects(pixels.to(torch.uint8))[0].colour == colour
