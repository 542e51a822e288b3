"""Adaptive DPM-Solver: what the registry's tests cannot see."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from tests.core.mixture import exact as mixture
from tests.core.path import quantile
from unveil.core import schedules
from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.flow import RectifiedFlow
from unveil.core.process import CosineVP, LinearVP
from unveil.core.rng import SampleRNG
from unveil.core.samplers import SamplerState, ddim, run
from unveil.core.samplers.adaptive import (
    AdaptivePlan,
    IController,
    PIDController,
    Tolerance,
    batch_norm,
    dpm_adaptive,
    max_error,
    per_sample_norm,
    x_unit,
)
from unveil.core.samplers.coefficients import exact
from unveil.core.samplers.exponential import dpm_singlestep
from unveil.core.samplers.stages import last_stage_only
from unveil.core.ve import EDMProcess
from unveil.errors import Cancelled, NonFinite, RecipeError
from unveil.types import NoiseLevel, like

SCHEDULE = schedules.uniform_log_snr(LinearVP(), 1, low=-4, high=4)
SHARE = torch.linspace(0.05, 0.95, 6, dtype=torch.float64)


def tolerance(size: float, **options) -> Tolerance:
    return Tolerance(0.0078 * size, 0.05 * size, **options)


def counted(step: DenoiseFn = mixture) -> tuple[list[NoiseLevel], DenoiseFn]:
    """The levels of all calls, and a step that notes them."""
    calls: list[NoiseLevel] = []

    def noting(x: Tensor, level: NoiseLevel) -> Estimate:
        calls.append(level)
        return step(x, level)

    return calls, noting


# ---------------------------------------------------------------------- accuracy


@pytest.mark.parametrize(("order", "of"), [(2, "x0"), (2, "eps"), (3, "x0"), (3, "eps")])
def test_a_smaller_tolerance_makes_a_smaller_error_with_more_calls(order, of):
    errors, costs = [], []
    for size in (1.0, 0.1, 0.01):
        calls, step = counted()
        x = run(dpm_adaptive(SCHEDULE, order, of=of, tolerance=tolerance(size)), step, quantile(SHARE, SCHEDULE[0]))
        errors.append((x - quantile(SHARE, SCHEDULE[-1])).abs().mean().item())
        costs.append(len(calls))
    assert errors[0] > 2 * errors[1], errors
    assert errors[1] > 2 * errors[2], errors
    assert costs[0] < costs[1] < costs[2]


def test_it_spends_its_calls_where_they_are_needed():
    """Against even steps at as many calls: the distance to the exact end."""
    calls, step = counted()
    x = run(dpm_adaptive(SCHEDULE, tolerance=tolerance(0.1, across=max_error)), step, quantile(SHARE, SCHEDULE[0]))
    even = schedules.uniform_log_snr(LinearVP(), len(calls), low=-4, high=4)
    plain = run(ddim(even), mixture, quantile(SHARE, even[0]))
    want = quantile(SHARE, SCHEDULE[-1])
    assert (x - want).abs().mean() < 0.2 * (plain - want).abs().mean()


@pytest.mark.parametrize(
    "control", [PIDController(first=2.0), IController(first=2.0), PIDController(0.3, 0.4, first=2.0)]
)
def test_a_step_that_was_too_wide_is_repeated(control):
    calls, step = counted()
    plan = dpm_adaptive(SCHEDULE, tolerance=tolerance(0.1, across=max_error), control=control)
    x = run(plan, step, quantile(SHARE, SCHEDULE[0]))
    assert (x - quantile(SHARE, SCHEDULE[-1])).abs().max() < 0.1
    begun = [float(torch.as_tensor(level.t)[0]) for level in calls[::3]]
    assert any(here == there for here, there in pairwise(begun))
    assert begun == sorted(begun, reverse=True)


def test_the_last_stage_may_use_all_estimates():
    """With `exact`, an x0 that is a quadratic in log-SNR is integrated without error, with `farthest` it is not."""

    def bent(x: Tensor, level: NoiseLevel) -> Estimate:
        return Estimate.of_x0(like(level.half_log_snr**2, x) * torch.ones_like(x), x, level)

    x = torch.zeros(1, dtype=torch.float64)
    fine = schedules.uniform_log_snr(LinearVP(), 400, low=-4, high=4)
    want = run(dpm_singlestep(fine, 3), bent, x)
    errors = {
        rule: (run(dpm_adaptive(SCHEDULE, of="x0", rule=rule), bent, x) - want).abs().item()
        for rule in (exact, last_stage_only)
    }
    assert errors[exact] < 1e-6 < 1e-4 < errors[last_stage_only]


# ---------------------------------------------------------------------- cost, and state of each sample


@pytest.mark.parametrize("order", [2, 3])
def test_both_orders_share_their_calls(order):
    calls, step = counted()
    tries = []
    run(dpm_adaptive(SCHEDULE, order), step, quantile(SHARE, SCHEDULE[0]), on_step=tries.append)
    assert len(calls) == order * len(tries)
    assert all(shown.total is None for shown in tries)


def test_samples_have_clocks_of_their_own_unless_they_are_taken_together():
    easy, hard = quantile(SHARE[2:3], SCHEDULE[0]), torch.tensor([300.0], dtype=torch.float64)

    def ends(across) -> tuple[Tensor, Tensor, Tensor]:
        plan = dpm_adaptive(SCHEDULE, tolerance=Tolerance(across=across))
        both = torch.cat([easy, hard])
        return run(plan, mixture, easy), run(plan, mixture, hard), run(plan, mixture, both)

    one, two, both = ends(per_sample_norm)
    assert torch.equal(torch.cat([one, two]), both)
    for across in (max_error, batch_norm):
        one, two, both = ends(across)
        assert (torch.cat([one, two]) - both).abs().max() > 1e-9


def test_errors_of_a_batch_are_its_worst_or_its_mean():
    squares = torch.tensor([4.0, 16.0, 0.0])
    assert per_sample_norm(squares).tolist() == [2.0, 4.0, 0.0]
    assert max_error(squares).tolist() == [4.0] * 3
    assert batch_norm(squares).tolist() == pytest.approx([math.sqrt(20 / 3)] * 3)


def test_known_parts_neither_move_nor_count():
    """The steps of the unknown part are those it would have alone."""
    process = RectifiedFlow()
    times = torch.tensor([[0.95, 0.0]], dtype=torch.float64)
    ends = torch.tensor([[0.05, 0.0]], dtype=torch.float64)
    x = torch.tensor([[0.8, 0.5], [-1.1, 0.2]], dtype=torch.float64)

    def step(x: Tensor, level: NoiseLevel) -> Estimate:
        return Estimate.of_x0(torch.tanh(x) * like(level.alpha, x), x, level)

    got = run(dpm_adaptive(schedules.from_times(process, [times, ends])), step, x)
    alone = run(dpm_adaptive(schedules.from_times(process, [0.95, 0.05])), step, x[:, :1])
    assert torch.equal(got[:, 1], x[:, 1])
    torch.testing.assert_close(got[:, :1], alone, rtol=0, atol=1e-12)


# ---------------------------------------------------------------------- resuming, and the ends


def test_a_run_that_was_left_goes_on_from_its_written_clock():
    plan = dpm_adaptive(SCHEDULE, tolerance=tolerance(0.3))
    x = quantile(SHARE, SCHEDULE[0])
    whole = run(plan, mixture, x)
    kept: list[SamplerState] = []

    def stop(shown):
        kept.append(shown.state._replace(x=shown.state.x.clone()))
        if shown.state.number == 7:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        run(plan, mixture, x, on_step=stop)
    written = json.loads(json.dumps(kept[-1].integrator_state))
    fresh = dpm_adaptive(SCHEDULE, tolerance=tolerance(0.3))
    assert torch.equal(run(fresh, mixture, kept[-1]._replace(integrator_state=tuple(written))), whole)


def test_steps_that_touch_an_end_are_made_at_first_order():
    process = CosineVP()  # alpha = 0 at t = 1
    schedule = schedules.from_times(process, [1.0, 0.98, 0.3, 0.02, 0.0])
    calls, step = counted()
    x = run(dpm_adaptive(schedule, of="x0"), step, torch.linspace(-2, 2, 9, dtype=torch.float64))
    assert x.isfinite().all()
    assert calls[0].t == 1.0
    assert calls[-1].t == 0.02
    assert all(isinstance(level.t, Tensor) for level in calls[1:-1])
    assert (len(calls) - 2) % 3 == 0


def test_two_levels_from_noise_to_data_are_one_step():
    schedule = schedules.uniform(RectifiedFlow(), 1)
    calls, step = counted()
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(run(dpm_adaptive(schedule, of="x0"), step, x), mixture(x, schedule[0]).x0)
    assert len(calls) == 1


def test_noise_keeps_the_distribution():
    """With the data known to be one point, what is added makes up for what the lower end of each step took away."""
    schedule = schedules.uniform_log_snr(LinearVP(), 1, low=-3, high=2)
    known = lambda x, level: Estimate.of_x0(torch.full_like(x, 0.7), x, level)  # noqa: E731
    streams = SampleRNG(5, range(50))
    start = streams.normal((400,), -1).double()
    plan = dpm_adaptive(schedule, eta=1.0)
    x = run(plan, known, 0.7 * schedule[0].alpha + schedule[0].sigma * start, noise=streams.bind((400,)))
    assert x.mean().item() == pytest.approx(0.7 * schedule[-1].alpha.item(), abs=0.005)
    assert x.std().item() == pytest.approx(schedule[-1].sigma.item(), rel=0.02)
    quiet = run(dpm_adaptive(schedule, eta=1.0, noise_scale=0.0), known, x, noise=streams.bind((400,)))
    assert quiet.std() < 0.9 * x.std()


# ---------------------------------------------------------------------- controllers


def test_the_simple_controller_is_its_formula():
    good = IController(safety=0.9).judge(0.5, 1.0, 0.2, (0.0, 0.0), 2)
    assert (good.good, good.width) == (True, pytest.approx(0.9 * 0.2 * 2**0.5))
    assert not IController().judge(1.1, 1.0, 0.2, (0.0, 0.0), 3).good
    assert math.isfinite(IController().judge(0.0, 1.0, 0.2, (0.0, 0.0), 3).width)


def test_the_pid_controller_limits_remembers_and_rejects():
    control = PIDController(0.4, 0.3, 0.1)
    first = control.judge(0.5, 0.1, 0.1, (0.0, 0.0), 2.0)
    inverse = 1 / (0.5 + 1e-8)
    # no past yet: it counts as unchanged, so the integral part alone is left
    assert first.width == pytest.approx(0.1 * (1 + math.atan(inverse ** (0.3 / 2) - 1)))
    assert first.past == (inverse, inverse)
    second = control.judge(2.0, 0.1, 0.1, first.past, 2.0)
    raw = (0.5**0.8 * inverse**-0.6 * inverse**0.1) ** 0.5
    assert second.width == pytest.approx(0.1 * (1 + math.atan(raw - 1)), rel=1e-6)
    assert not second.good
    assert second.past == first.past  # a step that does not stand is forgotten
    assert PIDController().judge(1e9, 1.0, 1.0, (0.0, 0.0), 3.0).width > 0.2  # one error cannot shrink it without limit


def test_each_sample_gets_back_what_its_controller_remembered():
    class Noting(PIDController):
        """Count the judged steps of each sample, and sum their errors."""

        seen: ClassVar[list[tuple[float, float]]] = []

        def judge(self, error, width, taken, past, order):
            self.seen.append(past)
            return super().judge(error, width, taken, past, order)._replace(past=(past[0] + 1, past[1] + error))

    run(dpm_adaptive(SCHEDULE, control=Noting()), mixture, quantile(SHARE[:1], SCHEDULE[0]))
    assert [past[0] for past in Noting.seen] == list(range(len(Noting.seen)))
    assert all(here[1] <= there[1] for here, there in pairwise(Noting.seen))


def test_the_unit_of_errors_is_a_choice():
    x = quantile(SHARE, SCHEDULE[0])
    costs = []
    for unit in (None, x_unit):
        calls, step = counted()
        run(dpm_adaptive(SCHEDULE, tolerance=Tolerance(across=max_error, **({"unit": unit} if unit else {}))), step, x)
        costs.append(len(calls))
    assert costs[0] != costs[1]


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dpm_adaptive(SCHEDULE, 4), "order = 4: an adaptive solver has 2"),
        (lambda: dpm_adaptive(SCHEDULE, tolerance=Tolerance(0.0)), "absolute = 0.0, relative = 0.05; must be above 0"),
        (
            lambda: dpm_adaptive(SCHEDULE, tolerance=Tolerance(relative=-1.0)),
            "relative = -1.0; must be above 0, and not",
        ),
        (lambda: dpm_adaptive(schedules.uniform(CosineVP(), 4)), "t = 1.0: alpha is 0 there"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


def test_a_tolerance_that_cannot_be_met_ends_in_a_message():
    generator = torch.Generator().manual_seed(0)

    def restless(x: Tensor, level: NoiseLevel) -> Estimate:
        return Estimate.of_x0(torch.rand(x.shape, generator=generator, dtype=x.dtype), x, level)

    with pytest.raises(RecipeError, match=r"sample \d+ would need steps below 1e-6 in log-SNR: raise them"):
        run(dpm_adaptive(SCHEDULE, tolerance=Tolerance(1e-9, 0.0)), restless, quantile(SHARE, SCHEDULE[0]))


def test_an_estimate_that_is_not_finite_is_named_with_its_step():
    def broken(x: Tensor, level: NoiseLevel) -> Estimate:
        estimate = mixture(x, level)
        late = bool((torch.as_tensor(level.t) < 0.5).all())
        return Estimate.of_x0(estimate.x0 * math.nan, x, level) if late else estimate

    with pytest.raises(NonFinite, match=r"step \d+: the estimates of sample 0 from t = 0\.\d+ on are not finite"):
        run(dpm_adaptive(SCHEDULE), broken, quantile(SHARE, SCHEDULE[0]))


def test_noise_that_is_missing_is_named():
    plan = dpm_adaptive(schedules.from_sigmas(EDMProcess(), [10.0, 0.1]), eta=1.0)
    assert isinstance(plan, AdaptivePlan)
    with pytest.raises(RecipeError, match="this sampler adds noise: pass noise="):
        run(plan, mixture, torch.ones(3, dtype=torch.float64))
