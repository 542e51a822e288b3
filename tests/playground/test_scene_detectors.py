"""The other scenes are read back: what a brush left, how a ball flew, how a camera went, whether something broke."""

import numpy as np
import pytest
import torch

from unveil import data, playground
from unveil.playground.scene_detectors import corridor_progress, fracture_frame, rebounds, trail, yaw


def clips(scene, count=20, frames=(16, 33)):
    config = playground.PlaygroundConfig(
        min_size=32, max_size=64, aspect=2.0, frames=frames, fps=(8, 16), scenes=(scene,)
    )
    return data.open(config).__getitems__(range(count))


def test_trails_stay():
    for item in clips("brush"):
        found = trail(item["pixels"])
        assert found is not None
        assert found.colour == item["attributes"]["colour"]
        assert found.remaining >= 0.95
        half = item["pixels"].shape[1] // 2
        gone = torch.cat([item["pixels"][:, : half + 4], item["pixels"][:, : half - 4].flip(1)], dim=1)
        assert trail(gone).remaining < 0.7  # pyright: ignore[reportOptionalMemberAccess]
    assert trail(torch.zeros(3, 8, 32, 32, dtype=torch.uint8)) is None


def test_a_ball_leaves_at_the_angle_at_which_it_came():
    for item in clips("paddle"):
        found = rebounds(item["pixels"])
        assert found is not None
        assert found.bounces == item["attributes"]["bounces"]
        assert found.error <= 5
    assert rebounds(torch.zeros(3, 8, 32, 32, dtype=torch.uint8)) is None


def test_a_ball_that_breaks_the_law_of_reflection_is_detected():
    config = playground.PlaygroundConfig(min_size=64, max_size=64, frames=(33,), scenes=("paddle",))
    errors = []
    for item in data.open(config).__getitems__(range(10)):
        quick = item["pixels"][:, [*range(16), *range(16, 33, 2)]]  # twice as fast: angles stay
        bent = item["pixels"].clone()
        bent[:, 16:] = torch.roll(bent[:, 16:], 1, dims=2)
        for step in range(16, 33):  # from here on it also falls by a pixel and a half a frame
            bent[:, step] = torch.roll(item["pixels"][:, step], int(1.5 * (step - 16)), dims=1)
        errors.append((rebounds(quick).error, rebounds(bent).error))  # pyright: ignore[reportOptionalMemberAccess]
    assert np.median([true for true, _ in errors]) < 5
    assert np.median([wrong for _, wrong in errors]) > 10


def test_the_cameras_yaw_is_read_to_two_degrees():
    for item in clips("pillars"):
        found, true = yaw(item["pixels"]), np.array(item["attributes"]["yaw"])
        assert np.abs((found.degrees - true + 180) % 360 - 180).max() <= 2
        assert (found.degrees[-1] > found.degrees[0]) == (item["attributes"]["orbit"] == "right")
        assert found.residual <= 1
        mixed = item["pixels"].clone()
        mixed[0], mixed[2] = item["pixels"][2], item["pixels"][0]  # other colours are in another order
        assert yaw(mixed).residual > found.residual


def test_steps_in_a_corridor_are_read():
    for item in clips("corridor"):
        true = np.array(item["attributes"]["gone"])
        assert np.abs(corridor_progress(item["pixels"]) - (true - true[0])).max() < 0.2
        back = corridor_progress(item["pixels"].flip(1))
        assert np.sign(back[-1]) == -np.sign(true[-1] - true[0])


@pytest.mark.parametrize("frames", [(12,), (33,)])
def test_breaking_is_read_and_when(frames):
    items = clips("impact", frames=frames)
    assert {item["attributes"]["fate"] for item in items} == {"breaks", "lands"}
    for item in items:
        found = fracture_frame(item["pixels"])
        assert (found is not None) == (item["attributes"]["fate"] == "breaks")
        assert found is None or abs(found - item["attributes"]["hit"]) <= 2
    assert fracture_frame(torch.zeros(3, 8, 32, 32, dtype=torch.uint8)) is None
