"""Langevin dynamics, the reverse SDE's steps, and predictor and corrector."""

from __future__ import annotations

import math

import pytest
import torch

from tests.core.mixture import draw, exact
from unveil.core import schedules, sde
from unveil.core.denoiser import Estimate
from unveil.core.elementary import scalar
from unveil.core.flow import RectifiedFlow
from unveil.core.process import CosineVP, LinearVP
from unveil.core.rng import START, SampleRNG
from unveil.core.samplers import ancestral, ddim, run
from unveil.core.samplers.langevin import (
    LangevinPlan,
    PredictorCorrectorPlan,
    annealed_langevin,
    euler_maruyama,
    langevin,
    ncsnpp_step_size,
    predictor_corrector,
    reverse_diffusion,
)
from unveil.core.ve import VE, DiscreteVE, EDMProcess
from unveil.data.gaussian_mixture import Mixture
from unveil.errors import RecipeError
from unveil.types import NoiseLevel


def noise(*shape: int):
    """Noise by row, float64 and the same in every run."""
    return lambda row, draw=0: torch.randn(shape, generator=torch.Generator().manual_seed(row), dtype=torch.float64)


# ---------------------------------------------------------------------- Langevin


def test_annealing_finds_the_weights_of_far_modes_and_a_single_level_does_not():
    """Song & Ermon 2019, section 3.2.2: both modes attract half of the starts, whatever they weigh."""
    mixture = Mixture([0.2, 0.8], torch.tensor([[-4.0], [4.0]]), [0.5, 0.5])
    schedule = schedules.uniform(VE(0.05, 20), 24).onto_data()
    start = schedule.start(noise(2000, 1)(START % 99))
    shares = []
    for sampler in (annealed_langevin, langevin):
        x = run(sampler(schedule, each=15), mixture, start.clone(), noise=noise(2000, 1))
        shares.append((x > 0).double().mean().item())
    assert shares[0] == pytest.approx(0.8, abs=0.04)
    assert shares[1] == pytest.approx(0.5, abs=0.06)


def test_a_level_keeps_its_own_distribution_up_to_the_steps_size():
    """On a Gaussian the variance settles at that of the level over 1 - size / 2."""
    process = VE(0.5, 8)
    nothing = lambda x, level: Estimate.of_x0(0 * x, x, level)  # noqa: E731  # data of no width: x ~ N(0, sigma^2)
    schedule = schedules.uniform(process, 1)
    for size in (0.05, 0.4):
        x = run(langevin(schedule, each=200, size=size), nothing, torch.zeros(4000), noise=noise(4000))
        assert x.var().item() == pytest.approx(0.25 / (1 - size / 2), rel=0.1)


def test_a_schedule_that_goes_onto_the_data_leaves_no_noise():
    point = lambda x, level: Estimate.of_x0(torch.full_like(x, 0.3), x, level)  # noqa: E731
    bare = schedules.uniform(DiscreteVE(0.01, 1.0, 10), 9)
    plans = [annealed_langevin(schedule, each=20) for schedule in (bare, bare.onto_data())]
    noisy, clean = (run(plan, point, torch.zeros(500), noise=noise(500)) for plan in plans)
    assert noisy.std().item() == pytest.approx(0.01, rel=0.15)
    assert torch.equal(clean, torch.full_like(clean, 0.3))
    assert len(plans[0]) == len(plans[1]) == 200


def test_the_size_of_step_is_the_published_one():
    """Song & Ermon 2020, section 4: 232 levels from 50 to 0.01, 5 steps each, epsilon = 6.2e-6."""
    size = ncsnpp_step_size(schedules.uniform(DiscreteVE(0.01, 50.0, 232), 231), 5)
    assert size * 0.01**2 == pytest.approx(6.2e-6, rel=0.01)


# ---------------------------------------------------------------------- the reverse SDE


@pytest.mark.parametrize("process", [LinearVP(), sde.SubVP(), VE(), EDMProcess(), RectifiedFlow()])
def test_one_step_is_the_reverse_sdes(process):
    x, z = torch.tensor([0.4, -1.0], dtype=torch.float64), torch.tensor([0.7, -0.2], dtype=torch.float64)
    schedule = schedules.from_times(process, [0.6, 0.55])
    level, dt = schedule[0], -0.05
    score = -exact(x, level).eps / level.sigma
    f, g = sde.drift(level), sde.diffusion(level)
    want = x + (f * x - g**2 * score) * dt + g * math.sqrt(-dt) * z
    torch.testing.assert_close(run(euler_maruyama(schedule), exact, x.clone(), noise=lambda row: z), want)
    ratio = level.alpha / schedule[1].alpha
    beta = level.sigma**2 - (ratio * schedule[1].sigma) ** 2
    want = (2 - ratio) * x + beta * score + math.sqrt(beta) * z
    torch.testing.assert_close(run(reverse_diffusion(schedule), exact, x.clone(), noise=lambda row: z), want)


@pytest.mark.parametrize("sampler", [euler_maruyama, reverse_diffusion])
@pytest.mark.parametrize("process", [LinearVP(), VE(0.01, 20)])
def test_the_last_step_onto_the_data_is_the_estimate(sampler, process):
    schedule = schedules.uniform(process, 5).onto_data()
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)
    only = schedules.Schedule(process, schedule[-2:])
    torch.testing.assert_close(run(sampler(only), exact, x.clone()), exact(x, only[0]).x0)


