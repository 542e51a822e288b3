"""DPM-Solver, single-step and multistep: what the registry's tests cannot see."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad

from tests.core.mixture import exact as mixture
from tests.core.numbers import floats
from tests.core.path import quantile, quick
from unveil.core import schedules
from unveil.core.denoiser import Estimate
from unveil.core.elementary import level_by_level, scalar
from unveil.core.flow import RectifiedFlow
from unveil.core.process import CosineVP, LinearVP
from unveil.core.samplers import CoefficientTable, ddim, run
from unveil.core.samplers.coefficients import exact, gains, linear_step, midpoint, phi_functions, taylor
from unveil.core.samplers.exponential import (
    dpm_fast,
    dpm_multistep,
    dpm_singlestep,
    dpm_singlestep_on_schedule,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_2s_ancestral,
    dpmpp_3m,
    dpmpp_3m_sde,
    dpmpp_sde,
)
from unveil.core.samplers.stages import last_stage_only, orders_for, stage
from unveil.core.ve import EDMProcess
from unveil.errors import RecipeError
from unveil.types import NoiseLevel

PROCESS = LinearVP()
SDES = {
    "2m": dpmpp_2m_sde,
    "3m": dpmpp_3m_sde,
    "single": dpmpp_sde,
    "ancestral": dpmpp_2s_ancestral,
}


def at(half_log_snr: float) -> NoiseLevel:
    return PROCESS.at(PROCESS.t_of(half_log_snr))


def log_snr_schedule(steps: int, low: float = -3.0, high: float = 3.0) -> schedules.Schedule:
    return schedules.uniform_log_snr(PROCESS, steps, low=low, high=high)


def integral(here: NoiseLevel, there: NoiseLevel, of: str, power: int) -> float:
    """What a step adds to keep x when x0 (or eps) is (lambda - lambda_here)^power on its way, by quadrature."""
    start, end = float(here.half_log_snr), float(there.half_log_snr)
    if of == "x0":  # d(x / sigma) = exp(lambda) x0 d(lambda)
        return float(there.sigma) * quad(lambda v: math.exp(v) * (v - start) ** power, start, end)[0]
    return -float(there.alpha) * quad(lambda v: math.exp(-v) * (v - start) ** power, start, end)[0]


# ---------------------------------------------------------------------- weights


@pytest.mark.parametrize("z", [-30.0, -2.5, -1.0, -0.3, -1e-9, 0.0, 1e-9, 0.5, 1.0, 4.0])
def test_phi_functions_are_their_integrals(z):
    """phi_k(z) = integral over 0 to 1 of exp((1 - s) z) s^(k - 1) / (k - 1)!."""
    found = [value.item() for value in phi_functions(4, scalar(z))]
    many = phi_functions(4, torch.tensor([z, -0.7], dtype=torch.float64))
    for k in range(1, 5):

        def integrand(s: float, k: int = k) -> float:
            return math.exp((1 - s) * z) * s ** (k - 1) / math.factorial(k - 1)

        assert found[k - 1] == pytest.approx(quad(integrand, 0, 1)[0], rel=1e-9)
        assert many[k - 1][0].item() == pytest.approx(found[k - 1], rel=1e-13)


@pytest.mark.parametrize("of", ["x0", "eps"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_exact_multistep_weights_integrate_polynomials_below_their_order(of, order):
    places = [-1.3, -0.6, -0.2, 0.5]  # uneven on purpose
    levels = [at(place) for place in places]
    with level_by_level():
        columns, counts = gains(linear_step(*schedules.Schedule(PROCESS, levels).steps, of), exact, order)
    weights = [column[2].item() for column in columns]
    assert len(weights) == order
    assert counts.tolist() == [min(order, number) for number in (1, 2, 3)]
    for power in range(order + 1):
        values = [(place - places[2]) ** power for place in places[2::-1][:order]]
        got = sum(weight * value for weight, value in zip(weights, values, strict=True))
        error = abs(got - integral(levels[2], levels[3], of, power))
        assert (error < 1e-12) == (power < order), f"power {power}: {error}"


def local_error(rule, nodes: list[float], width: float, of: str, power: int) -> float:
    """The error of one step with estimates at these shares of it, for an x0 (eps) that is a power of the log-SNR."""
    here, there = at(0.3), at(0.3 + width)
    step = linear_step(here, there, of)
    weights = rule([scalar(node) for node in nodes], step.reach)
    got = step.gain.item() * sum(w.item() * (node * width) ** power for w, node in zip(weights, nodes, strict=True))
    return abs(got - integral(here, there, of, power))


@pytest.mark.parametrize("of", ["x0", "eps"])
@pytest.mark.parametrize(
    ("rule", "nodes", "order"),
    [
        (midpoint, [0.0, -1.0], 2),  # 2M
        (midpoint, [0.0, 0.5], 2),  # 2S: the same conditions at another node
        (taylor, [0.0, -1.0], 2),
        (taylor, [0.0, -1.0, -2.0], 2),  # 3M as published: half the weight that the curvature should have
        (exact, [0.0, -1.0, -2.0], 3),
        (last_stage_only, [0.0, 1 / 3, 2 / 3], 3),
        (exact, [0.0, 1 / 3, 2 / 3], 3),
    ],
)
def test_one_step_errs_by_its_order_plus_one(rule, nodes, order, of):
    worst = []
    for power in range(4):
        # the part of an estimate that goes as lambda^power
        errors = [local_error(rule, nodes, width, of, power) for width in (0.1, 0.05)]
        worst.append(math.inf if errors[1] < 1e-13 else math.log2(errors[0] / errors[1]))
    assert min(worst) == pytest.approx(order + 1, abs=0.15), worst


# ---------------------------------------------------------------------- single steps in closed form


def test_a_first_order_step_is_ddim():
    schedule = log_snr_schedule(5)
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)
    want = run(ddim(schedule), mixture, x)
    for of in ("x0", "eps"):
        torch.testing.assert_close(run(dpm_multistep(schedule, 1, of=of), mixture, x), want, rtol=0, atol=1e-13)
        torch.testing.assert_close(run(dpm_singlestep(schedule, 1, of=of), mixture, x), want, rtol=0, atol=1e-13)


def test_2s_is_its_formula():
    """Lu et al. 2022, algorithm 1 (arXiv:2211.01095), with r = 1/2."""
    here, there = at(-1.0), at(0.4)
    first, second = dpmpp_2s(schedules.Schedule(PROCESS, [here, there])).rows
    inner, width = at(-0.3), 1.4
    assert floats(second.level) == pytest.approx(floats(inner), rel=1e-12)
    assert first.keep.item() == pytest.approx(float(inner.sigma / here.sigma))
    assert floats(first.gains) == pytest.approx(floats([-inner.alpha * math.expm1(-width / 2)]))
    assert second.keep == 0
    assert second.saved_gain.item() == pytest.approx(float(there.sigma / here.sigma))
    assert floats(second.gains) == pytest.approx(floats([-there.alpha * math.expm1(-width), 0.0]))


def test_dpm_solver_3_is_its_formula():
    """Lu et al. 2022, algorithm 2 (arXiv:2206.00927), with r1 = 1/3 and r2 = 2/3."""
    here, there, width = at(-1.0), at(0.5), 1.5
    first, second, third = dpm_singlestep(schedules.Schedule(PROCESS, [here, there]), 3, of="eps").rows
    one, two = at(-0.5), at(0.0)
    assert floats(first.gains) == pytest.approx(floats([-one.sigma * math.expm1(width / 3)]))
    slope = two.sigma * 2 * (math.expm1(2 * width / 3) / (2 * width / 3) - 1)
    assert floats(second.gains) == pytest.approx(floats([-slope, slope - two.sigma * math.expm1(2 * width / 3)]))
    slope = there.sigma * 1.5 * (math.expm1(width) / width - 1)
    assert floats(third.gains) == pytest.approx(floats([-slope, 0.0, slope - there.sigma * math.expm1(width)]))
    assert third.saved_gain.item() == pytest.approx(float(there.alpha / here.alpha))


def test_calls_at_the_schedules_own_levels_are_those_inside_a_coarser_step():
    coarse, fine = log_snr_schedule(4), log_snr_schedule(12)
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)
    for of in ("x0", "eps"):
        inside = run(dpm_singlestep(coarse, 3, of=of), mixture, x)
        own = run(dpm_singlestep_on_schedule(fine, [3] * 4, of=of), mixture, x)
        torch.testing.assert_close(own, inside, rtol=0, atol=1e-12)


def test_orders_are_spent_as_published():
    assert [orders_for(calls, 3) for calls in (1, 2, 3, 9, 10, 11)] == [
        [1],
        [2],
        [2, 1],
        [3, 3, 2, 1],
        [3, 3, 3, 1],
        [3, 3, 3, 2],
    ]
    assert orders_for(5, 2) == [2, 2, 1]
    assert orders_for(4, 1) == [1] * 4


# ---------------------------------------------------------------------- multistep


def test_the_last_steps_lower_their_order_below_ten_steps():
    used = lambda plan: [len(row.gains) for row in plan.rows]  # noqa: E731
    assert used(dpmpp_3m(log_snr_schedule(9))) == [1, 2, 3, 3, 3, 3, 3, 2, 1]
    assert used(dpmpp_3m(log_snr_schedule(10))) == [1, 2, 3, 3, 3, 3, 3, 3, 3, 3]
    assert used(dpmpp_3m(log_snr_schedule(5), lower_below=0)) == [1, 2, 3, 3, 3]
    assert used(dpmpp_2m(log_snr_schedule(12), lower_below=math.inf)) == [1] + [2] * 10 + [1]


def test_2m_is_its_formula():
    """Lu et al. 2022, algorithm 2 (arXiv:2211.01095)."""
    levels = [at(-1.0), at(-0.3), at(0.7)]
    row = dpmpp_2m(schedules.Schedule(PROCESS, levels), lower_below=0).rows[1]
    ratio, width = 0.7 / 1.0, 1.0
    change = -levels[2].alpha * math.expm1(-width)
    assert floats(row.gains) == pytest.approx(floats((change * (1 + 1 / (2 * ratio)), -change / (2 * ratio))))


def test_the_exact_third_estimate_makes_third_order():
    share = torch.linspace(0.05, 0.95, 9, dtype=torch.float64)

    def order(rule) -> float:
        errors = []
        for steps in (32, 128):
            schedule = log_snr_schedule(steps, -4, 4)
            x = run(dpm_multistep(schedule, 3, rule=rule), quick, quantile(share, schedule[0]))
            errors.append((x - quantile(share, schedule[-1])).abs().mean().item())
        return math.log2(errors[0] / errors[1]) / 2

    assert order(exact) > 2.7
    assert order(taylor) < 2.5


# ---------------------------------------------------------------------- the ends


@pytest.mark.parametrize(
    "sampler", [dpmpp_2m, dpmpp_3m, dpmpp_2s, dpm_singlestep_on_schedule, dpmpp_2m_sde, dpmpp_2s_ancestral]
)
def test_steps_that_touch_an_end_are_of_first_order(sampler):
    schedule = schedules.uniform(RectifiedFlow(), 12)  # alpha = 0 to sigma = 0
    rows = sampler(schedule).rows
    assert floats(rows[0].gains) == pytest.approx([schedule[1].alpha.item()], abs=1e-12)
    assert rows[-1].keep == 0
    assert rows[-1].gains[0].item() == pytest.approx(1.0)
    assert all(weight == 0 for weight in rows[-1].gains[1:])
    for row in rows:
        assert all(math.isfinite(float(v)) for v in (row.keep, row.noise, row.saved_gain, *row.gains))


def test_a_single_step_from_noise_to_data_is_the_estimate():
    schedule = schedules.uniform(RectifiedFlow(), 1)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    for sampler in (dpmpp_2m, dpmpp_2s, dpmpp_sde):
        got = run(sampler(schedule), mixture, x, noise=lambda row, draw=0: torch.ones(5, dtype=torch.float64))
        torch.testing.assert_close(got, mixture(x, schedule[0]).x0)


@pytest.mark.parametrize(
    ("sampler", "calls"),
    [(dpmpp_2m, 8), (dpmpp_2s, 15), (dpmpp_sde, 15), (dpm_fast, 8), (lambda g: dpm_singlestep(g, 3), 22)],
)
def test_network_calls_of_eight_steps_onto_the_data(sampler, calls):
    schedule = schedules.karras(EDMProcess(), 8)
    assert len(sampler(schedule).levels) == calls


def test_dpm_fast_makes_the_calls_it_is_given():
    schedule = schedules.from_sigmas(EDMProcess(), [10.0, 0.1])
    for calls in (1, 2, 3, 9, 10, 11):
        assert len(dpm_fast(schedule, calls).levels) == calls


# ---------------------------------------------------------------------- noise


@pytest.mark.parametrize("name", SDES)
def test_without_noise_the_sdes_are_the_odes(name):
    schedule = schedules.karras(EDMProcess(), 8)
    x = schedule.start(torch.linspace(-2, 2, 7, dtype=torch.float64))
    plan = SDES[name](schedule, 0.0)
    assert all(row.noise == 0 for row in plan.rows)
    plain = {"2m": dpmpp_2m, "3m": lambda g: dpm_multistep(g, 3, rule=taylor, lower_below=0)}.get(name, dpmpp_2s)
    torch.testing.assert_close(run(plan, mixture, x), run(plain(schedule), mixture, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.4, 1.0])
@pytest.mark.parametrize("name", ["2m", "3m", "ancestral"])
def test_noise_makes_up_for_what_a_step_takes_away(name, eta):
    """With the data known to be one point, every step ends at the marginal: variance sigma^2 around it."""
    schedule = log_snr_schedule(6)
    plan = SDES[name](schedule, eta)
    known = lambda x, level: Estimate.of_x0(torch.full_like(x, 0.7), x, level)  # noqa: E731
    count = len(plan.rows) + 2
    x = torch.zeros(count, dtype=torch.float64) + 0.7 * schedule[0].alpha
    x[1] += schedule[0].sigma

    def noise(row: int, draw: int = 0) -> torch.Tensor:
        unit = torch.zeros(count, dtype=torch.float64)
        unit[2 + row] = 1.0
        return unit

    end = run(plan, known, x, noise=noise)
    parts = end - end[0]
    assert end[0].item() == pytest.approx(0.7 * schedule[-1].alpha)
    assert parts.square().sum().sqrt().item() == pytest.approx(schedule[-1].sigma)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_sdes_mean_follows_a_linear_x0_without_error(eta):
    """The mean of x exp(eta lambda) / sigma changes by (1 + eta) exp((1 + eta) lambda) x0 d(lambda)."""
    places = [-1.0, -0.4, 0.7]
    levels = [at(place) for place in places]
    row = dpmpp_2m_sde(schedules.Schedule(PROCESS, levels), eta, rule=taylor).rows[1]
    got = sum(gain * place for gain, place in zip(row.gains, places[1::-1], strict=True))
    change = quad(lambda v: (1 + eta) * math.exp((1 + eta) * v) * v, places[1], places[2])[0]
    assert got == pytest.approx(levels[2].sigma * math.exp(-eta * places[2]) * change)


@pytest.mark.parametrize("name", SDES)
def test_noise_is_scaled_and_spans_its_step(name):
    schedule = log_snr_schedule(3)
    single, double = SDES[name](schedule), SDES[name](schedule, noise_scale=2.0)
    for one, two in zip(single.rows, double.rows, strict=True):
        assert two.noise == pytest.approx(2 * one.noise)
    spans = [row.span for row in single.rows if row.noise != 0]
    assert (spans[0][0], spans[-1][1]) == (schedule[0], schedule[-1])


def test_dpm_fast_adds_no_noise_at_its_end():
    plan = dpm_fast(schedules.from_sigmas(EDMProcess(), [10.0, 0.1]), 12, eta=1.0)
    assert isinstance(plan, CoefficientTable)
    noises = [row.noise for row in plan.rows if row.span is not None]
    assert noises[-1] == 0
    assert min(noises[:-1]) > 0


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda g: dpm_multistep(g, 4), "order = 4: must lie in 1 to 3"),
        (lambda g: dpm_singlestep(g, 0), "order = 0: must lie in 1 to 3"),
        (lambda g: dpm_singlestep(g, [2, 2]), "2 orders for a schedule of 5 steps: must be as many"),
        (
            lambda g: dpm_singlestep_on_schedule(g, [3, 3]),
            r"orders \[3, 3\] take 6 calls, but the schedule has 5 steps",
        ),
        (lambda g: dpmpp_sde(g, share=0.0), "share = 0.0: the inner call must lie inside the step"),
        (lambda g: orders_for(0, 2), "calls = 0: a sampler needs at least 1 network call"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(RecipeError, match=message):
        make(log_snr_schedule(5))


@pytest.mark.parametrize(
    "make", [lambda g: dpm_multistep(g, of="eps"), lambda g: dpm_singlestep(g, of="eps"), dpm_fast]
)
def test_eps_cannot_begin_at_pure_noise(make):
    with pytest.raises(RecipeError, match=r"t = 1.0: alpha is 0 there.*take a sampler of x0 such as 'dpmpp-2m'"):
        make(schedules.uniform(CosineVP(), 8))


def test_a_stage_that_touches_an_end_is_marked_as_unusable():
    schedule = schedules.uniform(RectifiedFlow(), 2)
    assert not stage([schedule[1], at(1.0), schedule[2]], "x0", exact)[2]
    assert stage([at(-1.0), at(0.0), at(1.0)], "x0", exact)[2]
