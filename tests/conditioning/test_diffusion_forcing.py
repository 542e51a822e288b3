"""Conditioning frames, a noise level per frame, and the frames that the loss covers."""

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


def only(mode: str) -> ContextModes:
    return ContextModes(**{**NOTHING, mode: 1.0})


class Seen(nn.Module):
    """A network that predicts 0 and keeps its inputs."""

    takes_token_levels = True

    def forward(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        self.x, self.t = x, t
        return torch.zeros_like(x)


@pytest.fixture
def seen() -> Denoiser:
    return Denoiser(Seen(), RectifiedFlow(), prediction=flow)


def videos(count: int = 4, frames: int = 6) -> Tensor:
    return torch.randn(count, 2, frames, 3, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("weight", [None, snr])
def test_without_conditioning_frames_it_equals_the_plain_loss(seen: Denoiser, weight: Any):
    x0, streams = videos(), SampleRNG(3, range(4))
    ours = DiffusionForcingLoss(only("none"), time=LogitNormal(), weight=weight)(seen, x0, None, streams, 7)
    plain = DiffusionLoss(time=LogitNormal(), weight=weight)(seen, x0, None, streams, 7)
    torch.testing.assert_close(ours.per_sample, plain.per_sample, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.value, plain.value, rtol=1e-5, atol=1e-6)
    assert torch.equal(ours.t, plain.t)
    t, noise = torch.linspace(0.1, 0.9, 4, dtype=torch.float64), videos()
    again, plainly = (
        one.at(seen, x0, None, t, noise) for one in (DiffusionForcingLoss(weight=weight), DiffusionLoss(weight=weight))
    )
    torch.testing.assert_close(again.per_sample, plainly.per_sample, rtol=1e-5, atol=1e-6)


def test_conditioning_frames_have_noise_level_0_and_are_left_out_of_the_loss(seen: Denoiser):
    x0, streams = videos(), SampleRNG(3, range(4))
    objective = DiffusionForcingLoss(only("prefix"), time=LogitNormal())
    made = objective.sample_times(seen.process, 6, streams, 0).generated
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


def test_independent_frames_have_different_noise_levels(seen: Denoiser):
    drawn = DiffusionForcingLoss(only("independent")).sample_times(seen.process, 6, SampleRNG(3, range(4)), 0)
    assert bool(drawn.generated.all())
    assert all(len(set(row.tolist())) == 6 for row in drawn.t)
    same = DiffusionForcingLoss(only("first")).sample_times(seen.process, 6, SampleRNG(3, range(4)), 0)
    assert all(len(set(row.tolist())) == 1 for row in same.t)


def test_the_sampled_times_of_a_video_do_not_depend_on_its_batch(seen: Denoiser):
    whole = DiffusionForcingLoss().sample_times(seen.process, 5, SampleRNG(3, range(16)), 2)
    part = DiffusionForcingLoss().sample_times(seen.process, 5, SampleRNG(3, range(9, 12)), 2)
    for one, two in zip(whole, part, strict=True):
        assert torch.equal(one[9:12], two)


def test_modes_are_sampled_with_their_shares():
    modes = ContextModes(none=2, first=1, prefix=0, suffix=0, both_ends=0, random=0, independent=1)
    drawn = modes.sample_modes(SampleRNG(0, range(4000)).uniform(0))
    shares = {mode: drawn.count(mode) / 4000 for mode in set(drawn)}
    assert shares == {"none": pytest.approx(0.5, abs=0.03), "first": pytest.approx(0.25, abs=0.03)} | {
        "independent": pytest.approx(0.25, abs=0.03)
    }


@pytest.mark.parametrize(
    ("mode", "u", "expected"),
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
def test_the_mask_of_each_mode(mode: str, u: list[float], expected: str):
    assert "".join(str(int(frame)) for frame in context_mask(mode, [*u, *[0.5] * 6])) == expected


@pytest.mark.parametrize("frames", range(1, 8))
@pytest.mark.parametrize("mode", NOTHING)
def test_at_least_one_frame_is_generated(mode: str, frames: int):
    for number in range(50):
        u = torch.rand(frames + 2, generator=torch.Generator().manual_seed(number)).tolist()
        assert not bool(context_mask(mode, u).all())
    assert not bool(context_mask(mode, [0.999, 0.999, *[0.0] * frames]).all())


def test_images_are_videos_of_one_frame(seen: Denoiser):
    x0, streams = videos(frames=1), SampleRNG(3, range(4))
    one = DiffusionForcingLoss()(seen, x0, None, streams, 0)
    two = DiffusionForcingLoss()(seen, x0[:, :, 0], None, streams, 0)
    assert torch.equal(one.per_sample, two.per_sample)


def test_invalid_shares_and_learned_timestep_sampling_are_errors():
    with pytest.raises(RecipeError, match="shares must be at least 0"):
        ContextModes(none=-1.0)
    with pytest.raises(RecipeError, match="one above 0"):
        ContextModes(**NOTHING)
    with pytest.raises(RecipeError, match="second-moment learns from losses of one noise level"):
        DiffusionForcingLoss(time=SecondMoment(10))
