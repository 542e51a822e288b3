"""Linear multistep samplers: what the registry's tests cannot see."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.core.mixture import exact as mixture
from unveil.core import schedules
from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.flow import RectifiedFlow
from unveil.core.process import CosineVP, LinearVP
from unveil.core.samplers import Plan, ddim, run
from unveil.core.samplers.coefficients import adams
from unveil.core.samplers.multistep import BASHFORTH, adams_bashforth, improved_euler, lms, plms, pndm, runge_kutta
from unveil.core.ve import VE, EDMProcess
from unveil.errors import RecipeError
from unveil.types import NoiseLevel

SIGMAS = [9.0, 5.0, 4.5, 2.0, 1.1, 0.7, 0.15, 0.0]  # uneven on purpose


def step_of(eps) -> DenoiseFn:
    """A step whose eps is a function of the level alone, and x0 = 0."""
    return lambda x, level: Estimate(torch.zeros_like(x), torch.full_like(x, eps(level)))


def states(plan: Plan, step: DenoiseFn, x: Tensor) -> list[float]:
    """x before the run and after each row."""
    kept = [x.item()]
    run(plan, step, x, on_step=lambda shown: kept.append(shown.state.x.item()))
    return kept


# ---------------------------------------------------------------------- in sigma / alpha, and in t


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_integrates_polynomials_in_sigma_below_its_order(order):
    schedule = schedules.from_sigmas(EDMProcess(), SIGMAS)
    for power in range(order + 1):
        kept = states(lms(schedule, order), step_of(lambda level, p=power: level.sigma**p), torch.zeros(1).double())
        for k, (here, there) in enumerate(pairwise(SIGMAS)):
            if k + 1 >= order:  # the first steps have fewer estimates
                want = (there ** (power + 1) - here ** (power + 1)) / (power + 1)
                error = abs(kept[k + 1] - kept[k] - want)
                assert (error < 1e-9) == (power < order), f"step {k}, power {power}: {error}"


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_bashforth_integrates_polynomials_in_t_below_its_order(order):
    times = [1.0, 0.9, 0.65, 0.6, 0.3, 0.12, 0.0]
    schedule = schedules.from_times(RectifiedFlow(), times)
    for power in range(order + 1):
        kept = states(
            adams_bashforth(schedule, order), step_of(lambda level, p=power: level.t**p), torch.zeros(1).double()
        )
        for k, (here, there) in enumerate(pairwise(times)):
            if k + 1 >= order and there > 0:  # the step onto clean data takes the estimate of x0
                want = (there ** (power + 1) - here ** (power + 1)) / (power + 1)
                error = abs(kept[k + 1] - kept[k] - want)
                assert (error < 1e-12) == (power < order), f"step {k}, power {power}: {error}"


def test_adams_bashforth_of_order_1_is_euler_in_t():
    schedule = schedules.uniform(LinearVP(), 9)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    want = x
    for here, there in pairwise(schedule):
        estimate = mixture(want, here)
        moved = want + (there.t - here.t) * (here.dalpha * estimate.x0 + here.dsigma * estimate.eps)
        want = moved if there.sigma > 0 else estimate.x0
    torch.testing.assert_close(run(adams_bashforth(schedule, 1), mixture, x), want, rtol=0, atol=1e-13)


def test_where_time_ends_before_the_data_the_last_step_is_straight():
    schedule = schedules.uniform(VE(), 6).onto_data()  # t = 0 at sigma_min, and clean data beyond it
    x = run(adams_bashforth(schedule), lambda x, level: Estimate.of_x0(0 * x + 0.7, x, level), torch.ones(3).double())
    torch.testing.assert_close(x, torch.full_like(x, 0.7))


def test_even_steps_have_the_known_weights():
    for order, weights in enumerate(BASHFORTH, 1):
        assert adams([-float(k) for k in range(order)], 1.0) == pytest.approx(weights)


# ---------------------------------------------------------------------- PLMS


def test_plms_averages_even_steps_and_carries_x_as_ddim_does():
    schedule = schedules.uniform_log_snr(CosineVP(), 7, low=-2, high=2)
    rows = plms(schedule).rows
    assert len(rows) == 8  # one call more, in the first step
    assert rows[0].saves_x
    plain = ddim(schedule).rows
    for k, weights in ((3, BASHFORTH[2]), (5, BASHFORTH[3])):  # after 2 and 4 steps
        here, there = schedule[k - 1], schedule[k]
        gain = there.sigma - here.sigma * there.alpha / here.alpha
        assert rows[k].keep.item() == pytest.approx(float(there.alpha / here.alpha))
        used = [weight.item() for weight in rows[k].gains if weight != 0]
        assert used == pytest.approx([gain.item() * weight for weight in weights])
        assert rows[k].level == plain[k - 1].level
    # the estimate of the call inside the first step is left out of the averages
    assert rows[3].gains[2] == 0 or len(rows[3].gains) == 4
    assert rows[2].gains[1] == 0


def test_the_first_step_is_improved_eulers_or_runge_kuttas():
    """With eps = sigma / alpha in y = x / alpha: y moves by the mean of what the calls saw."""
    schedule = schedules.from_sigmas(VE(), [8.0, 2.0, 1.0])
    seen = lambda level: float(level.sigma)  # noqa: E731
    kept = states(plms(schedule, improved_euler), step_of(seen), torch.zeros(1).double())
    assert kept[2] == pytest.approx(-6.0 * (8.0 + 2.0) / 2)
    kept = states(plms(schedule, runge_kutta), step_of(seen), torch.zeros(1).double())
    middle = 4.0  # half-way in t, which is even in log(sigma)
    assert kept[4] == pytest.approx(-6.0 * (8.0 + 2 * middle + 2 * middle + 2.0) / 6)


@pytest.mark.parametrize(("sampler", "more"), [(plms, 1), (pndm, 9)])
def test_network_calls(sampler, more):
    for steps in (4, 20):
        schedule = schedules.uniform_log_snr(LinearVP(), steps, low=-3, high=3)
        assert len(sampler(schedule).levels) == steps + more
    onto_data = schedules.karras(EDMProcess(), 1)
    assert len(sampler(onto_data).levels) == 1  # no call can be made at the data


def test_a_constant_eps_is_carried_without_error():
    schedule = schedules.uniform_log_snr(LinearVP(), 6, low=-3, high=3)
    x0, eps = torch.tensor([0.3]).double(), torch.tensor([-1.2]).double()
    x = schedule[0].alpha * x0 + schedule[0].sigma * eps
    for sampler in (plms, pndm, lms):
        got = run(sampler(schedule), lambda x, level: Estimate(x0, eps), x)
        torch.testing.assert_close(got, schedule[-1].alpha * x0 + schedule[-1].sigma * eps, rtol=0, atol=1e-12)


def test_parts_that_wait_begin_as_if_alone_even_among_others():
    """The registry's test has one waiting part; here the start of one falls into the middle of another's run."""
    tracks = [[0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0.9, 0.9, 0.9, 0.6, 0.3, 0.2]]
    process = RectifiedFlow()
    schedule = schedules.from_times(
        process, [torch.tensor([pair], dtype=torch.float64) for pair in zip(*tracks, strict=True)]
    )
    x = torch.tensor([[1.3, -0.4]], dtype=torch.float64)

    def tokens(x: Tensor, level: NoiseLevel) -> Estimate:
        return Estimate.of_x0(torch.tanh(x) * (1 - level.t), x, level)

    for sampler in (plms, pndm, lms):
        got = run(sampler(schedule), tokens, x)
        for k, track in enumerate(tracks):
            alone = schedules.from_times(process, sorted(set(track), reverse=True))
            want = run(sampler(alone), tokens, x[:, k : k + 1])
            torch.testing.assert_close(got[:, k : k + 1], want, rtol=0, atol=1e-13)


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("make", [lambda g: lms(g, 5), lambda g: adams_bashforth(g, 5), lambda g: lms(g, 0)])
def test_orders_that_do_not_exist_are_named(make):
    with pytest.raises(RecipeError, match=r"order = [05]: must lie in 1 to 4"):
        make(schedules.uniform(LinearVP(), 6))


@pytest.mark.parametrize("make", [lms, plms, pndm])
def test_eps_cannot_begin_at_pure_noise(make):
    with pytest.raises(RecipeError, match="alpha is 0 there, where eps says nothing about x0"):
        make(schedules.uniform(CosineVP(), 6))
