"""Parts that are held: exact where they are known for sure, worked on from their own level on, seen by the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.core.numbers import coefficients
from unveil.core import prediction as predictions
from unveil.core import samplers, schedules
from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.flow import RectifiedFlow
from unveil.core.inverse import add_noise, low_frequency, per_token_conditioning, replace_known
from unveil.core.process import CosineVP, Process
from unveil.core.rng import START, SampleRNG
from unveil.core.samplers import run
from unveil.data.gaussian_mixture import Mixture
from unveil.errors import ShapeError
from unveil.types import NoiseLevel

SHAPE = (1, 4, 1, 1)  # clips of four frames, of which all are near -1 or all near 1


def mixture() -> Mixture:
    means = torch.ones(2, *SHAPE)
    means[0] = -1
    return Mixture([0.5, 0.5], means, [0.1, 0.1])


def drawn(
    process: Process, known: Tensor, until: list[float], sampler: str = "ddim", step: DenoiseFn | None = None
) -> Tensor:
    streams, schedule = SampleRNG(0, range(len(known))), schedules.uniform(process, 20)
    times = torch.tensor(until).view(1, *SHAPE)
    noise = streams.normal(SHAPE, START)
    x = torch.where(times < 1, add_noise(schedule[0], known, noise), schedule.start(noise))
    plan = getattr(samplers, sampler)(schedule)
    return run(plan, per_token_conditioning(step or mixture(), process, known, times), x, noise=streams.bind(SHAPE))


@pytest.mark.parametrize("process", [RectifiedFlow(), CosineVP()])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "ancestral"])
def test_what_is_known_comes_out_and_the_others_go_with_it(process: Process, sampler: str):
    known = torch.full((64, *SHAPE), 1.03)
    x = drawn(process, known, [0, 1, 1, 1], sampler)
    assert torch.equal(x[:, :, 0], known[:, :, 0])
    assert bool((x[:, :, 1:] > 0.5).all())  # without it half of them would be near -1
    assert float(x[:, :, 1:].mean()) == pytest.approx(1, abs=0.03)
    assert float(x[:, :, 1:].std()) == pytest.approx(0.1, abs=0.04)


def test_frames_that_are_not_held_do_not_move_the_others():
    x = drawn(RectifiedFlow(), torch.full((64, *SHAPE), 1.03), [1, 1, 1, 1])
    assert 0.3 < float((x > 0).double().mean()) < 0.7


def test_nothing_held_is_the_step_itself():
    known = torch.zeros(8, *SHAPE)
    streams, schedule = SampleRNG(0, range(8)), schedules.uniform(RectifiedFlow(), 20)
    plain = run(
        samplers.ddim(schedule), mixture(), schedule.start(streams.normal(SHAPE, START)), noise=streams.bind(SHAPE)
    )
    assert torch.equal(drawn(RectifiedFlow(), known, [1, 1, 1, 1]), plain)


def test_each_part_is_worked_on_from_its_own_time_on():
    seen: list[Tensor] = []
    model = mixture()

    def spied(x: Tensor, level: NoiseLevel) -> Estimate:
        seen.append(torch.as_tensor(level.t).expand(1, *SHAPE).flatten())
        return model(x, level)

    drawn(RectifiedFlow(), torch.ones(1, *SHAPE), [0, 0.31, 0.62, 1], step=spied)
    schedule = torch.tensor([float(level.t) for level in schedules.uniform(RectifiedFlow(), 20)], dtype=torch.float64)[
        :-1
    ]
    for frame, until in enumerate((0, 0.31, 0.62, 1)):
        levels = torch.stack([one[frame] for one in seen])
        torch.testing.assert_close(levels, schedule.clamp(max=until), rtol=0, atol=1e-7)


def test_the_longer_it_is_held_the_nearer_it_stays():
    """A known clip between both ends is drawn to one of them the more, the earlier it is let go."""
    known = torch.full((64, *SHAPE), 0.4)
    gone = [float((drawn(RectifiedFlow(), known, [until] * 4) - known).abs().mean()) for until in (0, 0.2, 0.4, 0.8)]
    assert gone[0] == 0
    assert gone == sorted(gone)
    assert gone[3] > 0.5


def test_a_time_below_that_of_data_is_refused():
    with pytest.raises(ShapeError, match=r"until -0\.5: times are at least 0"):
        per_token_conditioning(mixture(), RectifiedFlow(), torch.zeros(1, *SHAPE), torch.tensor([-0.5]))


@pytest.mark.parametrize("prediction", [predictions.x0, predictions.flow])
def test_parts_at_the_data_and_parts_of_pure_noise_are_solved_together(prediction: predictions.Prediction):
    time = torch.tensor([0.0, 1.0], dtype=torch.float64)
    both = predictions.solve(prediction, RectifiedFlow().at(time))
    for place, t in enumerate(time.tolist()):
        alone = predictions.solve(prediction, RectifiedFlow().at(t))
        assert [float(one.expand(2)[place]) for one in coefficients(both)] == [
            float(one) for one in coefficients(alone)
        ]


def test_parts_are_put_back_for_denoisers_of_one_level():
    known, times = torch.full((8, *SHAPE), 1.03), torch.tensor([0, 0.5, 1, 1]).view(1, *SHAPE)
    streams, schedule, levels = SampleRNG(0, range(8)), schedules.uniform(RectifiedFlow(), 20), []
    step = mixture()

    def watched(x: Tensor, level: NoiseLevel) -> Estimate:
        levels.append(level.t)
        return step(x, level)

    noise = streams.normal(SHAPE, START)
    x = run(samplers.ddim(schedule), replace_known(watched, known, times), schedule.start(noise))
    assert torch.equal(x[:, :, 0], known[:, :, 0])
    assert not torch.equal(x[:, :, 1], known[:, :, 1]), "let go half-way"
    assert all(t.ndim == 0 for t in levels)
    with pytest.raises(ShapeError, match="until -1: times are at least 0"):
        replace_known(step, known, times - 1)


@pytest.mark.parametrize("shape", [(2, 3, 8, 12), (2, 3, 5, 8, 12)])
def test_large_forms_are_known_and_fine_ones_are_not(shape: tuple[int, ...]):
    draw = torch.Generator().manual_seed(0)
    fine, level = 2 + torch.randn(shape, generator=draw), RectifiedFlow().at(0.5)
    step = low_frequency(lambda x, at: Estimate.of_x0(fine, x, at), torch.full(shape, 0.25), (2, 3))
    found = step(torch.zeros(shape), level).x0
    # bicubic blocks lie a little around the means that they are made of
    assert float(found.unflatten(-2, (2, 4)).unflatten(-1, (3, 4)).mean((-3, -1)).sub(0.25).abs().max()) < 0.2
    assert float((found - found.mean()).std()) > 0.8
    same = low_frequency(lambda x, at: Estimate.of_x0(fine, x, at), fine, (2, 3))(torch.zeros(shape), level)
    torch.testing.assert_close(same.x0, fine)
    with pytest.raises(ShapeError, match="must not have more pixels"):
        low_frequency(lambda x, at: Estimate.of_x0(fine, x, at), fine, (9, 3))
    with pytest.raises(ShapeError, match="its large forms are known for"):
        step(torch.zeros(1, 3, 4, 4), level)
