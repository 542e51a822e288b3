"""The verdict is arithmetic: it is held against cases worked out by hand and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from unveil.errors import NonFinite, RecipeError
from unveil.evaluate.verdict import Comparison, PublishedResult, interval, judge, overall

T_2 = 0.95 / math.sqrt(2 * 0.975 * 0.025)  # the 97.5 % point of Student's t with 2 degrees of freedom, closed form
T_3 = 3.18244630528  # with 3, from a table


def comparison(better, worse, placebo=((1.0, 1.1), (1.1, 1.0), (1.0, 1.0)), **rest) -> Comparison:
    return Comparison("better is lower", "a measure", ("a", "b"), tuple(better), tuple(worse), placebo, **rest)


def test_interval_by_hand():
    # mean 2; deviations -1 0 1, variance 1, standard error 1 / sqrt(3)
    found = interval([1, 2, 3])
    assert found.mean == 2
    assert found.low == pytest.approx(2 - T_2 / math.sqrt(3), rel=1e-10)
    assert found.high == pytest.approx(2 + T_2 / math.sqrt(3), rel=1e-10)
    # mean 5; deviations -3 -1 1 3, variance 20 / 3
    found = interval([2, 4, 6, 8])
    assert found.high == pytest.approx(5 + T_3 * math.sqrt(20 / 3 / 4), rel=1e-10)


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_interval_is_scipys_paired_t(count):
    random = np.random.default_rng(count)
    first, second = random.normal(size=(2, count))
    theirs = stats.ttest_rel(second, first).confidence_interval(0.95)
    found = interval(list(second - first))
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=1e-10)


@pytest.mark.parametrize(
    ("effects", "expected"),
    [
        ([1.0, 1.1, 0.9], "shown"),
        ([-1.0, -1.1, -0.9], "reversed"),
        ([1.0, 2.0, 3.0], "not shown"),  # same sign, but 2 - 4.303 / sqrt(3) < 0
        ([1.0, 2.0, 3.0, 2.0, 2.0], "shown"),  # the same spread with 5 seeds: 2 - 2.776 sqrt(0.5 / 5) > 0
        ([0.0, 0.0, 0.0], "not shown"),
        ([1.0, 1.0, 0.0], "not shown"),  # a seed without the sign
        ([5.0] * 20 + [-0.1], "not shown"),  # the interval excludes 0, one seed has not the sign
        ([1.0, 1.0, 1.0], "shown"),
    ],
)
def test_verdict_by_hand(effects, expected):
    assert judge(effects) == expected


def test_a_verdict_needs_three_seeds():
    with pytest.raises(RecipeError, match="2 seeds: a verdict needs at least 3"):
        judge([1.0, 1.0])


def test_a_broken_arm_gives_no_verdict():
    with pytest.raises(NonFinite, match="nan"):
        judge([1.0, float("nan"), 1.0])


def test_pairs_are_by_seed():
    one = comparison([1.0, 2.0, 3.0], [1.5, 2.4, 3.6])
    assert one.effects == pytest.approx((0.5, 0.4, 0.6))
    assert one.verdict == "shown"  # although the arms' own spread is twenty times the difference
    with pytest.raises(RecipeError, match="3 and 2 values"):
        comparison([1, 2, 3], [1, 2])


def test_placebo_is_judged_alike():
    assert comparison([1, 1, 1], [2, 2, 2]).placebo_verdict == "not shown"
    biased = comparison([1, 1, 1], [2, 2, 2], placebo=((1.0, 2.0), (1.0, 2.1), (1.0, 1.9)))
    assert biased.placebo_verdict == "shown"


def test_power_is_relative_to_the_papers_effect():
    # width 2 * 4.303 * 0.1 / sqrt(3) = 0.4968 on a worse mean of 10: 4.97 %
    one = comparison([9.9, 10.0, 10.1], [10.0, 10.0, 10.0], paper=PublishedResult(94.0, 100.0, "table"))
    assert one.relative_width == pytest.approx(2 * T_2 * 0.1 / math.sqrt(3) / 10, rel=1e-9)
    assert one.has_power  # the paper reports 6 %
    assert one.verdict == "not shown"
    assert one.is_settled  # an effect of 6 % would have been seen
    weak = comparison([9.9, 10.0, 10.1], [10.0, 10.0, 10.0], paper=PublishedResult(96.0, 100.0, "table"))
    assert not weak.has_power  # 4 % would not
    assert not weak.is_settled
    assert comparison([1, 1, 1], [2, 2, 2]).has_power is None
    assert comparison([1, 1, 1], [2, 2, 2]).is_settled  # an effect that was found needs no power


def test_an_arm_without_mistakes_is_compared_with_the_other():
    assert comparison((0.1, 0.2, 0.3), (0.0, 0.0, 0.0)).relative(0.1) == pytest.approx(0.5)
    assert comparison((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)).relative_width == 0


def test_logarithms_are_shares():
    one = comparison([9.0, 9.0, 9.0], [10.0, 10.0, 10.0], log2=True)
    assert one.relative(1.0) == 0.5
    assert one.relative(2.0) == 0.75


def test_a_claim_is_what_all_its_parts_are():
    shown, not_shown = comparison([1, 1, 1], [2, 2, 2]), comparison([1, 2, 3], [2, 2, 2])
    turned = comparison([2, 2, 2], [1, 1, 1])
    beside = comparison([2, 2, 2], [1, 1, 1], primary=False)
    assert overall([shown, shown, beside]) == "shown"
    assert overall([turned, turned]) == "reversed"
    assert overall([shown, turned]) == "not shown"
    assert overall([shown, not_shown]) == "not shown"


def test_false_alarms_are_rare():
    """Of placebos without an effect, one in twenty may look like one; a slip in n - 1 or in t would show."""
    draws = np.random.default_rng(7).normal(size=(600, 3))
    alarms = sum(judge(row.tolist()) != "not shown" for row in draws)
    assert 0.02 < alarms / 600 < 0.085
