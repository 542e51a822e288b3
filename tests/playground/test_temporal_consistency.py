"""What is measured of clips that go on, on clips whose answer is known: real, frozen, cut, and cross-faded ones."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from unveil import playground
from unveil.playground import temporal_consistency
from unveil.playground.world.rendering import TONES

WORLD = playground.Playground(playground.PlaygroundConfig(), "held-out")
ITEMS = WORLD.__getitems__(range(150))
MOVING = ("left", "right", "up", "down", "diagonal", "bounce", "orbit")
SIDE = 32.0


def clips(*motions: str) -> list[Tensor]:
    return [item["pixels"] for item in ITEMS if item["attributes"]["objects"][0]["motion"] in motions]


def pairs() -> list[tuple[Tensor, Tensor]]:
    """Moving clips over one ground, of unlike colours."""
    found = [item for item in ITEMS if item["attributes"]["objects"][0]["motion"] in MOVING]
    colour = lambda item: item["attributes"]["objects"][0]["colour"]  # noqa: E731
    return [
        (one["pixels"], other["pixels"])
        for one, other in pairwise(found)
        if colour(one) != colour(other) and one["attributes"]["ground"] == other["attributes"]["ground"]
    ]


def faded(first: Tensor, last: Tensor) -> Tensor:
    share = torch.linspace(0, 1, 16).view(1, -1, 1, 1)
    return torch.lerp(first.float(), last.float(), share).round().to(torch.uint8)


def test_places_are_those_of_the_track():
    for item in ITEMS[:60]:
        if item["attributes"]["objects"][0]["motion"] not in MOVING:
            continue
        track = item["track"][0, :, :2].numpy()
        off = temporal_consistency.centres(item["pixels"]) - track
        assert np.abs(off - off.mean(0)).max() < 0.5  # a triangle's centre of mass is not the middle of its box
        assert temporal_consistency.mean_position_error(
            temporal_consistency.centres(item["pixels"]), track + off, SIDE
        ) == pytest.approx(0, abs=1e-5)


def test_what_is_frozen_strays_and_what_vanishes_is_lost():
    for pixels in clips(*MOVING)[:20]:
        true = temporal_consistency.centres(pixels)
        frozen = temporal_consistency.centres(pixels[:, :8].clone()[:, -1:].repeat(1, 8, 1, 1))
        assert temporal_consistency.mean_position_error(frozen, true[8:], SIDE) > 1
        gone = temporal_consistency.centres(torch.zeros_like(pixels))
        assert np.isnan(gone).all()
        assert temporal_consistency.mean_position_error(gone, true, SIDE) == SIDE
        assert (temporal_consistency.step_lengths(gone, SIDE) == SIDE).all()


def test_a_cut_is_a_jump_and_a_real_clip_has_none():
    cuts = []
    for pixels in clips("left", "right", "orbit"):
        places = temporal_consistency.centres(pixels)
        usual = temporal_consistency.step_lengths(places, SIDE)
        assert temporal_consistency.relative_jump(float(usual.max()), usual) < 1.5
        cuts.append(temporal_consistency.relative_jump(float(np.hypot(*(places[-1] - places[0]))), usual))
    assert np.mean(cuts) > 4
    still = temporal_consistency.step_lengths(temporal_consistency.centres(clips("still")[0]), SIDE)
    assert temporal_consistency.relative_jump(1.0, still) == 2.0, "what hardly moves is measured in half pixels"


def test_a_hard_cut_is_abrupt_and_a_cross_fade_is_not():
    every = pairs()
    assert max(temporal_consistency.abruptness(first) for first, _ in every) < 1.2
    cut = [temporal_consistency.abruptness(torch.cat([first[:, :8], last[:, 8:]], dim=1)) for first, last in every]
    assert np.mean(cut) > 2.5
    assert max(temporal_consistency.abruptness(faded(first, last)) for first, last in every) < 2
    assert temporal_consistency.abruptness(every[0][0][:, :1].repeat(1, 16, 1, 1)) == float("inf")


def test_a_cross_fade_goes_from_colour_to_colour_by_way_of_two_things():
    double, up, down = [], [], []
    for first, last in pairs():
        ends = temporal_consistency.hues(first)[0], temporal_consistency.hues(last)[-1]
        made = faded(first, last)
        way = temporal_consistency.colour_progress(made, *ends)
        assert way[[0, -1]] == pytest.approx([0, 1], abs=1e-3)
        up.append(temporal_consistency.rank_monotonicity(way))
        down.append(temporal_consistency.rank_monotonicity(temporal_consistency.colour_progress(made.flip(1), *ends)))
        double.append((temporal_consistency.object_counts(made) != 1).mean())
        assert (temporal_consistency.object_counts(first) == 1).all()
    assert np.mean(up) > 0.8
    assert np.mean(down) < -0.8
    assert np.mean(double) > 0.15
    assert temporal_consistency.rank_monotonicity(np.zeros(8)) == 0
    assert temporal_consistency.rank_monotonicity(np.array([0.0, np.nan, 1.0])) == 0


def test_the_region_of_a_thing_holds_all_of_it_and_grows():
    for pixels in clips("left", "orbit")[:10]:
        own, wide = temporal_consistency.object_mask(pixels, 0), temporal_consistency.object_mask(pixels, 2)
        assert own.shape == (1, *pixels.shape[1:])
        assert bool((wide | ~own).all())
        assert wide.sum() > own.sum() > 0
        ground = pixels[:, :, 0, 0].float().median(1).values.view(3, 1, 1, 1)
        off = (pixels.float() - ground).abs().amax(0)
        assert float(off[~wide[0]].max()) == 0, "nothing of it is left outside"


def test_grounds_have_their_names():
    for item in ITEMS[:60]:
        assert temporal_consistency.ground_name(item["pixels"]) == item["attributes"]["ground"]
        assert temporal_consistency.ground_name(item["pixels"]) in TONES


def test_what_touches_the_edge_is_counted():
    clip = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    clip[:, 1, 4:8, 12:16] = 200  # four pixels at the right
    clip[:, 2, 6:10, 6:10] = 200  # in the middle
    assert temporal_consistency.edge_pixels(clip).tolist() == [0, 4, 0]
    assert (np.concatenate([temporal_consistency.edge_pixels(one) for one in clips("grow")]) < 3).mean() > 0.9


def test_position_errors_are_reported_by_frame():
    true = np.zeros((3, 2), dtype=np.float32)
    found = np.array([[3, 4], [0, 0], [np.nan, 0]], dtype=np.float32)
    assert temporal_consistency.position_error(found, true, 10.0).tolist() == [5, 0, 10]
    assert temporal_consistency.mean_position_error(found, true, 10.0) == pytest.approx(5)
