"""UniPC: what the registry's tests cannot see."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tests.core.mixture import exact as mixture
from tests.core.numbers import floats
from tests.core.path import quantile, quick
from unveil.core import schedules
from unveil.core.elementary import scalar
from unveil.core.flow import RectifiedFlow
from unveil.core.process import CosineVP, LinearVP
from unveil.core.samplers import run
from unveil.core.samplers.coefficients import midpoint, phi_functions
from unveil.core.samplers.exponential import dpm_multistep
from unveil.core.samplers.unipc import b1, b2, unipc, varying
from unveil.errors import RecipeError

VARIANTS = {"b1": b1, "b2": b2, "varying": varying}


def log_snr_schedule(steps: int, low: float = -3.0, high: float = 3.0) -> schedules.Schedule:
    return schedules.uniform_log_snr(LinearVP(), steps, low=low, high=high)


def fitted(order: int, **options) -> float:
    """Where neither the first nor the last step is negligible."""
    share = torch.linspace(0.05, 0.95, 15, dtype=torch.float64)
    errors = []
    for steps in (24, 48, 96):
        schedule = log_snr_schedule(steps, -2, 2)
        x = run(unipc(schedule, order, **options), quick, quantile(share, schedule[0]))
        errors.append((x - quantile(share, schedule[-1])).square().mean().sqrt().item())
    return math.log2(errors[0] / errors[-1]) / 2


@pytest.mark.parametrize("of", ["x0", "eps"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_corrector_raises_the_order_by_one(order, variant, of):
    rule = VARIANTS[variant]
    # the first step has no estimate behind it, so that its error h^3 is all that the whole can have
    declared = {1: 2, 2: 3, 3: 3}[order]
    assert fitted(order, of=of, predict=rule, correct=rule, lower_below=0) > declared - 0.3


def test_lower_orders_at_the_end_leave_second_order():
    assert 1.8 < fitted(3) < 2.5
    assert fitted(3, lower_below=0) > 2.6


def test_variants_differ_in_single_differences_alone():
    """B(h) cancels where the equations determine the weights: all but the first steps, and lower orders at the end."""
    plans = [unipc(log_snr_schedule(8), predict=rule, correct=rule, lower_below=0) for rule in VARIANTS.values()]
    for rows in zip(*(plan.rows[4:] for plan in plans), strict=True):
        for row in rows[1:]:
            assert floats(row.gains) == pytest.approx(floats(rows[0].gains), rel=1e-9)
    first, second, third = (floats(plan.rows[1].gains) for plan in plans)
    assert first != pytest.approx(second, rel=1e-6)
    assert second != pytest.approx(third, rel=1e-6)


@pytest.mark.parametrize(
    ("rule", "weight"),
    [
        (b1, lambda h: 0.5 * h / -math.expm1(-h)),
        (b2, lambda h: 0.5),
        (varying, lambda h: (phi_functions(2, scalar(-h))[1] / phi_functions(1, scalar(-h))[0]).item()),
    ],
)
def test_the_first_correction_is_its_formula(rule, weight):
    """UniC-1: x + gain w (x0 at the end - x0 at the beginning), then the next first-order step. Width 2."""
    schedule = log_snr_schedule(3)
    rows = unipc(schedule, 1, predict=rule, correct=rule).rows
    gain = [there.alpha - here.alpha * there.sigma / here.sigma for here, there in itertools.pairwise(schedule)]
    keep = schedule[2].sigma / schedule[1].sigma
    corrected = keep * gain[0] * weight(2.0)
    assert floats(rows[0].gains) == pytest.approx([gain[0].item()])
    assert rows[1].keep.item() == pytest.approx(keep.item())
    assert floats(rows[1].gains) == pytest.approx(floats([gain[1] + corrected, -corrected]))


def test_the_predictor_alone_is_the_multistep_solver():
    """With a corrector that repeats the prediction, B_2 of order 2 is DPM-Solver++(2M)."""

    def nothing(nodes, reach):
        start, *rest = b2([nodes[0], *nodes[2:]], reach)
        return [start, 0.0, *rest]

    schedule = log_snr_schedule(7)
    for plain, row in zip(
        dpm_multistep(schedule, 2, rule=midpoint, lower_below=0).rows,
        unipc(schedule, 2, predict=b2, correct=nothing, lower_below=0).rows,
        strict=True,
    ):
        assert row.keep.item() == pytest.approx(plain.keep.item())
        gains = [*floats(plain.gains), *[0.0] * (len(row.gains) - len(plain.gains))]
        assert floats(row.gains) == pytest.approx(gains, abs=1e-12)


def test_it_costs_one_call_a_step_and_takes_its_order_from_estimates_behind_it():
    plan = unipc(log_snr_schedule(8))
    assert plan.levels == list(log_snr_schedule(8)[:-1])
    # the newest, as many as the corrector of the step before has, and no more: 1, then one more each, to 4
    assert [len(row.gains) for row in plan.rows] == [1, 2, 3, 4, 4, 4, 4, 3]
    assert [len(row.gains) for row in unipc(log_snr_schedule(4), 1).rows] == [1, 2, 2, 2]


@pytest.mark.parametrize("variant", VARIANTS)
def test_ends_are_finite_and_leave_nothing_to_correct(variant):
    schedule = schedules.uniform(RectifiedFlow(), 6)  # alpha = 0 to sigma = 0
    plan = unipc(schedule, predict=VARIANTS[variant], correct=VARIANTS[variant])
    for row in plan.rows:
        assert all(math.isfinite(float(v)) for v in (row.keep, *row.gains))
    assert plan.rows[1].gains[1:] == pytest.approx([0.0] * (len(plan.rows[1].gains) - 1))
    assert (plan.rows[-1].keep, plan.rows[-1].gains[0]) == (0.0, pytest.approx(1.0))
    x = run(plan, mixture, torch.linspace(-2, 2, 9, dtype=torch.float64))
    assert x.isfinite().all()


def test_mistakes_are_named():
    with pytest.raises(RecipeError, match="order = 0: must be 1 or more"):
        unipc(log_snr_schedule(5), 0)
    with pytest.raises(RecipeError, match=r"t = 1.0: alpha is 0 there"):
        unipc(schedules.uniform(CosineVP(), 5), of="eps")


def test_orders_above_three_use_as_many_estimates():
    rows = unipc(log_snr_schedule(8), 5, lower_below=0).rows
    assert [len(row.gains) for row in rows] == [1, 2, 3, 4, 5, 6, 6, 6]
    weights = varying([scalar(-float(k)) for k in range(5)], scalar(-0.7))
    share = torch.linspace(0, 1, 20001, dtype=torch.float64)
    kernel = (-0.7 * (1 - share)).exp()
    want = torch.trapezoid(kernel * share**4, share) / torch.trapezoid(kernel, share)
    got = sum(weight.item() * float(-k) ** 4 for k, weight in enumerate(weights))
    assert got == pytest.approx(want.item(), rel=1e-6)
