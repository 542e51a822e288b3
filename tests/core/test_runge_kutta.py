"""Euler, Heun and midpoint steps, churn and consistency sampling against their formulas."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.core.mixture import exact, exact_x0
from unveil.core import schedules
from unveil.core.denoiser import Estimate
from unveil.core.elementary import scalar
from unveil.core.flow import RectifiedFlow, TimeShift
from unveil.core.process import CosineVP, DiscreteVP, LinearVP, betas
from unveil.core.samplers import (
    CoefficientTable,
    StepRow,
    ancestral,
    consistency,
    ddim,
    dpm2,
    dpm2_ancestral,
    euler,
    euler_ancestral,
    euler_time,
    heun,
    heun_time,
    run,
)
from unveil.core.ve import EDMProcess
from unveil.errors import RecipeError
from unveil.types import NoiseLevel

SCHEDULE = schedules.karras(EDMProcess(), 18)
X = torch.linspace(-100, 100, 30, dtype=torch.float64)


def fixed(row: int, draw: int = 0) -> Tensor:
    return torch.randn(30, generator=torch.Generator().manual_seed(row), dtype=torch.float64)


def slope(x: Tensor, sigma: float) -> Tensor:
    """dx/dsigma of EDM's path, eq. 3."""
    return (x - exact_x0(x, NoiseLevel(0.0, 1.0, sigma))) / sigma


def textbook(x: Tensor, node: float) -> Tensor:
    """EDM's algorithm 3 as it stands."""
    for here, there in pairwise(level.sigma for level in SCHEDULE):
        width, first = there - here, slope(x, here)
        if there == 0:
            x = x + width * first
            continue
        second = slope(x + node * width * first, here + node * width)
        x = x + width * ((1 - 0.5 / node) * first + 0.5 / node * second)
    return x


@pytest.mark.parametrize("node", [1.0, 2 / 3, 0.5, 1.1])
@pytest.mark.parametrize("sampler", [heun, heun_time])
def test_second_order_steps_are_the_papers_where_sigma_is_the_time(sampler, node):
    got = run(sampler(SCHEDULE, node=node), exact, X)
    torch.testing.assert_close(got, textbook(X, node), rtol=0, atol=1e-11)


def test_the_two_families_are_one_where_paths_are_straight_in_time_and_two_elsewhere():
    straight = schedules.uniform(RectifiedFlow(), 9)
    for schedule, x in ((SCHEDULE, X), (straight, X / 80)):
        torch.testing.assert_close(
            run(euler_time(schedule), exact, x), run(euler(schedule), exact, x), rtol=0, atol=1e-11
        )
    schedule = schedules.uniform(CosineVP(), 9)
    assert (run(euler_time(schedule), exact, X / 80) - run(euler(schedule), exact, X / 80)).abs().max() > 1e-3
    assert (run(heun_time(straight), exact, X / 80) - run(heun(straight), exact, X / 80)).abs().max() > 1e-3


def test_a_straight_flow_is_followed_exactly_by_one_euler_step_in_time():
    target = torch.linspace(-1, 1, 30, dtype=torch.float64)

    def step(x: Tensor, level: NoiseLevel) -> Estimate:
        return Estimate.of_x0(target, x, level)

    for steps in (1, 4):
        got = run(euler_time(schedules.uniform(RectifiedFlow(), steps)), step, X)
        torch.testing.assert_close(got, target, rtol=0, atol=1e-12)


def test_the_velocity_onto_clean_data_leaves_noise_on_a_curved_path_and_none_on_a_straight_one():
    def step(x: Tensor, level: NoiseLevel) -> Estimate:
        return Estimate.of_x0(torch.zeros_like(x), x, level)

    for steps in (4, 16):
        for sampler in (euler_time, heun_time):
            shifted = schedules.uniform(TimeShift(RectifiedFlow(), 4.0), steps)
            before = run(sampler(schedules.Schedule(shifted.process, shifted[:-1])), step, X)
            # Euler's share of the noise, sigma (1 - u sigma' / sigma)
            left = 3 / steps / (1 + 3 / steps)
            torch.testing.assert_close(run(sampler(shifted, end="velocity"), step, X), left * before)
            assert run(sampler(shifted), step, X).abs().max() < 1e-12
            straight = schedules.uniform(RectifiedFlow(), steps)
            torch.testing.assert_close(
                run(sampler(straight, end="velocity"), step, X), run(sampler(straight), step, X), rtol=0, atol=1e-12
            )


def test_euler_steps_are_ddims_with_and_without_noise():
    schedule = schedules.uniform(CosineVP(), 12)
    x = X / 50
    torch.testing.assert_close(run(euler(schedule), exact, x), run(ddim(schedule), exact, x), rtol=0, atol=1e-13)
    for eta in (0.0, 0.3, 1.0):
        one, two = (
            run(plan, exact, x, noise=fixed) for plan in (euler_ancestral(schedule, eta=eta), ddim(schedule, eta))
        )
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
    chain = run(ancestral(schedule), exact, x, noise=fixed)
    torch.testing.assert_close(run(euler_ancestral(schedule), exact, x, noise=fixed), chain, rtol=0, atol=1e-12)
    assert all(
        row.noise <= there.sigma for row, there in zip(euler_ancestral(schedule, eta=9).rows, schedule[1:], strict=True)
    )


