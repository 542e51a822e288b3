"""Brownian noise: one path per sample, however it is cut."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from unveil.core import schedules
from unveil.core.elementary import scalar
from unveil.core.flow import RectifiedFlow
from unveil.core.process import CosineVP, LinearVP
from unveil.core.rng import START, BrownianPath, SampleRNG
from unveil.core.samplers import CoefficientTable, StepRow, ancestral, ddim, euler_ancestral
from unveil.core.ve import EDMProcess
from unveil.types import NoiseLevel

PROCESS = CosineVP()


def clock(level: NoiseLevel) -> float:
    return level.alpha**2 / (level.alpha**2 + level.sigma**2)


def path(count: int = 4, shape: tuple[int, ...] = (3,)) -> BrownianPath:
    return BrownianPath(SampleRNG(7, range(count)), shape)


@pytest.mark.parametrize("inner", [1e-3, 0.2, 0.5, 0.8123, 0.999])
def test_two_parts_of_an_increment_add_up_to_it(inner):
    walk, (first, middle, last) = path(), (PROCESS.at(t) for t in (1.0, inner, 0.0))

    def moved(here: NoiseLevel, there: NoiseLevel) -> torch.Tensor:
        return walk.increment(here, there).double() * math.sqrt(clock(there) - clock(here))

    torch.testing.assert_close(moved(first, middle) + moved(middle, last), moved(first, last), rtol=0, atol=1e-5)


def test_neither_the_order_of_asking_nor_the_batch_matters():
    levels = [PROCESS.at(1 - i / 20) for i in range(21)]
    walk = path(8)
    forwards = [walk.increment(a, b) for a, b in pairwise(levels)]
    walk = path(8)
    backwards = [walk.increment(levels[k], levels[k + 1]) for k in reversed(range(20))]
    alone = BrownianPath(SampleRNG(7, [5]), (3,))
    for k in range(20):
        assert torch.equal(forwards[k], backwards[19 - k])
        assert torch.equal(alone.increment(levels[k], levels[k + 1]), forwards[k][5:6])


def test_increments_are_standard_normal_and_parts_that_do_not_overlap_independent():
    walk = BrownianPath(SampleRNG(1, range(20_000)), ())
    levels = [LinearVP().at(t) for t in (1.0, 0.7, 0.69, 0.3, 0.05, 0.049, 0.001)]
    found = torch.stack([walk.increment(levels[k], levels[k + 1]) for k in range(6)]).double()
    assert found.mean(1).abs().max() < 4.5 / math.sqrt(20_000)
    assert torch.cov(found).sub(torch.eye(6)).abs().max() < 4.5 * math.sqrt(2 / 20_000)
    assert (found**4).mean(1).sub(3).abs().max() < 4.5 * math.sqrt(96 / 20_000)
    whole = walk.increment(levels[0], levels[4]).double()
    share = (clock(levels[3]) - clock(levels[2])) / (clock(levels[4]) - clock(levels[0]))
    assert (whole * found[2]).mean().item() == pytest.approx(math.sqrt(share), abs=0.03)


def test_the_path_is_the_same_under_every_process():
    for process in (EDMProcess(), RectifiedFlow(), LinearVP()):
        ends = [[at.at(at.t_of(half)) for half in (-2.0, 0.3)] for at in (PROCESS, process)]
        torch.testing.assert_close(path().increment(*ends[0]), path().increment(*ends[1]), rtol=0, atol=1e-6)


def test_steps_far_below_the_resolution_still_have_deviation_1_and_none_has_none():
    walk = BrownianPath(SampleRNG(1, range(5000)), ())
    here = PROCESS.at(0.4)
    tiny = walk.increment(here, PROCESS.at(0.4 - 1e-12))
    assert tiny.std().item() == pytest.approx(1, abs=0.04)
    assert torch.equal(walk.increment(here, here), torch.zeros(5000))
    assert walk.increment(PROCESS.at(1.0), PROCESS.at(0.0)).isfinite().all()


def test_memory_stays_flat_in_the_number_of_steps():
    walk = path()
    levels = [PROCESS.at(1 - i / 500) for i in range(501)]
    for here, there in pairwise(levels):
        walk.increment(here, there)
        assert len(walk._nodes) <= 2 * walk.depth + 1


def test_parts_with_levels_of_their_own_follow_their_own_part_of_the_path():
    walk = BrownianPath(SampleRNG(3, range(2)), (3,))
    here, there = (
        PROCESS.at(torch.tensor([times], dtype=torch.float64)) for times in ((0.9, 0.5, 0.2), (0.6, 0.1, 0.2))
    )
    found = walk.increment(here, there)
    for j, (start, end) in enumerate(((0.9, 0.6), (0.5, 0.1))):
        assert torch.equal(found[:, j], walk.increment(PROCESS.at(start), PROCESS.at(end))[:, j])
    assert torch.equal(found[:, 2], torch.zeros(2))


def test_a_table_gets_its_increments_row_by_row_and_fresh_noise_where_it_has_no_span():
    streams = SampleRNG(7, range(4))
    walk = BrownianPath(streams, (3,))
    schedule = schedules.uniform(PROCESS, 4)
    for table in (euler_ancestral(schedule), ancestral(schedule), ddim(schedule, 1.0)):
        assert isinstance(table, CoefficientTable)
        noise = walk.along(table)
        assert torch.equal(noise(1), walk.increment(schedule[1], schedule[2]))
        assert torch.equal(noise(START), streams.normal((3,), START))
    fresh = walk.along(CoefficientTable([StepRow(schedule[0], scalar(1.0), (scalar(0.0),), scalar(1.0))]))
    assert torch.equal(fresh(0), streams.normal((3,), 0))
    assert torch.equal(fresh(0, 2), streams.normal((3,), 0, 2))