# ---------------------------------------------------------------------- predictor and corrector

CENTRE, SPREAD = 0.4, 0.3  # of Gaussian data in 64 dimensions, where norms say something


def wide(x: torch.Tensor, level: NoiseLevel) -> Estimate:
    """Its exact step."""
    gain = level.alpha * SPREAD**2 / ((level.alpha * SPREAD) ** 2 + level.sigma**2)
    return Estimate.of_x0(CENTRE + gain * (x - level.alpha * CENTRE), x, level)


@pytest.mark.parametrize("process", [LinearVP(), VE(0.01, 20)])
@pytest.mark.parametrize("predictor", [euler_maruyama, reverse_diffusion, ancestral])
def test_a_cautious_corrector_leaves_the_distribution_as_it_is(predictor, process):
    schedule = schedules.from_times(process, [1 - k / 120 for k in range(120)]).onto_data()
    start = schedule.start(noise(200, 64)(10**6))
    plan = predictor_corrector(schedule, predictor=predictor, snr=0.1, corrections=2)
    x = run(plan, wide, start, noise=noise(200, 64))
    assert x.mean().item() == pytest.approx(CENTRE, abs=4.5 * SPREAD / 12800**0.5)
    assert x.std().item() == pytest.approx(SPREAD, rel=0.06 if predictor is ancestral else 0.03)


def test_corrections_mend_a_coarse_predictor():
    schedule = schedules.karras(VE(0.01, 20), 12)

    def off(plan) -> float:
        x = run(plan, wide, schedule.start(noise(200, 64)(10**6)), noise=noise(200, 64))
        return abs(x.std().item() - SPREAD)

    alone, corrected = off(reverse_diffusion(schedule)), off(predictor_corrector(schedule, corrections=3))
    assert corrected < 0.8 * alone


def test_no_sample_depends_on_its_neighbours():
    schedule = schedules.karras(EDMProcess(), 6)

    def sample(numbers):
        streams = SampleRNG(3, numbers)
        start = schedule.start(streams.normal((64,), START))
        return run(predictor_corrector(schedule), wide, start, noise=streams.bind((64,)))

    torch.testing.assert_close(sample([5]), sample(range(8))[5:6], rtol=1e-5, atol=1e-6)


def test_a_norm_over_the_batch_is_a_choice_of_whoever_wants_it():
    schedule = schedules.karras(EDMProcess(), 6)
    over_all = LangevinPlan(0.16, 1, norm=lambda v: v.flatten(1).norm(dim=1).mean())
    plan = PredictorCorrectorPlan(reverse_diffusion(schedule), schedule[:-1], over_all, [scalar(1.0)] * 6)
    two = run(plan, wide, schedule.start(noise(2, 64)(9)), noise=noise(2, 64))
    own = run(predictor_corrector(schedule), wide, schedule.start(noise(2, 64)(9)), noise=noise(2, 64))
    assert two.isfinite().all()
    assert not torch.allclose(two, own)


def test_a_score_of_nothing_moves_by_the_largest_step():
    level = NoiseLevel(0.5, 1.0, 2.0)
    x, z = torch.zeros(2, 3), torch.ones(2, 3)
    still = Estimate(x, torch.zeros_like(x))
    moved = LangevinPlan(0.16).move(x, level, still, z, scalar(1.0))
    torch.testing.assert_close(moved, torch.full_like(x, math.sqrt(2) * 2.0))
    assert LangevinPlan(0.16).move(x, level, still, 0 * z, scalar(1.0)).isfinite().all()


def test_without_corrections_the_predictor_is_left():
    schedule = schedules.uniform(CosineVP(), 6)
    start = draw(20)
    for predictor in (reverse_diffusion, ancestral):
        plan = predictor_corrector(schedule, predictor=predictor, corrections=0)
        alone = run(predictor(schedule), exact, start.clone(), noise=noise(20))
        assert torch.equal(run(plan, exact, start.clone(), noise=noise(20)), alone)


def test_mistakes_are_named():
    flow = schedules.uniform(RectifiedFlow(), 4)
    with pytest.raises(RecipeError, match=r"carries x / alpha from level to level, and alpha is 0 at t = 1\.0"):
        annealed_langevin(flow)
    with pytest.raises(RecipeError, match=r"drift infinite; begin the schedule .* use the sampler reverse-diffusion"):
        euler_maruyama(flow)
    ve = schedules.uniform(VE(), 4)
    for options in ({"size": 1.0}, {"size": 0.0}, {"each": 0}):
        with pytest.raises(RecipeError, match="at least 1 call, and a size inside"):
            langevin(ve, **options)
    with pytest.raises(RecipeError, match=r"snr = -1, steps = 1: neither may be below 0"):
        LangevinPlan(-1)
    with pytest.raises(RecipeError, match="a sampler that is a table of one row for each step"):
        predictor_corrector(ve, predictor=annealed_langevin)
    assert predictor_corrector(ve, predictor=ddim).total == 8
