"""Frames that are given, frames with levels of their own, and what is scored of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unveil.conditioning.diffusion_forcing import ContextModes, DiffusionForcingLoss, context_mask
from unveil.core.denoiser import Denoiser
from unveil.core.flow import RectifiedFlow
from unveil.core.loss_weights import snr
from unveil.core.objective import DiffusionLoss
from unveil.core.prediction import flow
from unveil.core.rng import SampleRNG
from unveil.core.timestep_sampling import LogitNormal, SecondMoment
from unveil.errors import RecipeError

NOTHING = dict.fromkeys(("none", "first", "prefix", "suffix", "both_ends", "random", "independent"), 0.0)


def only(way: str) -> ContextModes:
    return ContextModes(**{**NOTHING, way: 1.0})


class Seen(nn.Module):
    """A network that predicts 0 and keeps its inputs."""

    tells_parts = True

    def forward(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        self.x, self.t = x, t
        return torch.zeros_like(x)


@pytest.fixture
def seen() -> Denoiser:
    return Denoiser(Seen(), RectifiedFlow(), prediction=flow)


def clips(count: int = 4, frames: int = 6) -> Tensor:
    return torch.randn(count, 2, frames, 3, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("weight", [None, snr])
def test_with_no_frame_given_it_is_the_plain_objective(seen: Denoiser, weight: Any):
    x0, streams = clips(), SampleRNG(3, range(4))
    ours = DiffusionForcingLoss(only("none"), time=LogitNormal(), weight=weight)(seen, x0, None, streams, 7)
    plain = DiffusionLoss(time=LogitNormal(), weight=weight)(seen, x0, None, streams, 7)
    torch.testing.assert_close(ours.per_sample, plain.per_sample, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.value, plain.value, rtol=1e-5, atol=1e-6)
    assert torch.equal(ours.t, plain.t)
    t, noise = torch.linspace(0.1, 0.9, 4, dtype=torch.float64), clips()
    again, plainly = (
        one.at(seen, x0, None, t, noise) for one in (DiffusionForcingLoss(weight=weight), DiffusionLoss(weight=weight))
    )
    torch.testing.assert_close(again.per_sample, plainly.per_sample, rtol=1e-5, atol=1e-6)


def test_given_frames_are_shown_as_they_are_at_the_level_of_data_and_not_scored(seen: Denoiser):
    x0, streams = clips(), SampleRNG(3, range(4))
    objective = DiffusionForcingLoss(only("prefix"), time=LogitNormal())
    made = objective.draw(seen.process, 6, streams, 0).generated
    loss = objective(seen, x0, None, streams, 0)
    inputs: Any = seen.network
    assert 0 < int((~made).sum()) < made.numel()
    for row in range(4):
        for frame in range(6):
            same = torch.equal(inputs.x[row, :, frame], x0[row, :, frame])
            assert same == (not made[row, frame])
            assert (float(inputs.t[row, 0, frame, 0, 0]) == 0) == (not made[row, frame])
    x0[(~made)[:, None].expand(-1, 2, -1)] = 100.0  # what is not scored may be anything
    assert torch.equal(objective(seen, x0, None, streams, 0).per_sample, loss.per_sample)


def test_frames_of_their_own_have_different_levels(seen: Denoiser):
    drawn = DiffusionForcingLoss(only("independent")).draw(seen.process, 6, SampleRNG(3, range(4)), 0)
    assert bool(drawn.generated.all())
    assert all(len(set(row.tolist())) == 6 for row in drawn.t)
    same = DiffusionForcingLoss(only("first")).draw(seen.process, 6, SampleRNG(3, range(4)), 0)
    assert all(len(set(row.tolist())) == 1 for row in same.t)


def test_what_a_clip_draws_does_not_depend_on_its_batch(seen: Denoiser):
    whole = DiffusionForcingLoss().draw(seen.process, 5, SampleRNG(3, range(16)), 2)
    part = DiffusionForcingLoss().draw(seen.process, 5, SampleRNG(3, range(9, 12)), 2)
    for one, two in zip(whole, part, strict=True):
        assert torch.equal(one[9:12], two)


def test_the_shares_of_the_ways_are_kept():
    ways = ContextModes(none=2, first=1, prefix=0, suffix=0, both_ends=0, random=0, independent=1)
    drawn = ways.drawn(SampleRNG(0, range(4000)).uniform(0))
    shares = {way: drawn.count(way) / 4000 for way in set(drawn)}
    assert shares == {"none": pytest.approx(0.5, abs=0.03), "first": pytest.approx(0.25, abs=0.03)} | {
        "independent": pytest.approx(0.25, abs=0.03)
    }


@pytest.mark.parametrize(
    ("way", "u", "expected"),
    [
        ("first", [0.9, 0.9], "100000"),
        ("prefix", [0.0, 0.9], "100000"),
        ("prefix", [0.99, 0.9], "111000"),
        ("suffix", [0.5, 0.9], "000011"),
        ("both_ends", [0.0, 0.99], "100011"),
        ("none", [0.5, 0.5], "000000"),
        ("independent", [0.5, 0.5], "000000"),
    ],
)
def test_how_frames_are_given(way: str, u: list[float], expected: str):
    assert "".join(str(int(one)) for one in context_mask(way, [*u, *[0.5] * 6])) == expected


@pytest.mark.parametrize("frames", range(1, 8))
@pytest.mark.parametrize("way", NOTHING)
def test_one_frame_at_least_is_left(way: str, frames: int):
    for number in range(50):
        u = torch.rand(frames + 2, generator=torch.Generator().manual_seed(number)).tolist()
        assert not bool(context_mask(way, u).all())
    assert not bool(context_mask(way, [0.999, 0.999, *[0.0] * frames]).all())


def test_images_are_videos_of_one_frame(seen: Denoiser):
    x0, streams = clips(frames=1), SampleRNG(3, range(4))
    one = DiffusionForcingLoss()(seen, x0, None, streams, 0)
    two = DiffusionForcingLoss()(seen, x0[:, :, 0], None, streams, 0)
    assert torch.equal(one.per_sample, two.per_sample)


def test_what_cannot_work_is_refused():
    with pytest.raises(RecipeError, match="shares are at least 0"):
        ContextModes(none=-1.0)
    with pytest.raises(RecipeError, match="one is above"):
        ContextModes(**NOTHING)
    with pytest.raises(RecipeError, match="second-moment learns from losses of one level"):
        DiffusionForcingLoss(time=SecondMoment(10))
