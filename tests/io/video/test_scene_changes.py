"""Scene changes: cuts are found, and motion, flashes and fades are not taken for one."""

from __future__ import annotations

import numpy as np
import pytest

from unveil.io.video.scene_changes import THUMBNAIL, scene_cuts, split_at_cuts

SIDE = THUMBNAIL


def changes(frames: np.ndarray) -> list[float]:
    """Mean absolute difference of frames (N, H, W, 3) in [0, 1] to the one before."""
    return np.abs(np.diff(frames, axis=0)).mean((1, 2, 3)).tolist()


def pan(seed: int, count: int, step: int = 1) -> np.ndarray:
    """A textured ground under a moving camera."""
    draw = np.random.default_rng(seed)
    coarse = draw.random((SIDE // 8, (SIDE + step * count) // 8 + 1, 3))
    ground = coarse.repeat(8, 0).repeat(8, 1)
    return np.stack([ground[:, step * number : step * number + SIDE] for number in range(count)])


def ball(count: int, level: float) -> np.ndarray:
    """A small square that moves over a ground of one grey."""
    frames = np.full((count, SIDE, SIDE, 3), level)
    for number in range(count):
        frames[number, 4:10, number : number + 6] = 1.0
    return frames


def test_hard_cuts_are_found_in_motion_and_in_rest():
    scenes = [pan(0, 12), ball(9, 0.2), pan(1, 7), pan(2, 15)]
    starts = np.cumsum([len(scene) for scene in scenes])[:-1].tolist()
    assert scene_cuts(changes(np.concatenate(scenes))) == starts


def test_motion_flashes_fades_and_noise_are_no_cuts():
    fast, flash = pan(3, 30, step=9), ball(20, 0.1)
    flash[8] = 1.0
    one, other = pan(4, 20), pan(5, 20)
    weight = np.linspace(0, 1, 20)[:, None, None, None]
    noise = np.random.default_rng(6).random((10, SIDE, SIDE, 3))
    for frames in (fast, flash, one * (1 - weight) + other * weight, one * weight, noise, ball(20, 0.5)):
        assert scene_cuts(changes(frames)) == []


@pytest.mark.parametrize(("given", "cuts"), [([], []), ([0.9], []), ([0.0, 0.9, 0.0], [2]), ([0.05, 0.0, 0.0], [])])
def test_short_videos(given, cuts):
    assert scene_cuts(given) == cuts


def test_places_follow_the_frames_that_are_shown():
    assert split_at_cuts(range(6), []) == [range(6)]
    assert split_at_cuts(range(6), [2, 5]) == [range(2), range(2, 5), range(5, 6)]
    assert split_at_cuts([0, 0, 1, 1, 2, 2], [1]) == [range(2), range(2, 6)]  # twice the rate
    assert split_at_cuts([0, 3, 6, 9], [4, 5]) == [range(2), range(2, 4)]  # a scene between two frames is not shown
    assert split_at_cuts([3, 4], [2]) == [range(2)]