def test_dpm2_calls_at_a_mean_of_the_two_ratios():
    first, last = SCHEDULE[2].sigma, SCHEDULE[3].sigma
    for power, mean in ((0.0, math.sqrt(first * last)), (1.0, (first + last) / 2)):
        assert dpm2(SCHEDULE, power=power).levels[5].sigma == pytest.approx(mean)
    # with the arithmetic mean it is the midpoint method
    torch.testing.assert_close(
        run(dpm2(schedules.Schedule(EDMProcess(), SCHEDULE[:-1]), power=1.0), exact, X),
        run(heun(schedules.Schedule(EDMProcess(), SCHEDULE[:-1]), node=0.5), exact, X),
    )
    assert len(dpm2(SCHEDULE).levels) == 35  # the last step, onto the data, has no middle in log-SNR
    torch.testing.assert_close(run(dpm2_ancestral(SCHEDULE, eta=0.0), exact, X), run(dpm2(SCHEDULE), exact, X))


# ---------------------------------------------------------------------- churn


@pytest.mark.parametrize("sampler", [euler, heun, dpm2, euler_time, heun_time])
def test_churn_raises_the_level_before_each_step_within_its_limits(sampler):
    table = sampler(SCHEDULE, s_churn=3.6, s_tmin=0.1, s_tmax=50.0, s_noise=1.1)
    raised = [(row, after) for row, after in pairwise(table.rows) if row.level is None]
    inside = [level for level in SCHEDULE if 0.1 <= level.sigma <= 50]
    assert len(raised) == len(inside)
    for (row, after), level in zip(raised, inside, strict=True):
        assert after.level is not None
        assert after.level.sigma == pytest.approx(1.2 * level.sigma)
        assert row.noise == pytest.approx(1.1 * level.sigma * math.sqrt(1.2**2 - 1))
        assert row.span is not None
        assert row.span[0] == level
    most = sampler(SCHEDULE, s_churn=1e9)
    assert most.rows[1].level.sigma == pytest.approx(math.sqrt(2) * 80)


def test_churn_keeps_x_on_the_process_where_alpha_falls():
    schedule = schedules.karras(LinearVP(), 4, sigma_min=0.1, sigma_max=50)
    row, after, *_ = euler(schedule, s_churn=1.0).rows
    raised = after.level
    assert raised is not None
    assert row.keep == pytest.approx(raised.alpha / schedule[0].alpha)
    assert (row.keep * schedule[0].sigma) ** 2 + row.noise**2 == pytest.approx(raised.sigma**2)


def test_no_churn_is_no_row():
    assert all(row.level is not None for row in heun(SCHEDULE).rows)
    assert len(heun(SCHEDULE, s_churn=5, s_tmin=1e3).rows) == len(heun(SCHEDULE).rows)
    # pure noise cannot be raised
    assert euler(schedules.uniform(RectifiedFlow(), 4), s_churn=1.0).rows[0].level is not None


def test_a_row_without_a_call_is_not_shown_but_counted():
    table = euler(SCHEDULE, s_churn=3.6)
    shown: list[int] = []
    run(table, exact, X, noise=fixed, on_step=lambda progress: shown.append(progress.state.number))
    assert len(shown) == 18
    assert shown[-1] == len(table) == 36


# ---------------------------------------------------------------------- consistency


def test_consistency_sampling_is_the_papers():
    def function(x: Tensor, level: NoiseLevel) -> Estimate:
        return Estimate.of_x0(torch.tanh(x) * level.sigma, x, level)

    schedule = schedules.from_sigmas(EDMProcess(), [80.0, 10.0, 0.5, 0.002])
    x = X
    for k, (here, there) in enumerate(pairwise(schedule)):  # algorithm 1, with the boundary at the last level
        x = torch.tanh(x) * here.sigma + math.sqrt(there.sigma**2 - 0.002**2) * fixed(k)
    torch.testing.assert_close(run(consistency(schedule), function, X, noise=fixed), x, rtol=1e-9, atol=1e-9)
    onto_data = run(consistency(schedules.from_sigmas(EDMProcess(), [80.0, 10.0, 0.0])), function, X, noise=fixed)
    once = torch.tanh(torch.tanh(X) * 80 + 10 * fixed(0)) * 10
    torch.testing.assert_close(onto_data, once, rtol=1e-9, atol=1e-9)
    least = schedule[-1]
    row = consistency(schedules.from_sigmas(EDMProcess(), [80.0, 10.0]), least=least).rows[0]
    noise = torch.tensor(math.sqrt(100 - 0.002**2), dtype=torch.float64)
    torch.testing.assert_close(row.noise, noise)
    assert row == StepRow(schedule[0], scalar(0.0), (scalar(1.0),), row.noise, span=(schedule[0], schedule[1]))


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: heun(SCHEDULE, node=0.0), "node = 0.0: must be above 0; 1 is Heun's method"),
        (lambda: euler_time(SCHEDULE, end="data"), "end = 'data': must be 'x0' or 'velocity'"),
        (lambda: heun_time(SCHEDULE, node=-1.0), "node = -1.0: must be above 0"),
        (lambda: heun(SCHEDULE, node=3.0), "second call would lie beyond clean data; use more steps, or node = 1"),
        (lambda: heun_time(SCHEDULE, node=3.0), "second call would lie beyond clean data"),
        (lambda: euler(schedules.uniform(LinearVP(), 5), s_churn=2.0), "s_churn = 2.0: .*outside of LinearVP.*s_tmax"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


def test_tables_are_all_that_there_is():
    for sampler in (euler, heun, dpm2, euler_ancestral, dpm2_ancestral, euler_time, heun_time, consistency):
        assert isinstance(sampler(SCHEDULE), CoefficientTable)


def test_a_midpoint_below_the_first_level_of_a_table_is_not_evaluated():
    process = DiscreteVP(betas("cosine", 50))
    schedule = schedules.karras(process, 4)
    plan = heun(schedule, node=0.5)
    assert plan.levels[-1] == schedule[-2]
