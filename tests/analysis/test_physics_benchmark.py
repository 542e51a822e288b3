"""Laws of the world: they hold in real clips, and not in clips that break them; a study of a model says so."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from unveil import load
from unveil.analysis import physics_benchmark
from unveil.analysis.pages import physics_page
from unveil.analysis.physics_benchmark import LAWS, prompt_of, scenes_of, study_physics
from unveil.analysis.video_study import StudyContext, VideoStudySettings, stack_videos
from unveil.errors import RecipeError
from unveil.playground.detector import detect_objects

COUNT = 16
BLACK = torch.zeros(3, 16, 32, 32, dtype=torch.uint8)


def bench():
    return StudyContext(SimpleNamespace(shape=(3, 16, 32, 32)), VideoStudySettings(count=COUNT))


@pytest.fixture(scope="module")
def scenes():
    return {name: scenes_of(bench(), law) for name, law in LAWS.items()}


def mean(measure, items, clips):
    return sum(measure(item, clip) for item, clip in zip(items, clips, strict=True)) / len(items)


@pytest.mark.parametrize("name", LAWS)
def test_laws_hold_in_real_clips(scenes, name):
    law, items = LAWS[name], scenes[name]
    assert len(items) == COUNT
    first = law.metrics[0]
    value = mean(first.measure, items, stack_videos(items))
    assert value <= 1 if first.rule == "at most" else value >= 0.95
    for measure in law.metrics[1:]:
        if measure.unit == "%":
            assert mean(measure.measure, items, stack_videos(items)) >= 0.95


@pytest.mark.parametrize("name", LAWS)
def test_no_bar_is_met_by_a_still_frame_by_nothing_or_by_chance(scenes, name):
    law, items = LAWS[name], scenes[name]
    real = stack_videos(items)
    first = law.metrics[0]
    if name == "space":  # a still camera keeps space together: whether it moves has its own bar
        assert next(one for one in law.metrics if one.measure is physics_benchmark.camera_direction_correct).bar == 0.8
        assert mean(physics_benchmark.camera_direction_correct, items, real[:, :, :1].expand_as(real)) == 0
    else:
        assert mean(first.measure, items, real[:, :, :1].expand_as(real)) <= 0.6
    nothing = mean(first.measure, items, BLACK.expand_as(real))
    assert nothing == (physics_benchmark.NO_PILLARS_ERROR if name == "space" else 0)


def test_things_that_change_do_not_last(scenes):
    items = scenes["occluder"]
    real = stack_videos(items)
    behind, outside = (partial(physics_benchmark.reappears, where=where) for where in ("behind", "outside"))
    assert mean(behind, items, real) == 1
    assert mean(outside, items, real) == 0
    other = torch.cat([real[:, :, :8], real.roll(1, 0)[:, :, 8:]], dim=2)  # another comes out
    assert mean(physics_benchmark.object_permanence, items, other) < 0.3
    assert (
        mean(
            physics_benchmark.object_permanence, items, torch.cat([real[:, :, :8], BLACK.expand_as(real)[:, :, 8:]], 2)
        )
        == 0
    )
    assert mean(physics_benchmark.direction_correct, items, real.flip(2)) == 0
    away = scenes["frame"]
    assert mean(outside, away, stack_videos(away)) == 1
    assert mean(behind, away, stack_videos(away)) == 0


def test_what_blinks_in_the_open_is_not_hidden(scenes):
    """Some frames without the thing, in clips in which nothing could hide it."""
    still = [scene for scene in scenes["frame"] if 10 < scene["track"][0, 0, 0] < 22]
    assert still
    clips = stack_videos(still)[:, :, :1].expand(-1, -1, 16, -1, -1).clone()
    clips[:, :, 7:10] = clips[:, :, :1, :1, :1]  # the ground alone
    for where in ("behind", "outside"):
        assert mean(partial(physics_benchmark.reappears, where=where), still, clips) == 0
    assert mean(physics_benchmark.object_permanence, still, clips) > 0.5
    assert not any(detect_objects(clip, max_objects=1)[0].visible.all() for clip in clips)


def test_space_that_is_bent_is_seen(scenes):
    items = scenes["space"]
    real = stack_videos(items)
    assert mean(physics_benchmark.residual, items, real) < 0.5
    bent = torch.cat([real[..., :16], real[..., 16:].roll(6, -1)], dim=-1)
    assert mean(physics_benchmark.residual, items, bent) > 4 * mean(physics_benchmark.residual, items, real)
    assert physics_benchmark.residual(items[0], BLACK) == physics_benchmark.NO_PILLARS_ERROR
    less = real.clone()
    less[..., 16:] = real[..., :1, :1]  # the pillars on the right are missing
    assert mean(physics_benchmark.residual, items, less) > 4
    assert mean(physics_benchmark.camera_direction_correct, items, real.flip(2)) == 0


def test_paint_that_fades_is_seen(scenes):
    items = scenes["brush"]
    real = stack_videos(items)
    fading = torch.cat([real[:, :, :12], real[:, :, :4].flip(2)], dim=2)
    assert mean(physics_benchmark.paint_persistence, items, fading) < 0.8
    assert physics_benchmark.paint_persistence(items[0], BLACK) == 0
    assert mean(physics_benchmark.paint_colour_correct, items, real[:, [2, 0, 1]]) < 0.3


def test_walking_the_other_way_does_not_obey(scenes):
    assert mean(physics_benchmark.walk_correct, scenes["corridor"], stack_videos(scenes["corridor"]).flip(2)) == 0


def test_a_ball_that_is_bent_breaks_the_law(scenes):
    items = scenes["game"]
    real = stack_videos(items)
    assert mean(physics_benchmark.reflection_error, items, real) < 15
    bent = real.clone()
    for k in range(8, 16):
        bent[:, :, k] = real[:, :, k].roll(k - 8, -2)
    assert mean(physics_benchmark.reflection_error, items, bent) > 1.5 * mean(
        physics_benchmark.reflection_error, items, real
    )
    assert physics_benchmark.reflection_error(items[0], BLACK) == physics_benchmark.NO_BOUNCE_ERROR
    assert physics_benchmark.ball_in_play(items[0], BLACK) == 0


def test_falling_is_faster_and_faster(scenes):
    items = scenes["impact"]
    assert 2.6 < mean(physics_benchmark.acceleration_ratio, items, stack_videos(items)) < 3.4
    even = []
    for k in range(16):  # a square that falls evenly
        frame = torch.zeros(3, 32, 32, dtype=torch.uint8)
        frame[0, k : k + 8, 10:18] = 230
        even.append(frame)
    assert physics_benchmark.acceleration_ratio(items[0], torch.stack(even, 1)) == pytest.approx(1.0, abs=0.1)
    assert physics_benchmark.acceleration_ratio(items[0], BLACK) == 1
    assert mean(physics_benchmark.fracture_correct, items, stack_videos(items).flip(2)) < 0.8


def test_frames_are_mixed_in_another_order_for_every_clip(scenes):
    clip = stack_videos(scenes["brush"])[0]
    orders = [
        physics_benchmark._shuffle_frames(torch.arange(16).expand(1, 16), 0, n).flatten().tolist() for n in range(8)
    ]
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert len({tuple(order) for order in orders}) == 8
    assert physics_benchmark._shuffle_frames(clip, 0, 1).shape == clip.shape


def test_prompts_tell_the_scene(scenes):
    assert "passes behind a grey bar" in prompt_of(scenes["occluder"][0])
    assert "camera pans away and back" in prompt_of(scenes["frame"][0])
    assert all("walking" in prompt_of(item) for item in scenes["corridor"])


@pytest.mark.slow
def test_a_study_of_a_model_has_a_page():
    model = load("playground-video")
    study = study_physics(model, VideoStudySettings(count=2, sampling={"steps": 1}, only=("brush", "occluder")))
    record = {"model": {"name": "tiny"}, "about": {}, **study.record()}
    rows = record["tasks"]["brush"]["rows"]
    assert [row["measure"] for row in rows[:2]] == [
        "paint that stays, from the prompt",
        "paint that stays, from 6 frames",
    ]
    assert rows[0]["bar"] == 0.9
    assert rows[0]["ceiling"] > 0.95
    assert set(rows[1]["baselines"]) == {
        "the 6 frames, the last one frozen",
        "real videos with shuffled frames",
        "first frame of real videos, frozen",
        "without these frames",
    }
    assert len(record["tasks"]["occluder"]["rows"]) == 6
    assert record["tasks"]["occluder"]["rows"][0]["baselines"]["first frame of real videos, frozen"] == 0
    page = physics_page(study, record)
    assert "Laws of the world that tiny follows" in page
    assert "<h2>Bars</h2>" in page
    assert page.count("Limits of the model") == 1  # a single step makes no brush that paints


def test_what_cannot_be():
    with pytest.raises(RecipeError, match=r"task 'brushes': must be one of occluder, .*nearest: 'brush'"):
        study_physics(load("playground-video"), VideoStudySettings(only=("brushes",)))
    with pytest.raises(RecipeError, match="needs a text-to-video model"):
        study_physics(load("ddpm-digits"), VideoStudySettings())
