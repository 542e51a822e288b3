"""Learning rates by optimiser step."""

from __future__ import annotations

from typing import cast

import pytest

from unveil.model.config import TrainConfig
from unveil.train import lr_schedule
from unveil.train.learner import Learner


def test_linear_rises_stays_and_falls_to_nothing():
    factor = lr_schedule.linear(100, warmup=10, decay=0.4)
    assert factor(0) == pytest.approx(0.1)
    assert [factor(step) for step in (9, 10, 60)] == [1, 1, 1]
    assert factor(80) == pytest.approx(0.5)
    assert factor(99) == pytest.approx(1 / 40)
    assert factor(100) == 0


def test_without_warmup_and_decay_it_is_constant():
    factor = lr_schedule.linear(5)
    assert {factor(step) for step in range(5)} == {1.0}


def test_cosine_is_half_way_down_in_the_middle():
    factor = lr_schedule.cosine(110, warmup=10)
    assert factor(4) == pytest.approx(0.5)
    assert factor(10) == pytest.approx(1)
    assert factor(60) == pytest.approx(0.5)
    assert factor(110) == pytest.approx(0, abs=1e-12)


def test_overlapping_warmup_and_decay_never_jump_up():
    factor = lr_schedule.linear(10, warmup=8, decay=1.0)
    values = [factor(step) for step in range(11)]
    assert max(values) < 1
    assert values[-1] == 0


def test_inverse_sqrt_is_its_formula():
    factor = lr_schedule.inverse_sqrt(warmup=40)
    for step in (0, 10, 39, 40, 500):
        wanted = min((step + 1) ** -0.5, (step + 1) * 40**-1.5)  # without the width
        assert factor(step) * 40**-0.5 == pytest.approx(wanted)
    assert factor(39) == 1


def test_a_warmup_longer_than_the_run_is_shortened_with_a_warning(caplog: pytest.LogCaptureFixture):
    assert [lr_schedule.warmup_within(50, warmup) for warmup in (0, 7, 50)] == [0, 7, 50]
    assert not caplog.records
    assert [lr_schedule.warmup_within(steps, 200) for steps in (2, 50, 199)] == [1, 5, 19]
    assert "warmup = 200 is longer than the run of 50 steps" in caplog.text
    assert "rises over 5 instead" in caplog.text


def test_a_learner_of_a_short_run_reaches_its_learning_rate():
    config = TrainConfig(steps=20, warmup=1000)
    factor = Learner.schedule(cast("Learner", None), config)
    assert [factor(step) for step in (0, 1, 19)] == [0.5, 1, 1]
